"""Where a run goes on after its workers were restarted, or after its command was: the newest checkpoint that is whole."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from datasets_manifest.errors import InputError
from trainers.encoders.weight_files import FROZEN
from trainers.loop.loop import Loop
from trainers.store.run_store import RunStore
from trainers.worker.session import Session

_log = logging.getLogger(__name__)


def resume(loop: Loop, session: Session, store: RunStore | None = None) -> bool:
    """Load the newest reported checkpoint that is whole; False if there is none.

    Args:
        store: where the run lies, if not in a folder: its checkpoints are brought to this machine.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    if loop.rank == 0:
        remove_drafts(Path(session.run) if store is None else store.folder)
    found, problems = session.checkpoints(), []
    for path in found:
        try:
            loop.load(Path(path) if store is None else store.bring_checkpoint(Path(path).name, FROZEN))
            _log.info("goes on from %s, in epoch %d after step %d", path, loop.epoch + 1, loop.steps_done)
            return True
        except InputError as error:
            problems.append(str(error))
            _log.warning("a checkpoint is left out: %s", error)
            session.post("note", f"a checkpoint is left out: {error}")
    if problems:
        raise InputError(f"no checkpoint is whole; the newest: {problems[0]}", file=found[0])
    return False


def remove_drafts(run: Path) -> None:
    """What a process that was killed had not finished writing."""
    for draft in run.glob(".checkpoint_*"):
        shutil.rmtree(draft, ignore_errors=True)
    for draft in run.glob(f".{FROZEN}.*"):
        draft.unlink(missing_ok=True)
