"""`train.compile`: the blocks of the encoders through torch.compile, one after another and not a model as a whole.

Blocks of one kind and size share what was compiled, so that a dozen layers cost the time of one. What lies around the
blocks, and the attention over packed texts, stays as it is: it reads sizes from the batch.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from datasets_manifest.errors import InputError
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.network import M2CAN
from trainers.recipe import Recipe

# Forms of one block that are compiled before torch gives up: sizes of a network's stages, in training and in prediction.
_MOST_FORMS = 64


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of lists and sequences that are made of other layers: a transformer's layers, a ResNet's
    residual blocks."""
    for child in model.children():
        member = isinstance(model, nn.Sequential | nn.ModuleList)
        if member and not isinstance(child, nn.Sequential | nn.ModuleList) and _has_layers(child):
            yield child
        else:
            yield from blocks_of(child)


def compile_encoders(network: M2CAN, device: torch.device, backend: str = "inductor") -> None:
    """Compile the encoders' blocks; each is compiled when it is first called.

    On the CPU pictures are left as they are: the compiled backward pass of a strided 1×1 convolution ends the process
    (torch 2.14).

    Raises:
        InputError: an encoder has no blocks.
    """
    torch._dynamo.config.recompile_limit = max(_MOST_FORMS, torch._dynamo.config.recompile_limit)
    _compile(network.text_encoder, "text", True, backend)  # the number of tokens differs from step to step
    if device.type == "cuda" or backend != "inductor":
        _compile(network.picture_encoder, "picture", None, backend)


def require_compiler(recipe: Recipe, device: torch.device) -> None:
    """Raises InputError: torch.compile lacks a program here, or the recipe's encoders cannot be compiled."""
    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in compilers if name):
        raise InputError("torch.compile finds no C++ compiler", field="train.compile", value=True, wanted="`false`")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise InputError("torch.compile needs triton", field="train.compile", value=True, wanted="`false`")
    checkpointing = recipe.encoders.activation_checkpointing
    if checkpointing != "none":
        raise InputError(
            "does not go with train.compile: blocks that are computed twice are not compiled",
            field="encoders.activation_checkpointing",
            value=checkpointing,
            wanted="`none`, or `train.compile: false`",
        )


def _compile(encoder: Any, kind: str, dynamic: bool | None, backend: str) -> None:
    if isinstance(encoder, GivenFeatures):
        return
    blocks = list(blocks_of(encoder.model))
    if not blocks:
        raise InputError(
            f"the {kind} encoder {type(encoder.model).__name__} is not made of blocks, which torch.compile is given",
            field="train.compile",
            value=True,
            wanted="`false`, or another encoder",
        )
    encoder.half_weights.enabled = False  # a block casts its own weights, together with what uses them
    for block in blocks:
        block.compile(dynamic=dynamic, backend=backend)


def _has_layers(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())
