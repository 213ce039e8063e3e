"""Gradients travel while the backward pass still makes others: two real workers on gloo, with a profile of a step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

from benchmarks.step_parts import QUICK, make_labels, make_network, make_rows, make_step, recipe_of
from trainers.compute.device_batches import to_batch
from trainers.m2can.collective import DistributedCollective

# Enough weights for several of DistributedDataParallel's buckets, of which the first holds 1 MB.
SIZE = replace(QUICK, hidden=256, layers=3, batch=4, tokens=20, pixels=32)
NODE, EXCHANGE = "autograd::engine::evaluate_function", "gloo:all_reduce"
MANY = 100_000  # numbers: what the terms exchange is smaller


def worker(rank: int, folder: str) -> None:
    """Writes when, in µs, exchanges of gradients begin and the nodes of the backward pass do."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    recipe = recipe_of(SIZE, "recommended", "encoders.picture.batch_norm=frozen")
    step = make_step(make_network(SIZE, recipe), recipe, torch.device("cpu"), collective=DistributedCollective())
    labels_DB = make_labels(SIZE)[:, :2]
    host = make_rows(SIZE, 2, labels_DB.size, seed=rank)
    batch = to_batch(
        host, labels_DB, device=torch.device("cpu"), dtype=torch.float32, offset=2 * rank, global_batch=SIZE.batch
    )
    for _ in range(2):  # the buckets are made anew after the first
        step(batch)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        step(batch)
    step.check()
    begins = [(event.name, event.time_range.start, event.input_shapes) for event in found.events()]
    exchanges = [(at, sum(shape[0] for shape in shapes if shape)) for name, at, shapes in begins if name == EXCHANGE]
    nodes = [at for name, at, _ in begins if name.startswith(NODE)]
    (Path(folder) / f"{rank}.json").write_text(json.dumps({"exchanges": exchanges, "nodes": nodes}))
    dist.destroy_process_group()


@pytest.mark.slow
def test_buckets_leave_during_the_backward_pass(tmp_path: Path) -> None:
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        last_node = max(found["nodes"])
        buckets = [at for at, numbers in found["exchanges"] if numbers > MANY]
        assert len(buckets) > 1
        waiting = [at for at in found["nodes"] if at > buckets[0]]
        assert buckets[0] < last_node
        assert len(waiting) > len(found["nodes"]) / 4  # a good part of the backward pass comes after the first bucket
