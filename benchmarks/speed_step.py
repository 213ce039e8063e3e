"""One step and one scored batch, ours against the baseline, on the same rows and from the same weights."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.optim import Adam
from transformers import BertConfig, BertModel

from benchmarks.baseline import baseline_network, pad
from benchmarks.refinement import peak_mb
from datasets_manifest.encode import HostBatch
from trainers import build
from trainers.inputs import to_batch
from trainers.m2can.batch import Batch
from trainers.m2can.collective import Collective
from trainers.m2can.encoders import TextEncoder, freeze
from trainers.m2can.network import M2CAN
from trainers.m2can.refinement import score_samples
from trainers.precision import autocast_of
from trainers.recipe import Recipe, make_recipe
from trainers.step import Step

SLOTS = 10
LENGTHS = (25, 0.6)  # of the texts, tokens: log-normal, median and σ
TOLERANCE = 2e-4  # of the first step's terms, float32


@dataclass(frozen=True)
class Size:
    """Of the measured step: the table's, or one that takes seconds.

    pixels: of a picture's side. words: of the vocabulary. batch: rows a domain. pictures: of each row.
    """

    picture: str = "torchvision:resnet50"
    pixels: int = 96
    hidden: int = 768
    layers: int = 2
    words: int = 30_522
    batch: int = 8
    tokens: int = 200
    repeats: int = 5
    sources: int = 2
    classes: int = 3
    pictures: int = 1

    @property
    def rows(self) -> int:
        """Of a step, all domains together."""
        return (self.sources + 1) * self.batch


FULL = Size()
QUICK = Size("tiny", 64, 32, 1, 500, 4, 60, 3)


def recipe_of(size: Size, preset: str, *overrides: str) -> Recipe:
    from trainers.recipe import apply_override

    tree: dict[str, Any] = {
        "preset": preset,
        "data": {"sources": ["s"] * size.sources, "target": "t", "texts": {"max_tokens": size.tokens}},
        "encoders": {"picture": {"name": size.picture, "weights": "random"}},
        "train": {"batch_size": size.batch},
    }
    if size.picture == "tiny":
        tree["encoders"]["picture"]["head"] = "none"
    for override in overrides:
        apply_override(tree, override)
    return make_recipe(tree)


def make_network(size: Size, recipe: Recipe) -> M2CAN:
    """From the same seed the same weights; without dropout, so that results can be compared."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=size.words,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.hidden // 64),
        intermediate_size=4 * size.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    pooling = recipe.encoders.text.pooling
    text = TextEncoder(BertModel(config, add_pooling_layer=pooling == "pooler"), pooling)
    freeze(text, recipe.encoders.text.freeze)
    picture = build.build_picture_encoder(recipe.encoders.picture, load_weights=True)
    return M2CAN(text, picture, size.sources, size.classes, **recipe.network.model_dump()).train()


def make_rows(size: Size, views: int, rows: int, seed: int = 0) -> HostBatch:
    """Rows of `views` views; token lengths log-normal, at most `size.tokens`."""
    random = np.random.default_rng(seed)
    drawn = np.exp(np.log(LENGTHS[0]) + LENGTHS[1] * random.standard_normal(views * rows))
    lengths = drawn.round().astype(int).clip(3, size.tokens)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    return HostBatch(
        tokens=random.integers(1, size.words, mask.shape) * mask,
        mask=mask,
        pictures=random.integers(0, 256, (views * rows * size.pictures, size.pixels, size.pixels, 3), dtype=np.uint8),
        owner=np.repeat(np.arange(views * rows), size.pictures),
        rows=np.arange(rows),
        bad=[],
    )


def cut_rows(host: HostBatch, rows: int) -> list[HostBatch]:
    """A batch of one view with one picture a row, in batches of at most `rows`."""
    return [
        HostBatch(
            tokens=host.tokens[part],
            mask=host.mask[part],
            pictures=host.pictures[part],
            owner=np.arange(len(part)),
            rows=host.rows[part],
            bad=[],
        )
        for part in np.split(np.arange(len(host.rows)), range(rows, len(host.rows), rows))
    ]


def make_labels(size: Size, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, size.classes, (size.sources + 1, size.batch))


def make_step(network: M2CAN, recipe: Recipe, device: torch.device, *, ordinary: bool = False) -> Step:
    """`ordinary`: torch's default Adam, as the published code has it."""
    network.to(device)
    if recipe.train.channels_last:
        network.picture_encoder.to(memory_format=torch.channels_last)
    discriminators = build.build_discriminators(len(network.heads), network.num_classes, recipe.discriminators).to(
        device
    )
    optimizer, other = build.build_optimizers(network, discriminators, recipe.optimizer, recipe.train.batch_size)
    if ordinary:
        optimizer = Adam(optimizer.param_groups)  # groups keep their rates
        for group in optimizer.param_groups:
            group["fused"] = None
    return Step(
        network=network,
        model=network,
        discriminators=discriminators,
        objective=build.build_objective(recipe),
        optimizer=optimizer,
        discriminator_optimizer=other,
        schedule=build.build_schedule(recipe.schedule, 10, 100),
        rho=recipe.sam.rho,
        collective=Collective(),
        autocast=autocast_of(recipe, device),
        parts=recipe.train.accumulate,
    )


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Of one call; on a GPU by its own events."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def interleaved(sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each side; the sides take turns. Each ran once before."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            found[name].append(seconds_of(run, device))
    return {name: statistics.median(times) for name, times in found.items()}


@dataclass
class Sides:
    """The same rows and weights, ours and the baseline's way."""

    ours: Step
    theirs: Step
    batch: Batch
    padded: Batch
    device: torch.device


def make_sides(size: Size, recipe: Recipe) -> Sides:
    device, published = device_here(), recipe_of(size, "published")
    host, labels_DB = make_rows(size, 2, size.rows), make_labels(size)
    network = baseline_network(make_network(size, published))
    return Sides(
        ours=make_step(make_network(size, recipe), recipe, device),
        theirs=make_step(network, published, device, ordinary=True),
        batch=to_batch(host, labels_DB, device=device, dtype=torch.float32),
        padded=pad(host, labels_DB, tokens=size.tokens, slots=SLOTS).to(device, torch.float32),
        device=device,
    )


def theirs_step(sides: Sides) -> dict[str, dict[str, torch.Tensor]]:
    sides.theirs.network.text_encoder.calls = sides.padded.num_views * sides.padded.num_domains  # type: ignore[assignment]
    return sides.theirs(sides.padded)


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Of the terms of the first pass, relative to 1 or to the term.

    Not of the second: a climb of ρ·g/‖g‖ and normalisation over the nine pixels of a sample amplify float32's rounding.
    """
    return max(
        abs(float(value) - float(theirs["first"][term])) / max(1.0, abs(float(value)))
        for term, value in ours["first"].items()
        if term != "grad_norm"
    )


def measure_step(size: Size, preset: str, *overrides: str) -> dict[str, Any]:
    """Seconds of a step of `preset` against the baseline's of the published recipe.

    Raises:
        RuntimeError: the same mathematics does not give the same terms.
    """
    sides = make_sides(size, recipe_of(size, preset, *overrides))
    first, other = sides.ours(sides.batch), theirs_step(sides)
    found: dict[str, Any] = {}
    if preset == "published" and not overrides:
        found["difference"] = largest_difference(first, other)
        if found["difference"] > TOLERANCE:
            raise RuntimeError(f"the sides' first steps differ by {found['difference']:.2g}")
    times = interleaved(
        {"ours": lambda: sides.ours(sides.batch), "theirs": lambda: theirs_step(sides)}, size.repeats, sides.device
    )
    return found | {
        "ours": times["ours"],
        "theirs": times["theirs"],
        "ratio": times["theirs"] / times["ours"],
        "unit": "s",
    }


def measure_scoring(size: Size) -> dict[str, Any]:
    """The pseudo-label pass without its data: target samples a second, weak views, each side in the batches it uses."""
    device, published = device_here(), recipe_of(size, "published")
    rows = published.train.eval_batch_size
    host = make_rows(size, 1, rows)
    labels = np.full((1, rows), -1)
    ours, theirs = make_network(size, published).to(device).eval(), make_network(size, published)
    network = baseline_network(theirs).to(device).eval()
    batch = to_batch(host, labels, device=device, dtype=torch.float32)
    parts = [
        pad(some, labels[:, : len(some.rows)], tokens=size.tokens, slots=SLOTS) for some in cut_rows(host, size.batch)
    ]

    @torch.inference_mode()
    def score_ours() -> torch.Tensor:
        return score_samples(ours(batch).logits_HQDBC[:, 0, 0]).score.cpu()

    @torch.inference_mode()
    def score_theirs() -> torch.Tensor:
        found = [network(part.to(device, torch.float32)).logits_HQDBC[:, 0, 0] for part in parts]
        return torch.cat([score_samples(logits).score.cpu() for logits in found])

    difference = float((score_ours() - score_theirs()).abs().max())
    if difference > TOLERANCE:
        raise RuntimeError(f"the sides' scores differ by {difference:.2g}")
    times = interleaved({"ours": score_ours, "theirs": score_theirs}, size.repeats, device)
    rate = {name: rows / seconds for name, seconds in times.items()}
    return {**rate, "ratio": rate["ours"] / rate["theirs"], "unit": "samples/s", "difference": difference}


def peak_of(side: str, size: Size, *overrides: str) -> float:
    """Peak memory, MB, of a fresh process that does two steps of one side; of the GPU, if there is one."""
    code = f"from benchmarks.speed_step import *; run_two_steps({side!r}, Size(**{asdict(size)!r}), *{overrides!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def run_two_steps(side: str, size: Size, *overrides: str) -> None:
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
