"""The comparison's table and picture:  python -m benchmarks.comparison_page  draws docs/pictures/comparison.png and writes the
rows of experiments/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.comparison import DATA, RESULTS, summary
from benchmarks.variants import (
    ALONE,
    BASELINES,
    MAIN,
    NOTES,
    OFF,
    ON_RECOMMENDED,
    OPTIONS,
    TRIED,
    TRIED_NOTES,
    TRIED_ON_RECOMMENDED,
)

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "comparison.png"
README = Path(__file__).parents[1] / "experiments" / "README.md"
MARK = "<!-- The rest is made by python -m benchmarks.comparison_page -->"
GROUPS = {
    "Baselines": ["majority", *BASELINES],
    "M2CAN": list(MAIN),
    "Published, one component off": list(OFF),
    "One component of the published alone": list(ALONE),
    "Published and one option": list(OPTIONS),
    "Recommended and one option": list(ON_RECOMMENDED),
}
TRIED_GROUPS = {
    "M2CAN": list(MAIN),
    "Published and one experiment": list(TRIED),
    "Recommended and one experiment": list(TRIED_ON_RECOMMENDED),
}
TITLES = {"postcards": "generated postcards", "icons": "icon sets"}


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown of what recipes can say, in percent."""
    times = [run["cpu_s"] for run in runs if run.get("cpu_s")]
    sets = " · ".join(TITLES[data] for data in DATA)
    lines = [
        f"Frozen encoders (MiniLM, EfficientNet-Lite0), {sets}: target accuracy of the checkpoint chosen without target "
        f"labels and of the best one by labels (oracle), macro-F1 and AUC of the chosen one, in percent, mean ± standard "
        f"deviation over the number of seeds in brackets. A run took {sum(times) / len(times):.0f} s of processor time. "
        f"`python -m benchmarks.comparison --cache FOLDER --out benchmarks/results/comparison.json`\n",
        "![Target accuracy by variant](pictures/comparison.png)\n",
    ]
    return "\n".join([*lines, *rows_of(runs, GROUPS), "", *NOTES])


def experiments_section(runs: list[dict[str, Any]]) -> str:
    """Markdown of experiments/README.md: what was tried, in percent."""
    return "\n".join([*rows_of(runs, TRIED_GROUPS), "", *TRIED_NOTES, ""])


def rows_of(runs: list[dict[str, Any]], groups: dict[str, list[str]]) -> list[str]:
    rows = summary(runs)
    lines = [
        "| variant |" + "".join(f" {TITLES[data]}: chosen | oracle | macro-F1 | AUC |" for data in DATA),
        "|---|" + "---|" * 4 * len(DATA),
    ]
    for title, names in groups.items():
        present = [name for name in names if any((data, name) in rows for data in DATA)]
        if present:
            lines.append(f"| **{title}** |" + " |" * 4 * len(DATA))
        for name in present:
            cells = [_cells(rows.get((data, name))) for data in DATA]
            seeds = " and ".join(dict.fromkeys(str(rows[data, name]["seeds"]) for data in DATA if (data, name) in rows))
            lines.append(f"| {name} ({seeds}) | " + " | ".join(cells) + " |")
    return lines


def _cells(row: dict[str, Any] | None) -> str:
    if row is None:
        return " | | | "
    spread = {key: f" ± {100 * row[key][1]:.1f}" if row["seeds"] > 1 else "" for key in ("chosen", "oracle")}
    cells = [f"{100 * row[key][0]:.1f}{text}" for key, text in spread.items()]
    return " | ".join([*cells, *(f"{100 * row[key][0]:.1f}" for key in ("macro_f1", "auc"))])


def draw(runs: list[dict[str, Any]], file: Path) -> None:
    """A dot for every variant's mean, a bar for its standard deviation, one panel a data set."""
    from trainers.reports.charts import BLUE, GREEN, ORANGE, VERMILION, new_figure, save_png

    rows = summary(runs)
    names = [name for group in GROUPS.values() for name in group if name != "majority" and (DATA[0], name) in rows]
    with new_figure(9.0, 1.2 + 0.2 * len(names)) as figure:
        panels = figure.subplots(1, len(DATA), sharey=True, squeeze=False)[0]
        for axes, data in zip(panels, DATA, strict=True):
            for place, name in enumerate(names):
                if (data, name) not in rows:
                    continue
                mean, spread = (100 * x for x in rows[data, name]["chosen"])
                colour = {"published": BLUE, "recommended": VERMILION}.get(name, GREEN if name in BASELINES else ORANGE)
                axes.errorbar(mean, -place, xerr=spread, fmt="o", color=colour, markersize=4, linewidth=1.2)
            for name, colour in (("published", BLUE), ("recommended", VERMILION)):
                if (data, name) in rows:
                    axes.axvline(
                        100 * rows[data, name]["chosen"][0], color=colour, linewidth=0.8, linestyle=(0, (4, 3))
                    )
            axes.set_title(TITLES[data])
            axes.set_xlabel("target accuracy, %, chosen without target labels", fontsize=9)
            axes.grid(True, axis="x")
            axes.set_yticks([-place for place in range(len(names))], names, fontsize=8)
        save_png(figure, file)


def main() -> None:
    runs = json.loads(RESULTS.read_text())
    draw(runs, PICTURE)
    head, mark, _ = README.read_text().partition(MARK)
    README.write_text(f"{head}{mark}\n\n{experiments_section(runs)}")


if __name__ == "__main__":
    main()
