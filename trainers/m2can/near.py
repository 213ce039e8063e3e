"""Sums and gathers between processes of one machine, through shared memory.

A step on several CPU workers exchanges a few numbers sixteen times. By sockets and their threads each exchange takes
about a millisecond, which is longer than a small network computes between two of them; the gradients of a small network
take four.

Every process has two places to write to, in turn, and a counter that says how many exchanges it has written. It writes,
counts, and waits for the others' counters. It cannot write twice before the others have read once, since they count on
only afterwards; so two places are enough. What is summed is summed in the order of the ranks, the same on all of them.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import platform
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

LARGEST_PLACE, SMALLEST_PLACE = 1 << 22, 1 << 18  # bytes
ALL_PLACES = 1 << 25  # bytes together, if that leaves none too small: a container often has 64 MiB of shared memory
_FOLDER = Path("/dev/shm")
_LINE = 64  # bytes: each counter has a cache line of its own
_TRIES = 200  # before the waiting process gives its core away
_LONGEST_NAP_S = 0.001


class NearExchange:
    """Of the processes of a group that share one machine's memory.

    Args:
        memory: the same on all of them, of `size_of(world_size)` bytes, zeros.
        timeout_s: how long to wait for another process.
    """

    def __init__(self, memory: mmap.mmap, rank: int, world_size: int, timeout_s: float) -> None:
        self._counters = memoryview(memory).cast("q")[: world_size * _LINE // 8 : _LINE // 8]
        self._memory = memory
        self._places = functools.lru_cache(64)(self._make_places)  # a slice of a tensor takes as long as a small sum
        self.capacity = _capacity(world_size)
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s
        self._number = 0

    @staticmethod
    def size_of(world_size: int) -> int:
        return world_size * (_LINE + 2 * _capacity(world_size))

    def fits(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and 0 < x.numel() * x.element_size() <= self.capacity

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's `x`, of the same shape and type everywhere; to be read before the next exchange.

        Raises:
            RuntimeError: a process did not come; names its rank.
        """
        return [place.view_as(x) for place in self._exchange([x.reshape(-1)], x.numel())]

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, a new tensor."""
        return _added(self._exchange([x.reshape(-1)], x.numel())).view_as(x)

    def sum_flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Sum over the ranks of tensors of one type, in as few exchanges as places are large: all their elements, 1-D."""
        flat = [x.reshape(-1) for x in tensors]
        summed, start = torch.empty(sum(x.numel() for x in flat), dtype=flat[0].dtype), 0
        for pieces, number in self._places_full(flat):
            _added(self._exchange(pieces, number), out=summed[start : start + number])
            start += number
        return summed

    def _places_full(self, flat: list[Tensor]) -> Iterator[tuple[list[Tensor], int]]:
        """Pieces that fill a place each, with the number of their elements."""
        most = self.capacity // flat[0].element_size()
        pieces, number = [], 0
        for x in flat:
            start = 0
            while start < x.numel():
                piece = x if not start and x.numel() <= most - number else x[start : start + most - number]
                pieces.append(piece)
                start, number = start + piece.numel(), number + piece.numel()
                if number == most:
                    yield pieces, number
                    pieces, number = [], 0
        if pieces:
            yield pieces, number

    def _exchange(self, pieces: list[Tensor], number: int) -> list[Tensor]:
        """Every rank's pieces, `number` elements one after another: the places themselves."""
        self._number += 1
        places = self._places(pieces[0].dtype, self._number % 2, number)
        torch.cat(pieces, out=places[self.rank])
        self._counters[self.rank] = self._number  # x86 keeps the order of stores: whoever sees it sees the place
        self._wait()
        return places

    def _make_places(self, dtype: torch.dtype, odd: int, number: int) -> list[Tensor]:
        """Every rank's place of an even or odd exchange, the first `number` elements of it."""
        with torch.inference_mode(False):  # the first exchange of a type may be one of scores
            all_ = torch.frombuffer(self._memory, dtype=dtype, offset=self.world_size * _LINE)
            return list(all_.view(2, self.world_size, -1)[odd, :, :number])

    def _wait(self) -> None:
        until, nap = time.monotonic() + self.timeout_s, 20e-6
        while True:
            for _ in range(_TRIES):
                if min(self._counters) >= self._number:
                    return
                os.sched_yield()
            time.sleep(nap)  # where there are more processes than cores, the one that is awaited needs this one
            nap = min(2 * nap, _LONGEST_NAP_S)
            if time.monotonic() > until:
                late = next(rank for rank, count in enumerate(self._counters) if count < self._number)
                raise RuntimeError(f"rank {late} did not take part in an exchange within {self.timeout_s:g} s")


def _added(places: list[Tensor], out: Tensor | None = None) -> Tensor:
    first, second, *others = places
    added = torch.add(first, second, out=out)
    for other in others:
        added += other
    return added


def _capacity(world_size: int) -> int:
    """Bytes of a place."""
    fair = ALL_PLACES // (2 * world_size) // _LINE * _LINE
    return min(LARGEST_PLACE, max(SMALLEST_PLACE, fair))


def open_near(group: dist.ProcessGroup | None, timeout_s: float) -> NearExchange | None:
    """Where all processes of the group use gloo on one x86 Linux machine; None on all of them otherwise. All call it."""
    if dist.get_backend(group) != "gloo":
        return None
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    machines: list[str | None] = [None] * world_size
    dist.all_gather_object(machines, _machine(), group=group)
    if None in machines or len(set(machines)) > 1:
        return None
    size, file = NearExchange.size_of(world_size), _FOLDER / f"m2can-{secrets.token_hex(8)}"
    named: list[str | None] = [str(file) if rank == 0 and _make(file, size) else None]
    dist.broadcast_object_list(named, src=0 if group is None else dist.get_global_rank(group, 0), group=group)
    if named[0] is None:
        return None
    memory = None
    with contextlib.suppress(OSError):
        handle = os.open(named[0], os.O_RDWR)
        memory = mmap.mmap(handle, size)
        os.close(handle)
    opened: list[bool | None] = [None] * world_size
    dist.all_gather_object(opened, memory is not None, group=group)
    if rank == 0:
        os.unlink(named[0])  # the memory stays as long as somebody holds it
    return NearExchange(memory, rank, world_size, timeout_s) if memory is not None and all(opened) else None


def _machine() -> str | None:
    """Equal for processes that see the same shared memory; None where this is not to be used."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {_FOLDER.stat().st_dev}"
    except OSError:
        return None


def _make(file: Path, size: int) -> bool:
    """A file that only this user reads, its memory reserved: writing to it later cannot fail."""
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return False
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError:
        os.unlink(file)
        return False
    finally:
        os.close(handle)
    return True
