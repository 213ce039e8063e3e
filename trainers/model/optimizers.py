"""Optimizers with a group and a rate for each part of the network, and the schedule of the rates."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD, Adadelta, Adam, AdamW, Optimizer

from trainers.m2can import learning_rates
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.network import M2CAN
from trainers.recipe.base import decided
from trainers.recipe.method_sections import OptimizerSection, ScheduleSection


def build_optimizers(
    network: M2CAN, discriminators: Discriminators, section: OptimizerSection
) -> tuple[Optimizer, Optimizer]:
    """The network's optimizer and the discriminators', with a group and a rate for each part."""
    lr = section.lr
    parts: list[tuple[str, nn.Module | None, float | None]] = [
        ("text_encoder", network.text_encoder, lr.encoders),
        ("picture_encoder", network.picture_encoder, lr.encoders),
        ("text_projection", network.text_projection, lr.projections),
        ("picture_projection", network.picture_projection, lr.projections),
        ("fusion", network.fusion, lr.fusion),
        *((f"head_{i}", head, lr.heads) for i, head in enumerate(network.heads)),
        ("picture_head", network.picture_head, lr.heads),
        ("text_head", network.text_head, lr.heads),
    ]
    pairs: list[tuple[str, nn.Module | None, float | None]] = [
        (
            f"discriminator_{a}_{b}",
            module,
            lr.discriminators_target if b == discriminators.target else lr.discriminators_source,
        )
        for (a, b), module in zip(discriminators.pairs, discriminators, strict=True)
    ]
    return _optimizer(parameter_groups(parts), section), _optimizer(parameter_groups(pairs), section)


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


def parameter_groups(modules: list[tuple[str, nn.Module | None, float | None]]) -> list[dict[str, Any]]:
    """Optimizer groups (name, parameters, lr, base_lr) of the modules that have something to train.

    Raises:
        ValueError: one of them has no rate yet.
    """
    groups: list[dict[str, Any]] = []
    for name, module, lr in modules:
        trainable = [p for p in module.parameters() if p.requires_grad] if module is not None else []
        if trainable:
            rate = decided(lr)
            groups.append({"params": trainable, "lr": rate, "base_lr": rate, "name": name})
    return groups
