"""What a run starts from (`train.start_from`): a finished run, whose training goes on, or a model, whose weights it takes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets_manifest.errors import InputError, nearest
from datasets_manifest.files import read_json
from datasets_manifest.records.corpus import Corpus
from trainers.encoders.weight_files import FROZEN
from trainers.model.card import ModelCard, checkpoint_of_epoch, load_card, model_folder
from trainers.preflight.stored_model import bring_model
from trainers.recipe import Recipe
from trainers.recipe.base import decided
from trainers.recipe.overrides import differing
from trainers.store import is_store
from trainers.store.run_store import RECIPE, RunStore, store_of, store_told
from trainers.tracking.address import run_store, tracking_uri

if TYPE_CHECKING:
    from torch import Tensor

FIELD = "train.start_from"
_FORMS = (
    "the name or folder of a finished run, a checkpoint's folder, or NAME, NAME:VERSION, NAME@alias of the registry"
)
STARTED = "start.json"  # in the run's folder: what it started from, as it was found then
# What a run that goes on from another cannot change: its state would not fit. Where weights came from does not matter any more.
_FIXED = ("encoders.", "network.", "objective.discriminators", "optimizer.type", "optimizer.layer_decay", "data.splits",
          "data.texts.max_tokens", "train.target_labels")  # fmt: skip
_OPEN = (
    "encoders.text.weights",
    "encoders.picture.weights",
    "encoders.features",
    "encoders.activation_checkpointing",
    "encoders.prompts",
)


@dataclass(frozen=True)
class Start:
    """What `train.start_from` names.

    name: of the run, the folder, or of the registered version, with its number. model: folder with the weights.
    card: of the model. epoch: of the finished run, whose training goes on; None: its weights alone are taken.
    store: of that run, if it lies in an object store: each machine brings the checkpoint.
    """

    name: str
    model: Path
    card: ModelCard
    epoch: int | None = None
    store: RunStore | None = None

    @property
    def checkpoint(self) -> Path:
        return self.model.parent

    def described(self) -> str:
        """As model card, registry and report say it."""
        return f"{self.name}, {'weights' if self.epoch is None else f'epoch {self.epoch}'}"

    def weights(self, names: dict[str, str]) -> dict[str, Tensor]:
        """The model's tensors under the network's names; see trainers.model.warm_start. Raises InputError: damaged."""
        from trainers.model.trained_network import plain_weights

        found = plain_weights(self.model)
        return {ours: found[theirs] for ours, theirs in names.items()}


def find_start(recipe: Recipe, storage: Path, folder: Path | None) -> Start | None:
    """Find what the recipe's `train.start_from` names; None if it names nothing, or the run goes on from its own checkpoints.

    Args:
        storage: folder of runs.
        folder: of this run, if it has a name.

    Raises:
        InputError: there is no such thing, or it is a run that has not ended.
    """
    named = recipe.train.start_from
    if named is None or (folder is not None and any(folder.glob("checkpoint_*"))):
        return None
    if folder is not None and (folder / STARTED).is_file():
        named = str(read_json(folder / STARTED)["name"])  # an alias may have moved since
    if is_store(named) and not named.startswith("models:/"):
        run = store_of(named, field=FIELD)
        return _of_store(run, named)
    runs = run_store(recipe)
    if runs is not None and "/" not in named and (there := _run_in_store(runs, named)) is not None:
        return there
    if not named.startswith("models:/"):
        for place in (storage / named, Path(named).expanduser()):
            if (place / "recipe.json").is_file():
                return _of_run(place.resolve(), named_as(place.resolve(), storage))
        place = Path(named).expanduser()
        if place.is_dir():
            model = model_of(place)
            return Start(str(place.resolve()), model, load_card(model))
    return _of_registry(recipe, named, storage)


def _run_in_store(runs: RunStore, named: str) -> Start | None:
    with store_told(runs, FIELD):
        return _of_store(runs / named, named) if (runs / named).has(RECIPE) else None


def _of_store(run: RunStore, name: str) -> Start:
    """Raises InputError: neither a run that has ended nor a checkpoint of one, or the store does not answer."""
    with store_told(run, FIELD):
        if run.has(RECIPE):
            run = RunStore(run.uri, "read")
            run.bring()
            found = _of_run(run.folder, name)
            run.bring_checkpoint(found.checkpoint.name, FROZEN)
            return replace(found, store=run)
    model = bring_model(run)
    return Start(name, model, load_card(model))


def model_of_started(recipe: Recipe, storage: Path) -> Path | None:
    """A model of a run that had started from something and goes on from its own checkpoints: it keeps its vocabulary and what
    it does not train."""
    folder = storage / recipe.run.name if recipe.run.name is not None else None
    if folder is None or not (folder / STARTED).is_file():
        return None
    runs = run_store(recipe)
    for checkpoint in sorted(folder.glob("checkpoint_*")):
        with contextlib.suppress(InputError):  # a damaged one is left out when the run goes on, too
            load_card(checkpoint / "model")
            if runs is not None:  # which brought what is small of it
                with store_told(runs):
                    (runs / folder.name).bring_checkpoint(checkpoint.name, FROZEN)
            return checkpoint / "model"
    return None


def named_as(run: Path, storage: Path) -> str:
    """How a run is found again: by its name in the folder of runs, else by its path."""
    return run.name if run.parent == storage.resolve() else str(run)


def _of_run(folder: Path, name: str) -> Start:
    """Raises InputError: it has not ended, or its last checkpoint is gone."""
    if not (folder / "report" / "summary.json").is_file():
        problem, wanted = "is a run that has not ended", f"a finished run; run.name={folder.name} goes on with this one"
        raise InputError(problem, field=FIELD, value=name, wanted=wanted)
    last = read_json(folder / "report" / "summary.json").get("last_epoch")
    checkpoint = checkpoint_of_epoch(folder, last)
    if checkpoint is not None:
        return Start(name, checkpoint / "model", load_card(checkpoint / "model"), last)
    problem = f"is a run whose last checkpoint, of epoch {last}, is gone"
    raise InputError(problem, field=FIELD, value=name, wanted=f"{folder / 'best'}, for the weights alone")


def model_of(folder: Path) -> Path:
    """The model folder of a run, a checkpoint, or a model as MLflow keeps it. Raises InputError: it is none of them."""
    if (folder / "MLmodel").is_file():
        from trainers.tracking.registered_models import bundle_of

        return bundle_of(folder)
    return model_folder(folder)


def _of_registry(recipe: Recipe, named: str, storage: Path) -> Start:
    from trainers.tracking.registered_models import client_for, fetch_version, find_model

    try:
        client = client_for(tracking_uri(recipe), storage)
        version = find_model(client, named)
    except InputError as error:
        close = nearest(named, [file.parent.name for file in storage.glob("*/recipe.json")])
        problem = f"there is no such run in {storage}, no such folder, and no such model in the registry ({error})"
        wanted = _FORMS + (f" (nearest: {close})" if close else "")
        raise InputError(problem, field=FIELD, value=named, wanted=wanted) from None
    model = fetch_version(client, version)
    return Start(f"{version.name}:{version.version}", model, load_card(model))


def require_same_run(start: Start, recipe: Recipe, corpus: Corpus) -> None:
    """Look whether the state of the finished run fits this recipe and its data.

    Raises:
        InputError: names the first key that differs, or the data that do.
    """
    weights_alone = f"for its weights alone, {FIELD}={start.checkpoint.parent / 'best'}"
    before, now = start.card.recipe.flat(), recipe.flat()
    for key in differing(now, before):
        open_ = key in _OPEN or (key == "data.texts.max_tokens" and now[key] is None)  # it stays as it was
        if key.startswith(_FIXED) and not open_:
            problem = f"is not that of {start.name}, whose training goes on"
            stated = f"{key}={before.get(key)}; {weights_alone}"
            raise InputError(problem, field=key, value=now.get(key), wanted=stated)
    if (recipe.train.precision == "fp64") != (start.card.recipe.train.precision == "fp64"):
        problem = f"is not that of {start.name}, whose training goes on"
        raise InputError(problem, field="train.precision", value=recipe.train.precision, wanted=weights_alone)
    domains = [part.domain for part in corpus.train]
    for what, found, wanted in (
        ("classes", corpus.classes, start.card.classes),
        ("domains", domains, [*start.card.sources, start.card.target]),
        ("records", rows_of(corpus), _rows_before(start) or rows_of(corpus)),
    ):
        if found != wanted:
            problem = f"has other {what} than {start.name}, whose training goes on"
            raise InputError(problem, field="data", value=found, wanted=f"{wanted}; {weights_alone}")
    if decided(recipe.train.epochs) <= decided(start.epoch):
        raise InputError(
            f"{start.name} has {start.epoch} epochs, which count",
            field="train.epochs",
            value=recipe.train.epochs,
            wanted=f"more than {start.epoch}, such as train.epochs={2 * decided(start.epoch)}",
        )


def rows_of(corpus: Corpus) -> dict[str, int]:
    """Records of each training part: pseudo labels name rows by their numbers."""
    return {part.domain: len(part) for part in corpus.train}


def _rows_before(start: Start) -> dict[str, int] | None:
    """None: a checkpoint of before has not noted them."""
    rows: dict[str, int] | None = read_json(start.checkpoint / "state" / "training.json")["values"].get("rows")
    return rows
