"""The sample of what was predicted: bounded, even, without content, whole on disk."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_manifest.errors import InputError
from services.drift.sample import Sampler, read_sample
from trainers.model.predictor import Predictions
from trainers.model.reference import FACTS


def predictions(start: int, records: int) -> Predictions:
    """Of records whose first feature is their number; the last one cannot be predicted."""
    probs = np.tile([0.75, 0.25], (records, 1))
    features = np.zeros((records, 64))
    features[:, 0] = np.arange(start, start + records)
    facts = np.ones((records, len(FACTS)))
    probs[-1] = np.nan
    nothing: list[list[str]] = [[] for _ in range(records)]
    return Predictions(
        ["no", "yes"], probs, ["no"] * records, np.zeros(records), nothing, nothing, [None] * records, features, facts
    )


def test_a_sample_is_bounded_and_even(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path / "sample.parquet", 200)
    for start in range(0, 4000, 20):
        sampler.add("model:1", "one", predictions(start, 21))
    sampler.add("model:2", "two", predictions(0, 3))
    sampler.close()
    sample = read_sample(tmp_path / "sample.parquet", "one")
    assert (len(sample.seen), sample.predicted) == (200, 4000)
    numbers = sample.seen.features_NK[:, 0]
    assert len(set(numbers)) == 200 and 1700 < numbers.mean() < 2300
    assert sample.first <= sample.last
    assert len(read_sample(tmp_path / "sample.parquet", "two").seen) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["sample.parquet"]


def test_it_holds_features_and_predictions_alone(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path / "sample.parquet")
    sampler.add("model:1", "one", predictions(0, 3))
    sampler.write()
    table = pq.read_table(tmp_path / "sample.parquet")
    known = ["time", "model", "fingerprint", "label", "confidence", "probs", "features", *FACTS]
    assert table.column_names == known
    assert table.select(["model", "label"]).to_pylist() == [{"model": "model:1", "label": "no"}] * 2


def test_the_latest_versions_have_a_sample(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path / "sample.parquet")
    for number in range(5):
        sampler.add(f"model:{number}", f"print-{number}", predictions(0, 2))
    sampler.write()
    with pytest.raises(
        InputError, match=r"features of two models cannot be compared; found 'model:2, model:3, model:4'"
    ):
        read_sample(tmp_path / "sample.parquet", "print-0")
    assert len(read_sample(tmp_path / "sample.parquet", "print-4").seen) == 1


def test_it_is_written_soon_and_a_service_outlives_a_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "folder" / "sample.parquet"
    sampler = Sampler(file, every_s=0.01)
    sampler.add("model:1", "one", predictions(0, 2))
    ends = time.monotonic() + 20
    while not file.is_file():
        assert time.monotonic() < ends
        time.sleep(0.01)
    file.unlink()
    file.mkdir()
    sampler.add("model:1", "one", predictions(0, 2))
    sampler.close()
    assert "the sample is not written" in caplog.text


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--sample: is not the name of a sample; found .*; wanted FILE\.parquet"):
        Sampler(tmp_path / "sample.csv")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="is not a sample of predictions"):
        read_sample(tmp_path / "other.parquet", "one")
    with pytest.raises(InputError, match="cannot be read"):
        read_sample(tmp_path / "absent.parquet", "one")
