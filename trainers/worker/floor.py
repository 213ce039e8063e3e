"""The floor of a run, on its workers: found once, before the first step, and told to the driver."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from trainers.loop.floor import SHARES, find_floor, found_shares, labels_by_floor, start_from_floor
from trainers.loop.floor_labels import make_floor_labels, read_floor
from trainers.loop.loop import Loop
from trainers.loop.validator_inputs import validator_rows
from trainers.m2can.floor import FloorHead
from trainers.model.card import FLOOR
from trainers.model.floor_files import floor_metrics, write_floor
from trainers.store.run_store import RunStore
from trainers.validators.inputs import spread
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


def take_floor(loop: Loop, run: Path, store: RunStore | None = None) -> None:
    """Let the run's floor label the target, where the recipe asks for it. All workers call it together.

    Args:
        store: where the run lies, if not in a folder: the first worker brings the floor if this machine lacks it.
    """
    if not labels_by_floor(loop.recipe):
        return
    if store is not None and loop.rank == 0 and not (run / FLOOR).is_dir():
        store.bring_part(FLOOR)
    like = FloorHead((loop.network.text_encoder.width, loop.network.picture_encoder.width), len(loop.corpus.classes))
    like.to(loop.device, loop.dtype)
    found = read_floor(run, like) if loop.rank == 0 else None
    rows = len(spread(validator_rows(loop.corpus, loop.batches.labels)[1]))
    floor = make_floor_labels(found, loop.collective, like, rows)
    if floor is not None:
        loop.close()  # the first batches were asked for without the target
        start_from_floor(loop, replace(floor, prior_C=_found_prior(loop, run)))


def _found_prior(loop: Loop, run: Path) -> np.ndarray | None:
    """The first worker's on every worker."""
    mine = found_shares(floor_metrics(run) or {}, loop.corpus.classes) if loop.rank == 0 else None
    shares = torch.zeros(len(loop.corpus.classes), dtype=torch.float64, device=loop.device)
    if mine is not None:
        shares.copy_(torch.from_numpy(mine))
    whole = loop.collective.sum_(shares).cpu().numpy()
    return whole if whole.any() else None


def of_first_epoch(loop: Loop, run: Path) -> dict[str, float]:
    """The floor's metrics as the first epoch's record has them, by `floor/…`; those of a zero-shot classifier and the seconds."""
    found = floor_metrics(run) if loop.rank == 0 and loop.epoch == 1 else None
    plain = ("time/", "zero_shot/", SHARES)
    return {name if name.startswith(plain) else f"floor/{name}": value for name, value in (found or {}).items()}
