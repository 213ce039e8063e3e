"""Which rows make up step k: a pure function, the same for any number of workers.

Legend of shape suffixes: D domains, N draws of a domain in an epoch, B rows of a slice per domain.

Everything that must agree between workers, restarts and world sizes follows from here: all workers have the same number
of steps, a resumed run goes on at any step, and a run gives the same losses on 1, 2 or 4 workers.

**The plan's bytes are a contract.** A checkpoint stores only (seed, epoch, step, selection) and resumes by building the
same plan again. So the order uses only what NumPy keeps stable between releases: SeedSequence, the raw 64-bit stream of
Philox, and a stable sort. `Generator.permutation` and `shuffle` may change with a NumPy release and are not used.
A test holds the digest of one small plan; changing it breaks the resume of every stored run.

A pool of more than WHOLE_POOL rows is not shuffled as a whole: its order is one of blocks of neighbouring rows, and the rows of
WINDOW_BLOCKS blocks are shuffled together. So rows that are drawn one after another lie in a few row groups of a sharded table
(records.sharded_table), and a plan costs what its draws cost, whatever the pool's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

WHOLE_POOL = 2**24  # rows: the sort of so many keys takes a second and 128 MB
BLOCK_ROWS, WINDOW_BLOCKS = 1024, 16


@dataclass(frozen=True, eq=False)
class DomainPool:
    """The rows that one domain is drawn from in an epoch.

    rows: int64 [n], row numbers in the shared table; neighbouring rows may be a range, which takes no memory.
    labels: integers [n], label or pseudo label of each row; -1 takes no part in the task loss. Numbers that nobody can write to,
        as those mapped from shared memory, are not copied.
    """

    rows: Ints | range
    labels: NDArray[np.integer[Any]]

    def __post_init__(self) -> None:
        for name in ("rows", "labels"):
            given = getattr(self, name)
            if isinstance(given, range):
                continue
            values = np.asarray(given)
            if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
                raise ValueError(f"pool {name} must be one row of integers, not {values.dtype} of shape {values.shape}")
            object.__setattr__(self, name, values.astype(np.int64) if values.flags.writeable else values)
        if len(self.rows) != len(self.labels):
            raise ValueError(f"a pool has {len(self.rows)} rows but {len(self.labels)} labels")

    def drawn(self, order: Ints) -> tuple[Ints, Ints]:
        """Rows and labels of these places of the pool."""
        rows = self.rows.start + order * self.rows.step if isinstance(self.rows, range) else self.rows[order]
        return rows, np.asarray(self.labels)[order].astype(np.int64)


@dataclass(frozen=True, eq=False)
class StepSlice:
    """One worker's part of one step, or the whole step.

    epoch, step: 0-based.
    rows_DB: row numbers in the shared table.
    labels_DB: the labels drawn with them.
    positions_DB: each draw's index in its domain's epoch order (a repeated row has another position, so another view).
    offset: where the slice starts in the global batch.
    global_batch: rows of the whole step per domain.
    """

    epoch: int
    step: int
    rows_DB: Ints
    labels_DB: Ints
    positions_DB: Ints
    offset: int
    global_batch: int


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The rows of every step of one epoch; made by `build`.

    epoch: as given to `build`.
    rows_DN, labels_DN: the draws of each domain in epoch order.
    bounds: int64 [num_steps + 1]; step k holds draws bounds[k] to bounds[k + 1].
    """

    epoch: int
    rows_DN: Ints
    labels_DN: Ints
    bounds: Ints

    @classmethod
    def build(
        cls, *, seed: int, epoch: int, pools: Sequence[DomainPool], samples_per_epoch: int, batch_size: int
    ) -> EpochPlan:
        """Draws `samples_per_epoch` rows of every pool and cuts them into ceil(samples_per_epoch / batch_size) steps.

        A domain's draws are full shuffles of its pool one after the other (by blocks, if it is large), cut to length, so a
        short pool is repeated evenly. Step sizes are balanced (they differ by one at most): with batches of three or more,
        no step has a single row unless the epoch has.

        Args:
            seed, epoch: 0 or more; with the domain's index they key the shuffles.
            pools: one a domain, in the order of the domains.
            samples_per_epoch: draws per domain.
            batch_size: rows of a step per domain over all workers together, at most.

        Raises:
            ValueError: an empty pool, no pool, or a number out of range.
        """
        for name, value, least in (
            ("seed", seed, 0),
            ("epoch", epoch, 0),
            ("samples_per_epoch", samples_per_epoch, 1),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        if not pools:
            raise ValueError("a plan needs at least one domain")
        for domain, pool in enumerate(pools):
            if not len(pool.rows):
                raise ValueError(f"the pool of domain {domain} is empty: there is no row to draw")
        orders = [_draw_order(seed, epoch, domain, len(p.rows), samples_per_epoch) for domain, p in enumerate(pools)]
        drawn = [pool.drawn(order) for pool, order in zip(pools, orders, strict=True)]
        rows_DN, labels_DN = (np.stack(columns) for columns in zip(*drawn, strict=True))
        return cls(epoch, rows_DN, labels_DN, _split_bounds(samples_per_epoch, -(-samples_per_epoch // batch_size)))

    @property
    def num_steps(self) -> int:
        return len(self.bounds) - 1

    @property
    def num_domains(self) -> int:
        return len(self.rows_DN)

    def worker_step(self, step: int, rank: int, world_size: int) -> StepSlice:
        """The part of a step that worker `rank` of `world_size` takes: its share of every domain's batch.

        Raises:
            ValueError: the rank does not exist, or some step of the epoch has fewer rows than there are workers.
            IndexError: the epoch has no such step.
        """
        self._check_workers(rank, world_size)
        return self._slice(step, rank, world_size)

    def worker_steps(self, rank: int, world_size: int, start_step: int = 0) -> Iterator[StepSlice]:
        """The worker's parts of all steps from `start_step` on, in order (none if start_step == num_steps).

        Raises (at the call, not at the first step): as `worker_step`.
        """
        self._check_workers(rank, world_size)
        if not 0 <= start_step <= self.num_steps:
            raise IndexError(f"start step {start_step} is not in an epoch of {self.num_steps} steps")
        return (self._slice(step, rank, world_size) for step in range(start_step, self.num_steps))

    def _check_workers(self, rank: int, world_size: int) -> None:
        _check_rank(rank, world_size)
        smallest = int(np.diff(self.bounds).min())
        if smallest < world_size:
            raise ValueError(
                f"a step of this epoch has {smallest} rows per domain but there are {world_size} workers, and every "
                f"worker needs at least one: use a larger batch size or fewer workers"
            )

    def _slice(self, step: int, rank: int, world_size: int) -> StepSlice:
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is not in an epoch of {self.num_steps} steps")
        start, stop = int(self.bounds[step]), int(self.bounds[step + 1])
        first, last = _share(stop - start, rank, world_size)
        draws = slice(start + first, start + last)
        positions_DB = np.tile(np.arange(draws.start, draws.stop, dtype=np.int64), (self.num_domains, 1))
        # Copies: a caller that writes into its slice must not change the plan.
        rows_DB, labels_DB = self.rows_DN[:, draws].copy(), self.labels_DN[:, draws].copy()
        return StepSlice(self.epoch, step, rows_DB, labels_DB, positions_DB, offset=first, global_batch=stop - start)


@dataclass(frozen=True, eq=False)
class EvalPlan:
    """Every row exactly once, in order, whatever the number of workers.

    rows: int64 [n], row numbers in the shared table.
    batch_size: rows of a batch of one worker, at most.
    """

    rows: Ints
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, but must be at least 1")

    def worker_batches(self, rank: int, world_size: int) -> Iterator[Ints]:
        """The worker's rows in batches; no batch at all if there are fewer rows than workers and none is left."""
        shard = eval_shard(self.rows, rank, world_size)
        return (shard[start : start + self.batch_size] for start in range(0, len(shard), self.batch_size))


def eval_shard(rows: Ints, rank: int, world_size: int) -> Ints:
    """The contiguous share of `rows` (int64 [n]) of one worker; the workers' shares in order of rank are `rows`.

    Raises ValueError if the rank does not exist. A share may be empty.
    """
    _check_rank(rank, world_size)
    first, last = _share(len(rows), rank, world_size)
    return np.asarray(rows, dtype=np.int64)[first:last]


def view_rng(seed: int, epoch: int, row: int, position: int) -> np.random.Generator:
    """The randomness of one sample's views, from what names the draw and never from a worker's state.

    All four numbers (0 to 2⁶⁴ - 1, otherwise OverflowError) go unhashed into Philox: seed and epoch are the key, row
    and position the upper half of the counter. So two draws never share a stream, and making one takes about 10 µs.
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, row, position], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def dropped_modality(seed: int, epoch: int, row: int, position: int, share: float) -> int:
    """Which modality of a draw is left out in training: 0 its texts, 1 its pictures, each with probability `share` ≤ 1/2; -1
    neither. Like `view_rng` it follows from what names the draw, in a stream of its own."""
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 1, row, position], dtype=np.uint64)  # the views of this draw have [0, 0, …]
    drawn = float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())
    return 0 if drawn < share else 1 if drawn < 2 * share else -1


def _draw_order(seed: int, epoch: int, domain: int, pool_size: int, draws: int) -> Ints:
    """int64 [draws]: indexes into the pool, full shuffles one after the other, cut to length."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch, domain]))
    orders: list[Ints] = []
    left = draws
    while left > 0:
        for order in _full_shuffle(bits, pool_size):
            orders.append(order)
            left -= len(order)
            if left <= 0:
                break
    return np.concatenate(orders)[:draws]


def _full_shuffle(bits: np.random.Philox, pool_size: int) -> Iterator[Ints]:
    """All of 0 … pool_size − 1, in pieces: one, or the windows of a large pool."""
    if pool_size <= WHOLE_POOL:
        yield _shuffled(bits.random_raw(pool_size))
        return
    blocks = _shuffled(bits.random_raw(-(-pool_size // BLOCK_ROWS)))
    for first in range(0, len(blocks), WINDOW_BLOCKS):
        window = blocks[first : first + WINDOW_BLOCKS, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)
        rows = window[window < pool_size]  # the last block may be short
        yield rows[_shuffled(bits.random_raw(len(rows)))]


def _shuffled(keys: np.ndarray) -> Ints:
    """int64 [n]: 0 … n − 1 in the order of random uint64 `keys`, which are used up.

    The number itself takes the place of a key's last bits: no two are equal, so that whatever sort a machine's numpy
    chooses gives the same order, and plain numbers are sorted, without an index.
    """
    bits = np.uint64(max(1, len(keys) - 1).bit_length())
    keys >>= bits
    keys <<= bits
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    keys &= np.uint64((1 << int(bits)) - 1)
    return keys.view(np.int64)


def _split_bounds(total: int, parts: int) -> Ints:
    """int64 [parts + 1]: the borders np.array_split puts between `parts` parts of `total` things."""
    return np.array([_share(total, part, parts)[0] for part in range(parts)] + [total], dtype=np.int64)


def _share(total: int, part: int, parts: int) -> tuple[int, int]:
    """Start and stop of part `part` when np.array_split cuts `total` things into `parts`: larger parts come first."""
    size, larger = divmod(total, parts)
    start = part * size + min(part, larger)
    return start, start + size + (part < larger)


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"there is no worker {rank} among {world_size}")
