"""The experiments by name, and the patches that put them in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from torch import Tensor

from datasets_manifest.stream.plan import DomainPool, StepSlice
from experiments.floor_labels import floor_labels
from experiments.gate import GatedFusion
from experiments.terms import cross_modal_of, proximity, task_of_soft_labels
from experiments.uacr import ExperimentalUacr, UacrOptions
from trainers.loop.loop import Loop
from trainers.loop.pseudo_labels import PseudoLabels
from trainers.loop.scoring import Scored
from trainers.m2can.discriminators import PairDiscriminator
from trainers.m2can.losses import adversarial, task
from trainers.m2can.losses.inputs import TermInputs
from trainers.step.step import Step

UACR: dict[str, dict[str, Any]] = {
    "neighbours-fused": {"refine": "fused"},
    "neighbours": {"refine": "modalities"},
    "neighbours-cross": {"refine": "cross"},
    "centroids": {"refine": "centroids"},
    "balance": {"balance": True},
    "soft-labels": {"soft": True},
    "ema-teacher": {"teacher": True},
    "score-prob": {"score": "prob"},
    "score-uncertainty": {"score": "uncertainty"},
    "unselected-aligned": {"align": True},
    "estimated-prior": {"estimate": True},
}


@contextmanager
def _patched_uacr(options: UacrOptions) -> Iterator[None]:
    build, run_step, plain_task = Loop._build, Loop.run_step, task.term
    states: dict[int, ExperimentalUacr] = {}  # by loop
    soft: list[Tensor | None] = [None]  # of the running step

    def built(loop: Loop) -> None:
        build(loop)
        states[id(loop)] = ExperimentalUacr(loop, options)

    def stepped(loop: Loop, slice_: StepSlice, batch: Any) -> Any:
        state = states[id(loop)]
        soft[0] = state.soft_labels(slice_)
        passes = run_step(loop, slice_, batch)
        state.after_step()
        return passes

    def select(loop: Loop, scored: Scored) -> dict[str, float]:
        return states[id(loop)].select(scored)

    def pools(pseudo_labels: PseudoLabels) -> list[DomainPool]:
        return next(s for s in states.values() if s.loop.pseudo_labels is pseudo_labels).pools(pseudo_labels)

    def task_term(inputs: TermInputs) -> Tensor:
        return plain_task(inputs) if soft[0] is None else task_of_soft_labels(inputs, soft[0])

    with ExitStack() as stack:
        stack.enter_context(patch.object(Loop, "_build", built))
        stack.enter_context(patch.object(Loop, "run_step", stepped))
        stack.enter_context(patch.object(Loop, "select_pseudo_labels", select))
        stack.enter_context(patch.object(task, "term", task_term))
        if options.align:
            stack.enter_context(patch.object(PseudoLabels, "pools", pools))
        yield


@contextmanager
def _symmetric(temperature: float) -> Iterator[None]:
    def term(inputs: TermInputs) -> Tensor:
        return cross_modal_of(inputs, temperature, symmetric=True)

    with patch("trainers.m2can.losses.cross_modal.term", term):
        yield


@contextmanager
def _sources_by_proximity() -> Iterator[None]:
    def weighted(term: Callable[[TermInputs], Tensor]) -> Callable[[TermInputs], Tensor]:
        return lambda inputs: term(replace(inputs, weight_D=proximity(inputs)))

    with patch.object(task, "term", weighted(task.term)), patch.object(adversarial, "term", weighted(adversarial.term)):
        yield


@contextmanager
def _larger_discriminators() -> Iterator[None]:
    init = PairDiscriminator.__init__

    def with_hidden_layer(self: PairDiscriminator, width: int, hidden: int = 0, warmup: float = 1000) -> None:
        init(self, width, 64, warmup)

    with patch.object(PairDiscriminator, "__init__", with_hidden_layer):
        yield


@contextmanager
def _gate() -> Iterator[None]:
    with patch("trainers.m2can.network.Fusion", GatedFusion):
        yield


@contextmanager
def _sam_every_second_step() -> Iterator[None]:
    """Liu et al., "Towards Efficient and Scalable Sharpness-Aware Minimization", CVPR 2022, arXiv:2203.02714."""
    call = Step.__call__

    def stepped(step: Step, batch: Any) -> Any:
        sharpness = step.sharpness
        step.sharpness = sharpness if step.number % 2 == 0 else None
        try:
            return call(step, batch)
        finally:
            step.sharpness = sharpness

    with patch.object(Step, "__call__", stepped):
        yield


OTHERS: dict[str, Callable[[], Any]] = {
    "symmetric-cmcfa": lambda: _symmetric(1.0),
    "symmetric-cmcfa-sharp": lambda: _symmetric(0.1),
    "sources-by-proximity": _sources_by_proximity,
    "larger-discriminators": _larger_discriminators,
    "gate": _gate,
    "sam-every-second-step": _sam_every_second_step,
    "floor-labels-at-first": lambda: floor_labels(soft=False),
    "floor-labels-soft": lambda: floor_labels(soft=True),
}
NAMES = (*UACR, *OTHERS)


@contextmanager
def applied(*names: str) -> Iterator[None]:
    """Loops that are made in this context have the experiments of these names. Raises KeyError: an unknown name."""
    with ExitStack() as stack:
        for name in names:
            if name not in UACR:
                stack.enter_context(OTHERS[name]())
        options = [UACR[name] for name in names if name in UACR]
        if options:
            merged = {key: value for option in options for key, value in option.items()}
            stack.enter_context(_patched_uacr(UacrOptions(**merged)))
        yield
