"""Steps on one GPU over batches that differ from step to step, as real ones do: their time, memory, launches and copies.

Every function takes a Scale and `tell(row, value, note)`, which it calls for each row as soon as the row is known.
"""

from __future__ import annotations

import gc
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.refinement import peak_mb
from benchmarks.sides import device_here, lap_seconds
from benchmarks.speed_step import measure_step
from benchmarks.step_parts import QUICK, Size, make_labels, make_network, make_rows, make_step, recipe_of
from datasets_manifest.stream.encode import HostBatch
from trainers.compute.device_batches import picture_memory, to_batch
from trainers.compute.precision import dtype_of, picture_form
from trainers.step.step import Step

BERT_DROPOUT = 0.1  # of bert-base-uncased's own configuration
EARLY = 10  # steps after the first that are compared with the median
PROFILED = 4  # steps
TOP = 15  # kernels that a result names
TOLERANCE = (
    1e-2  # of the first step's terms against the baseline's, float32: cuDNN's kernels differ in their order of sums
)
# Kernels that compute nothing. What crosses the bus is left out: it runs beside the kernels.
_COPIES = re.compile(
    r"copy_kernel|Memcpy DtoD|CatArrayBatchedCopy|CopyFunctor|nchwToNhwc|nhwcToNchw|convertTensor|aten::copy_", re.I
)
_TRANSFERS = re.compile(r"Memcpy (HtoD|DtoH)")


class Tell(Protocol):
    def __call__(self, row: str, value: float, note: str = "", **more: Any) -> None: ...


@dataclass(frozen=True)
class Scale:
    """What is measured, or something tiny that takes the same way on a CPU.

    size: of the large step. few: rows a domain of the small one. steps: of a measurement.
    records: training records a domain of `m2can train`. jpeg: width and height of their pictures.
    bert: hidden units and layers of its text encoder. eval_batch: rows scored at a time.
    """

    size: Size = field(default_factory=lambda: Size("torchvision:resnet50", 224, 768, 12, 30_522, 64))
    few: int = 8
    steps: int = 40
    repeats: int = 3
    records: int = 1500
    jpeg: tuple[int, int] = (1024, 768)
    words: int = 28_000
    eval_batch: int = 256

    @property
    def pictures(self) -> int:
        """Of a large step: two views of every row."""
        return 2 * self.size.rows


REAL = Scale()
TINY = Scale(QUICK, 2, EARLY + 4, 1, 24, (64, 48), 500, 8)


def hosts_of(size: Size, steps: int, device: torch.device) -> list[HostBatch]:
    """Batches whose texts differ; their pictures are the same ones, in memory as the feed collates them."""
    drawn = make_rows(size, 2, size.rows).pictures
    pictures = picture_memory(device)(drawn.shape, np.uint8)
    pictures[:] = drawn
    hosts = [make_rows(replace(size, pixels=8), 2, size.rows, seed) for seed in range(steps)]
    for host in hosts:
        host.pictures = pictures
    return hosts


class ReadySteps:
    """Steps over batches that are ready in host memory; sending them to the device is part of a step."""

    def __init__(self, scale: Scale, rows: int, preset: str, *overrides: str, dropout: float = 0.0) -> None:
        self.device = device_here()
        size = replace(scale.size, batch=rows, dropout=dropout)
        self.recipe = recipe_of(size, preset, *overrides)
        self.step: Step = make_step(make_network(size, self.recipe), self.recipe, self.device)
        self.hosts, self.labels_DB, self.rows = hosts_of(size, scale.steps, self.device), make_labels(size), size.rows

    def take(self, host: HostBatch) -> None:
        form = picture_form(self.recipe, self.device)
        batch = to_batch(host, self.labels_DB, device=self.device, dtype=dtype_of(self.recipe), pictures=form)
        self.step(batch)

    def seconds(self, steps: int | None = None) -> list[float]:
        """Of each of the first `steps` steps."""
        return lap_seconds([partial(self.take, host) for host in self.hosts[:steps]], self.device)

    def work(self) -> dict[str, Any]:
        """See work_of, a step."""
        on_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as found:
            for host in self.hosts[EARLY : EARLY + PROFILED]:
                self.take(host)
            if on_gpu:
                torch.cuda.synchronize()
        return work_of(found.key_averages(), PROFILED, on_gpu)


def usual(seconds: Sequence[float]) -> float:
    """Median of the second half: the first steps make the optimizer's state and the allocator's blocks."""
    return statistics.median(seconds[len(seconds) // 2 :])


def work_of(events: Iterable[Any], steps: int, on_gpu: bool) -> dict[str, Any]:
    """What `steps` profiled steps did, a step.

    Without a GPU the operations of ATen stand for kernels; such numbers only show that this function works.

    Args:
        events: averages of torch.profiler.

    Returns:
        launches: kernel launches. busy_ms: time of all kernels. copies: share of it that copies or casts.
        transfers_ms: time on the bus. top: the kernels with most time, (name, ms, calls).
    """
    if on_gpu:
        # Annotations such as `Optimizer.step` span kernels that are counted themselves.
        kernels = [
            e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)
        ]
        launches = sum(e.count for e in events if "LaunchKernel" in e.key)
    else:
        kernels = [e for e in events if e.key.startswith("aten::")]
        launches = sum(e.count for e in kernels)
    times = {e.key: (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1000 / steps for e in kernels}
    transfers = sum(ms for name, ms in times.items() if _TRANSFERS.search(name))
    busy = sum(times.values()) - transfers
    copies = sum(ms for name, ms in times.items() if _COPIES.search(name))
    calls = {e.key: e.count / steps for e in kernels}
    return {
        "launches": launches / steps,
        "busy_ms": busy,
        "copies": copies / busy if busy else 0.0,
        "transfers_ms": transfers,
        "top": [(name, ms, calls[name]) for name, ms in sorted(times.items(), key=lambda item: -item[1])[:TOP]],
    }


def peak_gb(device: torch.device) -> float:
    """Of the GPU's memory since the last reset; without a GPU of this process's."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else peak_mb() / 1e3


def large_steps(scale: Scale, tell: Tell) -> None:
    """`recommended` as it comes, 64 rows a domain; then with BERT's own dropout."""
    ready = ReadySteps(scale, scale.size.batch, "recommended")
    seconds = ready.seconds()
    step = usual(seconds)
    note = f"{ready.rows / step:,.0f} rows/s; the first step {seconds[0]:.2f} s"
    tell("step_64", step * 1e3, note, rows_per_s=ready.rows / step, all_ms=[round(1e3 * s, 2) for s in seconds])
    early = seconds[1 : EARLY + 1]
    tell("first_steps", max(early) / step, f"the slowest took {max(early) * 1e3:,.0f} ms")
    tell("memory", peak_gb(ready.device))
    work = ready.work()
    busy = f"the GPU works for {work['busy_ms']:.1f} ms of a step, transfers take {work['transfers_ms']:.1f} ms"
    tell("launches", work["launches"], busy, top=work["top"])
    tell("copies", 100 * work["copies"])
    del ready
    _free()
    ready = ReadySteps(scale, scale.size.batch, "recommended", dropout=BERT_DROPOUT)
    step = usual(ready.seconds(scale.steps // 2))
    tell("step_64_dropout", step * 1e3, f"{ready.rows / step:,.0f} rows/s")


def small_steps(scale: Scale, tell: Tell) -> None:
    """`recommended` as it comes, 8 rows a domain."""
    ready = ReadySteps(scale, scale.few, "recommended")
    step, work = usual(ready.seconds()), ready.work()
    note = (
        f"{ready.rows / step:,.0f} rows/s; {work['launches']:,.0f} launches, the GPU works for {work['busy_ms']:.1f} ms"
    )
    tell("step_8", step * 1e3, note, rows_per_s=ready.rows / step, top=work["top"])


def compiled_steps(scale: Scale, tell: Tell) -> None:
    """`recommended` with its encoders' blocks compiled, 64 rows a domain. On a CPU nothing is made of what is traced."""
    ready = ReadySteps(scale, scale.size.batch, "recommended", "train.compile=true")
    seconds = ready.seconds(scale.steps // 2)
    step = usual(seconds)
    note = f"{ready.rows / step:,.0f} rows/s; the first step, in which they are compiled, {seconds[0]:.1f} s"
    tell("step_64_compiled", step * 1e3, note, all_ms=[round(1e3 * s, 2) for s in seconds])


def published_steps(scale: Scale, tell: Tell) -> None:
    """`published`, with SAM, 64 rows a domain. A CPU has no TF32."""
    on_gpu = device_here().type == "cuda"
    for row, precision in {"published_bf16": "bf16", "published_tf32": "tf32" if on_gpu else "fp32"}.items():
        ready = ReadySteps(scale, scale.size.batch, "published", f"train.precision={precision}")
        step = usual(ready.seconds(scale.steps // 2))
        tell(row, step * 1e3, f"{ready.rows / step:,.0f} rows/s; {peak_gb(ready.device):.1f} GB at most")
        del ready
        _free()


def against_baseline(scale: Scale, tell: Tell) -> None:
    """8 rows in fp32, the published recipe on both sides, from the same weights, each in a process of its own."""
    size = replace(scale.size, batch=scale.few, repeats=scale.repeats)
    found = measure_step(size, "published", tolerance=TOLERANCE)
    note = f"{found['ours'] * 1e3:,.0f} ms against {found['theirs'] * 1e3:,.0f} ms; terms differ by {found['difference']:.1g}"
    tell("baseline", found["ratio"], note)


def picture_floor(scale: Scale, tell: Tell) -> None:
    """torchvision's network alone with Adam, in bf16, channels last, on as many pictures as a large step has."""
    import torchvision

    device, size = device_here(), scale.size
    name = size.picture.removeprefix("torchvision:") if size.picture != "tiny" else "shufflenet_v2_x0_5"
    model = torchvision.models.get_model(name, weights=None).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), fused=device.type == "cuda")
    pictures = torch.randn(scale.pictures, 3, size.pixels, size.pixels, device=device)
    pictures = pictures.to(memory_format=torch.channels_last)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(pictures).float().sum()
        loss.backward()
        optimizer.step()

    runs: list[Callable[[], None]] = [run] * (scale.steps // 2)
    tell("floor", usual(lap_seconds(runs, device)) * 1e3, f"{scale.pictures} pictures")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
