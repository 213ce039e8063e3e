"""The page of a run: its sections, its numbers, what it says without labels, and itself in a real browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from datasets_manifest.records.target_labels import TargetLabels
from tests.browser import ask
from tests.trainers.made_run import HOSTILE, made_run
from trainers.journal.findings import Finding
from trainers.journal.outcome import Outcome
from trainers.loop.evaluation import reliability
from trainers.reports.charts import Epochs, Series, curves, draw_curves, new_figure
from trainers.reports.feature_map import principal_components, same_neighbour
from trainers.reports.run_report import draw_report
from trainers.validators.checked import CheckedAccuracy

SECTIONS = ["overview", "choice", "learning", "pseudo-labels", "confusion", "calibration", "map", "samples", "data"]


class Tree(HTMLParser):
    """Elements with their attributes, and each section's text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, str] = {}
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""

    def handle_data(self, data: str) -> None:
        self.words[self._section] = f"{self.words.get(self._section, '')} {data}"


def drawn(outcome: Outcome) -> tuple[str, Tree]:
    text = (draw_report(outcome) / "report.html").read_text(encoding="utf-8")
    return text, Tree(text)


def of_target(outcome: Outcome, split: str = "val") -> dict[str, np.ndarray]:
    tensors = load_file(outcome.checkpoint / "evaluation.safetensors")
    return {name: tensors[f"sea/{split}/{name}"] for name in ("true", "label", "prob")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, str, Tree]:
    outcome = made_run(tmp_path_factory.mktemp("made"))
    return outcome, *drawn(outcome)


def test_all_sections_are_there_and_tables_have_their_rows(made: tuple[Outcome, str, Tree]) -> None:
    _, _, tree = made
    assert [attrs["id"] for tag, attrs in tree.elements if tag == "section"] == SECTIONS
    links = {attrs["href"] for tag, attrs in tree.elements if tag == "a"}
    assert links == {f"#{anchor}" for anchor in SECTIONS}
    words = tree.words
    assert "hill + town → sea" in words["overview"] and "bad, middling, good" in words["overview"]
    assert "(trained)" in words["overview"] and "bilinear, rgb, mean 0.485 0.456 0.406" in words["overview"]
    assert re.search(r"chosen, without target labels\s+2\s+60.0 %", words["choice"])
    assert re.search(r"about 60 % \(40-75\)\s+0.5", words["choice"]) and "It is no promise" in words["choice"]
    assert "target, expected" in words["learning"]
    assert re.search(r"last\s+3\s+70.0 %", words["choice"]) and "Regret 10.0 %" in words["choice"]
    assert "MCC: class confusion" in words["learning"] and "Validation accuracy" in words["learning"]
    assert re.search(r"sea\s+target\s+val\s+12\s+12\s+4\s+0.33", words["data"])


@pytest.mark.parametrize("accuracy", [0.6, 0.1])
def test_what_held_out_labels_measure_is_said(tmp_path: Path, accuracy: float) -> None:
    outcome = made_run(tmp_path)
    start = outcome.corpus.train[-1].start
    rows = np.arange(start, start + 10)
    given = TargetLabels(rows[:3], np.zeros(3, np.int64), rows[3:], np.zeros(7, np.int64))
    checked = CheckedAccuracy(accuracy, max(accuracy - 0.1, 0), accuracy + 0.1, 7)
    records = [replace(record, metrics=record.metrics | checked.metrics()) for record in outcome.records]
    found = replace(outcome, records=records, chosen=records[1], corpus=replace(outcome.corpus, given=given))
    _, tree = drawn(found)
    said = re.sub(r"\s+", " ", tree.words["choice"])
    assert f"held out: {100 * accuracy:.0f} % (" in said and "on 7 labelled records held out for the chosen" in said
    assert ("agrees with it" in said) == (accuracy == 0.6) and ("believe the labels" in said) == (accuracy == 0.1)
    assert "3 records trained on, 7 held out" in tree.words["overview"]
    assert "target, held-out labels" in tree.words["learning"]


def test_what_harms_the_numbers_is_said(made: tuple[Outcome, str, Tree]) -> None:
    said = re.sub(r"\s+", " ", made[2].words["data"])  # all splits of the made-up domains have the same texts
    assert "sea/val 8 records without a picture" in said and "without a text" not in said
    assert "sea/val 8 records that are also in hill/train" in said
    assert "sea/val 4 records that are also in sea/train" in said  # those with a picture of their own
    assert "m2can data check" in said and "`" not in said


def test_the_calibration_error_is_that_of_its_definition(made: tuple[Outcome, str, Tree]) -> None:
    outcome, _, tree = made
    seen = of_target(outcome)
    total = 0.0
    for low in range(15):
        inside = [i for i, p in enumerate(seen["prob"]) if low / 15 <= p < (low + 1) / 15 or (low == 14 and p >= 1)]
        if inside:
            right = sum(int(seen["true"][i] == seen["label"][i]) for i in inside) / len(inside)
            total += len(inside) * abs(right - sum(float(seen["prob"][i]) for i in inside) / len(inside))
    assert f"Expected calibration error {100 * total / 12:.1f} %" in tree.words["calibration"]


def test_the_confusion_matrix_counts(made: tuple[Outcome, str, Tree]) -> None:
    outcome, text, _ = made
    seen = of_target(outcome)
    shown = re.search(r'class="confusion".*?</table>', text, re.S)
    assert shown is not None
    cells = [int(cell) for cell in re.findall(r">(\d+)<br>", shown[0])]
    assert cells == [int(((seen["true"] == t) & (seen["label"] == p)).sum()) for t in range(3) for p in range(3)]


def test_mistakes_are_the_surest_ones_with_their_pictures(made: tuple[Outcome, str, Tree]) -> None:
    outcome, text, _ = made
    seen = of_target(outcome)
    wrong = [i for i in range(12) if seen["true"][i] != seen["label"][i]]
    wanted = [f"sea-val-{i}" for i in sorted(wrong, key=lambda i: -seen["prob"][i])]
    part = text[text.index('id="samples"') : text.index('id="data"')]
    assert re.findall(r"<code>(.*?)</code>", part) == wanted
    assert part.count("data:image/jpeg;base64,") == sum(i % 3 == 0 for i in wrong)


def test_the_map_holds_every_sample_of_the_evidence(made: tuple[Outcome, str, Tree]) -> None:
    outcome, text, tree = made
    store = re.search(r'id="map-data">(.*?)</script>', text)
    assert store is not None
    data = json.loads(store[1])
    assert sorted(data["id"]) == sorted(
        [f"{d}-val-{i}" for d in ("hill", "town") for i in range(12)] + [f"sea-train-{i}" for i in range(12)]
    )
    probs = load_file(outcome.checkpoint / "evaluation.safetensors")["evidence/target_probs_NC"]
    place = data["id"].index("sea-train-7")
    assert data["domain"][place] == 2 and data["true"][place] == 7 % 3
    assert data["maps"][1]["predicted"][place] == probs[7].argmax()
    drawn_points = re.findall(r'<use href="#m(\d)" x="[\d.]+" y="[\d.]+"', text[text.index('charts maps"') :])
    assert [int(kind) for kind in drawn_points] == 2 * data["domain"]
    assert "Before: epoch 1" in tree.words["map"] and "After: the chosen epoch 2" in tree.words["map"]


def test_the_map_says_that_the_first_epochs_are_gone(tmp_path: Path) -> None:
    outcome = made_run(tmp_path)
    _, tree = drawn(
        replace(outcome, chosen=outcome.records[2], checkpoints={e: outcome.checkpoints[e] for e in (2, 3)})
    )
    assert "Before: epoch 2" in tree.words["map"] and "No checkpoint of an epoch before 2" in tree.words["map"]


def test_without_labels_every_section_says_so(tmp_path: Path) -> None:
    _, tree = drawn(made_run(tmp_path, labelled=False))
    assert [attrs["id"] for tag, attrs in tree.elements if tag == "section"] == SECTIONS
    for anchor in ("choice", "learning", "pseudo-labels", "confusion", "calibration", "samples"):
        assert re.search(r"have no labels here, so .* not known", tree.words[anchor]), anchor
    assert "Least certain records" in tree.words["samples"] and "unlabelled" in tree.words["map"]
    assert "nan" not in " ".join(tree.words.values()).lower().split()
    assert "its accuracy is expected to be about 60 % (40-75)." in " ".join(" ".join(tree.words.values()).split())


def test_without_uacr_the_section_says_so(tmp_path: Path) -> None:
    _, tree = drawn(made_run(tmp_path, overrides={"uacr": {"enabled": False}}))
    assert "no pseudo labels" in tree.words["pseudo-labels"]


def test_hostile_strings_stay_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    outcome = made_run(tmp_path, classes=[HOSTILE, "b&b", "<b>"], text=HOSTILE)
    text, tree = drawn(outcome)
    assert sum(tag == "script" for tag, _ in tree.elements) == 2  # the map's data and the page's own
    assert not [attrs for _, attrs in tree.elements if any(name.startswith("on") for name in attrs)]
    addresses = [
        v
        for _, attrs in tree.elements
        for k, v in attrs.items()
        if k in ("src", "href", "xlink:href") and v is not None
    ]
    assert addresses and all(address.startswith(("#", "data:image/jpeg;base64,")) for address in addresses)
    assert all(inside.startswith("#") for inside in re.findall(r"url\(([^)]*)", text)) and "@import" not in text
    policy = next(attrs["content"] for _, attrs in tree.elements if "http-equiv" in attrs)
    assert (
        policy is not None and "default-src 'none'" in policy and "unsafe-inline" not in policy.split("script-src")[1]
    )
    assert HOSTILE in tree.words["overview"]


def test_a_password_in_the_recipe_is_not_shown(tmp_path: Path) -> None:
    tracking = {"uri": "postgresql://ann:secret@db/mlflow"}
    text, tree = drawn(made_run(tmp_path, overrides={"tracking": tracking}))
    assert "secret" not in text and "postgresql://***@db/mlflow" in tree.words["overview"]


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    outcome = made_run(tmp_path)
    assert drawn(outcome)[0] == drawn(outcome)[0]


def test_what_is_seen_is_also_said(made: tuple[Outcome, str, Tree]) -> None:
    _, _, tree = made
    pictures = [attrs for tag, attrs in tree.elements if tag == "svg" and "aria-hidden" not in attrs]
    assert len(pictures) > 8 and all(attrs["role"] and attrs["aria-label"] for attrs in pictures)
    assert all(attrs["alt"] for tag, attrs in tree.elements if tag == "img")
    scrolling = [attrs for _, attrs in tree.elements if attrs.get("class") == "scroll"]
    assert scrolling and all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolling)


def test_reliability_bins_leave_unlabelled_rows_out() -> None:
    bins = reliability(np.array([0, 1, -1]), np.array([0, 0, 0]), np.array([0.95, 0.95, 0.1]))
    assert [(part.low, part.count, part.accuracy) for part in bins] == [(14 / 15, 2, 0.5)]


def test_principal_components_are_those_of_the_covariance() -> None:
    points = np.random.default_rng(0).normal(size=(50, 5)) * [5, 3, 1, 1, 0.1]
    places, share = principal_components(points)
    values = np.sort(np.linalg.eigvalsh(np.cov(points.T)))[::-1]
    assert places.var(0, ddof=1) == pytest.approx(values[:2]) and share == pytest.approx(
        values[:2].sum() / values.sum()
    )
    assert principal_components(np.ones((4, 3)))[1] == 0.0


def test_nearest_neighbours_of_the_same_group() -> None:
    points = np.array([[0.0], [0.1], [5.0], [5.1], [5.2]])
    assert same_neighbour(points, np.array([0, 0, 1, 1, 0])) == pytest.approx(0.8)
    assert same_neighbour(points, np.array([0, 0, 1, 1, -1])) == 1.0
    assert np.isnan(same_neighbour(points, np.full(5, -1)))


def test_a_curve_of_one_epoch_and_of_equal_values_is_drawn() -> None:
    for points in ([(1.0, 0.5)], [(1.0, 0.0), (2.0, 0.0)]):
        svg = curves("flat", [Series("a", points, 0)]).svg
        assert svg is not None and "nan" not in svg and svg.count("<use") == len(points)
    assert curves("none", [Series("a", [], 0)]).svg is None


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    outcome = made_run(tmp_path)
    for record in outcome.records:
        record.metrics.pop("uacr/kept_share")
        record.metrics.pop("uacr/accuracy", None)
        record.metrics.pop("uacr/precision", None)
    assert "Nothing of this was recorded." in drawn(outcome)[1].words["pseudo-labels"]


def test_points_have_titles_and_colours_are_those_of_the_page() -> None:
    svg = curves("loss", [Series("<b>", [(1.0, 0.5), (2.0, 0.25)], -1)], epochs=Epochs(marks={2.0: "chosen"})).svg
    assert svg is not None
    assert re.findall(r"<use [^>]*><title>(.*?)</title>", svg) == [
        "&lt;b&gt;, epoch 1: 0.5",
        "&lt;b&gt;, epoch 2: 0.25",
    ]
    assert "var(--text)" in svg and ">chosen</text>" in svg and "#1b1f24" not in svg


USE = """(page, view) => {
  const svg = page.querySelectorAll('.map svg')[1], use = svg.querySelectorAll('use'), said = page.getElementById('point');
  const links = () => [...use].map(u => u.getAttribute('href')).join();
  const told = {before: links(), quiet: said.textContent};
  page.querySelector('input[value=predicted]').click();
  told.after = links();
  told.legends = [...page.querySelectorAll('[data-legend]')].filter(l => view.getComputedStyle(l).display !== 'none')
    .map(l => l.dataset.legend);
  const box = use[5].getBoundingClientRect();
  const at = {clientX: (box.left + box.right) / 2, clientY: (box.top + box.bottom) / 2, bubbles: true};
  svg.dispatchEvent(new view.PointerEvent('pointermove', at));
  told.pointed = said.textContent;
  page.querySelector('.map').scrollIntoView({block: 'end'});
  told.read = said.getBoundingClientRect().bottom <= view.innerHeight + 1;
  told.letters = Math.min(...[...page.querySelectorAll('#learning figure > svg text')].map(t => {
    const svg = t.ownerSVGElement;
    return parseFloat(view.getComputedStyle(t).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  }));
  svg.dispatchEvent(new view.KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
  told.stepped = said.textContent;
  told.fill = view.getComputedStyle(page.querySelector('#m1')).fill;
  told.small = Math.min(...[...page.querySelectorAll('figure > svg')].map(s => s.getBoundingClientRect().width));
  return told;
}"""


@pytest.mark.stack
@pytest.mark.parametrize("width", [360, 1100])
def test_a_browser_shows_it_and_its_map_answers(tmp_path: Path, width: int) -> None:
    outcome = made_run(tmp_path, classes=[HOSTILE, "middling", "good"], text=HOSTILE)
    page = draw_report(outcome) / "report.html"
    told: dict[str, Any] = ask(page, width, USE, tmp_path)
    assert told["overflow"] == 0 and told["loaded"] == []
    assert told["before"] != told["after"] and told["legends"] == ["predicted"]
    assert told["quiet"] == "No record is pointed at."
    assert re.match(r"(hill|town)-val-\d+ · |sea-train-\d+ · ", told["pointed"]) and told["stepped"] != told["pointed"]
    assert told["read"], "what is pointed at is told where it can be seen"
    assert told["letters"] > 10.5, "pixels"
    assert told["fill"] == "rgb(213, 94, 0)" and told["small"] > 200


@pytest.mark.parametrize("values", [(1.15e-5, 1.25e-5), (0.1999991, 0.1999998)])
def test_labels_of_small_differences_have_room_and_differ(values: tuple[float, float]) -> None:
    with new_figure() as figure:
        axes = figure.subplots()
        draw_curves(axes, [Series("score", list(enumerate(values, 1)), 0)])
        figure.draw_without_rendering()
        labels = axes.get_yticklabels()
        left = [label.get_window_extent().x0 for label in labels]
    assert len({label.get_text() for label in labels}) == len(labels) > 3
    assert all(float(label.get_text()) == pytest.approx(label.get_position()[1], rel=1e-9) for label in labels)
    assert min(left) >= 0


def test_what_went_wrong_stands_before_the_sections(tmp_path: Path) -> None:
    wrong = Finding("one-class", "all 12 target records are predicted to be `good`", "state uacr.prior")
    outcome = replace(made_run(tmp_path), findings=[wrong])
    _, tree = drawn(outcome)
    assert "all 12 target records are predicted to be `good` : state uacr.prior" in re.sub(r"\s+", " ", tree.words[""])
    summary = json.loads((outcome.folder / "report" / "summary.json").read_text(encoding="utf-8"))
    assert summary["warnings"] == [{"name": "one-class", "what": wrong.what, "change": wrong.change}]


def test_a_report_that_was_cut_off_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = made_run(tmp_path)
    folder = draw_report(outcome)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainers.reports.figures.confusion_matrix", full)
    with pytest.raises(OSError, match="No space left"):
        draw_report(outcome)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in outcome.folder.iterdir()] == ["report"]
