"""One optimisation step, on one worker or many."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.learning_rates import Schedule, set_learning_rates
from trainers.m2can.losses.task import count_labelled
from trainers.m2can.network import M2CAN
from trainers.m2can.objective import Objective
from trainers.m2can.sam import SharpnessAwareStep, global_norm
from trainers.step.accumulation import Accumulation
from trainers.step.finite_check import Passes, Unchecked, can_skip, error_of, not_finite, step_unless
from trainers.step.gradients import GradientExchange
from trainers.step.loss_scale import LossScale, NoLossScale


class Step:
    """SAM with a smooth task term: perturb along the gradient without CDAFA, then descend along the one with it.

    A step that is not finite moves nothing. Fused optimizers leave it to the device, so that the host reads a step's
    answer while the device works on the next one, which moves nothing either; `check` reads the last one's. With other
    optimizers, and with a loss scale, a step waits for its own answer.

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
        self._lags = loss_scale is None and all(can_skip(optimizer) for optimizer in self.optimizers)
        self._unchecked: Unchecked | None = None  # the last step
        if parts > 1 and self.groups.needs_whole_batch:
            raise ValueError("batch norm `batch` needs the whole slice at once; use `per_sample` or `frozen`")

    def __call__(self, batch: Batch) -> Passes:
        """Run the step.

        Returns:
            the global value of every term by pass (`first` only with SAM), with `total` and `grad_norm`; detached, on the
            device.

        Raises:
            NonFiniteLoss: this step or the one before was not finite. Weights, optimizers, rates, batch statistics and
                the discriminators' calls are as before that step.
        """
        batch = replace(batch, labelled_D=count_labelled(batch, self.collective))  # once for both passes
        calls = self.discriminators.counts()
        passes = self._passes(batch)
        if not self._lags:
            passes = self._until_finite(passes, batch, calls)
            self._move(None)
            return passes
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        stopped, before = not_finite(passes), self._unchecked
        if before is not None:
            stopped |= before.stopped
        self._unchecked = Unchecked.of(self.number, passes, calls, rates, stopped)
        self._move(stopped)
        if before is not None:
            self._require_finite(before)
        return passes

    def check(self) -> None:
        """Wait for the last step, before what it left is kept. Raises NonFiniteLoss: see __call__."""
        last, self._unchecked = self._unchecked, None
        if last is not None:
            self._require_finite(last)

    def forget(self) -> None:
        """The last step does not count any more: what it left is replaced."""
        self._unchecked = None

    def _until_finite(self, passes: Passes, batch: Batch, calls: list[int]) -> Passes:
        """Repeat the passes while a smaller loss scale may help; on all workers alike."""
        while not_finite(passes):
            self.groups.forget()
            self.discriminators.recount(calls)
            if not self.loss_scale.lower():
                raise error_of(self.number, passes)
            passes = self._passes(batch)
        self.loss_scale.step_succeeded()
        return passes

    def _move(self, stopped: Tensor | None) -> None:
        """Batch statistics and optimizers move, unless the device says that they stop."""
        self.groups.commit(stopped)
        self.groups.forget()
        for optimizer in self.optimizers:
            if stopped is None:
                optimizer.step()
            else:
                step_unless(optimizer, stopped)
            set_learning_rates(optimizer, self.schedule, self.number)
        self.number += 1

    def _require_finite(self, step: Unchecked) -> None:
        if step.was_finite():
            return
        self.forget()
        self.number = step.number
        self.discriminators.recount(step.calls)
        for optimizer, rates in zip(self.optimizers, step.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        raise error_of(step.number, step.passes)

    def _passes(self, batch: Batch) -> Passes:
        """Gradients of the step, and every term's value in each pass. Weights are afterwards as they were."""
        if self.sharpness is None:
            return {"second": self._backward(batch, self.discriminators)}
        first = self._backward(batch, None)  # g, without CDAFA
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
        *statistics, values = self.exchange([*self.groups.shares(), values])
        self.groups.take(statistics)
        terms = dict(zip(shares, values.unbind(), strict=True))
        return terms | {"total": values.sum(), "grad_norm": self._gradient_norm().to(total.dtype)}

    def _gradient_norm(self) -> Tensor:
        return global_norm([p.grad for p in self.parameters if p.grad is not None])
