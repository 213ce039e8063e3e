"""The report of one run: page, pictures and summary."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from datasets_manifest.files import whole_folder
from trainers.encoders.weight_files import read_tensors
from trainers.journal.outcome import TARGET_ACCURACY, Outcome, verdicts_of
from trainers.loop.evaluation import calibration_error, confusion, reliability
from trainers.model.card import EVALUATION
from trainers.reports import figures, samples, sections
from trainers.reports.charts import percent
from trainers.reports.feature_map import feature_map
from trainers.reports.page import REPORT, render

_CONTENTS = {
    "overview": "What was trained",
    "choice": "Choice",
    "learning": "Learning curves",
    "pseudo-labels": "Pseudo labels",
    "confusion": "Confusion matrix",
    "calibration": "Calibration",
    "map": "Map",
    "samples": "Records",
    "data": "Data",
}


def draw_report(outcome: Outcome, *, pictures: bool = True) -> Path:
    """Write the run's page, pictures and summary into its folder `report`; the same run gives the same files.

    Args:
        pictures: False for the summary alone, without what other validators would have chosen.
    """
    report = outcome.folder / "report"
    with whole_folder(report, replace=True) as folder:
        if outcome.last.epoch > 0:
            _draw(outcome, folder, pictures)
        else:  # of the floor alone there is nothing to draw
            (folder / "summary.json").write_text(json.dumps(outcome.numbers(), indent=1) + "\n", encoding="utf-8")
    return report


def _draw(outcome: Outcome, folder: Path, pictures: bool) -> None:
    found = read_tensors(outcome.checkpoint / EVALUATION)
    tensors = {name: tensor.numpy() for name, tensor in found.items()}
    numbers = outcome.numbers() | ({"verdicts": verdicts_of(outcome)} if pictures else {})
    numbers["warnings"] = [asdict(finding) for finding in outcome.findings]
    recipe, classes = outcome.card.recipe, outcome.card.classes
    run = sections.Run(outcome, numbers, tensors)
    val = run.of_target(recipe.data.val_split)
    matrix = None
    if val and (val["true"] >= 0).any():
        matrix = confusion(val["true"], val["label"], len(classes))
        error = calibration_error(reliability(val["true"], val["label"], val["prob"]))
        numbers |= {"target_confusion": matrix.tolist(), "target_calibration_error": error}
    if pictures:
        _draw_pictures(run, matrix, folder)
        (folder / REPORT).write_text(_page(run), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def _draw_pictures(run: sections.Run, matrix: np.ndarray | None, folder: Path) -> None:
    outcome, recipe = run.outcome, run.outcome.card.recipe
    figures.loss_curves(outcome.records, folder / "loss_curves.png")
    figures.accuracy_curves(outcome.records, outcome.chosen.epoch or None, folder / "accuracy_curves.png")
    if recipe.uacr.enabled:
        figures.selection_curves(outcome.records, folder / "selection_curves.png")
    if matrix is not None:
        figures.confusion_matrix(matrix, outcome.card.classes, folder / "confusion_matrix.png")
    train = run.of_target(recipe.data.train_split)
    known = train["true"] >= 0
    if known.any():
        correct = (train["true"] == train["label"])[known]
        figures.pseudo_label_precision(train["score"][known], correct, folder / "pseudo_label_precision.png")


def _page(run: sections.Run) -> str:
    outcome = run.outcome
    return render(
        "run.html",
        outcome.name,
        script="feature_map.js",
        kinds=max(len(outcome.corpus.train), len(outcome.card.classes)),
        verdict=_verdict(outcome),
        findings=outcome.findings,
        contents=_CONTENTS,
        target=outcome.card.target,
        split=run.validation,
        val_split=outcome.card.recipe.data.val_split,
        train_split=outcome.card.recipe.data.train_split,
        numbers=run.numbers,
        overview=sections.overview(run),
        choice=sections.choice(run),
        learning=sections.learning(run),
        pseudo=sections.pseudo_labels(run),
        confusion=sections.confusion_matrix(run),
        calibration=sections.calibration(run),
        map=feature_map(outcome.corpus, outcome.checkpoints, outcome.chosen.epoch),
        samples=samples.samples(run),
        data=samples.data(run),
    )


def _verdict(outcome: Outcome) -> str:
    said = f"epoch {outcome.chosen.epoch}" if outcome.chosen.epoch else "the floor"
    where = f"{' + '.join(outcome.card.sources)} → {outcome.card.target}, {said} chosen"
    accuracy = outcome.chosen.metrics.get(TARGET_ACCURACY)
    if accuracy is None:
        known = f"expected to be {outcome.expected}" if outcome.expected else "not known"
        known = str(outcome.checked) if outcome.checked else known
        return f"{where}. The target has no validation labels: its accuracy is {known}."
    without_labels = f", expected without its labels {outcome.expected}" if outcome.expected else ""
    return f"{where}: target accuracy {percent(accuracy)}{without_labels}."
