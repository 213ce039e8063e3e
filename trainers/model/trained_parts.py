"""What a run trains and a checkpoint saves: the network, the modules beside it, the optimizers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from trainers.m2can.discriminators import Discriminators
from trainers.m2can.network import M2CAN
from trainers.model.build import build_discriminators
from trainers.model.optimizers import build_optimizers
from trainers.recipe import Recipe


@dataclass(frozen=True)
class TrainedParts:
    """Everything with weights or moments. The loop trains these, a checkpoint holds all of them, sizes.py counts them.

    optimizers: `network` and `discriminators`.
    """

    network: M2CAN
    discriminators: Discriminators
    optimizers: dict[str, Optimizer]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What has weights beside the network, by its name in a checkpoint."""
        return {"discriminators": self.discriminators}


def build_trained_parts(recipe: Recipe, network: M2CAN) -> TrainedParts:
    """Discriminators and optimizers for `network`, on its device and of its type."""
    weight = next(network.parameters())
    discriminators = build_discriminators(
        len(recipe.data.sources), network.num_classes, recipe.objective.discriminators
    )
    discriminators.to(weight.device, weight.dtype)
    optimizer, of_discriminators = build_optimizers(network, discriminators, recipe.optimizer)
    return TrainedParts(network, discriminators, {"network": optimizer, "discriminators": of_discriminators})
