"""The floor of a run, on its workers: found once, before the first step, and told to the driver."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from trainers.loop.floor import find_floor
from trainers.loop.loop import Loop
from trainers.model.floor_files import floor_metrics, write_floor
from trainers.worker.session import Session

_log = logging.getLogger(__name__)


def make_floor(loop: Loop, run: Path, session: Session) -> None:
    """Find the floor and write it into the run's folder, unless workers before a restart did. All workers call it together.

    Training does not depend on it: what stands in its way is told, and the run goes on without it.
    """
    is_there = torch.tensor([float(loop.rank == 0 and floor_metrics(run) is not None)], device=loop.device)
    if not loop.collective.sum_(is_there).item():
        found = find_floor(loop)
        if loop.rank == 0 and found is None:
            session.post("note", "there is no floor: a feature of the encoders is not finite")
        elif found is not None:
            try:
                if (named := found.zero_shot) is not None:
                    write_floor(
                        run, named.network, loop.frozen, loop.card, named.metrics, named.evaluation, zero_shot=True
                    )
                write_floor(run, found.network, loop.frozen, loop.card, found.metrics, found.evaluation)
            except OSError as error:
                session.post("note", f"the floor could not be written: {error}")
    if loop.rank == 0 and (metrics := floor_metrics(run)) is not None:
        _log.info("the floor: %s", ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        session.post("floor", metrics)


def of_first_epoch(loop: Loop, run: Path) -> dict[str, float]:
    """The floor's metrics as the first epoch's record has them, by `floor/…`; those of a zero-shot classifier and the seconds."""
    found = floor_metrics(run) if loop.rank == 0 and loop.epoch == 1 else None
    plain = ("time/", "zero_shot/")
    return {name if name.startswith(plain) else f"floor/{name}": value for name, value in (found or {}).items()}
