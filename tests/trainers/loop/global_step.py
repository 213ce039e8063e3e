"""Training steps of one global batch on any number of workers, for test_world_size.py."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.encoders.encoders import text_config
from trainers.m2can.batch import Batch
from trainers.m2can.collective import Collective, DistributedCollective, slice_sizes
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.encoders.batch_norm import BatchNormMode
from trainers.model import build
from trainers.model.optimizers import build_optimizers, build_schedule
from trainers.recipe import Recipe, apply_override, make_recipe
from trainers.recipe.training_rule import decide
from trainers.step.gradients import data_parallel
from trainers.step.step import Step

ROWS, CLASSES, VOCABULARY, PIXELS = 7, 3, 50, 36

# Pictures of the seven rows of a domain. Slices on two workers: 4, 3; on four: 2, 2, 2, 1.
PICTURES = {
    "one each": [1, 1, 1, 1, 1, 1, 1],
    "ragged": [1, 3, 0, 2, 1, 1, 2],  # two workers in four have one picture each
    "none at the end": [2, 1, 1, 1, 0, 0, 0],  # the last of two workers has no picture at all, the last two of four
}


@dataclass(frozen=True)
class Scenario:
    """`local_statistics` is a mistake made on purpose: batch norm does not hear of the other workers."""

    sources: int
    target: bool
    batch_norm: BatchNormMode
    pictures: str = "ragged"
    dtype: Literal["float32", "float64"] = "float64"
    steps: int = 1
    local_statistics: bool = False
    accumulate: int = 1
    options: tuple[str, ...] = ()

    @property
    def domains(self) -> int:
        return self.sources + self.target

    def __str__(self) -> str:
        what = ["S", str(self.sources), "with target" if self.target else "first epoch", self.batch_norm, self.pictures]
        what += [self.dtype, f"{self.steps} steps", "local" * self.local_statistics]
        what += [f"{self.accumulate} parts" * (self.accumulate > 1)]
        return " ".join(word for word in [*what, *self.options] if word)

    def recipe(self) -> Recipe:
        tree: dict[str, Any] = {
            "data": {"sources": ["s"] * self.sources, "target": "t"},
            "encoders": {
                "text": {"name": "tiny:32"},
                "picture": {"name": "tiny:4", "batch_norm": self.batch_norm},
            },
            "objective": {"mcc": 0.3, "cdafa": 0.2},
            "sam": {"rho": 0.05},
            "optimizer": {"lr": dict.fromkeys(("encoders", "projections", "fusion", "heads"), 1e-3)},
        }
        for option in self.options:
            apply_override(tree, option)
        return decide(make_recipe(tree), ROWS)[0]

    def slice(self, step: int, offset: int, size: int) -> Batch:
        """Rows offset … offset+size of each domain's global batch. The random numbers are drawn for all rows."""
        rng = torch.Generator().manual_seed(100 + step % 2)  # two batches in turn can be learnt
        tokens, pictures, owner = [], [], []
        for view in range(2):
            for domain in range(self.domains):
                for row in range(ROWS):
                    length = int(torch.randint(3, 12, (), generator=rng))
                    ids = torch.randint(1, VOCABULARY, (length,), generator=rng)
                    shown = PICTURES[self.pictures][row]
                    seen = (
                        torch.randn(shown, 3, PIXELS, PIXELS, generator=rng, dtype=torch.float64) * (1 + domain) + view
                    )
                    if offset <= row < offset + size:
                        owner += [len(tokens)] * shown
                        tokens.append(ids)
                        pictures.append(seen)
        if not owner:
            pictures, owner = [torch.zeros(1, 3, PIXELS, PIXELS)], [len(tokens)]
        labels = torch.tensor([[(3 * row + d) % CLASSES for row in range(ROWS)] for d in range(self.domains)])
        if self.target:
            labels[-1, 1::2] = -1  # target rows without a pseudo label
        text = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)  # to the longest of this slice
        places = list(range(offset, offset + size)) * (2 * self.domains)
        shown = [PICTURES[self.pictures][row] for row in places]
        lacks = [[count > 0 and row == 3, count == 0] for row, count in zip(places, shown, strict=True)]
        return Batch(
            text=text,
            text_mask=(text > 0).long(),
            pictures=torch.cat(pictures),
            picture_owner=torch.tensor(owner),
            labels_DB=labels[:, offset : offset + size],
            num_views=2,
            global_batch=ROWS,
            offset=offset,
            missing_N2=torch.tensor(lacks),
        ).to(torch.device("cpu"), getattr(torch, self.dtype))


class RecordedStep(Step):
    """Keeps the first step's gradients and perturbation."""

    def _backward(self, batch: Batch, discriminators: Discriminators | None) -> dict[str, Tensor]:
        terms = super()._backward(batch, discriminators)
        if self.number == 0:
            if discriminators is not None:
                self.perturbed = snapshot(self.network)
            both = {"network": self.network, "discriminators": self.discriminators}
            for part, module in both.items():
                for name, p in module.named_parameters():
                    if p.grad is not None:
                        passes = "first" if discriminators is None else "second"
                        self.gradients[f"{passes} {part}.{name}"] = p.grad.clone()
        return terms


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def run(scenario: Scenario, collective: Collective) -> dict[str, Any]:
    """The scenario's steps on this worker, set up as trainers/loop/loop.py does."""
    torch.manual_seed(0)
    recipe = scenario.recipe()
    dtype = getattr(torch, scenario.dtype)
    config = text_config(recipe.encoders.text, VOCABULARY, 0, 16)
    network = build.build_network(recipe, config, CLASSES, load_weights=True).to(dtype).train()
    discriminators = build.build_discriminators(scenario.sources, CLASSES, recipe.objective.discriminators).to(dtype)
    optimizers = build_optimizers(network, discriminators, recipe.optimizer)
    step = RecordedStep(
        network=network,
        model=data_parallel(network, collective),
        discriminators=discriminators,
        objective=build.build_objective(recipe),
        optimizer=optimizers[0],
        discriminator_optimizer=optimizers[1],
        schedule=build_schedule(recipe.schedule, 1, 20),
        rho=recipe.sam.rho,
        collective=collective,
        parts=scenario.accumulate,
    )
    if scenario.local_statistics:
        network.picture_encoder.groups.collective = Collective()
    step.gradients = {}
    before = snapshot(network)
    sizes = slice_sizes(ROWS, collective.world_size)
    offset = sum(sizes[: collective.rank])
    terms, first = [], {}
    for number in range(scenario.steps):
        passes = step(scenario.slice(number, offset, sizes[collective.rank]))
        terms.append({f"{p} {term}": value.double() for p, values in passes.items() for term, value in values.items()})
        if number == 0:
            first = {
                "gradients": step.gradients,
                "perturbation": {name: step.perturbed[name] - w for name, w in before.items()},
                "statistics": {name: x.clone() for name, x in network.named_buffers() if x.is_floating_point()},
            }
    counts = {name: int(x) for name, x in network.named_buffers() if name.endswith("num_batches_tracked")}
    return first | {"terms": terms, "counts": counts}


def worker(rank: int, world_size: int, scenarios: list[Scenario], folder: Path) -> None:
    """One process of a world: runs all scenarios and writes what it found."""
    torch.set_num_threads(1)
    collective = Collective()
    if world_size > 1:
        store = dist.FileStore(str(folder / f"store-{world_size}"), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
        collective = DistributedCollective()
    found = {scenario: run(scenario, collective) for scenario in scenarios}
    torch.save(list(found.values()), folder / f"{world_size}-{rank}.pt")
    if world_size > 1:
        dist.destroy_process_group()
