"""One step and one scored batch, ours against the baseline, on the same rows and from the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks.baseline import baseline_network, pad
from benchmarks.refinement import peak_mb
from benchmarks.sides import Runs, SideProcess, compare, device_here
from benchmarks.step_parts import Size, cut_rows, make_labels, make_network, make_rows, make_step, recipe_of
from trainers.compute.device_batches import to_batch
from trainers.compute.precision import choose_layout, eval_batch_size
from trainers.m2can.pseudo_labels import score_samples
from trainers.step.step import Step

SLOTS = 10
TOLERANCE = 2e-4  # of the first step's terms, float32

Terms = dict[str, float]  # of a step's first pass


def our_step(size: Size, preset: str, *overrides: str) -> tuple[Step, Callable[[], Any]]:
    """The step, and what takes it once more."""
    device, recipe = device_here(), recipe_of(size, preset, *overrides)
    step = make_step(make_network(size, recipe), recipe, device)
    batch = to_batch(make_rows(size, 2, size.rows), make_labels(size), device=device, dtype=torch.float32)
    return step, lambda: step(batch)


def their_step(size: Size) -> tuple[Step, Callable[[], Any]]:
    """The same of the baseline: the published recipe on padded rows."""
    device, published = device_here(), recipe_of(size, "published")
    torch.backends.cudnn.allow_tf32 = False  # torch's default rounds convolutions on a GPU; ours do not in fp32
    network = baseline_network(make_network(size, published))
    step = make_step(network, published, device, ordinary=True)
    padded = pad(make_rows(size, 2, size.rows), make_labels(size), tokens=size.tokens, slots=SLOTS)
    batch = padded.to(device, torch.float32)
    network.text_encoder.calls = batch.num_views * batch.num_domains  # type: ignore[assignment]
    return step, lambda: step(batch)


def first_terms(passes: dict[str, dict[str, torch.Tensor]]) -> Terms:
    """The terms of a step's first pass.

    Not of the second: a climb of ρ·g/‖g‖ and normalisation over the nine pixels of a sample amplify float32's rounding.
    """
    terms = passes.get("first") or passes["second"]
    return {name: float(value) for name, value in terms.items() if name != "grad_norm"}


def largest_difference(ours: Terms, theirs: Terms) -> float:
    """Relative to 1 or to the term."""
    return max(abs(value - theirs[name]) / max(1.0, abs(value)) for name, value in ours.items())


@contextmanager
def our_side(size: Size, preset: str, *overrides: str) -> Iterator[Runs]:
    _, take = our_step(size, preset, *overrides)
    yield {"ours": lambda: first_terms(take())}


@contextmanager
def their_side(size: Size) -> Iterator[Runs]:
    _, take = their_step(size)
    yield {"theirs": lambda: first_terms(take())}


def measure_step(size: Size, preset: str, *overrides: str, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Seconds of a step of `preset` against the baseline's of the published recipe.

    Raises:
        RuntimeError: the same mathematics gives terms that differ by more than `tolerance`.
    """
    sides = SideProcess(our_side, size, preset, *overrides), SideProcess(their_side, size)
    times, first = compare(*sides, size.repeats)
    found: dict[str, Any] = {}
    if preset == "published" and not overrides:
        found["difference"] = largest_difference(first["ours"], first["theirs"])
        if found["difference"] > tolerance:
            raise RuntimeError(f"the sides' first steps differ by {found['difference']:.2g}")
    return found | {**times, "ratio": times["theirs"] / times["ours"], "unit": "s"}


@contextmanager
def our_scores(size: Size) -> Iterator[Runs]:
    """Scores of a batch of target samples, weak views."""
    device, published = device_here(), recipe_of(size, "published")
    network = make_network(size, published).to(device).eval()
    choose_layout(network, published, device)
    rows = eval_batch_size(published, device)
    batch = to_batch(make_rows(size, 1, rows), np.full((1, rows), -1), device=device, dtype=torch.float32)

    @torch.inference_mode()
    def score() -> np.ndarray:
        return score_samples(network(batch).logits_HQDBC[:, 0, 0]).score.cpu().numpy()

    yield {"ours": score}


@contextmanager
def their_scores(size: Size) -> Iterator[Runs]:
    """The same samples in batches of a training step's rows."""
    device, published = device_here(), recipe_of(size, "published")
    network = baseline_network(make_network(size, published)).to(device).eval()
    host, labels = make_rows(size, 1, eval_batch_size(published, device)), np.full((1, size.batch), -1)
    parts = [
        pad(some, labels[:, : len(some.rows)], tokens=size.tokens, slots=SLOTS) for some in cut_rows(host, size.batch)
    ]

    @torch.inference_mode()
    def score() -> np.ndarray:
        found = [network(part.to(device, torch.float32)).logits_HQDBC[:, 0, 0] for part in parts]
        return torch.cat([score_samples(logits).score.cpu() for logits in found]).numpy()

    yield {"theirs": score}


def measure_scoring(size: Size) -> dict[str, Any]:
    """The pseudo-label pass without its data: target samples a second, each side in the batches it uses.

    Raises:
        RuntimeError: the scores differ.
    """
    times, first = compare(SideProcess(our_scores, size), SideProcess(their_scores, size), size.repeats)
    difference = float(np.abs(first["ours"] - first["theirs"]).max())
    if difference > TOLERANCE:
        raise RuntimeError(f"the sides' scores differ by {difference:.2g}")
    rate = {name: len(first["ours"]) / seconds for name, seconds in times.items()}
    return {**rate, "ratio": rate["ours"] / rate["theirs"], "unit": "samples/s", "difference": difference}


def peak_of(side: str, size: Size, *overrides: str) -> float:
    """Peak memory, MB, of a fresh process that does two steps of one side; of the GPU, if there is one."""
    code = f"from benchmarks.speed_step import *; run_two_steps({side!r}, Size(**{asdict(size)!r}), *{overrides!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def run_two_steps(side: str, size: Size, *overrides: str) -> None:
    """Rows are made anew for each step, as a loader would; prints the peak."""
    device, published = device_here(), recipe_of(size, "published", *overrides)
    host, labels_DB = make_rows(size, 2, size.rows), make_labels(size)
    network = make_network(size, published)
    if side == "theirs":
        network = baseline_network(network)
        network.text_encoder.calls = 2 * (size.sources + 1)  # type: ignore[assignment]
    step = make_step(network, published, device, ordinary=side == "theirs")
    for _ in range(2):
        if side == "theirs":
            step(pad(host, labels_DB, tokens=size.tokens, slots=SLOTS).to(device, torch.float32))
        else:
            step(to_batch(host, labels_DB, device=device, dtype=torch.float32))
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print(peak_mb())


def measure_memory(size: Size, options: Sequence[str]) -> dict[str, Any]:
    """`memory`: as it is; `memory_parts`: with `options`, which save memory and change no result."""
    ours, theirs = peak_of("ours", size), peak_of("theirs", size)
    parts = peak_of("ours", size, *options)
    return {
        "memory": {"ours": ours, "theirs": theirs, "ratio": ours / theirs, "unit": "MB"},
        "memory_parts": {"ours": parts, "theirs": theirs, "ratio": parts / theirs, "unit": "MB"},
    }
