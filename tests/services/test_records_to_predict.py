"""A plain file of records is predicted without a manifest, as the same records with one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from datasets_manifest.errors import InputError
from datasets_manifest.records.readers import ALL, read_for_prediction
from services.cli.main import app
from services.records_to_predict import is_records_file, manifest_to_predict
from tests.services.registered import Registered

CLASSES = ["negative", "neutral", "positive"]


def predict(registered: Registered, data: Path, out: Path, *more: str) -> str:
    arguments = ["predict", str(registered.bundles[0]), "--data", str(data), "--out", str(out), *more]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    return found.stderr


def test_a_table_with_columns_and_labels_of_its_own_is_predicted_as_its_manifest(
    registered: Registered, tmp_path: Path
) -> None:
    records = [json.loads(line) for line in (registered.manifest.parent / "val.jsonl").read_text().splitlines()]
    plain = registered.manifest.parent / "plain.csv"
    with plain.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["review", "photo", "stars"])
        for number, record in enumerate(records):
            words = record["text"] if isinstance(record["text"], str) else " ".join(record["text"])
            writer.writerow([words, "|".join(record["image"]), number % 5])
    before = sorted(plain.parent.iterdir())
    told = predict(registered, plain, tmp_path / "plain.csv")
    assert f"{plain}: text in `review`, image in `photo`" in told and "stars" not in told
    assert sorted(plain.parent.iterdir()) == before  # no manifest is left
    plain.unlink()
    same = registered.manifest.parent / "val.jsonl"
    assert "note" not in predict(registered, same, tmp_path / "same.csv")
    predict(registered, registered.manifest, tmp_path / "manifest.csv", "--split", "val")
    first, second = (pd.read_csv(tmp_path / name) for name in ("same.csv", "manifest.csv"))
    pd.testing.assert_frame_equal(first, second)
    assert len(pd.read_csv(tmp_path / "plain.csv")) == len(first) == len(records)


def test_of_a_file_without_texts_and_pictures_the_columns_are_told(tmp_path: Path) -> None:
    file = tmp_path / "numbers.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="neither texts nor images"):
        read_for_prediction(manifest_to_predict(file, CLASSES)[0], ALL)
    with pytest.raises(InputError, match="cannot be read"):
        manifest_to_predict(tmp_path / "gone.csv", CLASSES)


@pytest.mark.parametrize("name", ["a.csv", "A.TSV", "a.jsonl.gz", "a.parquet"])
def test_records_are_told_by_the_name(name: str) -> None:
    assert is_records_file(name) and is_records_file(Path("folder") / name)
    assert not is_records_file(f"s3://bucket/{name}") and not is_records_file(f"{name}.yaml")
