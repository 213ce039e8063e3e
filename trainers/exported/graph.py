"""The network as one graph for prediction, with a free number of samples, tokens and pictures."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datasets_manifest.errors import InputError, first_line
from trainers.m2can.batch import Batch
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.floor import Network

Form = Literal["onnx", "torch"]
FILES: dict[Form, str] = {"onnx": "network.onnx", "torch": "network.pt2"}
INPUTS = ("tokens", "mask", "pictures", "owner")
OUTPUTS = ("logits", "fused")


class PredictionGraph(nn.Module):
    """What prediction computes, of tensors alone.

    Shape:
        tokens, mask: int64 [B, L]. pictures: float32 [P, 3, height, width], normalised, P ≥ 1. owner: int64 [P], the sample
        of each picture; B: a picture that belongs to none. → logits [H, B, C] of each head, fused features [B, 64]
    """

    def __init__(self, network: Network, blank_tokens: int) -> None:
        super().__init__()
        self.network, self.blank_tokens = network, blank_tokens

    def forward(self, tokens: Tensor, mask: Tensor, pictures: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        samples = tokens.shape[0]
        counts = owner.new_zeros(samples + 1).index_add(0, owner, torch.ones_like(owner))
        batch = Batch(
            text=tokens,
            text_mask=mask,
            pictures=pictures,
            picture_owner=owner,
            labels_DB=tokens.new_full((1, samples), -1),
            num_views=1,
            sent_counts=counts,
            missing_N2=torch.stack([mask.sum(1) <= self.blank_tokens, counts[:-1] == 0], 1),
        )
        outputs = self.network(batch)
        return outputs.logits_HQDBC[:, 0, 0], outputs.fused_DBK[0]


def trace(network: Network, batch: Batch, blank_tokens: int = 0) -> torch.export.ExportedProgram:
    """The graph of a float32 network on the CPU, in eval mode.

    Args:
        batch: at least two samples, tokens and pictures, so that no number is taken for a constant.
        blank_tokens: tokens of a record without text.

    Raises:
        InputError: the network has an operation that cannot be exported.
    """
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 1: free}, {0: free, 1: free}, {0: free}, {0: free})
    with _usual_attention(network):
        try:
            return torch.export.export(
                PredictionGraph(network, blank_tokens).eval(), inputs_of(batch), dynamic_shapes=shapes
            )
        except Exception as error:  # torch raises many kinds, all of them mean the same here
            raise InputError(f"has no exported form ({first_line(error)})", field="MODEL") from error


def inputs_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the graph takes of a batch."""
    assert batch.text_mask is not None and batch.picture_owner is not None
    return batch.text, batch.text_mask, batch.pictures, batch.picture_owner


def write_graph(program: torch.export.ExportedProgram, folder: Path, form: Form, *, int8: bool = False) -> None:
    """Write FILES[form] into `folder`, for onnx with the weights in a file beside it.

    Args:
        int8: the weights of matrix products as 8-bit numbers with a scale for each block of 128; onnx alone.
    """
    place = folder / FILES[form]
    if form == "torch":
        torch.export.save(program, place)
        return
    names: dict[str, Any] = {"input_names": list(INPUTS), "output_names": list(OUTPUTS)}
    with _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        onnx_program = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        assert onnx_program is not None
        onnx_program.save(place, external_data=not int8)
    if int8:
        _quantize(place)


def require_packages(form: Form) -> None:
    """Raises InputError: a package that `form` needs is not installed."""
    import importlib.util

    lacking = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if form == "onnx" and lacking:
        raise InputError(f"needs {', '.join(lacking)}", field="--onnx", wanted="pip install 'm2can[export]'")


def _quantize(place: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quiet("onnxruntime"):
        quantizer = MatMulNBitsQuantizer(onnx.load(place), bits=8, block_size=128, is_symmetric=True)
        quantizer.process()
    quantizer.model.save_model_to_file(str(place), use_external_data_format=True)
    place.with_name(f"{place.name}.data").chmod(place.stat().st_mode)  # onnx leaves it readable for its owner alone


@contextlib.contextmanager
def _usual_attention(network: Network) -> Iterator[None]:
    """torch's attention over padded texts in place of ours over packed ones, which cuts by the batch's lengths."""
    encoder = network.text_encoder
    if not (isinstance(encoder, TextEncoder) and encoder.packs):
        yield
        return
    model: Any = encoder.model
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without what these libraries log below the level of an error."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
