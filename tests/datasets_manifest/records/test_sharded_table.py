"""Rows in shards are those of a table, and a look-up reads no more than the row groups it needs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_manifest.records import sharded_table
from datasets_manifest.records.readers import TABLE_SCHEMA
from datasets_manifest.records.sharded_table import ShardedTable, ShardWriter, in_memory, labels_of, some_rows

ROWS = 700


def made_table(domain: str = "hill", rows: int = ROWS, text: str = "a card") -> pa.Table:
    columns = [
        [f"{domain}-{i}" for i in range(rows)],
        [domain] * rows,
        [[f"{text} {i}"] * (i % 3) for i in range(rows)],
        [[f"/pictures/{i}.png"] if i % 4 else [] for i in range(rows)],
        [i % 3 - 1 for i in range(rows)],
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, TABLE_SCHEMA, strict=True)], schema=TABLE_SCHEMA)


def write(folder: Path, *tables: pa.Table, batch: int = 130) -> ShardedTable:
    writer = ShardWriter(folder)
    for table in tables:
        for part in table.to_batches(max_chunksize=batch):
            writer.write(part)
    assert writer.num_rows == sum(map(len, tables))
    return writer.finish()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardedTable, pa.Table]:
    """Small groups and shards of two domains, and the same rows in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_table, "GROUP_ROWS", 50)
        patch.setattr(sharded_table, "SHARD_ROWS", 300)
        tables = made_table(), made_table("sea", 90)
        folder = tmp_path_factory.mktemp("shards")
        write(folder, *tables)
    return ShardedTable.open(folder), pa.concat_tables(tables).combine_chunks()


def test_the_shards_hold_all_rows(both: tuple[ShardedTable, pa.Table]) -> None:
    shards, table = both
    assert len(shards.shard_groups) - 1 == len(list(Path(shards.folder).glob("*.parquet"))) == 3
    assert shards.num_rows == len(shards) == table.num_rows
    assert shards.domains == ("hill", "hill", "sea")
    assert np.diff(shards.group_starts).max() == 50
    assert in_memory(shards).equals(table)
    assert in_memory(table) is table
    np.testing.assert_array_equal(labels_of(shards), labels_of(table))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.integers(0, ROWS + 89), max_size=40),
    start=st.integers(0, ROWS + 89),
    length=st.integers(0, 400),
    chunk=st.integers(1, 200),
    columns=st.permutations(TABLE_SCHEMA.names).flatmap(lambda names: st.integers(1, 5).map(lambda n: names[:n])),
)
def test_look_ups_are_those_of_the_table(
    both: tuple[ShardedTable, pa.Table], rows: list[int], start: int, length: int, chunk: int, columns: list[str]
) -> None:
    shards, table = (each.select(columns) for each in both)
    assert shards.take(rows).equals(table.take(pa.array(rows, pa.int64())).combine_chunks())
    shards, table = shards.slice(start, length), table.slice(start, length)
    assert in_memory(shards).equals(table.combine_chunks())
    batches = list(shards.to_batches(max_chunksize=chunk))
    assert max((len(batch) for batch in batches), default=0) <= chunk
    assert pa.Table.from_batches(batches, table.schema).combine_chunks().equals(table.combine_chunks())
    if len(shards):
        assert shards.take([len(shards) - 1]).equals(table.slice(len(shards) - 1).combine_chunks())
        assert shards.slice(1).num_rows == len(shards) - 1


def test_a_look_up_reads_the_groups_it_needs(both: tuple[ShardedTable, pa.Table]) -> None:
    shards = both[0].select(["texts", "images"])
    sharded_table._read_group.cache_clear()
    shards.take(np.array([120, 110, 101, 340, 120]))  # of two groups
    assert sharded_table._read_group.cache_info().misses == 2
    shards.take(np.array([102]))
    assert sharded_table._read_group.cache_info().misses == 2
    both[0].select(["label", "domain"]).take([0, 700])  # labels and domains are in no shard
    assert in_memory(both[0].select(["label"]))["label"].to_pylist() == both[1]["label"].to_pylist()


def test_there_is_no_such_row(both: tuple[ShardedTable, pa.Table]) -> None:
    for rows in ([0, ROWS + 90], [-1]):
        with pytest.raises(IndexError, match="in a table of 790"):
            both[0].take(rows)


def test_groups_of_long_texts_have_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_table, "GROUP_BYTES", 100_000)
    shards = write(tmp_path, made_table(rows=100, text="long " * 2000))
    assert 5 <= np.diff(shards.group_starts).max() <= 15
    assert in_memory(shards).equals(made_table(rows=100, text="long " * 2000))


def test_some_rows_are_from_all_over_and_of_few_groups(both: tuple[ShardedTable, pa.Table]) -> None:
    shards, table = both
    np.testing.assert_array_equal(some_rows(shards, 10_000), np.arange(790))
    np.testing.assert_array_equal(some_rows(table, 100), np.arange(0, 790, 8))
    rows = some_rows(shards, 200)
    assert len(rows) == 192
    assert rows[0] == 0 and rows[-1] == 789
    assert (np.diff(rows) > 0).all() and (np.diff(rows) == 1).sum() == 189


def test_without_a_row(tmp_path: Path) -> None:
    shards = write(tmp_path, made_table(rows=0))
    assert in_memory(shards).schema == TABLE_SCHEMA
    assert shards.take([]).num_rows == 0


def test_an_index_travels_without_its_rows(both: tuple[ShardedTable, pa.Table]) -> None:
    shards, table = both
    assert pickle.loads(pickle.dumps(shards.slice(3))).take([0]).equals(table.slice(3, 1))
