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


def compilable_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of lists and sequences that are made of other layers: a transformer's layers, a ResNet's
    residual blocks."""
    for child in model.children():
        member = isinstance(model, nn.Sequential | nn.ModuleList)
        if member and not isinstance(child, nn.Sequential | nn.ModuleList) and _has_layers(child):
            yield child
        else:
            yield from compilable_blocks(child)


def compile_encoders(network: M2CAN, device: torch.device, backend: str = "inductor") -> None:
    """Compile the encoders' blocks; each is compiled when it is first called.

    On the CPU pictures are left as they are: the compiled backward pass of a strided 1×1 convolution ends the process
    (torch 2.14).

    Raises:
        InputError: an encoder has no blocks.
    """
    torch._dynamo.config.recompile_limit = max(_MOST_FORMS, torch._dynamo.config.recompile_limit)
    for encoder in require_blocks(network, device, backend):
        encoder.half_weights.enabled = False  # a block casts its own weights, together with what uses them
        # The number of tokens differs from step to step.
        dynamic = True if encoder is network.text_encoder else None
        for block in compilable_blocks(encoder.model):
            block.compile(dynamic=dynamic, backend=backend)


def require_blocks(network: M2CAN, device: torch.device, backend: str = "inductor") -> list[Any]:
    """The encoders that `compile_encoders` compiles. Raises InputError: one of them has no blocks."""
    encoders: list[tuple[str, Any]] = [("text", network.text_encoder)]
    if device.type == "cuda" or backend != "inductor":
        encoders.append(("picture", network.picture_encoder))
    encoders = [(kind, encoder) for kind, encoder in encoders if not isinstance(encoder, GivenFeatures)]
    for kind, encoder in encoders:
        if next(compilable_blocks(encoder.model), None) is None:
            raise InputError(
                f"the {kind} encoder {type(encoder.model).__name__} is not made of blocks, which torch.compile is given",
                field="train.compile",
                value=True,
                wanted="`false`, or another encoder",
            )
    return [encoder for _, encoder in encoders]


def require_compiler(recipe: Recipe, device: torch.device) -> None:
    """Raises InputError: torch.compile lacks a program here, or does not go with activation checkpointing."""
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


def _has_layers(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())
