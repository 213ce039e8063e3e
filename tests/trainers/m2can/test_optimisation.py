"""Schedules and SAM."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainers.m2can import learning_rates as schedules
from trainers.m2can.sam import SharpnessAwareStep, global_norm


def test_poly() -> None:
    schedule = schedules.poly(10, 0.9, 1e-8)
    wanted = [5e-4, 5e-4 * 0.9**0.9, 5e-4 * 0.8**0.9, 5e-4 * 0.7**0.9]
    assert [schedule(5e-4, k) for k in range(4)] == pytest.approx(wanted, rel=1e-14)


def test_poly_never_goes_below_the_lowest() -> None:
    schedule = schedules.poly(10, 0.99, 1e-6)
    assert [schedule(2e-6, k) for k in (6, 10, 11, 100)] == [1e-6] * 4


def test_the_first_two_steps_use_the_base_rate() -> None:
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5, "base_lr": 0.5}])
    used = []
    for step in range(4):
        used.append(optimizer.param_groups[0]["lr"])
        schedules.set_learning_rates(optimizer, schedules.poly(4, 1.0, 0.0), step)
    assert used == [0.5, 0.5, 0.375, 0.25]


def test_cosine() -> None:
    schedule = schedules.cosine(8, 0.1)
    wanted = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    assert [schedule(1.0, k) for k in range(9)] == pytest.approx(wanted)
    assert (schedule(1.0, 0), schedule(1.0, 4), schedule(1.0, 20)) == pytest.approx((1.0, 0.55, 0.1))


def test_multistep() -> None:
    schedule = schedules.multistep([2, 5])
    assert [schedule(1.0, k) for k in range(7)] == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


@pytest.fixture
def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 4), (5,), (2, 2))]
    for p in made[:2]:
        p.grad = torch.randn_like(p)
    return made  # the last one has no gradient


def test_perturbation_is_rho_along_the_whole_gradient(parameters: list[nn.Parameter]) -> None:
    before = [p.detach().clone() for p in parameters]
    grads = [p.grad.clone() for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
    assert float(global_norm(grads)) == pytest.approx(norm, rel=1e-14)
    sam = SharpnessAwareStep(parameters, 0.05)
    sam.perturb(global_norm(grads))
    for p, w, g in zip(parameters[:2], before[:2], grads, strict=True):
        torch.testing.assert_close(p.detach() - w, 0.05 * g / (norm + 1e-12), rtol=1e-10, atol=1e-15)
    assert torch.equal(parameters[2], before[2])
    assert math.sqrt(
        sum(float(((p.detach() - w) ** 2).sum()) for p, w in zip(parameters, before, strict=True))
    ) == pytest.approx(0.05)


def test_restore_is_exact_to_the_bit(parameters: list[nn.Parameter]) -> None:
    parameters[0].data *= 1e6  # adding and subtracting would lose digits
    before = [p.detach().clone() for p in parameters]
    sam = SharpnessAwareStep(parameters, 0.05)
    sam.perturb(torch.tensor(3.0, dtype=torch.float64))
    assert not torch.equal(parameters[1], before[1])
    sam.restore()
    assert all(torch.equal(p, w) for p, w in zip(parameters, before, strict=True))
    parameters[1].data += 1
    sam.restore()  # nothing left to bring back
    assert not torch.equal(parameters[1], before[1])


def test_no_gradient_at_all_is_no_step(parameters: list[nn.Parameter]) -> None:
    alone = parameters[2]
    before = alone.detach().clone()
    SharpnessAwareStep([alone], 0.05).perturb(global_norm([]))
    assert torch.equal(alone, before)
