"""When memory runs out: which memory, its peak, and the settings that need less."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator

import torch
from ray.exceptions import OutOfMemoryError

from datasets_manifest.errors import first_line
from trainers.preflight.disk import megabytes
from trainers.recipe import Recipe

# What torch's allocator for the CPU says; its error is a plain RuntimeError.
_CPU_ALLOCATOR = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, of this process, or a worker that Ray's memory monitor ended."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_ALLOCATOR)


def ended_by_memory(error: BaseException) -> str | None:
    """What a training error says of a worker that ran out of memory, or None."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    found = (f"rank {rank}: {_named(failure)}" for rank, failure in failures.items() if _is_or_was_caused(failure))
    return next(found, None)


def _is_or_was_caused(error: BaseException | None) -> bool:
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def where_it_ran_out(error: BaseException, rank: int) -> str:
    """The rank, the memory that was full and its peak; called in the process that ran out."""
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        memory, peak, size = "GPU", torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
    else:
        memory, peak, size = "process", process_peak(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"rank {rank}, memory of the {memory}, peak {megabytes(peak)} of {megabytes(size)}: {_named(error)}"


def process_peak() -> int:
    """The most bytes that this process has held since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def hints(recipe: Recipe, state_bytes: int, where: str) -> str:
    """What happened and what to try.

    Args:
        state_bytes: what a worker holds whatever the batch; see trainers.preflight.sizes.
        where: what `where_it_ran_out` or `ended_by_memory` said.
    """
    rows, domains = _rows(recipe), len(recipe.data.sources) + recipe.target_takes_part
    lines = [
        f"out of memory, {where}",
        f"Weights, gradients and optimizer state take {megabytes(state_bytes)} of each worker, whatever the batch; "
        f"the rest is what a step keeps of {rows} rows × {domains} domains × 2 views, at a time. To try, with --set:",
    ]
    return "\n".join([*lines, *(f"  {setting:48} {effect}" for setting, effect in settings(recipe))])


def _rows(recipe: Recipe) -> int:
    """Rows of each domain that go through a worker's network at a time."""
    of_worker = -(-recipe.train.batch_size // recipe.cluster.fewest_workers)
    return -(-of_worker // recipe.train.accumulate)


def settings(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Settings that lower what a step keeps, and their effect.

    The factors were measured on what autograd saves of ResNet-50 (224 px) and BERT-base, one picture a sample.
    """
    train, encoders = recipe.train, recipe.encoders
    if _rows(recipe) > 1:
        whole = encoders.picture.batch_norm == "batch"
        needed = "; needs encoders.picture.batch_norm=per_sample or frozen" if whole else ""
        yield f"train.accumulate={2 * train.accumulate}", f"a step keeps half; the same result{needed}"
        if train.batch_size // 2 >= recipe.cluster.most_workers:
            yield f"train.batch_size={train.batch_size // 2}", "a step keeps half; another training"
    text_again, pictures_again = encoders.checkpointed
    if not pictures_again and encoders.picture.freeze != "all":
        value = "both" if text_again else "pictures"
        effect = "a step keeps 56 % of its pictures; the same result, slower"
        yield f"encoders.activation_checkpointing={value}", effect
    if not text_again and encoders.text.freeze != "all":
        value = "both" if pictures_again else "text"
        yield f"encoders.activation_checkpointing={value}", "a step keeps 17 % of its texts; the same result, slower"
    single = ("fp32", "fp64") if torch.cuda.is_available() else ("auto", "fp32", "fp64")
    if train.precision in single:
        yield "train.precision=bf16", "a step keeps 55 % of what it does in fp32; rounded"
