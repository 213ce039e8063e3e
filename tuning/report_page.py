"""The page of a sweep: its settings, results and charts. The text is in templates/sweep.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datasets_manifest.errors import without_password
from trainers.journal.outcome import FloorResult
from trainers.reports.charts import FITTED, Chart, Scale, Series, curves, percent, plain
from trainers.reports.page import render
from trainers.reports.sections import versions
from tuning.report_pictures import mean_and_deviation, measure, score_by_value, short
from tuning.sweep import Sweep, SweepPlan
from tuning.trial_results import Trial, floor_line, result_tree, variant_rows

_SHOWN_CURVES = 8  # trials whose curves are drawn: as many as there are colours
# By target labels, for the reader; no trial was chosen by them.
_ACCURACIES = {
    "target_accuracy_chosen": "target accuracy, chosen",
    "target_accuracy_last": "last",
    "target_accuracy_oracle": "oracle",
}


def sweep_page(
    plan: SweepPlan,
    trials: list[Trial],
    best: Trial | None,
    shares: dict[str, float],
    wide: Chart | None,
    idle: list[str],
    shared: str | None = None,
    floor: FloorResult | None = None,
) -> str:
    """The whole page.

    Args:
        best: None in a comparison, or where no trial finished.
        shares: importance of the searched keys, {} where it is not known.
        idle: a sentence for each searched key that cannot have acted.
        shared: the features that all trials were trained on, in words.
        floor: of the best trial's recipe, None if it has none.
        wide: the comparison, or the parallel coordinates of a search; None where no trial finished.
    """
    sweep = plan.sweep
    finished = [trial for trial in trials if trial.finished]
    middle = {"comparison": "Variants"}
    if not sweep.is_comparison:
        middle = {"choice": "Choice", "values": "Score by value", "importance": "Importance"}
    return render(
        "sweep.html",
        f"{'Comparison' if sweep.is_comparison else 'Sweep'} {sweep.name}",
        package="tuning",
        verdict=_verdict(sweep, trials, best, floor),
        contents={"overview": "What was done", **middle, "learning": "Learning curves", "trials": "All trials"},
        overview=[*_overview(plan, trials), ("shared by all trials", shared or "nothing: each ran its encoders")],
        variants=variants_table(sweep, trials) if sweep.is_comparison else None,
        labelled=any(trial.content.get("target_accuracy_chosen") is not None for trial in finished),
        best=best,
        objective=sweep.objective,
        result=result_tree(sweep, trials, best, floor),
        floor=floor_line(floor, best) if floor else None,
        values=score_by_value(sweep, finished, best),
        wide=wide,
        importance=sorted(shares.items(), key=lambda pair: -pair[1]),
        idle=idle,
        learning=_learning(sweep, trials, best),
        trials=trials_table(sweep, trials, best),
        errors=[(t.name, without_password(t.content["error"])) for t in trials if t.content.get("error")],
    )


def _overview(plan: SweepPlan, trials: list[Trial]) -> list[tuple[str, str]]:
    sweep, recipe = plan.sweep, plan.recipe([])
    count = {status: sum(trial.status == status for trial in trials) for status in ("finished", "stopped", "failed")}
    sources = " + ".join(map(_domain, recipe.data.sources))
    rows = [
        ("domains", f"{sources} → {_domain(recipe.data.target)}"),
        ("preset", recipe.preset),
        ("encoders", recipe.encoders.described()),
        ("epochs, at most", f"{recipe.train.epochs or 'by the data'}"),
        ("kind", "comparison of variants" if sweep.is_comparison else f"search, {sweep.algorithm}"),
        ("trials", ", ".join(f"{number} {status}" for status, number in count.items() if number) or "none"),
        ("scored by", sweep.objective),
        ("target labels in scores", "not used"),
    ]
    rows += [(key, part.described()) for key, part in sweep.space.items()]
    rows += [(name, ", ".join(overrides) or "the recipe as it is") for name, overrides in sweep.variants.items()]
    rows += [("seeds", ", ".join(map(str, sweep.seeds)))] if sweep.seeds else []
    rows += [("set in all trials", ", ".join(sweep.set))] if sweep.set else []
    return rows + versions()


def _verdict(sweep: Sweep, trials: list[Trial], best: Trial | None, floor: FloorResult | None) -> str:
    if not sweep.is_comparison:
        if best is None:
            return "No trial finished."
        accuracy = best.content.get("target_accuracy_chosen")
        said = f"score {plain(best.score)}" if accuracy is None else f"target accuracy {percent(accuracy)}"
        instead = "; no trial is better than the floor, which is the model" if floor and floor.chosen else ""
        return f"{best.name} is the best: {said}{instead}."
    rows = [row for row in variant_rows(sweep, trials) if row["score"] is not None]
    if not rows:
        return "No trial finished."
    key, format = measure(rows)
    first = max((row for row in rows if row[key] is not None), key=lambda row: row[key])
    what = "score" if key == "score" else "target accuracy"
    return f"Best of {len(rows)} variants: {first['variant']}, {what} {mean_and_deviation(first, key, format)}."


def variants_table(sweep: Sweep, trials: list[Trial]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a comparison: mean ± standard deviation over the seeds, a row a variant."""
    head = ["variant", "runs", "score", *_ACCURACIES.values(), "macro-F1", "source accuracy"]
    keys = (*_ACCURACIES, "target_macro_f1", "source_accuracy")
    rows = []
    for row in variant_rows(sweep, trials):
        numbers = [mean_and_deviation(row, key, percent) for key in keys]
        rows.append([row["variant"], f"{row['runs']}", mean_and_deviation(row, "score", plain), *numbers])
    return head, rows


def trials_table(sweep: Sweep, trials: list[Trial], best: Trial | None) -> tuple[list[str], list[list[str]]]:
    """Head and rows of all trials, in the order in which they began."""
    keys = ["variant", "seed"] if sweep.is_comparison else list(sweep.space)
    rows = [
        [
            trial.name.removeprefix(f"{sweep.name}-"),
            *(short(trial.config.get(key)) for key in keys),
            "best" if trial == best else trial.status,
            f"{trial.content.get('epochs') or len(trial.records)}",
            plain(trial.content.get("score")),
            *(percent(trial.content.get(key)) for key in _ACCURACIES),
        ]
        for trial in trials
    ]
    return ["trial", *keys, "status", "epochs", "score", *_ACCURACIES.values()], rows


def _learning(sweep: Sweep, trials: list[Trial], best: Trial | None) -> dict[str, Any]:
    """Score and accuracies by epoch: of the best trials, or of variants as means over their seeds."""
    if sweep.is_comparison:
        groups = {name: [t for t in trials if t.config.get("variant") == name] for name in sweep.variants}
    else:
        told = [trial for trial in trials if trial.records]
        ranked = sorted(told, key=lambda t: (t != best, -np.nan_to_num(t.score, nan=-np.inf)))
        groups = {trial.name: [trial] for trial in ranked}
    shown = list(groups.items())[:_SHOWN_CURVES]
    drawn = [
        curves(title, [Series(name, _mean(of, metric), kind) for kind, (name, of) in enumerate(shown)], scale)
        for title, metric, scale in (
            ("Score, without target labels", "selection/score", FITTED),
            ("Target accuracy, for this report only", "target/val/accuracy", Scale(percent=True)),
            ("Source accuracy", "source/val/accuracy", Scale(percent=True)),
        )
    ]
    return {
        "charts": drawn,
        "seeds": len(sweep.seeds),
        "shown": len(shown),
        "more": len(groups) - len(shown),
        "noun": "variant" if sweep.is_comparison else "trial",
        "which": "" if sweep.is_comparison else ", those with the best scores",
    }


def _mean(trials: list[Trial], metric: str) -> list[tuple[float, float]]:
    """A metric by epoch, over the trials that have it there."""
    found: dict[int, list[float]] = {}
    for record in (record for trial in trials for record in trial.records):
        if metric in record.metrics:
            found.setdefault(record.epoch, []).append(record.metrics[metric])
    return [(float(epoch), float(np.mean(found[epoch]))) for epoch in sorted(found)]


def _domain(manifest: str) -> str:
    """A manifest as people call it: its own name, or that of the folder it lies in."""
    place = Path(without_password(manifest))
    return (place.parent.name if place.stem == "manifest" else place.stem) or manifest
