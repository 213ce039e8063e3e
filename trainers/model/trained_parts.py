"""What a run trains and a checkpoint saves: the network, the modules beside it, the optimizers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from trainers.m2can.losses.adversarial import Discriminators
from trainers.m2can.network import M2CAN
from trainers.m2can.teacher import make_teacher
from trainers.model.build import build_discriminators
from trainers.model.optimizers import build_optimizers
from trainers.recipe.recipe import Recipe


@dataclass(frozen=True)
class TrainedParts:
    """Everything with weights or moments. The loop trains these, a checkpoint holds all of them, sizes.py counts them.

    teacher: the average of the network's weights that labels the target; None where the network labels it.
    optimizers: `network` and `discriminators`.
    """

    network: M2CAN
    discriminators: Discriminators
    teacher: M2CAN | None
    optimizers: dict[str, Optimizer]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What has weights beside the network, by its name in a checkpoint."""
        teacher = {"teacher": self.teacher} if self.teacher is not None else {}
        return {"discriminators": self.discriminators, **teacher}


def build_trained_parts(recipe: Recipe, network: M2CAN) -> TrainedParts:
    """Discriminators, teacher and optimizers for `network`, on its device and of its type."""
    weight = next(network.parameters())
    discriminators = build_discriminators(len(recipe.data.sources), network.num_classes, recipe.discriminators)
    discriminators.to(weight.device, weight.dtype)
    teacher = make_teacher(network) if recipe.uacr.enabled and recipe.uacr.teacher == "ema" else None
    optimizer, of_discriminators = build_optimizers(network, discriminators, recipe.optimizer, recipe.train.batch_size)
    return TrainedParts(network, discriminators, teacher, {"network": optimizer, "discriminators": of_discriminators})
