"""How close a step comes to what the machine can do.  python -m benchmarks.floor [--quick] [--out FILE]

Operations of a step as torch counts them (matrix products, convolutions, attention), and the least bytes: what autograd
keeps is written and read once, each parameter is read in every forward and backward pass, and the optimizer reads and
writes it with its gradient and its two moments. The ceilings are measured in the same run: a large matrix product and a copy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sides import device_here, interleaved
from benchmarks.step_parts import (
    FULL,
    QUICK,
    Size,
    make_labels,
    make_network,
    make_rows,
    make_step,
    recipe_of,
)
from trainers.compute.device_batches import to_batch
from trainers.step.step import Step

SIDE = 2048  # of the matrices
COPIED = 256 * 2**20  # bytes
OPTIMIZER_TRAFFIC = 7  # parameter, gradient and two moments read; parameter and moments written


def ceilings(repeats: int) -> dict[str, float]:
    """Operations a second of a matrix product and bytes a second (read and written) of a copy."""
    device = device_here()
    a, b = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    sides: dict[str, Callable[[], object]] = {"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}
    for run in sides.values():
        run()
    seconds = interleaved(sides, repeats, device)
    return {"operations": 2 * SIDE**3 / seconds["product"], "bytes": 2 * COPIED / seconds["copy"]}


def demands(step: Step, run: Any, passes: int) -> dict[str, float]:
    """Of one step: operations and least bytes."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(count, lambda tensor: tensor):
        run()
    parameters = sum(p.numel() * p.element_size() for group in step.optimizers[0].param_groups for p in group["params"])
    return {
        "operations": counter.get_total_flops(),
        "bytes": 2 * kept + parameters * (2 * passes + OPTIMIZER_TRAFFIC),
    }


def measure(preset: str, size: Size) -> dict[str, Any]:
    """Seconds of a step and its two floors in seconds."""
    recipe, device = recipe_of(size, preset), device_here()
    step = make_step(make_network(size, recipe), recipe, device)
    batch = to_batch(make_rows(size, 2, size.rows), make_labels(size), device=device, dtype=torch.float32)
    step(batch)
    needs = demands(step, lambda: step(batch), 2 if recipe.sam.rho else 1)
    before = ceilings(size.repeats)
    seconds = interleaved({"step": lambda: step(batch)}, size.repeats, device)["step"]
    after = ceilings(size.repeats)
    most = {name: max(before[name], after[name]) for name in before}
    floors = {name: needs[name] / most[name] for name in needs}
    return {
        "preset": preset,
        "seconds": seconds,
        "needs": needs,
        "ceilings": most,
        "floors_s": floors,
        "reached": max(floors.values()) / seconds,
    }


HEAD = (
    "| step | seconds | operations | their floor | least bytes | their floor | reached |\n|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    needs, most, floors = row["needs"], row["ceilings"], row["floors_s"]
    return (
        f"| `{row['preset']}` | {row['seconds']:.2f} | {needs['operations'] / 1e9:.0f} G at {most['operations'] / 1e9:.0f} G/s "
        f"| {floors['operations']:.2f} s | {needs['bytes'] / 1e9:.1f} GB at {most['bytes'] / 1e9:.1f} GB/s "
        f"| {floors['bytes']:.2f} s | {row['reached']:.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not how fast")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    print(HEAD)
    rows = []
    for preset in ("published", "recommended"):
        rows.append(measure(preset, QUICK if arguments.quick else FULL))
        print(line(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
