"""What a model is, beside its weights: model.json and tokenizer.json; and where they lie in a checkpoint or a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets_manifest.errors import InputError, without_password
from datasets_manifest.files import json_text, read_json
from datasets_manifest.stream.encode import Vocabulary
from trainers.recipe import Recipe, make_recipe
from trainers.recipe.schema_versions import migrate

FLOOR, ZERO_SHOT = "floor", "zero_shot"  # in a run's folder, see floor_files
EVALUATION = "evaluation.safetensors"  # in a checkpoint, and in those two
SCHEMA_VERSION = 2  # of model.json and of a checkpoint's training.json
_VERSIONS = ("torch", "torchvision", "transformers", "ray", "numpy")


@dataclass(frozen=True)
class ModelCard:
    """What a model is, beside its weights: model.json and tokenizer.json.

    started_from: the run or the model that its training began with; None: with its encoders' own weights.
    merged_adapters: settings of the adapters that the weights of an encoder hold, by `text` and `picture`; the recipe then has
    none.
    floor: whether the network is the floor (trainers.m2can.floor) above the recipe's encoders as training found them.
    zero_shot: whether it is a zero-shot classifier above them.
    """

    recipe: Recipe
    classes: list[str]
    sources: list[str]
    target: str
    text_config: dict[str, Any]
    vocabulary: Vocabulary
    picture_config: dict[str, Any] | None = None  # of transformers' vision models
    started_from: str | None = None
    merged_adapters: dict[str, Any] | None = None
    floor: bool = False
    zero_shot: bool = False


def shareable(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values as they may be stored: without a password."""
    tree = recipe.model_dump(mode="json")
    tree["tracking"]["uri"] = without_password(tree["tracking"]["uri"] or "") or None
    return tree


def card_files(card: ModelCard) -> dict[str, str]:
    """The content of model.json and tokenizer.json."""
    vocabulary = asdict(card.vocabulary)
    tokenizer = vocabulary.pop("json")
    content = {
        "schema_version": SCHEMA_VERSION,
        "versions": {name: version(name) for name in _VERSIONS},
        "recipe": shareable(card.recipe),
        "classes": card.classes,
        "sources": card.sources,
        "target": card.target,
        "text_config": card.text_config,
        **({} if card.picture_config is None else {"picture_config": card.picture_config}),
        "vocabulary": vocabulary,
        "started_from": card.started_from,
        **({} if card.merged_adapters is None else {"merged_adapters": card.merged_adapters}),
        **({"floor": True} if card.floor else {}),
        **({"zero_shot": True} if card.zero_shot else {}),
    }
    return {"model.json": json_text(content), "tokenizer.json": tokenizer}


def model_folder(folder: Path) -> Path:
    """The part of a checkpoint that prediction needs, given the checkpoint, that part, or the folder of a finished run,
    which means the run's chosen checkpoint.

    Raises:
        InputError: none of them, or the run has not ended.
    """
    for candidate in (folder / "model", folder):
        if (candidate / "model.json").is_file():
            return candidate
    if (folder / "recipe.json").is_file():
        return _chosen_checkpoint(folder) / "model"
    wanted = "a folder with model/model.json or model.json, or the folder of a run"
    raise InputError("is not a checkpoint", file=folder, wanted=wanted)


def _chosen_checkpoint(run: Path) -> Path:
    """By the epoch that the run's summary names; 0 is the floor."""
    checkpoints = sorted(path for path in run.glob("checkpoint_*") if (path / "model" / "model.json").is_file())
    summary = run / "report" / "summary.json"
    if not summary.is_file():
        wanted = f"one of its checkpoints: {', '.join(path.name for path in checkpoints)}" if checkpoints else None
        raise InputError("is a run that has not ended: no checkpoint is chosen yet", file=run, wanted=wanted)
    chosen = read_json(summary).get("chosen_epoch")
    checkpoint = checkpoint_of_epoch(run, chosen) if chosen != 0 else run / FLOOR
    if checkpoint is None:
        raise InputError(f"the checkpoint of its chosen epoch {chosen} is gone", file=run)
    return checkpoint


def checkpoint_of_epoch(run: Path, epoch: int | None) -> Path | None:
    """A run's checkpoint that was written at the end of an epoch; None: it is gone."""
    for checkpoint in sorted(run.glob("checkpoint_*")):
        file = checkpoint / "state" / "training.json"
        state = read_json(file) if file.is_file() and (checkpoint / "model" / "model.json").is_file() else {}
        if state and state["epoch"] == epoch and not state["values"].get("steps_done"):
            return checkpoint
    return None


def load_card(folder: Path) -> ModelCard:
    """Raises InputError: missing, damaged, or of an unknown schema version."""
    file = folder / "model.json"
    content = read_json(file)
    migrate(content, current=SCHEMA_VERSION, migrations={}, file=file)  # the same form in all versions
    try:
        tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
        return ModelCard(
            recipe=make_recipe(content["recipe"], str(file)),
            classes=content["classes"],
            sources=content["sources"],
            target=content["target"],
            text_config=content["text_config"],
            vocabulary=Vocabulary(json=tokenizer, **content["vocabulary"]),
            picture_config=content.get("picture_config"),
            started_from=content.get("started_from"),
            merged_adapters=content.get("merged_adapters"),
            floor=content.get("floor", False),
            zero_shot=content.get("zero_shot", False),
        )
    except (KeyError, TypeError, OSError) as error:
        raise InputError(f"is damaged ({error!r})", file=file) from None
