"""Exchanges through shared memory give what those of torch.distributed give, in real processes."""

from __future__ import annotations

import mmap
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from trainers.m2can.collective import DistributedCollective, slice_sizes
from trainers.m2can.near import SMALLEST_PLACE, NearExchange

CLOSE = {True: {"rtol": 1e-13, "atol": 1e-13}, False: {"rtol": 1e-6, "atol": 1e-6}}  # in float64, in float32


def exchange(rank: int, world_size: int, store: str, near: bool) -> dict[str, np.ndarray]:
    """Many exchanges, some too large for shared memory, at uneven paces; what came of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    collective = DistributedCollective(timeout_s=60, near=near)
    assert (collective.near is not None) == near
    generator = torch.Generator().manual_seed(rank)
    found = {}
    with torch.inference_mode():  # as scoring does
        collective.sum_(torch.ones(3, dtype=torch.float64))
    for number in range(60):
        size = 3 * SMALLEST_PLACE if number % 20 == 7 else 1 + number
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        if number % world_size == rank:
            torch.randn(200, 200) @ torch.randn(200, 200)
        found[f"sum {number}"] = collective.sum_(x.clone())[:50].clone()
        several = [torch.randn(shape, generator=generator) for shape in ((), (3, 1), (0,), (size, 5), (size,), (7,))]
        several.append(torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last))
        several.append(torch.arange(4.0, dtype=torch.float64) * rank)
        several = collective.sum_all(several)
        assert several[-2].is_contiguous(memory_format=torch.channels_last)
        found[f"sums {number}"] = torch.cat(
            [end.double() for x in several for end in (x.flatten()[:50], x.flatten()[-50:])]
        )
    rows = torch.randn(2, slice_sizes(7, world_size)[rank], 4, generator=generator, requires_grad=True)
    everyone = collective.gather(rows, 7)
    (everyone * torch.arange(7.0)[:, None] * (1 + rank)).sum().backward()
    assert rows.grad is not None
    found |= {"gathered": everyone.detach(), "gradient": rows.grad}
    dist.destroy_process_group()
    # Tensors would come back by a shared file each, which takes a second for every few of them.
    return {name: x.numpy() for name, x in found.items()}


@pytest.mark.parametrize("world_size", [2, 3])
def test_they_are_those_of_the_process_group(tmp_path: Path, world_size: int) -> None:
    with multiprocessing.get_context("forkserver").Pool(world_size) as pool:
        found = {
            near: pool.starmap(
                exchange,
                [(rank, world_size, str(tmp_path / f"{near}"), near) for rank in range(world_size)],
                chunksize=1,
            )
            for near in (True, False)
        }
    for ours, theirs in zip(found[True], found[False], strict=True):
        assert ours.keys() == theirs.keys() and len(ours) == 122
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], **CLOSE["sum " in name])
    for name in found[True][0]:
        if name.startswith("sum"):  # to the last bit the same on all ranks
            assert all(np.array_equal(one[name], found[True][0][name]) for one in found[True])


def test_who_does_not_come_is_named() -> None:
    memory = mmap.mmap(-1, NearExchange.size_of(2))
    with pytest.raises(RuntimeError, match=r"rank 1 did not take part in an exchange within 0\.1 s"):
        NearExchange(memory, 0, 2, 0.1).sum(torch.ones(3))
