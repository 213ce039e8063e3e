"""report.html of a sweep: what was searched or compared, what came of it. A file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datasets_manifest.html_page import REPORT, Html, bar, contents, details, html, page, section, table
from trainers import charts
from trainers.charts import Plot, Series, curves, figure, percent, plain, round_percent
from trainers.mlflow_run import without_password
from tuning.ledger import Trial, result_tree, variant_rows
from tuning.sweep import Choices, Sweep, SweepPlan

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
    sections["scores"] = ("Score by epoch", _scores(trials, best))
    sections["trials"] = ("All trials", _all(sweep, trials, best))
    body = [
        f"<h1>Sweep {html(sweep.name)}</h1>",
        contents({anchor: title for anchor, (title, _) in sections.items()}),
        *(content for _, content in sections.values()),
    ]
    file = folder / REPORT
    file.write_text(page(f"Sweep {sweep.name}", body, style=charts.STYLE), encoding="utf-8")
    return file


def _overview(plan: SweepPlan, trials: list[Trial]) -> Html:
    sweep = plan.sweep
    count = {status: sum(trial.status == status for trial in trials) for status in ("finished", "stopped", "failed")}
    rows: list[tuple[str, Any]] = [
        ("kind", "comparison of variants" if sweep.is_comparison else f"search, {sweep.algorithm}"),
        ("trials", ", ".join(f"{number} {status}" for status, number in count.items() if number) or "none"),
        ("scored by", sweep.objective),
        ("target labels in scores", "not used"),
    ]
    rows += [(key, html(_space(part))) for key, part in sweep.space.items()]
    rows += [(name, html(", ".join(overrides) or "the recipe as it is")) for name, overrides in sweep.variants.items()]
    rows += [("seeds", html(", ".join(map(str, sweep.seeds))))] if sweep.seeds else []
    rows += [("set in all trials", html(", ".join(sweep.set)))] if sweep.set else []
    return section("overview", "What was searched or compared", table(("", ""), rows, "The sweep"))


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
            f"Its target accuracy is {percent(best.content['target_accuracy_chosen'])}; that of the best trial by labels "
            f"{percent(tree['target_accuracy_best_trial'])}, regret {percent(tree['regret'])}. The labels are for this "
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
        for trial, place in zip(done, places):
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


def _scores(trials: list[Trial], best: Trial | None) -> Html:
    """Curves of the best trials; the rest is in the table below."""
    told = [trial for trial in trials if any("selection/score" in record.metrics for record in trial.records)]
    ranked = sorted(told, key=lambda t: (best is None or t.name != best.name, -np.nan_to_num(t.score, nan=-np.inf)))
    series = [
        Series(
            trial.name,
            [(float(r.epoch), r.metrics["selection/score"]) for r in trial.records if "selection/score" in r.metrics],
            kind,
        )
        for kind, trial in enumerate(ranked[:_SHOWN_CURVES])
    ]
    more = len(ranked) - len(series)
    said = f"The {len(series)} trials with the best scores; {more} more are in the table of all trials." if more else ""
    drawn = charts.charts([curves("Score, without target labels", series)])
    return section("scores", "Score by epoch", *([said] if said else []), drawn)


def _comparison(sweep: Sweep, trials: list[Trial]) -> Html:
    """A point a variant with its standard deviation over the seeds, and the numbers."""
    rows = variant_rows(sweep, trials)
    labelled = any(row["target_accuracy_chosen"] is not None for row in rows)
    key, format = ("target_accuracy_chosen", percent) if labelled else ("score", plain)
    known = sorted((row for row in rows if row[key] is not None), key=lambda row: -row[key])
    head = ("variant", "runs", "score", "target accuracy, chosen", "oracle", "macro-F1", "source accuracy")
    keys = ("target_accuracy_chosen", "target_accuracy_oracle", "target_macro_f1", "source_accuracy")
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
        "" if labelled else f" {_NO_LABELS}"
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
    head = ("trial", *keys, "status", "epochs", "score", "target accuracy, chosen", "oracle")
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
