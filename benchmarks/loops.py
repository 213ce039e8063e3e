"""What several benchmarks do: a loop on one worker of this machine, and runs that are kept as they come."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datasets_manifest.stream.local_stream import LocalStream
from datasets_manifest.stream.source import BatchSource
from trainers.loop.loop import Loop
from trainers.loop.observer import Observer
from trainers.m2can.collective import Collective
from trainers.preflight.preparation import Prepared


def one_worker(prepared: Prepared, source: BatchSource | None = None) -> Loop:
    """A loop of one worker on the CPU, without Ray.

    Args:
        source: None: reads what the corpus names.
    """
    return Loop(
        prepared.card,
        prepared.corpus,
        labels=prepared.corpus.labels,
        source=source or LocalStream(prepared.corpus.table),
        collective=Collective(),
        device=torch.device("cpu"),
        observer=Observer(),
    )


def cases_parser(doc: str | None, data: Sequence[str]) -> argparse.ArgumentParser:
    """Options of a benchmark on data sets whose features are kept: --cache, --data, --out."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="packages, data and features; outside the project")
    parser.add_argument("--data", nargs="+", choices=data, default=list(data))
    parser.add_argument("--out", type=Path, help="what is in it already is not run again")
    return parser


class KeptRuns:
    """The runs of a benchmark, in a file that is written after each, so that an interrupted one goes on.

    Args:
        out: None: they are kept nowhere.
    """

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self.runs: list[dict[str, Any]] = json.loads(out.read_text())["runs"] if out and out.is_file() else []

    def has(self, **wanted: Any) -> bool:
        """Whether there is a run with these values."""
        return any(all(run[key] == value for key, value in wanted.items()) for run in self.runs)

    def add(self, runs: Sequence[dict[str, Any]]) -> None:
        self.runs += runs
        if self.out:
            lines = ",\n".join(json.dumps(run) for run in self.runs)
            self.out.write_text(f'{{"runs": [\n{lines}\n]}}\n')
