"""The epoch plan: a pure function, the same rows for any number of workers, even repeats, balanced steps."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_manifest.stream import plan as plan_module
from datasets_manifest.stream.plan import DomainPool, EpochPlan, EvalPlan, StepSlice, eval_shard, view_rng


def pool(start: int, size: int) -> DomainPool:
    """Rows start … start + size - 1; every label can be told from its row."""
    rows = np.arange(start, start + size)
    return DomainPool(rows, rows % 7 - 1)


def plan_of(sizes: list[int], samples: int, batch: int, seed: int = 0, epoch: int = 0) -> EpochPlan:
    pools = [pool(1000 * domain, size) for domain, size in enumerate(sizes)]
    return EpochPlan.build(seed=seed, epoch=epoch, pools=pools, samples_per_epoch=samples, batch_size=batch)


def same(one: StepSlice, other: StepSlice) -> bool:
    arrays = ("rows_DB", "labels_DB", "positions_DB")
    return (one.step, one.offset, one.global_batch) == (other.step, other.offset, other.global_batch) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


shapes = {
    "sizes": st.lists(st.integers(1, 40), min_size=1, max_size=4),
    "samples": st.integers(1, 120),
    "batch": st.integers(1, 17),
    "seed": st.integers(0, 2**70),
    "epoch": st.integers(0, 1000),
}


@settings(max_examples=150)
@given(**shapes)
def test_plan_is_a_pure_function(sizes: list[int], samples: int, batch: int, seed: int, epoch: int) -> None:
    one, other = (plan_of(sizes, samples, batch, seed, epoch) for _ in range(2))
    assert one.num_steps == other.num_steps == -(-samples // batch)
    assert one.num_domains == len(sizes)
    assert all(same(one.worker_step(step, 0, 1), other.worker_step(step, 0, 1)) for step in range(one.num_steps))


@settings(max_examples=150)
@given(**shapes)
def test_every_row_is_drawn_evenly_and_labels_travel_with_rows(
    sizes: list[int], samples: int, batch: int, seed: int, epoch: int
) -> None:
    plan = plan_of(sizes, samples, batch, seed, epoch)
    steps = [plan.worker_step(step, 0, 1) for step in range(plan.num_steps)]
    for domain, size in enumerate(sizes):
        rows = np.concatenate([step.rows_DB[domain] for step in steps])
        labels = np.concatenate([step.labels_DB[domain] for step in steps])
        positions = np.concatenate([step.positions_DB[domain] for step in steps])
        counts = Counter(rows.tolist())
        assert len(rows) == samples
        assert set(counts) <= set(range(1000 * domain, 1000 * domain + size))
        assert {counts.get(1000 * domain + row, 0) for row in range(size)} <= {samples // size, -(-samples // size)}
        for start in range(0, samples - size + 1, size):  # each full pass is a shuffle of the whole pool
            assert len(set(rows[start : start + size].tolist())) == size
        np.testing.assert_array_equal(labels, rows % 7 - 1)
        np.testing.assert_array_equal(positions, np.arange(samples))


@settings(max_examples=150)
@given(**shapes, data=st.data())
def test_workers_slices_in_order_are_the_global_step(
    sizes: list[int], samples: int, batch: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    plan = plan_of(sizes, samples, batch, seed, epoch)
    smallest = min(plan.worker_step(step, 0, 1).global_batch for step in range(plan.num_steps))
    world_size = data.draw(st.integers(1, smallest))
    start = data.draw(st.integers(0, plan.num_steps))
    workers = [list(plan.worker_steps(rank, world_size, start)) for rank in range(world_size)]
    assert {len(steps) for steps in workers} == {plan.num_steps - start}
    for index, step in enumerate(range(start, plan.num_steps)):
        whole, parts = plan.worker_step(step, 0, 1), [steps[index] for steps in workers]
        for name in ("rows_DB", "labels_DB", "positions_DB"):
            np.testing.assert_array_equal(
                np.concatenate([getattr(part, name) for part in parts], axis=1), getattr(whole, name)
            )
        expected = np.array_split(np.arange(whole.global_batch), world_size)
        assert [part.offset for part in parts] == [int(share[0]) for share in expected]
        assert [part.rows_DB.shape[1] for part in parts] == [len(share) for share in expected]
        assert all(part.step == step and part.global_batch == whole.global_batch for part in parts)
        assert all(same(part, plan.worker_step(step, rank, world_size)) for rank, part in enumerate(parts))


@settings(max_examples=100)
@given(samples=st.integers(1, 500), batch=st.integers(1, 20))
def test_steps_are_balanced(samples: int, batch: int) -> None:
    plan = plan_of([5, 50], samples, batch)
    sizes = [plan.worker_step(step, 0, 1).rows_DB.shape for step in range(plan.num_steps)]
    expected = [len(part) for part in np.array_split(np.arange(samples), plan.num_steps)]
    assert sizes == [(2, size) for size in expected]
    assert max(expected) <= batch
    assert batch < 3 or samples == 1 or min(expected) > 1


def test_seed_epoch_and_domain_change_the_order() -> None:
    size = 50
    rows = [
        plan_of([size, size], size, size, seed, epoch).worker_step(0, 0, 1).rows_DB
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    orders = [tuple(domain % 1000) for plan in rows for domain in plan]
    assert len(set(orders)) == len(orders)


def test_a_pools_order_does_not_depend_on_the_other_domains() -> None:
    alone, together = plan_of([30], 40, 8), plan_of([30, 5, 7], 40, 8)
    np.testing.assert_array_equal(alone.rows_DN[0], together.rows_DN[0])


def test_shuffles_are_uniform() -> None:
    """Each row comes first in about one epoch in four (4 σ of 2,000 epochs of 4 rows)."""
    firsts = Counter(int(plan_of([4], 4, 4, seed=3, epoch=epoch).rows_DN[0, 0]) for epoch in range(2000))
    assert all(abs(firsts[row] - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75) for row in range(4))


def test_the_bytes_of_a_plan_never_change() -> None:
    """Resume builds the plan anew, so a changed digest means that stored runs no longer resume exactly."""
    plan = plan_of([5, 23, 1], 50, 8, seed=123456, epoch=3)
    digest = hashlib.sha256()
    for step in range(plan.num_steps):
        part = plan.worker_step(step, 0, 1)
        digest.update(part.rows_DB.astype("<i8").tobytes() + part.labels_DB.astype("<i8").tobytes())
    assert digest.hexdigest() == "4287a206027e8dd89a89d1c0ca3f6e605b5e7debb893a0bb9eee90b100a16ae7"
    assert plan.worker_step(0, 0, 1).rows_DB[1].tolist() == [1009, 1015, 1017, 1022, 1018, 1005, 1014, 1000]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of more than 20 rows count as large; 6 rows a block, 3 blocks a window."""
    monkeypatch.setattr(plan_module, "WHOLE_POOL", 20)
    monkeypatch.setattr(plan_module, "BLOCK_ROWS", 6)
    monkeypatch.setattr(plan_module, "WINDOW_BLOCKS", 3)


@pytest.mark.parametrize("size", [21, 54, 100])
def test_a_large_pool_is_drawn_by_blocks(size: int, small_blocks: None) -> None:
    plan = plan_of([size, 20], 3 * size, 8)
    for start in range(0, 3 * size, size):  # each pass has every row once
        rows = plan.rows_DN[0, start : start + size]
        assert sorted(rows) == list(range(size))
        for window in range(0, size, 18):
            assert len(set(rows[window : window + 12] // 6)) <= (3 if size % 6 == 0 else 6)
    np.testing.assert_array_equal(plan.labels_DN, plan.rows_DN % 7 - 1)
    passes = plan.rows_DN[0].reshape(3, size)
    assert len({tuple(rows) for rows in passes}) == 3
    assert passes[0].tolist() != plan_of([size], size, 8, epoch=1).rows_DN[0].tolist()
    assert any(np.diff(passes[0][:6]) != 1)  # shuffled within the window, too
    np.testing.assert_array_equal(plan_of([size, 20], 3 * size, 8).rows_DN, plan.rows_DN)
    np.testing.assert_array_equal(plan_of([size], 10, 8).rows_DN[0], passes[0][:10])


def test_a_small_pool_beside_a_large_one_is_shuffled_as_ever(small_blocks: None) -> None:
    with_large = plan_of([100, 20], 40, 8)
    np.testing.assert_array_equal(with_large.rows_DN[1] - 1000, plan_of([20, 20], 40, 8).rows_DN[1] - 1000)


def test_a_large_pool_costs_what_is_drawn_of_it() -> None:
    """Row numbers as a range and labels nobody can write to take no memory of their own."""
    labels = np.broadcast_to(np.int8(2), 10**9)
    pool = DomainPool(range(5, 5 + 10**9), labels)
    plan = EpochPlan.build(seed=0, epoch=0, pools=[pool], samples_per_epoch=50_000, batch_size=64)
    rows = plan.rows_DN[0] - 5
    assert len(set(rows.tolist())) == 50_000
    assert rows.max() > 10**8
    for start in range(0, 50_000 - 96, 96):  # of the blocks of two windows at most
        assert len(set(rows[start : start + 96] // 1024)) <= 32
    assert plan.labels_DN.dtype == np.int64 and set(plan.labels_DN[0]) == {2}
    assert pool.labels is labels


def test_a_range_is_drawn_as_its_numbers_are() -> None:
    labels = np.arange(30) % 3
    plans = [
        EpochPlan.build(seed=1, epoch=2, pools=[DomainPool(rows, labels)], samples_per_epoch=70, batch_size=8)
        for rows in (range(100, 130), np.arange(100, 130))
    ]
    np.testing.assert_array_equal(plans[0].rows_DN, plans[1].rows_DN)
    np.testing.assert_array_equal(plans[0].labels_DN, plans[1].labels_DN)


def test_writing_into_a_slice_or_a_pool_leaves_the_plan_alone() -> None:
    rows, labels = np.arange(4), np.zeros(4, dtype=np.int64)
    given_pool = DomainPool(rows, labels)
    plan = EpochPlan.build(seed=0, epoch=0, pools=[given_pool], samples_per_epoch=4, batch_size=4)
    before = plan.worker_step(0, 0, 1).rows_DB.copy()
    plan.worker_step(0, 0, 1).rows_DB[:] = -5
    rows[:] = -5
    np.testing.assert_array_equal(plan.worker_step(0, 0, 1).rows_DB, before)
    np.testing.assert_array_equal(given_pool.rows, np.arange(4))


def test_numbers_are_int64() -> None:
    small = DomainPool(np.arange(3, dtype=np.int32), np.zeros(3, dtype=np.int8))
    part = EpochPlan.build(seed=0, epoch=0, pools=[small], samples_per_epoch=3, batch_size=2).worker_step(0, 0, 1)
    assert part.rows_DB.dtype == part.labels_DB.dtype == part.positions_DB.dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pools": [pool(0, 3), pool(0, 0)]}, "pool of domain 1 is empty"),
        ({"pools": []}, "at least one domain"),
        ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
        ({"samples_per_epoch": 0}, "samples_per_epoch is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"epoch": -1}, "epoch is -1"),
    ],
)
def test_build_refuses(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "seed": 0,
        "epoch": 0,
        "pools": [pool(0, 3)],
        "samples_per_epoch": 3,
        "batch_size": 2,
    }
    with pytest.raises(ValueError, match=message):
        EpochPlan.build(**{**arguments, **changes})  # type: ignore[arg-type]


def test_more_workers_than_rows_are_refused_before_the_first_step() -> None:
    plan = plan_of([10], samples=10, batch=3)  # steps of 3, 3, 2, 2
    with pytest.raises(ValueError, match="2 rows per domain but there are 3 workers"):
        plan.worker_steps(0, 3)
    with pytest.raises(ValueError, match="every worker needs at least one"):
        plan.worker_step(0, 0, 3)
    assert plan.worker_step(3, 1, 2).rows_DB.shape == (1, 1)


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_worker_that_is_not_there_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match="there is no worker"):
        plan_of([10], 10, 5).worker_steps(rank, world_size)
    with pytest.raises(ValueError, match="there is no worker"):
        eval_shard(np.arange(5), rank, world_size)


@pytest.mark.parametrize("step", [-1, 2])
def test_a_step_that_is_not_there_is_refused(step: int) -> None:
    plan = plan_of([10], 10, 5)
    with pytest.raises(IndexError, match="epoch of 2 steps"):
        plan.worker_step(step, 0, 1)
    with pytest.raises(IndexError, match="epoch of 2 steps"):
        plan.worker_steps(0, 1, start_step=-1 if step < 0 else 3)
    assert list(plan.worker_steps(0, 1, start_step=2)) == []


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (np.arange(3), np.arange(2), "3 rows but 2 labels"),
        (np.arange(3) * 1.0, np.arange(3), "pool rows must be one row of integers"),
        (np.arange(4).reshape(2, 2), np.arange(4), "pool rows must be"),
        (np.arange(2), np.array([True, False]), "pool labels must be"),
    ],
)
def test_pool_refuses(rows: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DomainPool(rows, labels)


numbers = st.tuples(*[st.integers(0, 2**64 - 1)] * 4)


@settings(max_examples=100)
@given(one=numbers, other=numbers)
def test_views_depend_on_all_four_numbers_and_on_nothing_else(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    first, again, different = (view_rng(*key).integers(0, 2**63, 4).tolist() for key in (one, one, other))
    assert first == again
    assert (first == different) == (one == other)


def test_neighbouring_draws_are_independent() -> None:
    """Uniform numbers of 4,000 neighbouring draws have the mean and correlations of independent ones (5 σ)."""
    firsts = np.array([[view_rng(0, 0, row, position).random() for position in range(2)] for row in range(2000)])
    assert abs(firsts.mean() - 0.5) < 5 * np.sqrt(1 / 12 / firsts.size)
    assert abs(np.corrcoef(firsts.T)[0, 1]) < 5 / np.sqrt(len(firsts))
    assert abs(np.corrcoef(firsts[1:, 0], firsts[:-1, 0])[0, 1]) < 5 / np.sqrt(len(firsts))


def test_view_rng_never_changes() -> None:
    assert view_rng(1, 2, 3, 4).bit_generator.random_raw(2).tolist() == [8777870883260841927, 3889646134029102319]


def test_view_rng_refuses_negative_numbers() -> None:
    with pytest.raises(OverflowError):
        view_rng(0, 0, -1, 0)


@settings(max_examples=100)
@given(count=st.integers(0, 50), world_size=st.integers(1, 8), batch=st.integers(1, 9))
def test_evaluation_sees_every_row_once_and_in_order(count: int, world_size: int, batch: int) -> None:
    rows = np.arange(count) * 3 + 1
    plan = EvalPlan(rows, batch)
    workers = [list(plan.worker_batches(rank, world_size)) for rank in range(world_size)]
    for rank, batches in enumerate(workers):
        shard = np.concatenate([*batches, np.empty(0, dtype=np.int64)])
        np.testing.assert_array_equal(shard, eval_shard(rows, rank, world_size))
        np.testing.assert_array_equal(shard, np.array_split(rows, world_size)[rank])
        assert all(len(part) == batch for part in batches[:-1])
        assert all(0 < len(part) <= batch for part in batches)
    seen = [int(row) for batches in workers for part in batches for row in part]
    assert seen == rows.tolist()


def test_evaluation_refuses_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        EvalPlan(np.arange(3), 0)
