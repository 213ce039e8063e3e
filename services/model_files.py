"""What a user calls a model → the folder with its files. All commands and `m2can.Predictor.load` go through here."""

from __future__ import annotations

from pathlib import Path

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.storage import is_uri
from trainers.model.card import FLOOR, ZERO_SHOT
from trainers.preflight.start import model_of
from trainers.preflight.stored_model import bring_model
from trainers.store.run_store import RECIPE, store_of

FORMS = "the folder of a run or a checkpoint, its address in an object store, or NAME, NAME:VERSION, NAME@alias of the registry"


def is_folder(model: str) -> bool:
    """Whether a model is called by a folder or an address, and not by its name in the registry."""
    return not model.startswith("models:/") and ("/" in model or Path(model).is_dir())


def model_files(model: str | Path, tracking_uri: str | None = None, storage: Path = Path("runs")) -> Path:
    """The folder that `trainers.model.predictor.Predictor.load` reads.

    Args:
        model: a run's folder (its chosen checkpoint), a checkpoint's folder, a folder that `m2can models fetch` wrote, the
            address of a run or a checkpoint in an object store (`s3://…`), or a
            model of the registry: NAME (its newest version), NAME:VERSION, NAME@alias, with or without `models:/`. A folder
            goes before a registered model of the same name.
        tracking_uri: where MLflow is; None: MLFLOW_TRACKING_URI, or else the store in `storage`.

    Raises:
        InputError: no such folder or model, or its files are not those that were registered.
    """
    text = str(model)
    if isinstance(model, Path) or is_folder(text):
        if isinstance(model, str) and is_uri(text):
            return bring_model(store_of(text, "read", "MODEL"))
        if not Path(text).is_dir():
            raise InputError("there is no such folder", field="MODEL", value=text, wanted=FORMS)
        return model_of(Path(text))
    from trainers.tracking.registered_models import client_for, fetch_version, find_model

    try:
        client = client_for(tracking_uri, storage)
        version = find_model(client, text)
    except InputError as error:
        if text.startswith("models:/"):
            raise
        problem = f"there is no such folder, and no such model in the registry ({error})"
        raise InputError(problem, field="MODEL", value=text, wanted=FORMS) from None
    return fetch_version(client, version)


def models_without_training(
    model: str, files: Path, tracking_uri: str | None = None, storage: Path = Path("runs")
) -> dict[str, Path | str]:
    """What the run that trained a model found before its first step: `floor` and `zero_shot`.

    Args:
        model, tracking_uri, storage: see model_files.
        files: what model_files found.

    Returns:
        for each the folder that `trainers.model.predictor.Predictor.load` reads, or in words why there is none.
    """
    run: Path | str
    if is_uri(model):
        run = "of a run in an object store it is not read; `m2can evaluate` takes its own address"
    elif is_folder(model):
        run = files.parent.parent
        if not (run / RECIPE).is_file():
            run = "a model folder alone brings none; that of its run has it"
    else:
        from trainers.tracking.registered_models import client_for, find_model

        run = Path(find_model(client_for(tracking_uri, storage), model).tags.get("m2can.checkpoint", "")).parent
        if not (run / RECIPE).is_file():
            run = "the registry keeps none, and the folder of the model's run is not here"
    if isinstance(run, str):
        return dict.fromkeys((FLOOR, ZERO_SHOT), run)
    absent = {FLOOR: "the run found no floor", ZERO_SHOT: "the run did not begin with a dual encoder's weights"}
    places = {name: run / name / "model" for name in absent}
    return {name: place if (place / "model.json").is_file() else absent[name] for name, place in places.items()}
