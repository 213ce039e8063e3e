"""A model of a run in an object store: its working copy on this machine, with all that prediction needs."""

from __future__ import annotations

from pathlib import Path

from datasets_manifest.errors import InputError
from trainers.encoders.weight_files import FROZEN
from trainers.model.card import FLOOR, ZERO_SHOT, model_folder
from trainers.store.run_store import RECIPE, RunStore, store_told


def bring_model(store: RunStore, field: str = "MODEL") -> Path:
    """Bring the model of a run (of its chosen checkpoint) or of one of its checkpoints; the folder of the model.

    Args:
        store: of the run, or of a checkpoint in it.
        field: that names it, for errors.

    Raises:
        InputError: there is no such run or checkpoint, the run has not ended, or the store does not answer.
    """
    store = RunStore(store.uri, "read")
    with store_told(store, field):
        if store.has(RECIPE):
            store.bring()
            return _brought(store, model_folder(store.folder).parent.name)
        name, run = store.name, store.parent
        if (name.startswith("checkpoint_") or name in (FLOOR, ZERO_SHOT)) and run.has(RECIPE):
            return _brought(run, name)
    wanted = "the address of a run or of one of its checkpoints"
    raise InputError("there is no such run or checkpoint", field=field, value=store.uri, wanted=wanted)


def _brought(run: RunStore, checkpoint: str) -> Path:
    run.bring_part(f"{checkpoint}/model", FROZEN)
    return model_folder(run.folder / checkpoint)
