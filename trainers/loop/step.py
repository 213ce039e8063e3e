"""One optimisation step, on one worker or many."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainers.loop.accumulation import Accumulation
from trainers.loop.gradients import GradientExchange
from trainers.loop.loss_scale import LossScale, NoLossScale
from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.learning_rates import Schedule, set_learning_rates
from trainers.m2can.losses.task import count_labelled
from trainers.m2can.network import M2CAN
from trainers.m2can.objective import Objective
from trainers.m2can.sam import SharpnessAwareStep, global_norm

Passes = dict[str, dict[str, Tensor]]  # by pass, `first` only with SAM: terms, `total`, `grad_norm`


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient is not finite. Raised on every worker, before any optimizer moved."""


class Step:
    """SAM with a smooth task term: perturb along the gradient without CDAFA, then descend along the one with it.

    Args:
        network: the network itself.
        model: the network, or the network in DistributedDataParallel (gradients.data_parallel).
        discriminators: one for each pair of domains.
        objective: the weighted terms.
        optimizer: of the network; its groups carry `base_lr`.
        discriminator_optimizer: of the discriminators.
        schedule: learning rates by step.
        rho: radius ρ of SAM's perturbation; 0: steps of one pass.
        collective: exchange with the other workers.
        autocast: makes the context of a forward pass.
        parts: in how many parts a worker's slice goes through the network; see Accumulation.
        loss_scale: of fp16; None: 1.

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
        self.network, self.discriminators, self.objective = network, discriminators, objective
        self.optimizers, self.schedule = (optimizer, discriminator_optimizer), schedule
        self.collective, self.loss_scale = collective, loss_scale or NoLossScale()
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.accumulation = Accumulation(model, network, parts, autocast, self.parameters[0].device)
        self.exchange = GradientExchange(discriminators, collective)
        self.sharpness = SharpnessAwareStep(self.parameters, rho) if rho > 0 else None
        self.number = 0  # steps done
        self.groups = network.picture_encoder.groups
        self.groups.collective = collective  # batch statistics are the global batch's
        self._statistics: list[Tensor] = []  # of the pass, summed over the workers
        if parts > 1 and self.groups.needs_whole_batch:
            raise ValueError("batch norm `batch` needs the whole slice at once; use `per_sample` or `frozen`")

    def __call__(self, batch: Batch) -> Passes:
        """Run the step.

        Returns:
            the global value of every term by pass (`first` only with SAM), with `total` and `grad_norm`; detached, on the
            device.

        Raises:
            NonFiniteLoss: weights, batch statistics and the discriminators' calls are as before the step.
        """
        batch = replace(batch, labelled_D=count_labelled(batch, self.collective))  # once for both passes
        before = self._moved_by_passes()
        while not _finite(passes := self._passes(batch)):  # on all workers alike
            self._put_back(*before)
            if not self.loss_scale.lower():
                raise NonFiniteLoss(f"step {self.number}: loss or gradient is not finite ({_first_not_finite(passes)})")
        self.loss_scale.step_succeeded()
        self.groups.commit(self._statistics)
        self.groups.forget()
        for optimizer in self.optimizers:
            optimizer.step()
            set_learning_rates(optimizer, self.schedule, self.number)
        self.number += 1
        return passes

    def _passes(self, batch: Batch) -> Passes:
        """Gradients of the step, and every term's value in each pass. Weights are afterwards as they were."""
        if self.sharpness is None:
            return {"second": self._backward(batch, self.discriminators)}
        first = self._backward(batch, None)  # g, without CDAFA
        self.groups.commit(self._statistics)
        self.sharpness.perturb(self._gradient_norm())  # w + ρ·g/‖g‖
        try:
            second = self._backward(batch, self.discriminators)  # the gradient there, with CDAFA
        finally:
            self.sharpness.restore()  # w
        return {"first": first, "second": second}

    def _backward(self, batch: Batch, discriminators: Discriminators | None) -> dict[str, Tensor]:
        """One pass; afterwards every worker holds the gradients of the global batch."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        outputs = self.accumulation.forward(batch)
        shares = self.objective(outputs, batch, self.collective, discriminators)
        total = torch.stack(list(shares.values())).sum()
        (total * (self.exchange.factor * self.loss_scale.value)).backward()
        self.accumulation.backward()
        both = (*self.parameters, *self.discriminators.parameters())
        self.loss_scale.unscale([p.grad for p in both if p.grad is not None])
        values = torch.stack([share.detach() for share in shares.values()])
        *self._statistics, values = self.exchange([*self.groups.shares(), values])
        terms = dict(zip(shares, values.unbind(), strict=True))
        return terms | {"total": values.sum(), "grad_norm": self._gradient_norm().to(total.dtype)}

    def _gradient_norm(self) -> Tensor:
        return global_norm([p.grad for p in self.parameters if p.grad is not None])

    def _moved_by_passes(self) -> tuple[list[Tensor], list[int]]:
        """What passes move before the optimizers do. Without SAM the statistics move only after the check."""
        moving = self._running_statistics() if self.sharpness is not None else []
        statistics = [torch.empty_like(x) for x in moving]
        _copy(moving, statistics)
        return statistics, self.discriminators.counts()

    def _put_back(self, statistics: list[Tensor], calls: list[int]) -> None:
        self.groups.forget()
        if self.sharpness is not None:
            _copy(statistics, self._running_statistics())
        self.discriminators.recount(calls)

    def _running_statistics(self) -> list[Tensor]:
        return [buffer for layer in self.groups.layers for buffer in layer.buffers()]


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    """One call for each dtype among them."""
    for dtype in {x.dtype for x in sources}:
        torch._foreach_copy_([x for x in targets if x.dtype == dtype], [x for x in sources if x.dtype == dtype])


def _finite(passes: Passes) -> bool:
    """The only answer of the device that a step waits for, at its end: a first pass that is not finite spoils the second."""
    return bool(torch.stack([_is_finite(terms) for terms in passes.values()]).all())


def _is_finite(terms: dict[str, Tensor]) -> Tensor:
    return torch.isfinite(terms["total"]) & torch.isfinite(terms["grad_norm"])


def _first_not_finite(passes: Passes) -> str:
    terms = next(terms for terms in passes.values() if not _is_finite(terms))
    return ", ".join(f"{name} {float(value):g}" for name, value in terms.items())
