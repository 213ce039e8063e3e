"""`m2can data suggest`: which records it chooses, what it writes, and the page in a real browser."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import read_split
from datasets_manifest.records.target_labels import read_target_labels
from services.cli.main import app
from services.labelling.page import labelling_page
from services.labelling.suggest import Suggestion, most_worth, suggest, worth
from tests.browser import ask
from tests.trainers.made_run import HOSTILE
from tests.trainers.tiny_run import make_loop, small_recipe
from trainers.loop.floor import find_floor
from trainers.model.floor_files import write_floor
from trainers.model.inspection import Inspector
from trainers.preflight.preparation import prepare
from trainers.worker.reports import evaluation_tensors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a checkpoint and a floor."""
    folder = tmp_path_factory.mktemp("suggest")
    prepared = prepare(small_recipe(folder, ["train.epochs=1"]))
    loop = make_loop(prepared)
    floor = find_floor(loop)
    assert floor is not None
    write_floor(folder, floor.network, loop.frozen, loop.card, floor.metrics, floor.evaluation)
    _, scored = loop.run_epoch()
    loop.save(folder / "checkpoint", evaluation_tensors(loop, scored))
    return folder


def records_of(run: Path) -> pa.Table:
    predictor = Inspector.load(run / "checkpoint")
    return read_split(load_manifest(predictor.card.recipe.data.target), "train").table


@pytest.mark.parametrize("model", ["checkpoint", "floor"])
def test_half_is_worth_most_and_half_is_drawn_by_chance(run: Path, model: str) -> None:
    predictor, records = Inspector.load(run / model), records_of(run)
    known = records["id"].to_pylist()[:6]
    found = suggest(predictor, records, 9, seed=3, labelled=known)
    assert [one.purpose for one in found].count("check") == 4 and len({one.id for one in found}) == 9
    assert not {one.id for one in found} & set(known)
    assert {one.predicted for one in found} <= set(predictor.classes) and all(0 <= one.worth <= 2 for one in found)
    assert found == suggest(predictor, records, 9, seed=3, labelled=known)
    with pytest.raises(
        InputError, match=r"--n: more than the target's training records .* found 31; wanted at most 30"
    ):
        suggest(predictor, records, 31)


def test_the_floors_modalities_add_up_to_its_prediction(run: Path) -> None:
    predictor, records = Inspector.load(run / "floor"), records_of(run)
    texts, images = records["texts"].to_pylist(), records["images"].to_pylist()
    text, picture = np.log(predictor.modality_probs(texts, images, batch_size=7))
    together = np.log(predictor.predict(texts, images).probs)
    bias = predictor.network.floor.bias_C.numpy()  # type: ignore[union-attr]
    added = text + picture - bias
    assert added - added.mean(1, keepdims=True) == pytest.approx(together - together.mean(1, keepdims=True), abs=1e-4)
    assert np.isnan(predictor.modality_probs([[], ["words"]], [[], []])[:, 0]).all()


def test_worth_grows_with_doubt_and_disagreement() -> None:
    sure, unsure = [0.98, 0.01, 0.01], [1 / 3] * 3
    one, other = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    modalities = np.array([[one, one, one, one], [one, one, other, other]])
    found = worth(np.array([sure, unsure, unsure, unsure]), modalities, np.array([True, True, True, False]))
    assert found[0] < 0.2 and found[1:].tolist() == pytest.approx([1, 2, 1])


def test_what_is_chosen_is_unlike_each_other_and_near_what_is_worth_most() -> None:
    draw = np.random.default_rng(0)
    features = np.concatenate([draw.normal(size=(50, 2)) + centre for centre in ([0, 0], [40, 0], [0, 40])])
    worth_N = np.full(150, 0.01)
    worth_N[[10, 60, 110]] = 1.0
    assert sorted(most_worth(worth_N, features, 3) // 50) == [0, 1, 2]
    assert len(most_worth(worth_N, features, 500)) == 150


def test_the_command_writes_a_table_and_a_page_that_lead_to_training(run: Path, tmp_path: Path) -> None:
    command = ["data", "suggest", str(run / "checkpoint"), "--n", "8", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    rows = list(csv.DictReader((tmp_path / "out" / "suggested.csv").open(encoding="utf-8", newline="")))
    assert [row["id"] for row in rows] == [one["id"] for one in told["suggestions"]] and len(rows) == 8
    records = {row["id"]: row for row in records_of(run).to_pylist()}
    for row in rows:
        record = records[row["id"]]
        assert row["texts"].split("\n") == (record["texts"] or [""]) and row["label"] == ""
        assert row["images"] == ";".join(record["images"])
    # The table itself, filled in, is what training reads.
    filled = tmp_path / "filled.csv"
    with filled.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"label": "neutral"} for row in rows)
    given = read_target_labels(filled, list(records), 0, ["negative", "neutral", "positive"])
    assert (len(given.rows), len(given.check_rows)) == (4, 4)
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, InputError) and "--out: is there already" in str(again.exception)
    result = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "new"), "--set", "train.seed=1"])
    assert "--set: goes with a recipe, not with a run" in str(result.exception)
    assert not (tmp_path / "new").exists()


def hostile(number: int, **other: Any) -> Suggestion:
    made = {"id": f'r{number}", "{HOSTILE}', "purpose": "train", "predicted": "good", "confidence": 0.5, "worth": 1.0}
    return Suggestion(**{**made, "texts": [HOSTILE, "two\nlines"], "images": []} | other)


def test_text_from_data_is_escaped_and_broken_pictures_are_told(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    some = hostile(1, images=[str(tmp_path / "broken.png")] * 6)
    text = labelling_page([some, hostile(2)], ["good", f"bad {HOSTILE}"], f"sea {HOSTILE}")
    assert text.count("<script>") == 1 and "<img src=" not in text and "onerror=alert(2)>" not in text
    assert "2 more pictures not shown" in text and text.count('<p class="soft">') == 5  # four that cannot be read


_LABEL = """(page, view) => {
  const records = [...page.querySelectorAll('.record')], save = page.getElementById('save');
  const before = save.getAttribute('aria-disabled');
  records[0].querySelectorAll('input')[1].click();
  const input = records[2].querySelector('input:checked');
  input.focus();
  input.dispatchEvent(new view.KeyboardEvent('keydown', {key: '1', bubbles: true}));
  return {before, after: save.getAttribute('aria-disabled'), count: page.getElementById('count').textContent,
    file: decodeURIComponent(save.href), name: save.download,
    focus: records.indexOf(page.activeElement.closest('.record')), done: page.querySelectorAll('.done').length};
}"""


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_labels_and_saves(tmp_path: Path, width: int) -> None:
    classes = ['ba,d "x"', "good"]
    page = tmp_path / "label.html"
    some = [hostile(n, purpose="check" if n == 2 else "train") for n in range(4)]
    page.write_text(labelling_page(some, classes, "sea"), encoding="utf-8")
    told = ask(page, width, _LABEL, tmp_path)
    assert (told["before"], told["after"], told["count"], told["done"]) == ("true", "false", "2 of 4 labelled", 2)
    assert told["overflow"] <= 0 and told["loaded"] == [] and told["name"] == "labels.csv" and told["focus"] == 3
    (tmp_path / "labels.csv").write_text(re.sub("^data:text/csv;charset=utf-8,", "", told["file"]), encoding="utf-8")
    given = read_target_labels(tmp_path / "labels.csv", [one.id for one in some], 0, classes)
    assert (given.rows.tolist(), given.labels.tolist()) == ([0], [1])
    assert (given.check_rows.tolist(), given.check_labels.tolist()) == ([2], [0])
