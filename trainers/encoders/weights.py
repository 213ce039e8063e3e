"""Weights of an encoder from a file. Nothing in it is executed."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from datasets_manifest.errors import InputError, first_line

HEADS = ("fc", "classifier", "heads", "head")  # what torchvision calls a model's last part


_ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
FILES = f"a file that ends in {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]}"


def is_weights_file(weights: str) -> bool:
    return weights.endswith(_ENDINGS)


def why_unreadable(error: Exception) -> str:
    """Why a file is not read as weights, in words."""
    if isinstance(error, UnpicklingError):  # torch's own text tells how to load it all the same
        return "it is no file of torch, or holds more than tensors, which is not loaded: it could run code"
    return first_line(error)


def load_weights_file(model: nn.Module, path: str, field: str) -> None:
    """Load a safetensors or weights-only file. Nothing in it is executed.

    Raises:
        InputError: missing, unreadable, or its tensors are not the model's (heads that were cut off may be left over).
    """
    file = Path(path)
    if not file.is_file():
        raise InputError("there is no such file", file=file, field=field)
    try:
        if file.suffix == ".safetensors":
            state: dict[str, Any] = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many kinds, all of them mean the same here
        raise InputError(f"cannot be read as weights ({why_unreadable(error)})", file=file, field=field) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError("does not hold tensors by name", file=file, field=field, wanted="a state dict")
    ours = model.state_dict()
    state = {
        name: x
        for name, x in state.items()
        if not (name.split(".")[0] in HEADS and name in ours and getattr(x, "shape", None) != ours[name].shape)
    }
    try:
        missing, _ = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(
            f"does not fit the encoder ({str(error).splitlines()[-1].strip()})", file=file, field=field
        ) from None
    missing = [name for name in missing if not name.startswith("fc.")]
    if missing:
        raise InputError(
            f"lacks {len(missing)} of the encoder's {len(ours)} tensors",
            file=file,
            field=field,
            wanted=f"weights with {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}",
        )
