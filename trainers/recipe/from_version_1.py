"""Schema version 2 of recipes: which keys of version 1 are gone, and where they went.

A recipe of version 1 is brought to version 2: a removed key at its old default is dropped, one with a new form is
rewritten. Any other removed key or value is refused with the place it went to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from datasets_manifest.errors import InputError
from trainers.recipe.overrides import Tree, flatten, pop, put

SCHEMA_VERSION = 2  # whoever changes a key's name or meaning raises it and adds a migration


class Removed(NamedTuple):
    """A key of version 1. default: its old default. now: what takes its place."""

    default: Any
    now: str


_TABLE: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("removed_keys.yaml").read_text(encoding="utf-8"))
REMOVED = {key: Removed(default, group["now"]) for group in _TABLE for key, default in group["keys"].items()}
REMOVED_VALUES = {
    ("uacr.prior", "estimated"): REMOVED["uacr.balance"],
    ("encoders.picture.batch_norm", "ghost"): REMOVED["encoders.picture.ghosts"],
}


def refuse_removed(tree: Tree, file: object) -> None:
    """Raises InputError: a recipe names a key or a value that is gone; says where it went."""
    for key, value in flatten(tree).items():
        gone = REMOVED.get(key) or (REMOVED_VALUES.get((key, value)) if isinstance(value, str) else None)
        if gone is not None:
            what = gone.now if key in REMOVED else f"value {gone.now}"
            raise InputError(what, file=file, field=key, value=value, wanted="a recipe without it")


def to_version_2(tree: Tree) -> None:
    """The migration from version 1, in place. What it leaves of the removed keys, `refuse_removed` refuses."""
    for rewrite in _REWRITES:
        rewrite(tree)
    for key, gone in REMOVED.items():
        with suppress(KeyError):
            value = pop(tree, key)
            if value != gone.default:
                put(tree, key, value)


def _take(tree: Tree, *keys: str) -> list[Any] | None:
    """Take keys of version 1 out; a key that is not stated has its old default. None if none of them is stated."""
    stated = flatten(tree)
    if not any(key in stated for key in keys):
        return None
    for key in keys:
        with suppress(KeyError):
            pop(tree, key)
    return [stated.get(key, REMOVED[key].default) for key in keys]


def _splits(tree: Tree) -> None:
    if (names := _take(tree, "data.train_split", "data.val_split")) is not None:
        put(tree, "data.splits", names)


def _text_form(tree: Tree) -> None:
    stated = flatten(tree)
    form, cleaning = stated.get("data.texts.form"), stated.get("data.texts.cleaning")
    if form is not None and (form == "published") == (cleaning == "published"):
        pop(tree, "data.texts.form")


def _jitter(tree: Tree) -> None:
    section = "data.pictures.strong.jitter"
    old = (f"{section}.{name}" for name in ("brightness", "contrast", "saturation", "hue", "p"))
    if (values := _take(tree, *old)) is not None:
        put(tree, section, values[:4])
        put(tree, f"{section}_p", values[4])


def _tiny(tree: Tree) -> None:
    """The sizes of `tiny` mean nothing for other encoders."""
    text, picture = ("encoders.text.hidden", "encoders.text.layers"), ("encoders.picture.width",)
    for name, old in (("encoders.text.name", text), ("encoders.picture.name", picture)):
        sizes = _take(tree, *old)
        is_default = sizes in (None, [REMOVED[key].default for key in old])
        if sizes is not None and not is_default and flatten(tree).get(name) == "tiny":
            put(tree, name, "tiny:" + "x".join(map(str, sizes)))


def _checkpointing(tree: Tree) -> None:
    old = ("encoders.text.activation_checkpointing", "encoders.picture.activation_checkpointing")
    if (values := _take(tree, *old)) is not None:
        names = {(False, False): "none", (True, False): "text", (False, True): "pictures", (True, True): "both"}
        put(tree, "encoders.activation_checkpointing", names.get(tuple(values), values))


def _adversary(tree: Tree) -> None:
    old = (*(f"discriminators.{name}" for name in ("pairs", "seen", "hidden", "warmup")), "objective.source_weights")
    stated = {key: value for key, value in flatten(tree).items() if key in old}
    values = _take(tree, *old)
    if values is not None and (name := _ADVERSARIES.get(tuple(values))) is not None:
        put(tree, "objective.discriminators", name)
        return
    for key, value in stated.items():  # no adversary of today: the keys are refused
        put(tree, key, value)


_ADVERSARIES = {
    ("all", "joint", 0, 1000, "uniform"): "m2can",
    ("merged", "features", 64, 100, "uniform"): "dann",
    ("merged", "joint", 64, 100, "uniform"): "cdan",
    ("target", "features", 64, 100, "hardest"): "mdan",
}


def _momentum(tree: Tree) -> None:
    """Momentum means something with sgd alone, betas with all but it."""
    stated = flatten(tree)
    momentum = stated.get("optimizer.momentum")
    if momentum is not None:
        pop(tree, "optimizer.momentum")
        if stated.get("optimizer.type") == "sgd":
            put(tree, "optimizer.betas", [momentum, stated.get("optimizer.betas", [0.9, 0.999])[1]])


def _lowest_rate(tree: Tree) -> None:
    stated = flatten(tree)
    target = stated.get("schedule.target_lr")
    if target is not None:
        pop(tree, "schedule.target_lr")
    if stated.get("schedule.mode") == "cosine":
        put(tree, "schedule.lowest_lr", target or 0.0)


def _tf32(tree: Tree) -> None:
    stated = flatten(tree)
    if stated.get("train.tf32") is True and stated.get("train.precision", "fp32") == "fp32":
        pop(tree, "train.tf32")
        put(tree, "train.precision", "tf32")


def _eval_batch_size(tree: Tree) -> None:
    """The old default, which was written whether anybody had chosen it or not."""
    if flatten(tree).get("train.eval_batch_size") == 64:
        pop(tree, "train.eval_batch_size")


_REWRITES: tuple[Callable[[Tree], None], ...] = (
    _splits, _text_form, _jitter, _tiny, _checkpointing, _adversary, _momentum, _lowest_rate, _tf32,
    _eval_batch_size,
)  # fmt: skip
