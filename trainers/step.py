"""One optimisation step, on one worker or many."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.losses.adversarial import Discriminators
from trainers.m2can.network import M2CAN
from trainers.m2can.objective import Objective
from trainers.m2can.schedules import Schedule, set_learning_rates
from trainers.m2can.sharpness import SharpnessAwareStep, global_norm


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient is not finite. Raised on every worker, before any optimizer moved."""


class Step:
    """Sharpness-aware step with a smooth task: climb without CDAFA, then descend with it.

    Args:
        network: the network itself.
        model: what is called: the network, or its data-parallel wrapper.
        discriminators: one for each pair of domains.
        objective: the weighted terms.
        optimizer: of the network; its groups carry `base_lr`.
        discriminator_optimizer: of the discriminators.
        schedule: learning rates by step.
        rho: ρ of SAM; 0 for a plain step.
        collective: exchange with the other workers.
        autocast: makes the context of a forward pass.
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
    ) -> None:
        self.network = network
        self.model = model
        self.discriminators = discriminators
        self.objective = objective
        self.optimizer = optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.schedule = schedule
        self.collective = collective
        self.autocast = autocast
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.sharpness = SharpnessAwareStep(self.parameters, rho) if rho > 0 else None
        self.number = 0
        self.groups = getattr(network.picture_encoder, "groups", None)
        if self.groups is not None:
            self.groups.collective = collective  # batch statistics are the global batch's

    def __call__(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Run the step.

        Returns:
            the global value of every term by pass (`first` only with SAM), with `total` and `grad_norm`; detached, on
            the device.

        Raises:
            NonFiniteLoss: weights are as before the step.
        """
        passes = {}
        if self.sharpness is not None:
            passes["first"] = self._backward(batch, None)
            self._require_finite(passes["first"])
            self.sharpness.perturb(passes["first"]["grad_norm"])
        try:
            passes["second"] = self._backward(batch, self.discriminators)
            self._require_finite(passes["second"])
        finally:
            if self.sharpness is not None:
                self.sharpness.restore()
        self.optimizer.step()
        self.discriminator_optimizer.step()
        for optimizer in (self.optimizer, self.discriminator_optimizer):
            set_learning_rates(optimizer, self.schedule, self.number)
        self.number += 1
        return passes

    def _backward(self, batch: Batch, discriminators: Discriminators | None) -> dict[str, Tensor]:
        """One forward and backward pass; afterwards every worker holds the gradients of the global batch."""
        self.optimizer.zero_grad(set_to_none=True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            outputs = self.model(batch)
            shares = self.objective(outputs, batch, self.collective, discriminators)
        total = torch.stack([share.float() if share.dtype.itemsize < 4 else share for share in shares.values()]).sum()
        # Data parallelism averages over the workers; the gradient of the global batch is the sum of their shares'.
        (total * self.collective.world_size).backward()
        self._sum_discriminators()
        self._commit_statistics()
        values = self.collective.sum_(torch.stack([share.detach().to(total.dtype) for share in shares.values()]))
        terms = dict(zip(shares, values.unbind()))
        terms["total"] = values.sum()
        terms["grad_norm"] = global_norm([p.grad for p in self.parameters if p.grad is not None])
        return terms

    def _sum_discriminators(self) -> None:
        """By hand: which discriminators take part changes with the epoch, which data parallelism does not like."""
        grads = [p.grad for p in self.discriminators.parameters() if p.grad is not None]
        if self.collective.world_size == 1 or not grads:
            return
        flat = self.collective.sum_(torch.cat([g.flatten() for g in grads])) / self.collective.world_size
        for grad, part in zip(grads, flat.split([g.numel() for g in grads])):
            grad.copy_(part.view_as(grad))

    def _commit_statistics(self) -> None:
        if self.groups is not None:
            self.groups.commit()

    def _require_finite(self, terms: dict[str, Tensor]) -> None:
        if not bool(torch.isfinite(terms["total"]) & torch.isfinite(terms["grad_norm"])):
            shown = ", ".join(f"{name} {float(value):g}" for name, value in terms.items())
            raise NonFiniteLoss(f"step {self.number}: loss or gradient is not finite ({shown})")


def parameter_groups(modules: list[tuple[str, nn.Module | None, float]]) -> list[dict[str, object]]:
    """Optimizer groups (name, parameters, lr, base_lr) of the modules that have something to train."""
    groups: list[dict[str, object]] = []
    for name, module, lr in modules:
        trainable = [p for p in module.parameters() if p.requires_grad] if module is not None else []
        if trainable:
            groups.append({"params": trainable, "lr": lr, "base_lr": lr, "name": name})
    return groups
