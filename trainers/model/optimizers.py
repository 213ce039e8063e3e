"""Optimizers with a group and a rate for each part of the network, and the schedule of the rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adadelta, Adam, AdamW, Optimizer

from datasets_manifest.errors import InputError
from trainers.m2can import learning_rates
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.encoders.freezing import Encoder, parameter_blocks
from trainers.m2can.network import M2CAN
from trainers.recipe.base import decided
from trainers.recipe.method_sections import OptimizerSection, ScheduleSection


def build_optimizers(
    network: M2CAN, discriminators: Discriminators, section: OptimizerSection
) -> tuple[Optimizer, Optimizer]:
    """The network's optimizer and the discriminators', with a group and a rate for each part."""
    lr = section.lr
    parts: list[tuple[str, Iterable[nn.Parameter], float | None]] = [
        *_encoder_parts("text_encoder", network.text_encoder, section),
        *_encoder_parts("picture_encoder", network.picture_encoder, section),
        ("text_projection", network.text_projection.parameters(), lr.projections),
        ("picture_projection", network.picture_projection.parameters(), lr.projections),
        ("missing", () if network.missing is None else network.missing.parameters(), lr.projections),
        ("fusion", network.fusion.parameters(), lr.fusion),
        *((f"head_{i}", head.parameters(), lr.heads) for i, head in enumerate(network.heads)),
        ("picture_head", network.picture_head.parameters(), lr.heads),
        ("text_head", network.text_head.parameters(), lr.heads),
    ]
    pairs: list[tuple[str, Iterable[nn.Parameter], float | None]] = [
        (
            f"discriminator_{a}_{b}",
            module.parameters(),
            lr.discriminators_target if b == discriminators.target else lr.discriminators_source,
        )
        for (a, b), module in zip(discriminators.pairs, discriminators, strict=True)
    ]
    return _optimizer(parameter_groups(parts), section), _optimizer(parameter_groups(pairs), section)


def _encoder_parts(
    name: str, encoder: Encoder, section: OptimizerSection
) -> list[tuple[str, Iterable[nn.Parameter], float | None]]:
    """An encoder in one part, or, with `layer_decay`, a part for each block, whose rate falls towards the input.

    Raises:
        InputError: `layer_decay`, and the architecture's blocks are not known.
    """
    rate, decay = section.lr.encoders, section.layer_decay
    trained = [p for p in encoder.parameters() if p.requires_grad]
    if decay == 1 or not trained:
        return [(name, trained, rate)]
    try:
        blocks = parameter_blocks(encoder)
    except ValueError as error:
        raise InputError(str(error), field="optimizer.layer_decay", value=decay, wanted="1") from None
    in_blocks = {p for block in blocks for p in block}
    behind = [p for p in trained if p not in in_blocks]
    full = decided(rate)
    return [
        *((f"{name}.{n}", block, full * decay ** (len(blocks) - 1 - n)) for n, block in enumerate(blocks)),
        (name, behind, full),
    ]


def _optimizer(groups: list[dict[str, Any]], section: OptimizerSection) -> Optimizer:
    decay = section.weight_decay
    fused = True if groups and groups[0]["params"][0].device.type in ("cpu", "cuda") else None  # one kernel for all
    if section.type == "adam":
        return Adam(groups, betas=section.betas, eps=section.eps, weight_decay=decay, fused=fused)
    if section.type == "adamw":
        return AdamW(groups, betas=section.betas, eps=section.eps, weight_decay=decay, fused=fused)
    if section.type == "sgd":
        return SGD(groups, lr=0.0, momentum=section.betas[0], weight_decay=decay)
    return Adadelta(groups, eps=section.eps, weight_decay=decay)


def build_schedule(section: ScheduleSection, epochs: int, steps_per_epoch: int) -> learning_rates.Schedule:
    total = epochs * steps_per_epoch
    if section.mode == "poly":
        return learning_rates.poly(total, section.power, section.lowest_lr)
    if section.mode == "cosine":
        return learning_rates.cosine(total, section.lowest_lr)
    milestones = [epoch * steps_per_epoch for epoch in section.multistep] if section.mode == "multistep" else []
    return learning_rates.multistep(milestones)


def parameter_groups(parts: list[tuple[str, Iterable[nn.Parameter], float | None]]) -> list[dict[str, Any]]:
    """Optimizer groups (name, parameters, lr, base_lr) of the parts that have something to train.

    Raises:
        ValueError: one of them has no rate yet.
    """
    groups: list[dict[str, Any]] = []
    for name, parameters, lr in parts:
        trainable = [p for p in parameters if p.requires_grad]
        if trainable:
            rate = decided(lr)
            groups.append({"params": trainable, "lr": rate, "base_lr": rate, "name": name})
    return groups
