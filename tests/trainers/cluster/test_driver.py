"""Whole runs on Ray: the same batches as without it, the same losses for any number of workers, clear endings."""

from __future__ import annotations

import json
import re
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from datasets_manifest.errors import InputError
from datasets_manifest.stream.local_stream import LocalStream
from tests.trainers.tiny_run import make_loop, prepared_run, small_recipe
from trainers.cluster import driver
from trainers.cluster.driver import in_object_store, train, worker_config
from trainers.compute.device_batches import make_encoding
from trainers.encoders.weight_files import read_tensors
from trainers.failures import RunFailed, RunStopped
from trainers.journal.outcome import Outcome
from trainers.model.predictor import Predictor
from trainers.preflight.preparation import Prepared, prepare

# At the demo's rates rounding grows a hundredfold a step in so small a network; at these it stays where it belongs.
RATES = [f"optimizer.lr.{part}=1e-4" for part in ("encoders", "projections", "fusion", "heads")]
EXACT = ["train.precision=fp64", "train.epochs=2", "encoders.picture.batch_norm=per_sample", *RATES]


def read_trace(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def spoil(folder: Path, domain: str, count: int) -> None:
    """Overwrite pictures of the first records with text."""
    lines = (folder / "postcards" / domain / "train.jsonl").read_text().splitlines()
    for line in lines[:count]:
        for image in json.loads(line)["image"]:
            (folder / "postcards" / domain / image).write_bytes(b"this is not a picture")


def run_on(folder: Path, workers: int, overrides: list[str]) -> tuple[Outcome, list[dict[str, Any]]]:
    trace = folder / f"trace-{workers}.jsonl"
    prepared = prepared_run(folder, [*overrides, f"cluster.workers={workers}", f"run.name=on-{workers}"])
    spoil(folder, "seaside", 1)
    return train(prepared, trace=trace), read_trace(trace)


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Any:
    folder = tmp_path_factory.mktemp("exact")
    return run_on(folder / "one", 1, EXACT), run_on(folder / "two", 2, EXACT)


@pytest.mark.slow
def test_one_and_two_workers_give_the_same_losses(one_and_two: Any) -> None:
    (one, trace_one), (two, trace_two) = one_and_two
    assert len(trace_one) == len(trace_two) == 2 * 5
    for a, b in zip(trace_one, trace_two, strict=True):
        assert (a["epoch"], a["step"]) == (b["epoch"], b["step"])
        tolerance = 1e-9 if (a["epoch"], a["step"]) == (1, 1) else 1e-6
        for number in ("first", "second"):
            assert a[number].keys() == b[number].keys()
            for term, value in a[number].items():
                assert b[number][term] == pytest.approx(value, rel=tolerance, abs=1e-12), (a["epoch"], a["step"], term)
    assert {"cmcfa", "cdcfa", "cdafa", "mcc"} < trace_two[-1]["second"].keys()
    assert one.chosen.metrics["uacr/kept"] == two.chosen.metrics["uacr/kept"]
    assert one.chosen.metrics["target/val/accuracy"] == two.chosen.metrics["target/val/accuracy"]


@pytest.mark.slow
def test_one_and_two_workers_find_the_same_floor(one_and_two: Any) -> None:
    one, two = (outcome.floor for (outcome, _) in one_and_two)
    assert one is not None and two is not None and not (one.chosen or two.chosen)  # of encoders that start at random
    told = ("source/val/accuracy", "target/val/accuracy", "selection/score")
    for name in told:
        assert one.metrics[name] == pytest.approx(two.metrics[name], rel=1e-6), name
    first, second = (read_tensors(floor.folder / "evaluation.safetensors") for floor in (one, two))
    assert all(torch.allclose(first[name].double(), second[name].double(), atol=1e-6) for name in first)
    for outcome, _ in one_and_two:
        records = outcome.records
        assert [f"floor/{name}" in record.metrics for record in records for name in told] == [True] * 3 + [False] * 3
        assert Predictor.load(outcome.floor.folder).predict(["a lovely day"]).labels[0] in outcome.card.classes


@pytest.mark.slow
def test_ray_changes_nothing(one_and_two: Any, tmp_path: Path) -> None:
    """The loop without Ray, on batches read in this process, gives the run's metrics."""
    outcome = one_and_two[0][0]
    loop = make_loop(prepared_run(tmp_path, EXACT))
    spoil(tmp_path, "seaside", 1)
    for record in outcome.records:
        metrics, _ = loop.run_epoch()
        for name in ("loss/total", "loss/mcc", "selection/score", "target/val/accuracy", "uacr/kept"):
            if name in record.metrics:
                assert metrics[name] == pytest.approx(record.metrics[name], rel=1e-9), (record.epoch, name)


@pytest.mark.slow
def test_a_run_leaves_journal_checkpoints_and_choice(one_and_two: Any) -> None:
    outcome: Outcome = one_and_two[1][0]
    assert [record.epoch for record in outcome.records] == [1, 2]
    assert outcome.checkpoint.parent == outcome.folder
    assert (outcome.checkpoint / "files.json").is_file()
    assert outcome.chosen.epoch in (1, 2)
    assert outcome.oracle is not None
    best = max(record.metrics["target/val/accuracy"] for record in outcome.records)
    assert outcome.oracle.metrics["target/val/accuracy"] == best


@pytest.mark.slow
def test_every_worker_logs_where_it_is(one_and_two: Any) -> None:
    folder = one_and_two[1][0].folder
    assert sorted(file.name for file in (folder / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]
    for rank in (0, 1):
        lines = (folder / "logs" / f"rank-{rank}.log").read_text().splitlines()
        assert all(re.match(rf"\S+ \S+ [A-Z]+ run=on-2 rank={rank} epoch=\d+ step=\d+ \S+: ", line) for line in lines)
        assert "2 workers, this one on cpu" in lines[0]
        assert any("epoch=2 step=5 trainers.worker.training: epoch 2 done: loss/total" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_pictures_are_named(one_and_two: Any, workers: int) -> None:
    outcome: Outcome = one_and_two[workers - 1][0]
    assert [record.metrics["data/bad_records"] for record in outcome.records] == [1, 1]
    named = [json.loads(line) for line in (outcome.folder / "bad_pictures.jsonl").read_text().splitlines()]
    assert {entry["id"] for entry in named} == {"seaside-train-00000"}
    assert all(entry["problem"].endswith("not an image") for entry in named)


def test_too_many_bad_pictures_end_the_run(tmp_path: Path) -> None:
    loop = make_loop(prepared_run(tmp_path, ["data.max_bad_fraction=0.2"]))
    spoil(tmp_path, "seaside", 12)
    with pytest.raises(InputError, match="12 of 30 records have a picture that cannot be read"):
        loop.run_epoch()


def test_a_stop_that_comes_after_the_last_step_ends_before_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NothingHeard(nullcontext[None]):
        stopped = None

    monkeypatch.setattr(driver, "claim", lambda prepared: None)
    monkeypatch.setattr(driver, "start_workers", lambda *_, **__: (None, NothingHeard()))
    monkeypatch.setattr(driver, "ended_with", lambda *_: nullcontext())
    monkeypatch.setattr(driver, "fit", lambda *_: object())  # the workers have ended
    stop = threading.Event()
    stop.set()
    prepared = prepared_run(tmp_path, ["run.name=late"])
    with pytest.raises(
        RunStopped, match=r"^late: stopped after the last epoch; run\.name=late goes on with its report$"
    ):
        train(prepared, stop=stop)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_with_its_samples(tmp_path: Path, ray_cluster: None) -> None:
    rates = [f"optimizer.lr.{part}=1e30" for part in ("encoders", "projections", "fusion", "heads")]
    prepared = prepared_run(tmp_path, [*rates, "train.epochs=2", "run.name=diverges", "cluster.workers=2"])
    with pytest.raises(RunFailed, match=r"NonFiniteLoss: step .* not finite"):
        train(prepared)
    written = sorted(prepared.folder.glob("nonfinite-*.json"))
    assert len(written) == 2  # one for each worker
    content = json.loads(written[0].read_text())
    assert set(content["ids"]) >= {"seaside", "city"}
    assert all(identity.startswith("seaside-train") for identity in content["ids"]["seaside"])


def test_the_driver_reads_the_table_in_the_object_store(tmp_path: Path, ray_cluster: None) -> None:
    prepared = prepared_run(tmp_path)
    given: Any = prepared.corpus.table
    table = given.select(["id", "texts"]).take(np.arange(20_000) % given.num_rows)
    prepared, wanted = replace(prepared, corpus=replace(prepared.corpus, table=table)), table.slice(7, 2).to_pylist()
    size, before = table.nbytes, pa.total_allocated_bytes()
    del table
    prepared = in_object_store(prepared)
    assert before - pa.total_allocated_bytes() > 0.9 * size  # no copy of its own is left
    shared: Any = prepared.corpus.table
    assert shared.slice(7, 2).to_pylist() == wanted
    assert worker_config(prepared, object(), floor=False).table is prepared.table  # it is not put there twice


def test_missing_pictures_are_found_before_ray(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, [])
    images = sorted((tmp_path / "postcards" / "mountain" / "images").glob("*train*"))
    for image in images[: len(images) // 2]:
        image.unlink()
    with pytest.raises(InputError, match="lack a picture file, first record mountain-train") as caught:
        prepare(recipe)
    assert "max_bad_fraction" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["uacr.prior=[0.5, 0.5]"], "uacr.prior: needs a share for every class"),
        (["data.samples_per_epoch=7", "cluster.workers=5"], "cluster.workers: a step has 3 rows of each domain"),
        (["encoders.picture.name=torchvision:resnet5"], "torchvision has no such model"),
        (["data.splits=[trian, val]"], "trian"),
        (["data.texts.max_tokens=600", "encoders.text.name=/nowhere"], "no encoder could be read"),
        (["run.storage=ftp://bucket/runs"], "run.storage: is no place where runs can lie"),
    ],
)
def test_bad_recipes_are_refused_by_prepare(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        prepare(small_recipe(tmp_path, overrides))
    assert words in str(caught.value)


def test_sources_only_reads_nothing_of_the_target(tmp_path: Path) -> None:
    off = ["uacr.enabled=false", *(f"objective.{term}=0" for term in ("cmcfa", "cdcfa", "cdafa", "mcc"))]
    loop = make_loop(prepared_run(tmp_path, off))
    plan = loop.plan()
    target = loop.corpus.train[-1]
    assert plan.num_domains == 2
    assert not np.isin(plan.rows_DN, target.rows).any()


def test_target_labels_do_not_reach_training(tmp_path: Path) -> None:
    """Two runs whose target labels differ end with the same weights."""
    import torch

    run: Prepared = prepared_run(tmp_path, ["train.epochs=2"])
    honest, lied = make_loop(run), make_loop(run)
    for part in (run.corpus.train[-1], run.corpus.val[-1]):
        assert part is not None
        lied.batches.labels[part.start : part.stop] = 2 - lied.batches.labels[part.start : part.stop]
    for _ in range(2):
        a, _ = honest.run_epoch()
        b, _ = lied.run_epoch()
    assert a["target/val/accuracy"] != b["target/val/accuracy"]
    for name, tensor in honest.network.state_dict().items():
        assert torch.equal(tensor, lied.network.state_dict()[name]), name


def test_local_stream_repeats_a_row_with_the_same_weak_view(tmp_path: Path) -> None:
    run = prepared_run(tmp_path)
    host = next(
        iter(
            LocalStream(run.corpus.table).evaluate(
                [np.array([3, 1, 3])], make_encoding(run.recipe, run.card.vocabulary)
            )
        )
    )
    assert host.rows.tolist() == [3, 1, 3]
    assert (host.tokens[0] == host.tokens[2]).all()
    first, third = host.pictures[host.owner == 0], host.pictures[host.owner == 2]
    assert (first == third).all()
