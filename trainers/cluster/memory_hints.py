"""When memory runs out: what a recipe keeps for the backward pass, and which settings would keep less."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from ray.exceptions import OutOfMemoryError
from torch import Tensor

from datasets_manifest.manifest.corpus import Corpus
from trainers.cluster.disk import megabytes
from trainers.m2can.encoders.wrappers import GivenFeatures, PictureEncoder, TextEncoder, blocks_of
from trainers.m2can.network import M2CAN
from trainers.model.build import build_network
from trainers.model.checkpoint import ModelCard
from trainers.model.precision import dtype_of
from trainers.recipe.recipe import Recipe

# What torch's allocator for the CPU says; its error is a plain RuntimeError.
_CPU_ALLOCATOR = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
_STATES = {"adam": 2, "adamw": 2, "adadelta": 2, "sgd": 1}


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, of this process, or a worker that Ray's memory monitor ended."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_ALLOCATOR)


def ended_by_memory(error: BaseException) -> str | None:
    """What a training error says of a worker that ran out of memory, or None."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    found = [f"rank {rank}: {_line(failure)}" for rank, failure in failures.items() if _is_or_was_caused(failure)]
    return found[0] if found else None


def _is_or_was_caused(error: BaseException | None) -> bool:
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


@dataclass(frozen=True)
class Kept:
    """Bytes that one picture or one text keeps for the backward pass.

    blocks: by block of the encoder. inputs: what goes into each of them. largest: into and out of one module, at most.
    """

    blocks: np.ndarray
    inputs: np.ndarray
    largest: int

    @property
    def plain(self) -> float:
        return float(self.blocks.sum())

    @property
    def checkpointed(self) -> float:
        """Only the inputs of the blocks after the first, and one block at a time."""
        return float(self.blocks[0] + self.inputs[1:].sum() + self.blocks[1:].max(initial=0))


@dataclass(frozen=True)
class Needs:
    """Bytes of one worker: weights with gradients and optimizer; activations of a step; scoring of a batch; kept views, in
    host memory."""

    weights: float
    texts: float
    pictures: float
    scoring: float
    views: float


def pictures_a_sample(corpus: Corpus, most: int) -> float:
    """Mean number of pictures that are read of a sample."""
    return float(np.minimum(pc.list_value_length(corpus.table["images"]).to_numpy(), most).mean())


def out_of_memory(card: ModelCard, corpus: Corpus, where: str) -> str:
    """What happened, and the settings to try with their estimated effect."""
    recipe = card.recipe
    now = needs(card, corpus)
    lines = [
        f"out of memory, {where}",
        f"Estimated for a worker: {megabytes(now.weights)} weights, gradients and optimizer, "
        f"{megabytes(now.texts + now.pictures)} activations of a step ({megabytes(now.pictures)} of pictures), "
        f"{megabytes(now.scoring)} in scoring. To try, with --set:",
    ]
    for setting, remark in _settings(recipe, in_host="CUDA" not in where):
        after = needs(_with(card, setting), corpus)
        what, before, later = _touched(setting, now, after)
        less = before - later
        if less > before / 100:  # fewer pictures change nothing where samples have no more
            lines.append(f"  {setting:48} {what} {megabytes(less)} less{remark}")
    return "\n".join(lines)


def _touched(setting: str, now: Needs, after: Needs) -> tuple[str, float, float]:
    """What a setting changes, in words and in bytes before and after."""
    if setting.startswith("train.eval_batch_size"):
        return "scoring", now.scoring, after.scoring
    if setting.startswith("data.kept_views"):
        return "views", now.views, after.views
    return "a step", now.texts + now.pictures, after.texts + after.pictures


def _settings(recipe: Recipe, in_host: bool) -> Iterator[tuple[str, str]]:
    """Each setting that may help this recipe, and what to know about it."""
    train, pictures, encoders = recipe.train, recipe.data.pictures, recipe.encoders
    if 2 * train.accumulate <= train.batch_size // recipe.cluster.fewest_workers:
        whole = encoders.picture.batch_norm == "batch"
        needed = "; needs encoders.picture.batch_norm `per_sample` or `frozen`" if whole else ""
        yield f"train.accumulate={2 * train.accumulate}", f", the same step, a forward pass more{needed}"
    for name, encoder in (("picture", encoders.picture), ("text", encoders.text)):
        if not encoder.activation_checkpointing and encoder.freeze != "all":
            yield f"encoders.{name}.activation_checkpointing=true", ", the same step, a forward pass more"
    if train.precision in ("fp32", "fp64"):
        yield "train.precision=bf16", ", rounded"
    if pictures.max_pictures > 1:
        yield f"data.pictures.max_pictures={pictures.max_pictures // 2}", ", other training"
    crop = max(32, pictures.crop * 3 // 4 // 16 * 16)
    if crop < pictures.crop:
        yield f"data.pictures.crop={crop}", ", other training"
    if train.eval_batch_size > 1:
        yield f"train.eval_batch_size={train.eval_batch_size // 2}", ", the same scores"
    if in_host and recipe.data.kept_views:
        yield "data.kept_views=0", ", the same scores; scoring reads its pictures again in every epoch"


def _with(card: ModelCard, setting: str) -> ModelCard:
    """The card with one value of its recipe changed; rules between values are not asked."""
    key, _, written = setting.partition("=")
    value: Any = {"true": True}.get(written, int(written) if written.isdigit() else written)

    def changed(section: Any, path: list[str]) -> Any:
        new = value if len(path) == 1 else changed(getattr(section, path[0]), path[1:])
        return section.model_copy(update={path[0]: new})

    return ModelCard(**{**vars(card), "recipe": changed(card.recipe, key.split("."))})


def needs(card: ModelCard, corpus: Corpus) -> Needs:
    """Estimate from the recipe's network: it is built here and one picture and one text go through it."""
    recipe = card.recipe
    network = build_network(recipe, card.text_config, len(card.classes), load_weights=False).to(dtype_of(recipe)).eval()
    sizes = [p.numel() * p.element_size() for p in network.parameters() if p.requires_grad]
    copies = 1 + _STATES[recipe.optimizer.type] + (1 if recipe.sam.rho > 0 else 0)
    rows = math.ceil(math.ceil(recipe.train.batch_size / recipe.cluster.fewest_workers) / recipe.train.accumulate)
    rows *= 2 * (len(recipe.data.sources) + recipe.target_takes_part)  # both views of every domain
    text, picture = _kept_by_text(network, recipe), _kept_by_picture(network, recipe)
    of_text, of_picture = recipe.encoders.text, recipe.encoders.picture
    pictures = pictures_a_sample(corpus, recipe.data.pictures.max_pictures)
    batch = recipe.train.eval_batch_size
    scored = len(corpus.train[-1]) + sum(len(part) for part in corpus.val if part is not None)
    views = scored / recipe.cluster.fewest_workers * pictures * 3 * recipe.data.pictures.crop**2
    return Needs(
        weights=sum(p.numel() * p.element_size() for p in network.parameters()) + copies * sum(sizes),
        texts=rows * (text.checkpointed if of_text.activation_checkpointing else text.plain),
        pictures=rows * pictures * (picture.checkpointed if of_picture.activation_checkpointing else picture.plain),
        scoring=batch * max(pictures * picture.largest, text.largest),
        views=min(views, recipe.data.kept_views),
    )


def _kept_by_text(network: M2CAN, recipe: Recipe) -> Kept:
    length = recipe.data.texts.max_tokens

    def run(number: int) -> None:
        tokens = torch.ones(number, length, dtype=torch.int64)
        network.text_encoder(tokens, torch.ones_like(tokens))

    return _measure(network.text_encoder, run, recipe)


def _kept_by_picture(network: M2CAN, recipe: Recipe) -> Kept:
    crop = recipe.data.pictures.crop

    def run(number: int) -> None:
        network.picture_encoder.model(torch.zeros(number, 3, crop, crop, dtype=dtype_of(recipe)))  # type: ignore[operator]

    return _measure(network.picture_encoder, run, recipe)


def _measure(encoder: TextEncoder | PictureEncoder | GivenFeatures, run: Any, recipe: Recipe) -> Kept:
    """What the second sample adds to the first: what is kept once a pass does not count."""
    one, two = (_kept(encoder, run, number, recipe) for number in (1, 2))
    return Kept(two[0] - one[0], two[1] - one[1], two[2] - one[2])


def _kept(encoder: Any, run: Any, number: int, recipe: Recipe) -> tuple[np.ndarray, np.ndarray, int]:
    try:
        blocks = blocks_of(encoder)
    except ValueError:
        blocks = [encoder]
    saved, inputs, largest = np.zeros(len(blocks) + 1), np.zeros(len(blocks) + 1), 0
    known = {p.untyped_storage().data_ptr() for p in [*encoder.parameters(), *encoder.buffers()]}
    place = 0

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in known:
            known.add(x.untyped_storage().data_ptr())
            held.append(x)  # or its memory would be another tensor's before the end
            saved[place] += x.untyped_storage().nbytes()
        return x

    def enter(index: int, given: tuple[Any, ...]) -> None:
        nonlocal place
        place = index
        inputs[index] += sum(x.nbytes for x in given if isinstance(x, Tensor))

    def passed(given: tuple[Any, ...], out: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(x.nbytes for x in (*given, out) if isinstance(x, Tensor)))

    held: list[Tensor] = []
    half = recipe.train.precision in ("bf16", "fp16")
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.enter_context(_hooked(block.register_forward_pre_hook(lambda _, x, i=index: enter(i, x))))
        for module in encoder.modules():
            if not list(module.children()):
                stack.enter_context(_hooked(module.register_forward_hook(lambda _, x, out: passed(x, out))))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16) if half else nullcontext())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x))
        run(number)
    return saved, inputs, largest


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
