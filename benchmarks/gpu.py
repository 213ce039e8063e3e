"""How close training on one CUDA GPU comes to the chip, in under six minutes.

    python -m benchmarks.gpu [--out benchmarks/results] [--tiny]

ResNet-50 at 224 pixels and BERT-base with random weights, three domains, two views, log-normal text lengths; data is
generated. Each measurement runs in a process of its own with a time budget; rows that fail say why and the others go on.
Writes gpu.json and gpu.md after every measurement, and <measurement>.log with what its process printed.
Exit code 2: this machine lacks what is needed. `--tiny`: every row's code at tiny sizes on a CPU, whose numbers mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import m2can

LIMIT_S = 350.0
TINY_LIMIT_S = 500.0  # on a CPU that others use: no measurement has a budget of its own
LEAST_TORCH = (2, 11)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """A line of the table. `bar` must be reached, `aim` is wanted; both are lower bounds if `least`, else upper bounds."""

    what: str
    unit: str
    bar: float | None = None
    aim: float | None = None
    least: bool = False


ROWS = {
    "step_64": Row("ready step, texts that differ from step to step, 64 rows a domain, `recommended`", "ms", 120, 90),
    "step_64_dropout": Row("the same with BERT's own dropout (0.1)", "ms"),
    "step_64_compiled": Row("the same without dropout, with `train.compile: true`", "ms"),
    "step_8": Row("the same, not compiled, 8 rows a domain", "ms", 45, 25),
    "first_steps": Row("the slowest of steps 1-10 after the first, against the median, 64 rows", "×", 1.5),
    "published_tf32": Row("ready step of `published` (SAM, per-sample statistics), 64 rows, TF32", "ms", 300, 220),
    "published_bf16": Row("the same in bf16", "ms", 300, 220),
    "launches": Row("kernel launches a step, 64 rows", "", 1600),
    "copies": Row("share of GPU work that is copies or casts", "%", 5),
    "epoch_1": Row("`m2can train` whole, JPEGs of 1024×768: epoch 1 against the ready step", "×", 0.75, least=True),
    "epoch_2": Row("the same, epoch 2", "×", 0.9, least=True),
    "memory": Row("peak GPU memory, `recommended`, 64 rows", "GB", 24),
    "scoring": Row("pseudo-label pass of epoch 2, rows a second against the ready step's", "×", 3, least=True),
    "prediction": Row("batch prediction from JPEGs, rows a second against the ready step's", "×", 3, least=True),
    "baseline": Row(
        "a step of `benchmarks/baseline.py` against ours: same mathematics, 8 rows, fp32", "×", 20, least=True
    ),
    "floor": Row(
        "torchvision's ResNet-50 alone with Adam, bf16, channels last, as many pictures as 64 rows have", "ms"
    ),
}
AGAINST_READY = ("epoch_1", "epoch_2", "scoring", "prediction")  # measured in rows a second


@dataclass(frozen=True)
class Measurement:
    """Rows that one process measures within `budget_s` seconds, imports included.

    place: `module:function`, imported in that process. writes: whether the function takes a temporary folder, too.
    """

    place: str
    budget_s: float
    rows: tuple[str, ...]
    writes: bool = False


MEASUREMENTS = {
    "large": Measurement(
        "benchmarks.gpu_step:large_steps",
        75,
        ("step_64", "first_steps", "memory", "launches", "copies", "step_64_dropout"),
    ),
    "small": Measurement("benchmarks.gpu_step:small_steps", 40, ("step_8",)),
    "published": Measurement("benchmarks.gpu_step:published_steps", 60, ("published_bf16", "published_tf32")),
    "floor": Measurement("benchmarks.gpu_step:picture_floor", 30, ("floor",)),
    "baseline": Measurement("benchmarks.gpu_step:against_baseline", 75, ("baseline",)),
    "run": Measurement("benchmarks.gpu_run:whole_run", 150, AGAINST_READY, writes=True),
    "compiled": Measurement("benchmarks.gpu_step:compiled_steps", 90, ("step_64_compiled",)),
}
Found = dict[str, Any]  # of a row: `value` and `note`, or `error`; `reached` where there is a bar


def lacking() -> list[str]:
    """What a measurement needs and this machine has not."""
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < LEAST_TORCH:
        return [f"torch {'.'.join(map(str, LEAST_TORCH))} or later; here is {torch.__version__}"]
    if torch.version.cuda is None:
        return [f"a CUDA build of torch; here is {torch.__version__}"]
    if not torch.cuda.is_available():
        return [f"a CUDA GPU; torch {torch.__version__} finds none"]
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return [f"a GPU with bf16 and TF32 (compute capability 8.0); {torch.cuda.get_device_name()} has {capability}"]
    return []


def machine() -> dict[str, Any]:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "card": card,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "version": m2can.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def measure(name: str, seconds: float, tiny: bool, logs: Path) -> tuple[dict[str, Found], str]:
    """One measurement in a process of its own, which is ended after `seconds`.

    Returns:
        the rows that it told, and why there are no more of them: empty if it came to its end.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    deadline, found, error = time.monotonic() + seconds, {}, f"took longer than {seconds:.0f} s"
    with tempfile.TemporaryDirectory(prefix="m2can-gpu-", ignore_cleanup_errors=True) as folder:
        arguments = (theirs, MEASUREMENTS[name], tiny, Path(folder), logs / f"{name}.log")
        process = context.Process(target=_work, args=arguments)
        process.start()
        theirs.close()
        while ours.poll(max(0.0, deadline - time.monotonic())):
            try:
                row, content = ours.recv()
            except EOFError:
                process.join()
                error = f"its process ended with code {process.exitcode}; see {name}.log"
                break
            if row is None:
                error = content
                break
            found[row] = content
        _end(process, 10.0 if not error else 0.0)
    return found, error


def _work(connection: Connection, measurement: Measurement, tiny: bool, folder: Path, log: Path) -> None:
    """In the process of a measurement: tell each row, then (None, why there are no more of them)."""
    os.setsid()  # so that its own processes can be ended with it
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from importlib import import_module

    def tell(row: str, value: float, note: str = "", **more: Any) -> None:
        connection.send((row, {"value": value, "note": note, **more}))

    try:
        from benchmarks.gpu_step import REAL, TINY

        module, function = measurement.place.split(":")
        run: Callable[..., None] = getattr(import_module(module), function)
        run(TINY if tiny else REAL, tell, *([folder] if measurement.writes else []))
        connection.send((None, ""))
    except Exception as error:
        import traceback

        traceback.print_exc()
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        connection.send((None, f"{lines[0]}{' …' if lines[1:] else ''}"))
    sys.stderr.flush()


def _end(process: Any, patience_s: float) -> None:
    process.join(patience_s)
    if process.is_alive():
        with_children = os.getpgid(process.pid) == process.pid
        (os.killpg if with_children else os.kill)(process.pid, signal.SIGKILL)
        process.join()


def judged(rows: dict[str, Found]) -> dict[str, Found]:
    """All rows in the table's order, with `reached`; rates become ratios to the ready step's."""
    ready = rows.get("step_64", {}).get("rows_per_s")
    judged_rows = {}
    for name, row in ROWS.items():
        found = dict(rows.get(name, {"error": "not measured"}))
        if name in AGAINST_READY and "value" in found:
            found["rows_per_s"] = found.pop("value")
            if ready:
                found["value"] = found["rows_per_s"] / ready
            else:
                found["error"] = f"{found.pop('note')}; there is no ready step to compare it with"
        if row.bar is not None:
            found["reached"] = "value" in found and _within(row, found["value"], row.bar)
        if row.aim is not None:
            found["aim_reached"] = "value" in found and _within(row, found["value"], row.aim)
        judged_rows[name] = found
    return judged_rows


def _within(row: Row, value: float, bound: float) -> bool:
    return value >= bound if row.least else value <= bound


HEAD = "| what | found | wanted | aim | reached | |\n|---|---|---|---|---|---|"


def line(name: str, found: Found) -> str:
    """A row of the Markdown table."""
    row = ROWS[name]
    cells = [row.what, shown(name, found), bound(row, row.bar), bound(row, row.aim), reached(found)]
    return "| " + " | ".join([*cells, found.get("error") or found.get("note", "")]) + " |"


def reached(found: Found) -> str:
    """`aim`, `yes` or `no`; empty where no bar is."""
    if "reached" not in found:
        return ""
    return "aim" if found.get("aim_reached") else "yes" if found["reached"] else "no"


def shown(name: str, found: Found) -> str:
    """The value with its unit; empty where there is none."""
    unit = ROWS[name].unit
    digits = {"×": 2, "": 0}.get(unit, 1)
    return f"{found['value']:,.{digits}f} {unit}".strip() if "value" in found else ""


def bound(row: Row, value: float | None) -> str:
    """A bar or an aim as the table shows it."""
    return "" if value is None else f"{'≥' if row.least else '≤'} {value:,g} {row.unit}".strip()


def markdown(content: dict[str, Any]) -> str:
    """The table with its machine."""
    lines = [line(name, row) for name, row in content["rows"].items()]
    return "\n".join([f"{machine_line(content['machine'])}\n", HEAD, *lines])


def machine_line(found: dict[str, Any]) -> str:
    return (
        f"{found['card']}, {found['cores']} cores, torch {found['torch']}, M2CAN {found['version']}, {found['date']}. "
        "`python -m benchmarks.gpu`"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, also on a CPU: whether it runs, not how fast")
    arguments = parser.parse_args()
    if arguments.tiny and arguments.out == RESULTS:
        parser.error("--tiny needs --out: its numbers are no results")
    if not arguments.tiny and (needs := lacking()):
        print(f"benchmarks.gpu needs {', '.join(needs)}", file=sys.stderr)
        sys.exit(2)
    began = time.monotonic()
    rows: dict[str, Found] = {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, measurement in MEASUREMENTS.items():
        left = (TINY_LIMIT_S if arguments.tiny else LIMIT_S) - (time.monotonic() - began)
        seconds = left if arguments.tiny else min(measurement.budget_s, left)
        told, error = measure(name, max(1.0, seconds), arguments.tiny, arguments.out / "logs")
        rows |= {row: {"error": error or "not told"} for row in measurement.rows} | told
        whole_s = time.monotonic() - began
        content = {"machine": machine(), "tiny": arguments.tiny, "seconds": whole_s, "rows": judged(rows)}
        (arguments.out / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
        (arguments.out / "gpu.md").write_text(markdown(content) + "\n")
        print(f"{name}: {whole_s:.0f} s", file=sys.stderr, flush=True)
    print(markdown(content))


if __name__ == "__main__":
    main()
