"""Workers whose second step runs out of memory."""

from __future__ import annotations

from typing import Any

import ray
import torch

from trainers.loop.loop import Loop
from trainers.worker import entrypoint


def gpu_full(config: dict[str, ray.ObjectRef]) -> None:
    run_step = Loop.run_step

    def failing(loop: Loop, slice_: Any, batch: Any) -> Any:
        if slice_.step == 1 and loop.rank == loop.world_size - 1:  # the others wait for this one's gradients
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return run_step(loop, slice_, batch)

    Loop.run_step = failing  # type: ignore[method-assign]
    try:
        entrypoint.train_worker(config)
    finally:
        Loop.run_step = run_step  # type: ignore[method-assign]
