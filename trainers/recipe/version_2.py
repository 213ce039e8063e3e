"""Schema version 2 of recipes: which keys of version 1 are gone, and where they went.

A recipe of version 1 is brought to version 2: a removed key at its old default is dropped, one with a new form is
rewritten. Any other removed key or value is refused with the place it went to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from datasets_manifest.errors import InputError
from trainers.recipe.overrides import Tree, flatten, pop, put

SCHEMA_VERSION = 2  # whoever changes a key's name or meaning raises it and adds a migration


class Removed(NamedTuple):
    """A key of version 1. default: its old default. now: what takes its place."""

    default: Any
    now: str


_TRIED = "moved to experiments/README.md, since it did not help on both data sets"
_DECIDED = "is decided by itself now"
_UNPROVEN = "was removed: no measurement showed a gain"
_DISCRIMINATORS = "is part of `objective.discriminators` now: m2can, dann, cdan or mdan"
_JITTER = "is part of `data.pictures.strong.jitter` now: [brightness, contrast, saturation, hue]"
_CHECKPOINTING = "is `encoders.activation_checkpointing` now: none, text, pictures or both"

REMOVED: dict[str, Removed] = {
    "network.gate": Removed(False, _TRIED),
    "objective.cmcfa_temperature": Removed(1.0, _TRIED),
    "objective.cmcfa_symmetric": Removed(False, _TRIED),
    "uacr.score": Removed("both", _TRIED),
    "uacr.labels": Removed("hard", _TRIED),
    "uacr.teacher": Removed("none", _TRIED),
    "uacr.ema_decay": Removed(0.99, _TRIED),
    "uacr.refine": Removed("none", _TRIED),
    "uacr.neighbours": Removed(5, _TRIED),
    "uacr.balance": Removed(False, _TRIED),
    "uacr.unselected": Removed("drop", _TRIED),
    "sam.every": Removed(1, _TRIED),
    "sam.scope": Removed("global", _UNPROVEN),
    "encoders.picture.ghosts": Removed(2, _UNPROVEN),
    "encoders.text.dropout": Removed(None, "is as the encoder's own configuration says now, and 0 with `tiny`"),
    "optimizer.scale_lr": Removed("none", "was removed: state the rates of your batch size in `optimizer.lr`"),
    "optimizer.reference_batch": Removed(None, "was removed: state the rates of your batch size in `optimizer.lr`"),
    "train.channels_last": Removed("auto", _DECIDED),
    "data.kept_views": Removed(2**30, _DECIDED),
    "data.pictures.max_pixels": Removed(50_000_000, "is 50,000,000 in any case now"),
    "data.pictures.strong.aspect": Removed([3 / 4, 4 / 3], "is 3/4 to 4/3 in any case now, as published"),
    "cluster.resize_interval_s": Removed(60.0, "is 60 in any case now"),
    # These have a new form.
    "data.train_split": Removed("train", "is the first name of `data.splits` now"),
    "data.val_split": Removed("val", "is the second name of `data.splits` now"),
    "data.texts.form": Removed("plain", "is part of `data.texts.cleaning` now"),
    "data.pictures.strong.jitter.brightness": Removed(0.4, _JITTER),
    "data.pictures.strong.jitter.contrast": Removed(0.4, _JITTER),
    "data.pictures.strong.jitter.saturation": Removed(0.4, _JITTER),
    "data.pictures.strong.jitter.hue": Removed(0.1, _JITTER),
    "data.pictures.strong.jitter.p": Removed(0.8, "is `data.pictures.strong.jitter_p` now"),
    "encoders.text.hidden": Removed(64, "is part of `encoders.text.name` now, for example tiny:32x1"),
    "encoders.text.layers": Removed(1, "is part of `encoders.text.name` now, for example tiny:32x1"),
    "encoders.picture.width": Removed(16, "is part of `encoders.picture.name` now, for example tiny:8"),
    "encoders.text.activation_checkpointing": Removed(False, _CHECKPOINTING),
    "encoders.picture.activation_checkpointing": Removed(False, _CHECKPOINTING),
    "discriminators.pairs": Removed("all", _DISCRIMINATORS),
    "discriminators.seen": Removed("joint", _DISCRIMINATORS),
    "discriminators.hidden": Removed(0, _DISCRIMINATORS),
    "discriminators.warmup": Removed(1000.0, _DISCRIMINATORS),
    "objective.source_weights": Removed("uniform", _DISCRIMINATORS),
    "optimizer.momentum": Removed(0.9, "is the first number of `optimizer.betas` now"),
    "schedule.target_lr": Removed(0.0, "is `schedule.lowest_lr` now"),
    "train.tf32": Removed(False, "is `train.precision: tf32` now"),
}
REMOVED_VALUES = {
    ("uacr.prior", "estimated"): Removed(None, _TRIED),
    ("encoders.picture.batch_norm", "ghost"): Removed(None, _UNPROVEN),
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


def _old(tree: Tree, *keys: str) -> list[Any] | None:
    """Values of keys of version 1, the default where one is not stated; None if none is."""
    stated = flatten(tree)
    if not any(key in stated for key in keys):
        return None
    return [stated.get(key, REMOVED[key].default if key in REMOVED else None) for key in keys]


def _replace(tree: Tree, old: tuple[str, ...], key: str, value: Any) -> None:
    for name in old:
        with suppress(KeyError):
            pop(tree, name)
    put(tree, key, value)


def _splits(tree: Tree) -> None:
    old = ("data.train_split", "data.val_split")
    if (names := _old(tree, *old)) is not None:
        _replace(tree, old, "data.splits", names)


def _text_form(tree: Tree) -> None:
    stated = flatten(tree)
    form, cleaning = stated.get("data.texts.form"), stated.get("data.texts.cleaning")
    if form is not None and (form == "published") == (cleaning == "published"):
        pop(tree, "data.texts.form")


def _jitter(tree: Tree) -> None:
    section = "data.pictures.strong.jitter"
    old = tuple(f"{section}.{name}" for name in ("brightness", "contrast", "saturation", "hue", "p"))
    if (values := _old(tree, *old)) is not None:
        for name in old:
            with suppress(KeyError):
                pop(tree, name)
        put(tree, section, values[:4])
        put(tree, f"{section}_p", values[4])


def _tiny(tree: Tree) -> None:
    """The sizes of `tiny` mean nothing for other encoders."""
    text, picture = ("encoders.text.hidden", "encoders.text.layers"), ("encoders.picture.width",)
    for name, old in (("encoders.text.name", text), ("encoders.picture.name", picture)):
        sizes = _old(tree, *old)
        if sizes is None:
            continue
        is_tiny, defaults = flatten(tree).get(name) == "tiny", [REMOVED[key].default for key in old]
        for key in old:
            with suppress(KeyError):
                pop(tree, key)
        if is_tiny and sizes != defaults:
            put(tree, name, "tiny:" + "x".join(map(str, sizes)))
    if str(flatten(tree).get("encoders.text.name", "")).startswith("tiny"):
        with suppress(KeyError):
            if (dropout := pop(tree, "encoders.text.dropout")) not in (None, 0):
                put(tree, "encoders.text.dropout", dropout)


def _checkpointing(tree: Tree) -> None:
    old = ("encoders.text.activation_checkpointing", "encoders.picture.activation_checkpointing")
    if (values := _old(tree, *old)) is not None:
        names = {(False, False): "none", (True, False): "text", (False, True): "pictures", (True, True): "both"}
        _replace(tree, old, "encoders.activation_checkpointing", names.get(tuple(values), values))


def _adversary(tree: Tree) -> None:
    old = (*(f"discriminators.{name}" for name in ("pairs", "seen", "hidden", "warmup")), "objective.source_weights")
    values = _old(tree, *old)
    if values is not None and (name := _ADVERSARIES.get(tuple(values))) is not None:
        _replace(tree, old, "objective.discriminators", name)


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
        _replace(tree, ("train.tf32",), "train.precision", "tf32")


_REWRITES: tuple[Callable[[Tree], None], ...] = (
    _splits, _text_form, _jitter, _tiny, _checkpointing, _adversary, _momentum, _lowest_rate, _tf32,
)  # fmt: skip
