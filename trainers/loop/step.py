"""One optimisation step, on one worker or many."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.losses.adversarial import Discriminators
from trainers.m2can.losses.task import count_labelled
from trainers.m2can.network import M2CAN
from trainers.m2can.objective import Objective
from trainers.m2can.schedules import Schedule, set_learning_rates
from trainers.m2can.sharpness import SharpnessAwareStep, global_norm
from trainers.model.precision import LossScale


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient is not finite. Raised on every worker, before any optimizer moved."""


class Step:
    """Sharpness-aware step with a smooth task: climb without CDAFA, then descend with it.

    Args:
        network: the network itself.
        model: what is called, see data_parallel: the network, whose gradients the step sums over the workers itself, or a
            wrapper that averages them.
        discriminators: one for each pair of domains.
        objective: the weighted terms.
        optimizer: of the network; its groups carry `base_lr`.
        discriminator_optimizer: of the discriminators.
        schedule: learning rates by step.
        rho: ρ of SAM; 0 for plain steps.
        collective: exchange with the other workers.
        autocast: makes the context of a forward pass.
        parts: in how many parts a worker's slice goes through the network. The step stays exact: all outputs are
            computed without a graph, the terms and the outputs' gradients from all of them, then each part again with
            its graph (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP
            2021, arXiv:2101.06983). Costs a forward pass; activations are those of one part. Dropout repeats itself.
        loss_scale: of fp16.

    Raises:
        ValueError: parts, and batch norm whose statistics are the whole batch's.
    """

    def __init__(
        self,
        *,
        network: M2CAN,
        model: Callable[[Batch], Outputs],
        discriminators: Discriminators,
        objective: Objective,
        optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        schedule: Schedule,
        rho: float,
        collective: Collective,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        parts: int = 1,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.network = network
        self.model = model
        self.discriminators = discriminators
        self.objective = objective
        self.optimizer = optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.schedule = schedule
        self.collective = collective
        self.autocast, self.parts, self.loss_scale = autocast, parts, loss_scale
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.sharpness = SharpnessAwareStep(self.parameters, rho) if rho > 0 else None
        self.number = 0
        self._statistics: list[Tensor] = []  # of the pass, summed over the workers
        self.groups = getattr(network.picture_encoder, "groups", None)
        if self.groups is not None:
            self.groups.collective = collective  # batch statistics are the global batch's
            if parts > 1 and self.groups.needs_whole_batch:
                raise ValueError("batch norm `batch` needs the whole slice at once; use `per_sample` or `frozen`")

    def __call__(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Run the step.

        Returns:
            the global value of every term by pass (`first` only where SAM climbs), with `total` and `grad_norm`; detached, on
            the device.

        Raises:
            NonFiniteLoss: weights, batch statistics and the discriminators' calls are as before the step.
        """
        batch = replace(batch, labelled_D=count_labelled(batch, self.collective))  # once for both passes
        before = self._moved_by_passes()
        while True:
            try:
                passes = self._passes(batch)
                break
            except NonFiniteLoss:  # on all workers alike
                self._put_back(*before)
                if self.loss_scale is None or not self.loss_scale.lower():
                    raise
        if self.loss_scale is not None:
            self.loss_scale.went_well()
        self.optimizer.step()
        self.discriminator_optimizer.step()
        for optimizer in (self.optimizer, self.discriminator_optimizer):
            set_learning_rates(optimizer, self.schedule, self.number)
        self.number += 1
        return passes

    def _moved_by_passes(self) -> tuple[list[Tensor], list[int]]:
        """What passes move before the optimizers do; without SAM the statistics move only after the last check."""
        averages = [x.clone() for x in self._averages()] if self.sharpness is not None else []
        return averages, self.discriminators.counts()

    def _put_back(self, averages: list[Tensor], calls: list[int]) -> None:
        for moved, before in zip(self._averages(), averages, strict=True):
            moved.copy_(before)
        self.discriminators.recount(calls)

    def _averages(self) -> list[Tensor]:
        layers = self.groups.layers if self.groups is not None else []
        return [buffer for layer in layers for buffer in layer.buffers()]

    def _passes(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        passes, sharpness = {}, self.sharpness
        if sharpness is not None:
            passes["first"] = self._backward(batch, None)
            self._commit()
            sharpness.perturb(self._own_norm())
        try:
            passes["second"] = self._backward(batch, self.discriminators)
        finally:
            if sharpness is not None:
                sharpness.restore()
        self._require_finite(passes)
        self._commit()
        self._forget()
        return passes

    def _commit(self) -> None:
        if self.groups is not None:
            self.groups.commit(self._statistics)

    def _forget(self) -> None:
        if self.groups is not None:
            self.groups.forget()

    def _backward(self, batch: Batch, discriminators: Discriminators | None) -> dict[str, Tensor]:
        """One pass; afterwards every worker holds the gradients of the global batch."""
        self.optimizer.zero_grad(set_to_none=True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        batches = batch.split(self.parts)
        # Every worker goes the same way, one with a single row too: what they exchange must come in the same order.
        if self.parts == 1:
            with self.autocast():
                outputs = self.model(batch).single()
        else:
            outputs, draws = self._outputs_of(batches)
        shares = self.objective(outputs, batch, self.collective, discriminators)
        total = torch.stack(list(shares.values())).sum()
        averages = self.model is not self.network
        # The gradient of the global batch is the sum of the workers' shares'; a wrapper divides it by their number.
        factor = (self.collective.world_size if averages else 1) * (self.loss_scale.value if self.loss_scale else 1)
        (total * factor).backward()
        if self.parts > 1:
            self._backward_parts(batches, outputs, draws)
        if self.loss_scale is not None:
            both = (*self.parameters, *self.discriminators.parameters())
            self.loss_scale.unscale([p.grad for p in both if p.grad is not None])
        values = [share.detach() for share in shares.values()]
        statistics = self.groups.shares() if self.groups is not None else []
        *self._statistics, summed = self._exchange(averages, [*statistics, torch.stack(values)])
        terms = dict(zip(shares, summed.unbind(), strict=True))
        return terms | {"total": summed.sum(), "grad_norm": self._own_norm().to(total.dtype)}

    def _exchange(self, without_network: bool, others: list[Tensor]) -> list[Tensor]:
        """Put the global batch's gradients in the place of this worker's.

        Args:
            without_network: those of the discriminators alone. These go by hand in any case: which take part changes
                with the epoch, which a wrapper for data parallelism does not like.
            others: what to sum on the way.

        Returns:
            `others`, summed.
        """
        if self.collective.world_size == 1:
            return others
        discriminating = [p for p in self.discriminators.parameters() if p.grad is not None]
        of_network = [] if without_network else self.parameters
        for p in of_network:
            if p.grad is None:  # this worker's rows have none, others' may
                p.grad = torch.zeros_like(p)
        moved = [*of_network, *discriminating]
        summed = self.collective.sum_all([p.grad for p in moved if p.grad is not None] + others)
        if self.model is not self.network and discriminating:  # averaged, as the wrapper does with the network's
            torch._foreach_div_(summed[len(of_network) : len(moved)], self.collective.world_size)
        for p, gradient in zip(moved, summed[: len(moved)], strict=True):
            p.grad = gradient
        return summed[len(moved) :]

    def _without_exchange(self) -> AbstractContextManager[None]:
        no_sync = getattr(self.model, "no_sync", None)
        return no_sync() if no_sync is not None else nullcontext()

    @torch.no_grad()
    def _outputs_of(self, batches: list[Batch]) -> tuple[Outputs, list[Tensor]]:
        """The outputs of all parts, without a graph, and the generator's state before each part."""
        found, draws = [], []
        for part in batches:
            draws.append(self._generator_state())
            with self.autocast():
                found.append(self.network(part).single())
        return Outputs.leaves(found), draws

    def _backward_parts(self, batches: list[Batch], outputs: Outputs, draws: list[Tensor]) -> None:
        """Each part again, with its graph, from the outputs' gradients to the weights'; the last one exchanges them."""
        after = self._generator_state()
        for part, draw in zip(batches, draws, strict=True):
            self._generator_state(draw)
            last = part is batches[-1]
            with nullcontext() if last else self._without_exchange():
                with self.autocast():
                    again = self.model(part).single()
                start = part.offset - batches[0].offset
                pairs = [
                    (x, whole.grad)
                    for x, whole in zip(again.tensors(), outputs.tensors(), strict=True)
                    if whole.grad is not None
                ]
                torch.autograd.backward([x for x, _ in pairs], [grad.narrow(-2, start, part.size) for _, grad in pairs])
        self._generator_state(after)

    def _generator_state(self, new: Tensor | None = None) -> Tensor:
        """State of what dropout draws from; set to `new` if that is given."""
        device = self.parameters[0].device
        if device.type == "cuda":
            if new is not None:
                torch.cuda.set_rng_state(new, device)
            return torch.cuda.get_rng_state(device)
        if new is not None:
            torch.set_rng_state(new)
        return torch.get_rng_state()

    def _own_norm(self) -> Tensor:
        return global_norm([p.grad for p in self.parameters if p.grad is not None])

    def _require_finite(self, passes: dict[str, dict[str, Tensor]]) -> None:
        """The only answer of the device that a step waits for, at its end: a first pass that is not finite spoils the
        second one."""
        if bool(torch.stack([_finite(terms) for terms in passes.values()]).all()):
            return
        self._forget()
        terms = next(terms for terms in passes.values() if not _finite(terms))
        shown = ", ".join(f"{name} {float(value):g}" for name, value in terms.items())
        raise NonFiniteLoss(f"step {self.number}: loss or gradient is not finite ({shown})")


def _finite(terms: dict[str, Tensor]) -> Tensor:
    return torch.isfinite(terms["total"]) & torch.isfinite(terms["grad_norm"])


def data_parallel(network: M2CAN, collective: Collective) -> Callable[[Batch], Outputs]:
    """The network; with several workers in DistributedDataParallel, which averages their gradients."""
    if collective.world_size == 1:
        return network
    return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
