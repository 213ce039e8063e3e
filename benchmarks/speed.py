"""How fast: ratios, both sides in one run, in turns, medians.  python -m benchmarks.speed [--only step …] [--quick] [--out FILE]

The other side is benchmarks/baseline.py, the method with the published cost structure, except where the row says so.
Rows that --out holds and that are not measured now stay.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results" / "speed.json"


@dataclass(frozen=True)
class Row:
    """A line of the table: what is compared, and the ratio that is wanted (`most`: at most; else at least)."""

    what: str
    wanted: float | None
    most: bool = False
    shown: str = "ratio"  # or `percent`, or `seconds`


MEMORY_OPTIONS = ("train.accumulate=8", "encoders.activation_checkpointing=pictures")

ROWS = {
    "step": Row("training step, same mathematics (fp32, per-sample statistics)", 3),
    "recommended": Row("training step, `recommended`", 8),
    "recommended_pooler": Row("the same with `encoders.text.pooling: pooler`, as published", None),
    "recommended_frozen": Row("the same with stem, first stage and embeddings frozen (`encoders.*.freeze`)", None),
    "epoch": Row("epoch end to end: data, steps, pseudo labels; JPEGs of 1024×768, small encoders at 96 px", 5),
    "data": Row("data pipeline, both views of JPEGs of 1024×768, one core", 4),
    "scoring": Row("pseudo-label pass, data included, from the second epoch on; the same JPEGs and encoders", 6),
    "scoring_first": Row("the same in the first epoch, when no weak view is kept yet", None),
    "scoring_network": Row("pseudo-label pass, the network alone; encoders of the first row", None),
    "ray": Row(
        "Ray: an epoch of `m2can train` against a bare loop with one plain process that makes its batches",
        0.08,
        True,
        "percent",
    ),
    "ray_ready": Row("the same, against steps over batches that are ready", None, True, "percent"),
    "ray_data": Row("the same, against a loop that makes its batches itself", None, True, "percent"),
    "memory": Row("peak memory of the training process", 0.6, True),
    "memory_parts": Row(
        f"the same with {' and '.join(f'`{option}`' for option in MEMORY_OPTIONS)}, which change no result", 0.6, True
    ),
    "start": Row("from the command to the first step", 35, True, "seconds"),
}


def measures(quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """By the first of the rows that each gives."""
    from benchmarks import speed_ray as ray
    from benchmarks import speed_run as run
    from benchmarks import speed_step as step
    from benchmarks.step_parts import FULL, QUICK

    size = QUICK if quick else FULL
    return {
        "step": lambda: step.measure_step(size, "published"),
        "recommended": lambda: step.measure_step(size, "recommended"),
        "recommended_pooler": lambda: step.measure_step(size, "recommended", "encoders.text.pooling=pooler"),
        "recommended_frozen": lambda: step.measure_step(
            size, "recommended", "encoders.picture.freeze=2", "encoders.text.freeze=1"
        ),
        "epoch": lambda: run.measure_epoch(16 if quick else 192, 1 if quick else 3),
        "data": lambda: run.measure_data(8 if quick else 64, 1 if quick else 3),
        "scoring": lambda: run.measure_scoring_pass(64 if quick else 768, 1 if quick else 3),
        "scoring_network": lambda: step.measure_scoring(size),
        "ray": lambda: ray.measure_ray(2 if quick else 4, 1 if quick else 3),
        "memory": lambda: step.measure_memory(size, MEMORY_OPTIONS),
    }


SEVERAL = {  # rows of one measurement
    "scoring": ("scoring", "scoring_first"),
    "ray": ("ray", "ray_ready", "ray_data", "start"),
    "memory": ("memory", "memory_parts"),
}


def measure(names: list[str], quick: bool) -> Iterator[dict[str, Any]]:
    """The rows of one measurement after another."""
    for name, run in measures(quick).items():
        gives = SEVERAL.get(name, (name,))
        if set(gives) & set(names):
            result = run()
            yield result if name in SEVERAL else {name: result}


def line(name: str, found: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    row, ratio = ROWS[name], found["ratio"]
    shown = {"ratio": f"{ratio:.2f} ×", "percent": f"{100 * ratio:.1f} %", "seconds": f"{ratio:.1f} s"}[row.shown]
    ours, theirs = (f"{found[side]:.3g} {found['unit']}" if side in found else "" for side in ("ours", "theirs"))
    if row.wanted is None:
        return f"| {row.what} | {shown} | | | {ours} | {theirs} |"
    goal = {"ratio": f"{row.wanted:g} ×", "percent": f"{100 * row.wanted:g} %", "seconds": f"{row.wanted:g} s"}[
        row.shown
    ]
    reached = ratio <= row.wanted if row.most else ratio >= row.wanted
    return f"| {row.what} | {shown} | {'≤' if row.most else '≥'} {goal} | {'yes' if reached else 'no'} | {ours} | {theirs} |"


HEAD = "| what | found | wanted | reached | ours | other side |\n|---|---|---|---|---|---|"


def machine() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {"cpus": os.cpu_count(), "device": device, "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not how fast")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    print(HEAD)
    for found in measure(arguments.only, arguments.quick):
        for name, row in found.items():
            print(line(name, row), flush=True)
        if arguments.out:  # at once: all rows take half an hour
            before = json.loads(arguments.out.read_text())["rows"] if arguments.out.is_file() else {}
            rows = {name: (before | found)[name] for name in ROWS if name in before | found}
            arguments.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
