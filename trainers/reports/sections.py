"""Content of a run's page: its training and its predictions for the target. The text is in templates/run.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from datasets_manifest.errors import without_password
from trainers.encoders.picture_card import described
from trainers.journal.outcome import Outcome
from trainers.loop.evaluation import BINS, calibration_error, confusion, reliability
from trainers.recipe import Recipe, make_recipe
from trainers.reports import charts, figures
from trainers.reports.page import counted
from trainers.tracking.provenance import code_version, environment
from trainers.validators.expected import ExpectedAccuracy

MOST_CLASSES = 30  # of a confusion matrix that is written out, and of a list of classes
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Run:
    """A finished run.

    numbers: of summary.json. tensors: the chosen epoch's predictions for every scored row (see worker.reports).
    """

    outcome: Outcome
    numbers: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    def of_target(self, split: str) -> dict[str, np.ndarray]:
        """true, label, prob and score of the target's rows in a split; {} if it has none."""
        start = f"{self.outcome.card.target}/{split}/"
        return {name.removeprefix(start): x for name, x in self.tensors.items() if name.startswith(start)}

    @property
    def validation(self) -> str:
        """The split whose target rows are looked at: the validation split, else the training split."""
        data = self.outcome.card.recipe.data
        return data.val_split if self.of_target(data.val_split) else data.train_split

    @property
    def epochs(self) -> charts.Epochs:
        """All epochs; the chosen, the last and the oracle epoch are marked. One epoch may have several names."""
        outcome, names = self.outcome, dict[float, list[str]]()
        for name, record in (("chosen", outcome.chosen), ("last", outcome.last), ("oracle", outcome.oracle)):
            if record is not None and record.epoch > 0:  # the floor has no place among them
                names.setdefault(float(record.epoch), []).append(name)
        ends = (outcome.records[0].epoch, outcome.records[-1].epoch)
        return charts.Epochs(ends, {epoch: ", ".join(said) for epoch, said in names.items()})


def overview(run: Run) -> dict[str, Any]:
    """Domains, encoders, components, sizes and speed of the run, and its recipe."""
    outcome, recipe = run.outcome, run.outcome.card.recipe
    metrics = [record.metrics for record in outcome.records]
    seconds = sum(m.get("time/train_s", 0.0) + m.get("time/score_s", 0.0) for m in metrics)
    speed = [m["speed/samples_per_s"] for m in metrics if "speed/samples_per_s" in m]
    memory = max((m.get("memory/process_peak_mib", 0.0) for m in metrics), default=0.0)
    terms = [f"{name.upper()} {weight:g}" for name, weight in recipe.objective.weights().items() if weight]
    parts = [*terms, *(["SAM"] if recipe.sam.rho else []), *(["UACR"] if recipe.uacr.enabled else [])]
    workers = recipe.cluster.workers
    rows = [
        ("domains", f"{' + '.join(outcome.card.sources)} → {outcome.card.target}"),
        ("classes", ", ".join(outcome.card.classes)),
        ("preset", recipe.preset),
        *([("started from", outcome.card.started_from)] if outcome.card.started_from else []),
        ("encoders", recipe.encoders.described()),
        ("pictures", described(recipe)),
        *([("features, computed once", recipe.encoders.features)] if recipe.encoders.features else []),
        ("components", ", ".join(["cross-entropy", *parts])),
        ("target labels in training", _target_labels(run)),
        ("epochs", f"{outcome.last.epoch} of {recipe.train.epochs}, {outcome.last.step:,} steps"),
        ("batch size, of each domain", f"{recipe.train.batch_size}"),
        ("seed", f"{recipe.train.seed}"),
        ("workers", " to ".join(map(str, workers)) if isinstance(workers, tuple) else f"{workers}"),
        ("time in epochs", f"{seconds:,.0f} s"),
        ("speed, median", f"{np.median(speed):,.0f} samples/s" if speed else "–"),
        ("memory of a worker's process, most", f"{memory:,.0f} MiB" if memory else "–"),
        *versions(),
    ]
    return {"rows": rows, "differences": _differences(recipe), "recipe": list(_shown(recipe).items())}


def _target_labels(run: Run) -> str:
    given = run.outcome.corpus.given
    if given is None:
        return "not used" if run.outcome.card.recipe.train.target_labels == "unused" else "used: an upper bound"
    return f"{counted(len(given.rows), 'record')} trained on, {len(given.check_rows):,} held out"


def versions() -> list[tuple[str, str]]:
    """The code's version, Python's and the packages'."""
    found = environment()
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return [("m2can", code_version()), ("python", found["python"]), ("packages", packages)]


def choice(run: Run) -> dict[str, Any]:
    """Chosen, last and oracle epoch side by side, and what other validators would have chosen."""
    outcome = run.outcome
    keys = ("target/val/accuracy", "target/val/macro_f1", "source/val/accuracy")
    chosen = outcome.chosen if outcome.chosen.epoch > 0 else None
    named = {"chosen, without target labels": chosen, "last": outcome.last, "oracle, by labels": outcome.oracle}
    found = [(name, f"{r.epoch}", r.metrics) for name, r in named.items() if r is not None]
    if outcome.floor is not None:
        name = "the floor, without training"
        name = f"{name}: chosen, without target labels" if outcome.floor.chosen else name
        found.append((name, "–", outcome.floor.metrics))
        if outcome.floor.zero_shot is not None:
            found.append(("zero-shot, by the names of the classes", "–", outcome.floor.zero_shot))
    rows = [
        (
            name,
            epoch,
            *(charts.percent(metrics.get(key)) for key in keys),
            str(ExpectedAccuracy.from_metrics(metrics) or "–"),
            charts.plain(metrics.get("selection/score")),
        )
        for name, epoch, metrics in found
    ]
    verdicts = [
        (row["validator"], f"{row['epoch']}", charts.percent(row["accuracy"]), charts.percent(row["regret"]))
        for row in run.numbers["verdicts"]
    ]
    return {"rows": rows, "verdicts": verdicts, **_checked(outcome)}


def _checked(outcome: Outcome) -> dict[str, Any]:
    """The accuracy on held-out labels, and whether the expected one agrees with it; None where either is missing."""
    checked, expected = outcome.checked, outcome.expected
    agrees = None
    if checked is not None and expected is not None:
        agrees = expected.low <= checked.high and checked.low <= expected.high
    return {"checked": None if checked is None else str(checked), "agrees": agrees}


def learning(run: Run) -> dict[str, Any]:
    """Accuracies, selection score and every loss term by epoch."""
    records, epochs = run.outcome.records, run.epochs
    drawn = [
        charts.curves(panel.title, panel.series, panel.scale, epochs) for panel in figures.accuracy_panels(records)
    ]
    drawn += [
        charts.curves(f"Loss: {panel.title}", panel.series, panel.scale, epochs)
        for panel in figures.loss_panels(records)
    ]
    return {"charts": drawn, "labelled": any("target/val/accuracy" in r.metrics for r in records)}


def pseudo_labels(run: Run) -> dict[str, Any]:
    """UACR over the epochs, and how far the chosen epoch's score tells right from wrong."""
    records, recipe = run.outcome.records, run.outcome.card.recipe
    if not recipe.uses_pseudo_labels:
        return {"used": False}
    shares = [
        figures.series_of(records, f"uacr/class_share/{name}", name, i)
        for i, name in enumerate(run.outcome.card.classes)
    ]
    selected = figures.pseudo_label_panel(records)
    drawn = [
        charts.curves(selected.title, selected.series, selected.scale, run.epochs),
        charts.curves("Classes among the selected", shares, charts.SHARES, run.epochs),
    ]
    target = run.of_target(recipe.data.train_split)
    known = target["true"] >= 0
    if known.any():
        drawn.append(_precision(target["score"][known], (target["true"] == target["label"])[known]))
    return {"used": True, "charts": drawn, "labelled": bool(known.any())}


def confusion_matrix(run: Run) -> dict[str, Any]:
    """Counts by true and predicted class on the chosen epoch; of many classes, the pairs that are confused most."""
    classes, target = run.outcome.card.classes, run.of_target(run.validation)
    if not (target["true"] >= 0).any():
        return {"labelled": False}
    counts = confusion(target["true"], target["label"], len(classes))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = [
        (name, list(zip(row.tolist(), part.tolist(), strict=True)), int(row.sum()))
        for name, row, part in zip(classes, counts, shares, strict=True)
    ]
    many = len(classes) > MOST_CLASSES
    return {
        "labelled": True,
        "right": int(counts.trace()),
        "total": int(counts.sum()),
        "classes": classes,
        "rows": [] if many else rows,
        "pairs": _confused_pairs(counts, classes) if many else [],
    }


def calibration(run: Run) -> dict[str, Any]:
    """Reliability diagram of the chosen epoch on the target; without labels the confidences alone."""
    target = run.of_target(run.validation)
    bins = reliability(target["true"], target["label"], target["prob"])
    if not bins:
        quantiles = [
            (f"{share:.0%}", charts.percent(float(np.quantile(target["prob"], share)))) for share in _QUANTILES
        ]
        return {"labelled": False, "quantiles": quantiles}
    total = sum(part.count for part in bins)
    error = calibration_error(bins)
    rows = [(charts.percent(part.confidence), charts.percent(part.accuracy), f"{part.count:,}") for part in bins]
    with charts.new_figure() as figure:
        axes = figure.subplots()
        for part, (confidence, accuracy, count) in zip(bins, rows, strict=True):
            opacity = 0.35 + 0.65 * part.count / total
            width = part.high - part.low
            (bar,) = axes.bar(part.low, part.accuracy, width, align="edge", color=charts.SKY, alpha=opacity)
            (point,) = axes.plot(part.confidence, part.accuracy, "o", color=charts.BLUE)
            charts.titled(bar, f"confidence {confidence}: accuracy {accuracy}, records: {count}")
            charts.titled(point, f"records: {count}")
        axes.plot((0, 1), (0, 1), **charts.RULE)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("confidence")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        charts.format_y_axis(axes, charts.SHARES)
        label = f"Reliability diagram: accuracy by confidence in {BINS} bins; expected calibration error {charts.percent(error)}"
        picture = charts.svg(figure, label)
    head = ("confidence", "accuracy", "records")
    return {
        "labelled": True,
        "error": error,
        "total": total,
        "chart": charts.Chart("Accuracy by confidence", picture, head=head, rows=rows),
    }


def _precision(scores: np.ndarray, right: np.ndarray) -> charts.Chart:
    """Precision in ten parts of equal size, by score."""
    title = "Precision by score, the chosen epoch"
    scores, right = figures.by_score(scores, right)
    if not len(scores):
        return charts.Chart(title)
    every = charts.percent(float(right.mean()))
    with charts.new_figure() as figure:
        axes = figure.subplots()
        parts = figures.draw_precision(axes, scores, right)
        axes.set_xticks([])
        axes.set_xlabel("tenths of the target, surest first")
        picture = charts.svg(figure, f"{title}: surest first. Right among all: {every}")
    rows = [
        (
            f"{scores[part[0]]:.3g} to {scores[part[-1]]:.3g}",
            f"{len(part):,}",
            charts.percent(float(right[part].mean())),
        )
        for part in parts
    ]
    return charts.Chart(title, picture, (), ("score", "records", "right"), rows, f"Dashed: {every} right among all.")


def _confused_pairs(counts: np.ndarray, classes: Sequence[str]) -> list[tuple[str, str, str, str]]:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CLASSES]
    return [
        (classes[true], classes[predicted], f"{wrong[true, predicted]:,}", f"{counts[true].sum():,}")
        for true, predicted in (divmod(int(place), len(classes)) for place in order)
        if wrong[true, predicted]
    ]


def _shown(recipe: Recipe) -> dict[str, str]:
    """A recipe's values as they may be seen by others."""
    return {key: without_password(str(value)) for key, value in recipe.flat().items()}


def _differences(recipe: Recipe) -> list[tuple[str, str]]:
    bare = {"preset": recipe.preset, "data": {"sources": recipe.data.sources, "target": recipe.data.target}}
    before = _shown(make_recipe(bare))
    changed = ((k, v) for k, v in _shown(recipe).items() if v != before.get(k))
    return [(k, v) for k, v in changed if not k.startswith(("run.", "tracking."))]
