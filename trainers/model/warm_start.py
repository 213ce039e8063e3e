"""The weights of another model as the beginning of a network: which tensors are taken, which are not, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from datasets_manifest.errors import InputError
from trainers.model.card import ModelCard

_BY_CLASS = ("heads.", "text_head.3.", "picture_head.3.")  # layers whose outputs are the classes
# Of a text encoder's configuration: where it was read and by what, not what it is.
_ORIGIN = ("_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")


@dataclass(frozen=True)
class Taken:
    """names: of the network's tensors → the model's. left: why each of the others keeps its own beginning."""

    names: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def described(self) -> str:
        """`210 of 214 tensors taken; not taken: 4 of other classes (heads.0.weight, …)`."""
        total = len(self.names) + len(self.left)
        said = f"{len(self.names)} of {total} tensors taken"
        reasons: dict[str, list[str]] = {}
        for name, why in self.left.items():
            reasons.setdefault(why, []).append(name)
        groups = [
            f"{len(names)} {why} ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})"
            for why, names in reasons.items()
        ]
        return f"{said}; not taken: {'; '.join(groups)}" if groups else said


def require_same_encoders(ours: ModelCard, theirs: ModelCard, name: str) -> None:
    """Raises InputError: an encoder of the model `name` is another one."""
    text, their_text = ours.recipe.encoders.text, theirs.recipe.encoders.text
    if text.name != their_text.name and text_kind(ours) != text_kind(theirs):
        _refuse("encoders.text.name", text.name, their_text.name, name)
    picture, their_picture = ours.recipe.encoders.picture, theirs.recipe.encoders.picture
    if picture.name != their_picture.name and picture_kind(ours) != picture_kind(theirs):
        _refuse("encoders.picture.name", picture.name, their_picture.name, name)


def text_kind(card: ModelCard) -> dict[str, object]:
    """What a text encoder is, wherever its files lie. The vocabulary and the longest text of `tiny` follow from the data.

    Dropout is none of it: it is how an encoder is trained.
    """
    tiny = card.recipe.encoders.text.tiny
    return {"tiny": tiny} if tiny else {key: x for key, x in card.text_config.items() if _is_of_kind(key)}


def picture_kind(card: ModelCard) -> object:
    """What a picture encoder is, wherever its files lie."""
    picture, config = card.recipe.encoders.picture, card.picture_config
    if config is None:
        return picture.tiny or picture.name
    return {key: x for key, x in config.items() if _is_of_kind(key)}


def _is_of_kind(key: str) -> bool:
    return key not in _ORIGIN and "dropout" not in key


def _refuse(key: str, ours: str, theirs: str, name: str) -> None:
    problem = f"is not the encoder of {name}, which train.start_from names"
    raise InputError(problem, field=key, value=ours, wanted=f"{key}={theirs}, or no train.start_from")


def taken_from(found: Mapping[str, Tensor], theirs: ModelCard, wanted: Mapping[str, Tensor], ours: ModelCard) -> Taken:
    """Which of a model's tensors begin a network.

    A source's head begins as the head of the source of that name. Layers with an output for each class need the same classes.
    Adapters begin anew.

    Args:
        found, theirs: of the model, its adapters merged. wanted, ours: of the network. Shapes alone are looked at.
    """
    taken = Taken()
    for name, tensor in wanted.items():
        why = None
        other: str | None = name.replace(".base_layer.", ".")  # which stands beside an adapter
        if name.startswith("heads."):
            other = _head_of(name, ours.sources, theirs.sources)
        if other is None:
            why = "of a source that it lacks"
        elif name.startswith(_BY_CLASS) and ours.classes != theirs.classes:
            why = "of other classes"
        elif other not in found:
            why = "that it lacks"
        elif found[other].shape != tensor.shape:
            why = "of another shape"
        if why is None and other is not None:
            taken.names[name] = other
        else:
            taken.left[name] = str(why)
    return taken


def _head_of(name: str, sources: list[str], their_sources: list[str]) -> str | None:
    """`heads.1.weight` → the name of that tensor of the same source's head in the model; None: it has no such source."""
    _, number, rest = name.split(".", 2)
    source = sources[int(number)]
    return f"heads.{their_sources.index(source)}.{rest}" if source in their_sources else None
