"""Where a run goes on after its workers were restarted, or after its command was: the newest checkpoint that is whole."""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path
from typing import Any

import ray.train

from datasets_manifest.errors import InputError
from trainers.encoders.weight_files import FROZEN
from trainers.loop.loop import Loop
from trainers.store.run_store import RunStore

_log = logging.getLogger(__name__)


def resume(loop: Loop, monitor: Any, store: RunStore | None = None) -> bool:
    """Load the newest reported checkpoint that is whole; False if there is none.

    Args:
        store: where the run lies, if not in a folder: its checkpoints are brought to this machine.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    if loop.rank == 0:
        run = ray.train.get_context().get_storage().experiment_fs_path
        remove_drafts(Path(run) if store is None else store.folder)
    last = ray.train.get_checkpoint()
    if last is None:
        return False
    problems = []
    for checkpoint in [last, *earlier(last)]:
        try:
            with contextlib.ExitStack() as opened:
                if store is None:
                    folder = Path(opened.enter_context(checkpoint.as_directory()))
                else:
                    folder = store.bring_checkpoint(Path(checkpoint.path).name, FROZEN)
                loop.load(folder)
                _log.info(
                    "goes on from %s, in epoch %d after step %d", checkpoint.path, loop.epoch + 1, loop.steps_done
                )
                return True
        except InputError as error:
            problems.append(str(error))
            _log.warning("a checkpoint is left out: %s", error)
            monitor.post.remote("note", f"a checkpoint is left out: {error}")
    raise InputError(f"no checkpoint is whole; the newest: {problems[0]}", file=last.path)


def remove_drafts(run: Path) -> None:
    """What a process that was killed had not finished writing."""
    for draft in run.glob(".checkpoint_*"):
        shutil.rmtree(draft, ignore_errors=True)
    for draft in run.glob(f".{FROZEN}.*"):
        draft.unlink(missing_ok=True)


def earlier(last: ray.train.Checkpoint) -> list[ray.train.Checkpoint]:
    """The run's other reported checkpoints, newest first."""
    known = [found.checkpoint for found in ray.train.get_all_reported_checkpoints()]
    return [found for found in reversed(known) if found.path != last.path]
