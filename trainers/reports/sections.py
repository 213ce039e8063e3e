"""The report's sections: what was trained on what, the curves, the choice, the target's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.loop.evaluation import confusion, reliability
from trainers.recipe.recipe import Recipe, make_recipe
from trainers.reports.charts import Plot, Series, charts, curves, figure, percent, plain, round_percent
from trainers.reports.figures import TERMS
from trainers.reports.page import Html, details, html, scrolling, section, table
from trainers.tracking.address import without_password
from trainers.tracking.journal import EpochRecord
from trainers.tracking.outcome import Outcome
from trainers.tracking.provenance import code_version, environment

NO_LABELS = "The target's {split} records have no labels here, so {what} not known."
_MOST_CLASSES = 30  # of a confusion matrix that is written out
_OBJECTIVE = ("cmcfa", "cdcfa", "cdafa", "mcc", "moments", "imitation")


@dataclass(frozen=True)
class Run:
    """What the sections read.

    numbers: of summary.json. tensors: what the chosen epoch's model said of every scored row (see worker).
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


def overview(run: Run) -> Html:
    """What was trained, on what, with what."""
    outcome, recipe = run.outcome, run.outcome.card.recipe
    metrics = [record.metrics for record in outcome.records]
    seconds = sum(m.get("time/train_s", 0.0) + m.get("time/score_s", 0.0) for m in metrics)
    speed = [m["speed/samples_per_s"] for m in metrics if "speed/samples_per_s" in m]
    memory = max((m.get("memory/process_peak_mib", 0.0) for m in metrics), default=0.0)
    o = recipe.objective
    terms = [f"{name.upper()} {getattr(o, name):g}" for name in _OBJECTIVE if getattr(o, name)]
    parts = [*terms, *(["SAM"] if recipe.sam.rho else []), *(["UACR"] if recipe.uacr.enabled else [])]
    found = environment()
    versions = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    workers = recipe.cluster.workers
    rows: list[tuple[str, str]] = [
        ("domains", f"{' + '.join(outcome.card.sources)} → {outcome.card.target}"),
        ("classes", ", ".join(outcome.card.classes)),
        ("preset", recipe.preset),
        ("encoders", f"text {recipe.encoders.text.name}, picture {recipe.encoders.picture.name}"),
        ("components", ", ".join(["cross-entropy", *parts])),
        ("target labels in training", "not used" if recipe.train.target_labels == "unused" else "used: an upper bound"),
        ("epochs", f"{outcome.last.epoch} of {recipe.train.epochs}, {outcome.last.step:,} steps"),
        ("batch size, of each domain", f"{recipe.train.batch_size}"),
        ("seed", f"{recipe.train.seed}"),
        ("workers", " to ".join(map(str, workers)) if isinstance(workers, tuple) else f"{workers}"),
        ("time in epochs", f"{seconds:,.0f} s"),
        ("speed, median", f"{np.median(speed):,.0f} samples/s" if speed else "–"),
        ("memory of a worker's process, most", f"{memory:,.0f} MiB" if memory else "–"),
        ("m2can", code_version()),
        ("python", found["python"]),
        ("packages", versions),
    ]
    return section(
        "overview",
        "What was trained on what",
        table(("", ""), [(name, html(value)) for name, value in rows], "The run"),
        details("Values that differ from the preset", _differences(recipe)),
        details("The whole recipe", _values(_shown(recipe), "Recipe")),
    )


def choice(run: Run) -> Html:
    """Chosen, last and oracle epoch side by side, and what other validators would have chosen."""
    outcome, numbers = run.outcome, run.numbers
    named = {"chosen, without target labels": outcome.chosen, "last": outcome.last, "oracle, by labels": outcome.oracle}
    rows = [_choice_row(name, record) for name, record in named.items() if record is not None]
    head = ("checkpoint", "epoch", "target accuracy", "target macro-F1", "source accuracy", "selection score")
    if numbers["regret"] is None:
        said = NO_LABELS.format(split=outcome.card.recipe.data.val_split, what="accuracy, oracle and regret are")
    else:
        said = (
            f"Regret {percent(numbers['regret'])}: so much lower is the target accuracy of the chosen epoch than that of "
            "the best one by labels. The labels are for this report only."
        )
    verdicts = [
        (row["validator"], f"{row['epoch']}", _percent(row["accuracy"]), _percent(row["regret"]))
        for row in outcome.verdicts
    ]
    return section(
        "choice",
        "Which epoch was chosen",
        f"The validator {numbers['validator']} chose epoch {outcome.chosen.epoch} of {outcome.last.epoch}.",
        table(head, rows, "Chosen, last and oracle epoch"),
        said,
        details(
            "What every validator would have chosen",
            table(("validator", "epoch", "target accuracy", "regret"), verdicts, "Choices of all validators"),
        ),
    )


def learning(run: Run) -> Html:
    """Accuracies, selection score and every loss term by epoch."""
    records = run.outcome.records
    sources = {f"source/{name}/val/accuracy": name for name in run.outcome.card.sources}
    series = [
        _series(records, "target/val/accuracy", "target", 0),
        _series(records, "source/val/accuracy", "sources", 1),
    ]
    if len(sources) > 1:
        series += [_series(records, key, name, i + 2) for i, (key, name) in enumerate(sources.items())]
    marks, epochs = _marks(run.outcome), _epochs(records)
    losses = sorted({name for r in records for name in r.metrics if name.startswith("loss/")}, key=_term_order)
    drawn = [
        curves("Validation accuracy", series, format=percent, x=epochs, marks=marks),
        curves(
            "Selection score, seen without target labels",
            [_series(records, "selection/score", "score", 2)],
            x=epochs,
            marks=marks,
        ),
        *(
            curves(f"Loss: {_term(name)}", [_series(records, name, _term(name), 0)], x=epochs, marks=marks, height=200)
            for name in losses
        ),
    ]
    labelled = any("target/val/accuracy" in r.metrics for r in records)
    missing = NO_LABELS.format(split=run.outcome.card.recipe.data.val_split, what="the target's accuracy is")
    return section("learning", "Learning curves", *([] if labelled else [missing]), charts(drawn))


def pseudo_labels(run: Run) -> Html:
    """UACR over the epochs, and how far the chosen epoch's score tells right from wrong."""
    title, records, recipe = "Pseudo labels", run.outcome.records, run.outcome.card.recipe
    if not recipe.uacr.enabled or recipe.train.target_labels == "oracle":
        return section("pseudo-labels", title, "UACR was off: the run had no pseudo labels.")
    shares = [_series(records, f"uacr/class_share/{name}", name, i) for i, name in enumerate(run.outcome.card.classes)]
    quality = [
        _series(records, "uacr/precision", "right among selected", 0),
        _series(records, "uacr/accuracy", "right among all", 1),
        _series(records, "uacr/kept_share", "selected", 6),
    ]
    marks, epochs = _marks(run.outcome), _epochs(records)
    drawn = [
        curves("Selected after each epoch", quality, format=percent, y=(0, 1), x=epochs, marks=marks),
        curves("Classes among the selected", shares, format=percent, y=(0, 1), x=epochs, marks=marks),
    ]
    target = run.of_target(recipe.data.train_split)
    known = target["true"] >= 0
    if not known.any():
        said = NO_LABELS.format(split=recipe.data.train_split, what="the precision of its pseudo labels is")
        return section("pseudo-labels", title, said, charts(drawn))
    drawn.append(_precision_by_score(target["score"][known], (target["true"] == target["label"])[known]))
    return section("pseudo-labels", title, charts(drawn))


def confusion_matrix(run: Run) -> Html:
    """Counts by true and predicted class, on the chosen epoch."""
    classes, split = run.outcome.card.classes, run.validation
    target = run.of_target(split)
    if not (target["true"] >= 0).any():
        return section("confusion", "Confusion matrix", NO_LABELS.format(split=split, what="the confusion matrix is"))
    counts = confusion(target["true"], target["label"], len(classes))
    right, total = int(counts.trace()), int(counts.sum())
    intro = (
        f"Of {total:,} labelled {split} records of {run.outcome.card.target} {right:,} are right ({percent(right / total)}). "
        "A cell has the number of records and its share of the true class."
    )
    shown = _matrix(counts, classes) if len(classes) <= _MOST_CLASSES else _confused_pairs(counts, classes)
    return section("confusion", "Confusion matrix", intro, shown)


def calibration(run: Run) -> Html:
    """Reliability diagram of the chosen epoch on the target."""
    split = run.validation
    target = run.of_target(split)
    bins = reliability(target["true"], target["label"], target["prob"])
    if not bins:
        said = NO_LABELS.format(split=split, what="calibration is")
        return section("calibration", "Calibration", said, _confidences(target["prob"]))
    rows = sum(part.count for part in bins)
    error = sum(part.count * abs(part.accuracy - part.confidence) for part in bins) / rows
    plot = Plot(
        (0, 1),
        (0, 1),
        label=f"Reliability diagram: accuracy by confidence in 15 bins; expected calibration error {percent(error)}",
        x_title="confidence",
        x_format=round_percent,
        y_format=round_percent,
    )
    for part in bins:
        said = f"confidence {percent(part.confidence)}: accuracy {percent(part.accuracy)}, {part.count:,} records"
        plot.box((part.low, part.high), (0, part.accuracy), 5, said, opacity=0.35 + 0.65 * part.count / rows)
    plot.segment((0, 0), (1, 1))
    for part in bins:
        plot.marker(part.confidence, part.accuracy, 0, 0, f"{part.count:,} records")
    numbers = table(
        ("confidence", "accuracy", "records"),
        [(percent(part.confidence), percent(part.accuracy), f"{part.count:,}") for part in bins],
        "Reliability: numbers",
    )
    return section(
        "calibration",
        "Calibration",
        f"Expected calibration error {percent(error)} over {rows:,} labelled {split} records, in 15 bins of equal width "
        "(Guo et al. 2017). On the dashed line confidence and accuracy agree; bars below it are too sure of themselves, "
        "fuller bars have more records.",
        charts([figure("Accuracy by confidence", plot.svg() + details("Numbers", numbers))]),
    )


def _choice_row(name: str, record: EpochRecord) -> tuple[str, ...]:
    m = record.metrics
    keys = ("target/val/accuracy", "target/val/macro_f1", "source/val/accuracy")
    score = m.get("selection/score")
    return (
        name,
        f"{record.epoch}",
        *(_percent(m.get(key)) for key in keys),
        plain(score) if score is not None else "–",
    )


def _precision_by_score(scores: np.ndarray, right: np.ndarray) -> Html:
    """Precision in ten parts of equal size, by score."""
    finite = np.isfinite(scores)
    order = np.argsort(-scores[finite], kind="stable")
    scores, right = scores[finite][order], right[finite][order]
    parts = [part for part in np.array_split(np.arange(len(scores)), min(10, len(scores))) if len(part)]
    title = "Precision by score, the chosen epoch"
    every = float(right.mean())
    plot = Plot(
        (0, len(parts)),
        (0, 1),
        label=f"{title}: surest first. Right among all: {percent(every)}",
        x_title="tenths of the target, surest first",
        whole_x=True,
        y_format=round_percent,
    )
    rows = []
    for place, part in enumerate(parts):
        share = float(right[part].mean())
        rows.append((f"{scores[part[0]]:.3g} to {scores[part[-1]]:.3g}", f"{len(part):,}", percent(share)))
        plot.box((place + 0.08, place + 0.92), (0, share), 0, f"score {rows[-1][0]}: {percent(share)} right")
    plot.segment((0, every), (len(parts), every))
    numbers = details("Numbers", table(("score", "records", "right"), rows, f"{title}: numbers"))
    return figure(title, plot.svg() + f"<p class='soft'>Dashed: {percent(every)} right among all.</p>" + numbers)


def _confidences(prob: np.ndarray) -> Html:
    rows = [(f"{share:.0%}", percent(float(np.quantile(prob, share)))) for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
    return table(("of the records below", "confidence"), rows, "Confidence of the predictions")


def _matrix(counts: np.ndarray, classes: Sequence[str]) -> Html:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f'<th scope="col" class="n">{html(name)}</th>' for name in classes)
    lines = "".join(
        f'<tr><th scope="row">{html(name)}</th>'
        + "".join(
            f'<td class="n cell" style="background:rgba(var(--fill),{0.55 * share:.2f})">{count:,}<br>{share:.0%}</td>'
            for count, share in zip(row.tolist(), part, strict=True)
        )
        + f'<td class="n cell">{int(row.sum()):,}</td></tr>'
        for name, row, part in zip(classes, counts, shares, strict=True)
    )
    top = f'<tr><th scope="col">true ↓ predicted →</th>{head}<th scope="col" class="n">all</th></tr>'
    return scrolling(f'<table class="confusion"><thead>{top}</thead><tbody>{lines}</tbody></table>', "Confusion matrix")


def _confused_pairs(counts: np.ndarray, classes: Sequence[str]) -> Html:
    """Of many classes, what is confused most."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CLASSES]
    rows = [
        (classes[true], classes[predicted], f"{wrong[true, predicted]:,}", f"{counts[true].sum():,}")
        for true, predicted in (divmod(int(place), len(classes)) for place in order)
        if wrong[true, predicted]
    ]
    said = Html(f"<p>With {len(classes)} classes, the pairs that are confused most:</p>")
    return Html(said + table(("true", "predicted", "records", "of the true class"), rows, "Most confused pairs"))


def _series(records: Sequence[EpochRecord], metric: str, name: str, kind: int) -> Series:
    return Series(name, [(float(r.epoch), r.metrics[metric]) for r in records if metric in r.metrics], kind)


def _marks(outcome: Outcome) -> dict[float, str]:
    """Names of the chosen, the last and the oracle epoch; one epoch may have several."""
    names: dict[float, list[str]] = {}
    for name, record in (("chosen", outcome.chosen), ("last", outcome.last), ("oracle", outcome.oracle)):
        if record is not None:
            names.setdefault(float(record.epoch), []).append(name)
    return {epoch: ", ".join(said) for epoch, said in names.items()}


def _epochs(records: Sequence[EpochRecord]) -> tuple[float, float]:
    return float(records[0].epoch), float(records[-1].epoch)


def _term(metric: str) -> str:
    name = metric.removeprefix("loss/")
    return TERMS.get(name, name)


def _term_order(metric: str) -> tuple[int, str]:
    name, known = metric.removeprefix("loss/"), list(TERMS)
    return (known.index(name) if name in known else len(known), name)


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _shown(recipe: Recipe) -> dict[str, str]:
    """A recipe's values as they may be seen by others."""
    return {key: without_password(str(value)) for key, value in recipe.flat().items()}


def _differences(recipe: Recipe) -> Html:
    bare = {"preset": recipe.preset, "data": {"sources": recipe.data.sources, "target": recipe.data.target}}
    before = _shown(make_recipe(bare))
    rows = {k: v for k, v in _shown(recipe).items() if v != before.get(k) and not k.startswith(("run.", "tracking."))}
    return _values(rows, "Values that differ from the preset") if rows else Html("<p>None.</p>")


def _values(values: Mapping[str, str], label: str) -> Html:
    return table(("key", "value"), [(key, html(value)) for key, value in values.items()], label)
