"""report.html of a sweep: what was searched or compared, what came of it. A file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainers.reports import charts
from trainers.reports.charts import Plot, Series, curves, figure, percent, plain, round_percent
from trainers.reports.page import REPORT, Html, bar, contents, details, html, page, section, table
from trainers.tracking.address import without_password
from trainers.tracking.provenance import code_version, environment
from tuning.sweep import Choices, Sweep, SweepPlan
from tuning.trial_results import Trial, result_tree, variant_rows

_SHOWN_CURVES = 8  # trials whose curves are drawn: as many as there are colours
_NO_LABELS = "The target has no validation labels: its accuracy and the regret are not known."


def write_report(
    plan: SweepPlan, trials: list[Trial], best: Trial | None, shares: dict[str, float], folder: Path
) -> Path:
    """Write the page into `folder`.

    Args:
        best: None in a comparison.
        shares: importance of the searched keys, {} where it is not known.
    """
    sweep = plan.sweep
    sections = {"overview": ("What was done", _overview(plan, trials))}
    if sweep.is_comparison:
        sections["comparison"] = ("Variants", _comparison(sweep, trials))
    else:
        sections["choice"] = ("Choice", _choice(sweep, trials, best))
        sections["values"] = ("Score by value", _values(sweep, trials, best))
        sections["importance"] = ("Importance", _importance(shares))
    sections["learning"] = ("Learning curves", _learning(sweep, trials, best))
    sections["trials"] = ("All trials", _all(sweep, trials, best))
    title = f"{'Comparison' if sweep.is_comparison else 'Sweep'} {sweep.name}"
    body = [
        f"<h1>{html(title)}</h1><p><strong>{html(_verdict(sweep, trials, best))}</strong></p>",
        contents({anchor: title for anchor, (title, _) in sections.items()}),
        *(content for _, content in sections.values()),
    ]
    file = folder / REPORT
    file.write_text(page(title, body, style=charts.STYLE), encoding="utf-8")
    return file


def _overview(plan: SweepPlan, trials: list[Trial]) -> Html:
    sweep = plan.sweep
    count = {status: sum(trial.status == status for trial in trials) for status in ("finished", "stopped", "failed")}
    recipe = plan.recipe([])
    sources = " + ".join(map(_domain, recipe.data.sources))
    versions = environment()
    rows: list[tuple[str, Any]] = [
        ("domains", f"{sources} → {_domain(recipe.data.target)}"),
        ("preset", recipe.preset),
        ("encoders", f"text {recipe.encoders.text.name}, picture {recipe.encoders.picture.name}"),
        ("epochs, at most", f"{recipe.train.epochs}"),
        ("kind", "comparison of variants" if sweep.is_comparison else f"search, {sweep.algorithm}"),
        ("trials", ", ".join(f"{number} {status}" for status, number in count.items() if number) or "none"),
        ("scored by", sweep.objective),
        ("target labels in scores", "not used"),
    ]
    rows += [(key, html(_space(part))) for key, part in sweep.space.items()]
    rows += [(name, html(", ".join(overrides) or "the recipe as it is")) for name, overrides in sweep.variants.items()]
    rows += [("seeds", html(", ".join(map(str, sweep.seeds))))] if sweep.seeds else []
    rows += [("set in all trials", html(", ".join(sweep.set)))] if sweep.set else []
    rows += [("m2can", code_version()), ("python", versions["python"])]
    rows += [("packages", ", ".join(f"{name} {number}" for name, number in versions["packages"].items()))]
    return section("overview", "What was searched or compared", table(("", ""), rows, "The sweep"))


def _verdict(sweep: Sweep, trials: list[Trial], best: Trial | None) -> str:
    if best is not None:
        known = best.content.get("target_accuracy_chosen")
        return f"{best.name} is the best" + (f": target accuracy {percent(known)}." if known is not None else ".")
    rows = [row for row in variant_rows(sweep, trials) if row["score"] is not None] if sweep.is_comparison else []
    if not rows:
        return "No trial came to an end."
    key, format = _measure(rows)
    first = max((row for row in rows if row[key] is not None), key=lambda row: row[key])
    what = "target accuracy" if format is percent else "score"
    return f"Best of {len(rows)} variants: {first['variant']}, {what} {_spread(first, key, format)}."


def _measure(rows: list[dict[str, Any]]) -> tuple[str, charts.Format]:
    """What variants are compared by: target accuracy, or the score where the target has no labels."""
    labelled = any(row["target_accuracy_chosen"] is not None for row in rows)
    return ("target_accuracy_chosen", percent) if labelled else ("score", plain)


def _domain(manifest: str) -> str:
    """A manifest as people call it: its own name, or that of the folder it lies in."""
    place = Path(without_password(manifest))
    return (place.parent.name if place.stem == "manifest" else place.stem) or manifest


def _space(part: Any) -> str:
    if isinstance(part, Choices):
        return "one of " + ", ".join(map(str, part.choices))
    return f"{part.low:g} to {part.high:g}" + (", logarithmic" if part.log else "")


def _choice(sweep: Sweep, trials: list[Trial], best: Trial | None) -> Html:
    if best is None:
        return section("choice", "Which trial was chosen", "No trial came to an end.")
    tree = result_tree(sweep, trials, best)
    values = table(
        ("key", "value"), [(key, html(value)) for key, value in best.config.items()], "The best trial's values"
    )
    said: str = _NO_LABELS
    if "regret" in tree:
        said = (
            f"Its target accuracy is {percent(best.content['target_accuracy_chosen'])} at the epoch chosen, "
            f"{_known(best.content.get('target_accuracy_last'), percent)} at the last and "
            f"{_known(best.content.get('target_accuracy_oracle'), percent)} at the best by labels; that of the best trial "
            f"by labels {percent(tree['target_accuracy_best_trial'])}, regret {percent(tree['regret'])}. The labels are for this "
            "report only."
        )
    chosen = f"{best.name} has the best score, {plain(best.score)}, by {sweep.objective} without target labels."
    return section("choice", "Which trial was chosen", chosen, values, said)


def _values(sweep: Sweep, trials: list[Trial], best: Trial | None) -> Html:
    """A chart a searched key: score by its value; the best trial's is a diamond."""
    done = [trial for trial in trials if trial.finished and np.isfinite(trial.score)]
    if not done:
        return section("values", "Score by value", "No trial came to an end.")
    scores = [trial.score for trial in done]
    drawn = []
    for key, part in sweep.space.items():
        places, ticks = _places(part, [trial.config[key] for trial in done])
        plot = Plot(
            (min(places) - 0.05 * _span(places), max(places) + 0.05 * _span(places)),
            (min(scores) - 0.05 * _span(scores), max(scores) + 0.05 * _span(scores)),
            label=f"Score by {key}, a point a trial",
            x_title=key,
            x_format=ticks,
            whole_x=isinstance(part, Choices),
        )
        for trial, place in zip(done, places, strict=True):
            first = best is not None and trial.name == best.name
            title = f"{trial.name}: {key} {trial.config[key]}, score {plain(trial.score)}"
            plot.marker(place, trial.score, 1 if first else 0, 3 if first else 0, title)
        drawn.append(figure(key, plot.svg()))
    names = {"trial": (0, 0)} | ({"the best": (1, 3)} if best is not None else {})
    return section("values", "Score by value", charts.legend(names), charts.charts(drawn))


def _places(part: Any, values: list[Any]) -> tuple[list[float], charts.Format]:
    """Where values stand on an axis, and how the axis is lettered."""
    if isinstance(part, Choices):
        names = [str(choice) for choice in part.choices]
        return [float(part.choices.index(v)) for v in values], lambda x: names[int(x)] if 0 <= x < len(names) else ""
    if part.log:
        return [float(np.log10(v)) for v in values], lambda x: f"{10**x:.1e}"
    return [float(v) for v in values], plain


def _importance(shares: dict[str, float]) -> Html:
    title = "Importance of the searched keys"
    if not shares:
        return section("importance", title, "It takes four finished trials with different scores to tell.")
    ranked = sorted(shares.items(), key=lambda pair: -pair[1])
    rows = [(key, f"{share:.2f}", bar(share)) for key, share in ranked]
    said = "Share of the scores' variance that a key explains by itself (fANOVA, Hutter et al. 2014)."
    return section("importance", title, said, table(("key", "share", ""), rows, title))


def _learning(sweep: Sweep, trials: list[Trial], best: Trial | None) -> Html:
    """Score and target accuracy by epoch: of the best trials, or of variants as means over their seeds."""
    if sweep.is_comparison:
        groups = {name: [t for t in trials if t.config.get("variant") == name] for name in sweep.variants}
        said = "Means over the seeds that came so far." if len(sweep.seeds) > 1 else ""
    else:
        told = [trial for trial in trials if trial.records]
        ranked = sorted(told, key=lambda t: (best is None or t.name != best.name, -np.nan_to_num(t.score, nan=-np.inf)))
        groups = {trial.name: [trial] for trial in ranked}
        said = ""
    if more := len(groups) - _SHOWN_CURVES:
        kind = "variants" if sweep.is_comparison else "trials with the best scores"
        said += f" {_SHOWN_CURVES} {kind} are drawn; {more} more are in the tables." if more > 0 else ""
    shown = list(groups.items())[:_SHOWN_CURVES]
    drawn = [
        curves(title, [Series(name, _mean(of, metric), kind) for kind, (name, of) in enumerate(shown)], format=format)
        for title, metric, format in (
            ("Score, without target labels", "selection/score", plain),
            ("Target accuracy, for this report only", "target/val/accuracy", percent),
            ("Source accuracy", "source/val/accuracy", percent),
        )
    ]
    return section("learning", "Learning curves", *([said] if said else []), charts.charts(drawn))


def _mean(trials: list[Trial], metric: str) -> list[tuple[float, float]]:
    """A metric by epoch, over the trials that have it there."""
    found: dict[int, list[float]] = {}
    for record in (record for trial in trials for record in trial.records):
        if metric in record.metrics:
            found.setdefault(record.epoch, []).append(record.metrics[metric])
    return [(float(epoch), float(np.mean(found[epoch]))) for epoch in sorted(found)]


def _comparison(sweep: Sweep, trials: list[Trial]) -> Html:
    """A point a variant with its standard deviation over the seeds, and the numbers."""
    rows = variant_rows(sweep, trials)
    key, format = _measure(rows)
    known = sorted((row for row in rows if row[key] is not None), key=lambda row: -row[key])
    head = ("variant", "runs", "score", "target accuracy, chosen", "last", "oracle", "macro-F1", "source accuracy")
    keys = (
        "target_accuracy_chosen",
        "target_accuracy_last",
        "target_accuracy_oracle",
        "target_macro_f1",
        "source_accuracy",
    )
    lines = [
        (
            row["variant"],
            f"{row['runs']}",
            _spread(row, "score", plain),
            *(_spread(row, name, percent) for name in keys),
        )
        for row in rows
    ]
    said = "Mean ± standard deviation over the seeds; chosen without target labels." + (
        "" if format is percent else f" {_NO_LABELS}"
    )
    drawn = [_dots(known, key, format)] if known else []
    return section("comparison", "Variants", said, *drawn, table(head, lines, "Variants"))


def _dots(rows: list[dict[str, Any]], key: str, format: charts.Format) -> Html:
    title = "Target accuracy by variant" if key != "score" else "Score by variant"
    ends = [row[key] + sign * (row[f"{key}_sd"] or 0.0) for row in rows for sign in (-1, 1)]
    plot = Plot(
        (min(ends) - 0.05 * _span(ends), max(ends) + 0.05 * _span(ends)),
        (-len(rows) + 0.5, 0.5),
        label=f"{title}, best first: " + "; ".join(f"{row['variant']} {format(row[key])}" for row in rows),
        x_title=title.split(" by")[0],
        x_format=round_percent if key != "score" else plain,
        y_format=lambda y: f"{1 - y:.0f}" if y == int(y) else "",
        height=max(120, 70 + 22 * len(rows)),
    )
    for place, row in enumerate(rows):
        deviation = row[f"{key}_sd"] or 0.0
        said = f"{row['variant']}: {_spread(row, key, format)}"
        plot.box((row[key] - deviation, row[key] + deviation), (-place - 0.08, -place + 0.08), 5, said)
        plot.marker(row[key], -place, 0, 0, said)
    names = "".join(f"<li>{html(row['variant'])}: {_spread(row, key, format)}</li>" for row in rows)
    return charts.charts([figure(title, f"{plot.svg()}<ol>{names}</ol>")])


def _all(sweep: Sweep, trials: list[Trial], best: Trial | None) -> Html:
    keys = list(sweep.space) if not sweep.is_comparison else ["variant", "seed"]
    head = ("trial", *keys, "status", "epochs", "score", "target accuracy, chosen", "last", "oracle")
    rows = []
    for trial in trials:
        told = trial.content
        first = best is not None and trial.name == best.name
        rows.append(
            (
                trial.name.removeprefix(f"{sweep.name}-"),
                *(_short(trial.config.get(key)) for key in keys),
                "best" if first else trial.status,
                f"{told.get('epochs') or len(trial.records)}",
                _known(told.get("score"), plain),
                _known(told.get("target_accuracy_chosen"), percent),
                _known(told.get("target_accuracy_last"), percent),
                _known(told.get("target_accuracy_oracle"), percent),
            )
        )
    failed = [
        (trial.name, html(without_password(trial.content["error"]))) for trial in trials if trial.content.get("error")
    ]
    errors = [details("Why trials failed", table(("trial", "error"), failed, "Errors"))] if failed else []
    return section("trials", "All trials", table(head, rows, "All trials"), *errors)


def _span(values: list[float]) -> float:
    return (max(values) - min(values)) or abs(values[0]) or 1.0


def _short(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _known(value: float | None, format: charts.Format) -> str:
    return "–" if value is None else format(value)


def _spread(row: dict[str, Any], key: str, format: charts.Format) -> str:
    if row[key] is None:
        return "–"
    deviation = row[f"{key}_sd"]
    return format(row[key]) + (f" ± {format(deviation)}" if deviation is not None else "")
