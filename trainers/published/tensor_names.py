"""Names of the published implementation's tensors and ours, both ways. Maps state dicts; reads no file."""

from __future__ import annotations

import re

from torch import Tensor

# (published prefix, ours), tried in order; the published names are listed in the documentation of the method.
_PREFIXES = [
    ("bert_model.", "text_encoder.model."),
    ("model_image.", "picture_encoder.model."),
    ("text_feature_extractor.hidden.0.", "text_projection.linear."),
    ("image_encoder.linear.0.", "picture_projection.linear."),
    ("mlb.", "fusion."),
    ("text_cls.3.linear.", "text_head.3."),
    ("image_cls.3.linear.", "picture_head.3."),
    ("text_cls.", "text_head."),
    ("image_cls.", "picture_head."),
]
_PUBLISHED_HEAD = re.compile(r"^classifiers\.(\d+)\.linear\.")
_OUR_HEAD = re.compile(r"^heads\.(\d+)\.")


def our_name(published: str) -> str | None:
    """Our name of a published tensor, None if it is not one of the network's."""
    published = published.removeprefix("module.")
    if _PUBLISHED_HEAD.match(published):
        return _PUBLISHED_HEAD.sub(r"heads.\1.", published)
    for theirs, ours in _PREFIXES:
        if published.startswith(theirs):
            return ours + published[len(theirs) :]
    return None


def published_name(ours: str) -> str | None:
    """The published name of one of our tensors, None if it has none."""
    if _OUR_HEAD.match(ours):
        return _OUR_HEAD.sub(r"classifiers.\1.linear.", ours)
    for theirs, mine in _PREFIXES:
        if ours.startswith(mine):
            return theirs + ours[len(mine) :]
    return None


def from_published(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A published state dict under our names, and the published names that are not the network's."""
    named = {name: our_name(name) for name in state}
    unknown = sorted(name for name, ours in named.items() if ours is None)
    return {ours: state[name] for name, ours in named.items() if ours is not None}, unknown


def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the published names. Raises ValueError: a tensor has no published name."""
    named = {name: published_name(name) for name in state}
    unknown = sorted(name for name, theirs in named.items() if theirs is None)
    if unknown:
        raise ValueError(f"no published name for {', '.join(unknown)}")
    return {theirs: state[name] for name, theirs in named.items() if theirs is not None}
