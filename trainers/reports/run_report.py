"""report.html of one run: a file that needs nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainers.loop.evaluation import calibration_error, confusion
from trainers.model.checkpoint import read_tensors
from trainers.reports import charts, figures
from trainers.reports import feature_map as report_map
from trainers.reports import samples as report_samples
from trainers.reports import sections as report_sections
from trainers.reports.charts import percent
from trainers.reports.page import REPORT, contents, html, page
from trainers.tracking.outcome import Outcome

_STYLE = ".confusion td.cell { padding: .3rem .7rem; min-width: 4rem; border: 1px solid var(--line) }"


_EMPTY = np.empty(0)


def draw_report(outcome: Outcome) -> Path:
    """The run's page, pictures and summary, in its folder `report`."""
    folder = outcome.folder / "report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    figures.loss_curves(outcome.records, folder / "loss_curves.png")
    if outcome.card.recipe.uacr.enabled:
        figures.selection_curves(outcome.records, folder / "selection_curves.png")
    figures.accuracy_curves(outcome.records, outcome.chosen.epoch, folder / "accuracy_curves.png")
    tensors = {
        name: tensor.numpy() for name, tensor in read_tensors(outcome.checkpoint / "evaluation.safetensors").items()
    }
    data = outcome.card.recipe.data
    val = f"{outcome.card.target}/{data.val_split}"
    content: dict[str, Any] = {
        **outcome.numbers(),
        "verdicts": outcome.verdicts,
    }
    if (tensors.get(f"{val}/true", _EMPTY) >= 0).any():
        true, predicted = tensors[f"{val}/true"], tensors[f"{val}/label"]
        matrix = confusion(true, predicted, len(outcome.card.classes))
        figures.confusion_matrix(matrix, outcome.card.classes, folder / "confusion_matrix.png")
        content |= {
            "target_confusion": matrix.tolist(),
            "target_calibration_error": calibration_error(true, predicted, tensors[f"{val}/prob"]),
        }
    train = f"{outcome.card.target}/{data.train_split}"
    true = tensors[f"{train}/true"]
    known = true >= 0
    if known.any():
        correct = (true == tensors[f"{train}/label"])[known]
        figures.pseudo_label_precision(tensors[f"{train}/score"][known], correct, folder / "pseudo_label_precision.png")
    write_report(outcome, content, tensors, folder)
    (folder / "summary.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


def write_report(outcome: Outcome, numbers: Mapping[str, Any], tensors: Mapping[str, np.ndarray], folder: Path) -> Path:
    """Write the page into `folder`; the same run gives the same page.

    Args:
        numbers: what summary.json holds.
        tensors: of the chosen checkpoint's evaluation.safetensors.
    """
    run = report_sections.Run(outcome, numbers, tensors)
    sections = {
        "overview": ("What was trained", report_sections.overview(run)),
        "choice": ("Choice", report_sections.choice(run)),
        "learning": ("Learning curves", report_sections.learning(run)),
        "pseudo-labels": ("Pseudo labels", report_sections.pseudo_labels(run)),
        "confusion": ("Confusion matrix", report_sections.confusion_matrix(run)),
        "calibration": ("Calibration", report_sections.calibration(run)),
        "map": ("Map", report_map.map_section(outcome.corpus, outcome.checkpoints, outcome.chosen.epoch)),
        "samples": ("Records", report_samples.samples(run)),
        "data": ("Data", report_samples.data(run)),
    }
    body = [
        f"<h1>{html(outcome.name)}</h1><p><strong>{html(_verdict(outcome))}</strong></p>",
        contents({anchor: title for anchor, (title, _) in sections.items()}),
        *(content for _, content in sections.values()),
    ]
    file = folder / REPORT
    style = charts.STYLE + report_map.STYLE + _STYLE
    file.write_text(page(outcome.name, body, style=style, script=report_map.SCRIPT), encoding="utf-8")
    return file


def _verdict(outcome: Outcome) -> str:
    where = f"{' + '.join(outcome.card.sources)} → {outcome.card.target}, epoch {outcome.chosen.epoch} chosen"
    accuracy = outcome.chosen.metrics.get("target/val/accuracy")
    if accuracy is None:
        return f"{where}. The target has no validation labels: its accuracy is not known."
    return f"{where}: target accuracy {percent(accuracy)}."
