"""What a step computes in: autocast, the loss scale of fp16, what a device offers; refused early where it is lacking."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from datasets_manifest.errors import InputError
from trainers.compute.compiled import require_compiler
from trainers.compute.device_batches import PictureForm
from trainers.m2can.collective import Collective
from trainers.m2can.floor import Network
from trainers.recipe import Recipe

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(recipe: Recipe) -> torch.dtype:
    """Of weights and pictures; bf16 and fp16 keep float32 weights."""
    return torch.float64 if recipe.train.precision == "fp64" else torch.float32


def computed_in(recipe: Recipe, device: torch.device) -> str:
    """`train.precision` on this device: what `auto` comes to there, else as the recipe says."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    return "bf16" if _is_ampere(device) else "fp32"


def with_chosen_precision(recipe: Recipe, device: torch.device, collective: Collective) -> Recipe:
    """The recipe with the precision that all workers compute in, in the place of `auto`. All workers call it together."""
    if recipe.train.precision != "auto":
        return recipe
    able = torch.tensor([float(computed_in(recipe, device) == "bf16")], device=device)
    chosen = "bf16" if collective.sum_(able) == collective.world_size else "fp32"
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": chosen})})


def described(recipe: Recipe, device: torch.device) -> str:
    """What the workers compute in, in words."""
    precision = computed_in(recipe, device)
    rest = "; what stays float32 is rounded to TF32" if device.type == "cuda" and precision in _HALF else ""
    return f"computes in {precision}{rest}"


def autocast_of(recipe: Recipe, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Makes the context in which the network runs. The terms are computed outside of it, in float32."""
    half = _HALF.get(computed_in(recipe, device))
    return nullcontext if half is None else partial(torch.autocast, device.type, half)


def expected_device(recipe: Recipe) -> torch.device | None:
    """Where the workers will compute, as far as it is known before a cluster is asked; None if it is not."""
    if recipe.cluster.device == "cpu":
        return torch.device("cpu")
    if recipe.cluster.address or os.environ.get("RAY_ADDRESS"):
        return torch.device("cuda") if recipe.cluster.device == "cuda" and torch.cuda.is_available() else None
    if recipe.cluster.device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is here", field="cluster.device", value="cuda", wanted="`cpu` or `auto`")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_device(recipe: Recipe, device: torch.device) -> None:
    """Raises InputError: `device` lacks what the recipe asks for."""
    train, cuda = recipe.train, device.type == "cuda"
    if train.precision == "bf16" and cuda and not torch.cuda.is_bf16_supported():
        raise InputError("the GPU does not compute in it", field="train.precision", value="bf16", wanted="`fp16`")
    if train.precision == "tf32" and not _is_ampere(device):
        raise InputError("needs an Ampere GPU or a later one", field="train.precision", value="tf32", wanted="`fp32`")
    if train.compile:
        require_compiler(recipe, device)


def _is_ampere(device: torch.device) -> bool:
    """Whether it is a CUDA GPU of that generation or a later one: bf16 and TF32 in its tensor cores."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_kernels(recipe: Recipe, device: torch.device) -> None:
    """Settings of this process on a GPU: TF32 for float32 products, and no attention of cuDNN's.

    cuDNN's attention builds a plan for every new shape, and the lengths of texts differ from step to step.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        rounded = computed_in(recipe, device) in ("tf32", *_HALF)
        torch.set_float32_matmul_precision("high" if rounded else "highest")
        torch.backends.cudnn.allow_tf32 = rounded


def for_prediction(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with the precision that a trained network predicts in on this device: what it was trained in, on a GPU.

    A CPU computes in float32 whatever a GPU trained in, as few of them have half precision; so do GPUs that lack it.
    """
    trained_in = recipe.train.precision
    lacking = device.type != "cuda" or (trained_in in ("bf16", "tf32") and not _is_ampere(device))
    if trained_in == "fp64" or not lacking:
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "fp32"})})


@contextlib.contextmanager
def predicting(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """The context in which a network predicts, given `for_prediction`: autocast, and the kernels of `choose_kernels`.

    The process's settings are put back.
    """
    if device.type != "cuda":
        yield
        return
    rounded = computed_in(recipe, device) in ("tf32", *_HALF)
    before = torch.get_float32_matmul_precision()
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    try:
        torch.set_float32_matmul_precision("high" if rounded else "highest")
        with torch.backends.cudnn.flags(allow_tf32=rounded), sdpa_kernel(kernels), autocast_of(recipe, device)():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def eval_batch_size(recipe: Recipe, device: torch.device) -> int:
    """`train.eval_batch_size`, chosen by the device where the recipe leaves it open."""
    return recipe.train.eval_batch_size or (256 if device.type == "cuda" else 64)


def picture_form(recipe: Recipe, device: torch.device) -> PictureForm:
    """What the picture encoder takes: half precision as it comes, and the layout of `choose_layout`."""
    half = _HALF.get(computed_in(recipe, device)) if device.type == "cuda" else None
    return PictureForm(half or dtype_of(recipe), _channels_last(recipe, device))


def choose_layout(network: Network, recipe: Recipe, device: torch.device) -> None:
    """On a GPU that computes in TF32 or half precision, put the picture encoder's channels last.

    Tensor cores take that layout. Groups of pictures are normalised faster in torch's usual one.
    """
    if _channels_last(recipe, device):
        network.picture_encoder.to(memory_format=torch.channels_last)


def _channels_last(recipe: Recipe, device: torch.device) -> bool:
    tensor_cores = device.type == "cuda" and computed_in(recipe, device) in ("tf32", *_HALF)
    return tensor_cores and recipe.encoders.picture.batch_norm in ("batch", "frozen")
