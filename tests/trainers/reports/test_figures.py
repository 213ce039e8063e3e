from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib import colormaps

from trainers.journal.journal import EpochRecord
from trainers.reports import charts, figures


def records(epochs: int, sources: Sequence[str] = ("AVA", "PCCD"), target: bool = True) -> list[EpochRecord]:
    made = []
    for epoch in range(1, epochs + 1):
        metrics = {f"loss/{name}": scale / epoch for name, scale in (("total", 3.0), ("task", 1.0), ("mcc", 0.01))}
        metrics |= {"source/val/accuracy": 0.9 - 0.4 / epoch, "selection/score": 1 - 1 / epoch, "lr/heads": 1e-4}
        metrics |= {f"source/{name}/val/accuracy": 0.9 - 0.1 / (k + epoch) for k, name in enumerate(sources)}
        if target:
            metrics["target/val/accuracy"] = 0.8 - 0.4 / epoch
        made.append(EpochRecord(epoch, epoch * 10, 0.0, metrics))
    return made


def pixels(file: Path) -> np.ndarray:
    """RGB, [height, width, 3]."""
    picture = cv2.imread(str(file))
    assert picture is not None
    height, width = picture.shape[:2]
    assert 600 <= width <= 2200 and 300 <= height <= 2200, "readable when shown at 900 pixels"
    return picture[:, :, ::-1]


def count(picture: np.ndarray, colour: str) -> int:
    """Pixels of exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((picture == wanted).all(axis=2).sum())


def test_loss_curves_show_the_total_apart_from_the_terms(tmp_path: Path) -> None:
    figures.loss_curves(records(8), tmp_path / "new" / "loss.png")
    picture = pixels(tmp_path / "new" / "loss.png")
    assert count(picture, charts.BLUE) > 500
    half = picture.shape[1] // 3
    assert count(picture[:, :half], charts.BLUE) == 0, "the first panel is the total, in black"


def test_every_recorded_term_has_its_panel(tmp_path: Path) -> None:
    few, many = records(4), records(4)
    for each in many:
        each.metrics.update({f"loss/new{n}": 1.0 / each.epoch for n in range(3)})
    figures.loss_curves(few, tmp_path / "few.png")
    figures.loss_curves(many, tmp_path / "many.png")
    assert pixels(tmp_path / "many.png").shape[0] > 1.5 * pixels(tmp_path / "few.png").shape[0]


@pytest.mark.parametrize(("target", "drawn"), [(True, True), (False, False)])
def test_accuracy_curves_draw_the_target_if_it_has_labels(tmp_path: Path, target: bool, drawn: bool) -> None:
    figures.accuracy_curves(records(8, target=target), 5, tmp_path / "accuracy.png")
    picture = pixels(tmp_path / "accuracy.png")
    assert (count(picture, charts.BLUE) > 500) is drawn
    assert count(picture, charts.VERMILION) > 500
    assert count(picture, charts.GREEN) > 500


def test_the_chosen_epoch_is_marked(tmp_path: Path) -> None:
    figures.accuracy_curves(records(8), None, tmp_path / "none.png")
    figures.accuracy_curves(records(8), 3, tmp_path / "third.png")
    figures.accuracy_curves(records(8), 6, tmp_path / "sixth.png")
    none, third, sixth = (pixels(tmp_path / f"{name}.png") for name in ("none", "third", "sixth"))
    # The mark's columns: where a picture with it differs from the one without.
    places = [float(np.median(np.nonzero((with_mark != none).any(axis=2))[1])) for with_mark in (third, sixth)]
    assert places[0] < places[1] - 200


def test_a_confusion_matrix_is_darkest_where_a_class_mostly_falls(tmp_path: Path) -> None:
    # Shares, not counts, are coloured: the small class is as dark as the large one.
    matrix = np.array([[900, 50, 50], [0, 10, 0], [300, 400, 300]])
    figures.confusion_matrix(matrix, ["negative", "neutral", "positive"], tmp_path / "matrix.png")
    picture = pixels(tmp_path / "matrix.png")

    def cells(share: float) -> int:
        return int((picture == colormaps["Blues"](share, bytes=True)[:3]).all(axis=2).sum())

    one_cell = cells(0.9)
    assert one_cell > 5000
    assert cells(1.0) == pytest.approx(one_cell, rel=0.1)
    assert cells(0.3) == pytest.approx(2 * one_cell, rel=0.1)


def test_pseudo_label_precision_bars_fall_with_the_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(1000)
    order = rng.permutation(1000)
    correct = rng.random(1000) < scores
    figures.pseudo_label_precision(scores[order], correct[order], tmp_path / "precision.png")
    picture = pixels(tmp_path / "precision.png")
    bars = (picture == [0x56, 0xB4, 0xE9]).all(axis=2).sum(axis=0)
    left, right = np.nonzero(bars)[0][[0, -1]]
    assert bars[left + 5] > 3 * bars[right - 5]
    assert count(picture, charts.BLUE) > 300


@pytest.mark.parametrize("epochs", [0, 1])
def test_short_runs_make_pictures_too(tmp_path: Path, epochs: int) -> None:
    figures.loss_curves(records(epochs), tmp_path / "loss.png")
    figures.accuracy_curves(records(epochs), epochs or None, tmp_path / "accuracy.png")
    for name in ("loss", "accuracy"):
        assert pixels(tmp_path / f"{name}.png").std() > 2, "something is written on it"


@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_pseudo_labels_make_a_picture_too(tmp_path: Path, n: int) -> None:
    scores = np.array([0.1, np.nan, 0.3])[:n]
    figures.pseudo_label_precision(scores, np.ones(n, dtype=bool), tmp_path / "precision.png")
    assert pixels(tmp_path / "precision.png").std() > 2


def test_classes_without_samples_and_many_classes(tmp_path: Path) -> None:
    figures.confusion_matrix(np.zeros((2, 2)), ["a", "b"], tmp_path / "empty.png")
    figures.confusion_matrix(np.eye(30), [f"a class with a long name {n}" for n in range(30)], tmp_path / "many.png")
    for name in ("empty", "many"):
        assert pixels(tmp_path / f"{name}.png").std() > 2


def test_the_same_numbers_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figures.loss_curves(records(3), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_selection_curves(tmp_path: Path) -> None:
    made = records(4)
    for each in made[1:]:  # nothing is selected in the first epoch
        each.metrics.update({"uacr/kept_share": 0.2 * each.epoch, "uacr/precision": 0.9, "uacr/accuracy": 0.7})
    figures.selection_curves(made, tmp_path / "with.png")
    figures.selection_curves(records(4), tmp_path / "without.png")
    assert count(pixels(tmp_path / "with.png"), charts.BLUE) > 500
    assert count(pixels(tmp_path / "without.png"), charts.BLUE) == 0
