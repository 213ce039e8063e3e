"""`train.target_labels: few`: which labels reach training, how often, on any number of workers; what is held out measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets_manifest.records.target_labels import TargetLabels
from datasets_manifest.stream.plan import DomainPool
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.loop.batches import GIVEN_SHARE, with_given
from trainers.loop.floor import find_floor
from trainers.loop.loop import Loop
from trainers.preflight.inputs import read_inputs
from trainers.preflight.preparation import Prepared
from trainers.recipe import make_recipe

FEW = ["train.target_labels=few", "train.epochs=3", "sam.rho=0", "data.samples_per_epoch=18"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Two labels a class are trained on, one is held out."""
    run = prepared_run(tmp_path_factory.mktemp("few"), FEW)
    assert run.corpus.given is not None
    labels, start = run.corpus.labels, run.corpus.train[-1].start
    of_class = [run.corpus.train[-1].rows[labels[start : start + 30] == c] for c in range(3)]
    rows, held = np.sort(np.concatenate([x[:2] for x in of_class])), np.sort(np.concatenate([x[2:3] for x in of_class]))
    return replace(run, corpus=replace(run.corpus, given=TargetLabels(rows, labels[rows], held, labels[held])))


@pytest.fixture(scope="module")
def loop(run: Prepared) -> Loop:
    return make_loop(run)


def given_of(loop: Loop) -> TargetLabels:
    assert loop.corpus.given is not None
    return loop.corpus.given


def test_given_labels_are_a_share_of_the_draws_and_replace_pseudo_labels() -> None:
    given = TargetLabels(np.array([5, 7]), np.array([1, 2]), np.array([9]), np.array([0]))
    pool = with_given(DomainPool(np.arange(62), np.zeros(62, int)), given)
    known = np.isin(pool.rows, given.rows)
    assert known.mean() == pytest.approx(GIVEN_SHARE, abs=0.02)
    assert set(pool.labels[pool.rows == 5]) == {1} and set(pool.labels[pool.rows == 7]) == {2}
    assert sorted(set(pool.rows)) == list(range(62)) and set(pool.labels[~known]) == {0}  # 9 is as all others
    nothing = TargetLabels(np.empty(0, int), np.empty(0, int), given.check_rows, given.check_labels)
    assert len(with_given(DomainPool(np.arange(3), np.zeros(3, int)), nothing).rows) == 3


def test_the_target_takes_part_from_the_first_step_and_its_other_labels_stay_unread(loop: Loop) -> None:
    plan, given = loop.plan(), given_of(loop)
    assert plan.num_domains == 3
    rows, labels = plan.rows_DN[-1], plan.labels_DN[-1]
    known = np.isin(rows, given.rows)
    assert known.any() and (labels[~known] == -1).all()
    assert (
        dict(zip(rows[known], labels[known], strict=True)).items()
        <= dict(zip(given.rows.tolist(), given.labels.tolist(), strict=True)).items()
    )


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_same_draws(loop: Loop, workers: int) -> None:
    plan = loop.plan()
    for step in range(plan.num_steps):
        parts = [plan.worker_step(step, rank, workers) for rank in range(workers)]
        whole = plan.worker_step(step, 0, 1)
        assert (np.concatenate([part.rows_DB for part in parts], 1) == whole.rows_DB).all()
        assert (np.concatenate([part.labels_DB for part in parts], 1) == whole.labels_DB).all()


def test_only_given_labels_change_training(run: Prepared) -> None:
    """Others of the target, and those held out, may say what they like."""

    def losses(given: TargetLabels, labels: np.ndarray) -> list[float]:
        loop = make_loop(replace(run, corpus=replace(run.corpus, given=given)))
        loop.batches.labels = labels
        return [loop.run_epoch()[0]["loss/total"] for _ in range(2)]

    given, labels, target = run.corpus.given, run.corpus.labels, run.corpus.train[-1]
    assert given is not None
    other = labels.copy()
    other[target.rows] = (other[target.rows] + 1) % 3
    lied = replace(given, check_labels=(given.check_labels + 1) % 3)
    assert losses(given, labels) == losses(lied, other)
    assert losses(given, labels) != losses(replace(given, labels=(given.labels + 1) % 3), labels)


def test_what_is_held_out_measures_every_epoch_and_the_floor(run: Prepared) -> None:
    loop = make_loop(run)
    given, target = given_of(loop), loop.corpus.train[-1]
    found = find_floor(loop)
    assert found is not None and found.metrics["target/checked_records"] == 3
    metrics, scored = loop.run_epoch()
    predicted = scored.of(target)["label"][given.check_rows - target.start]
    assert metrics["target/checked_accuracy"] == pytest.approx((predicted == given.check_labels).mean())
    assert metrics["target/checked_accuracy_low"] < metrics["target/checked_accuracy"] + 1e-9


def test_the_floor_learns_from_given_labels(run: Prepared) -> None:
    """With every record's label given, more of the target is right than without."""
    target, labels = run.corpus.train[-1], run.corpus.labels
    nothing = np.empty(0, np.int64)
    accuracy = []
    for rows in (nothing, target.rows):
        given = TargetLabels(rows, labels[rows], target.rows, labels[target.rows])
        found = find_floor(make_loop(replace(run, corpus=replace(run.corpus, given=given))))
        assert found is not None
        accuracy.append(found.metrics["target/checked_accuracy"])
    assert accuracy[1] > accuracy[0]


def test_a_recipe_names_a_csv_beside_it(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, ["train.epochs=1"])
    ids = run.corpus.table["id"].slice(run.corpus.train[-1].start, 4).to_pylist()
    (tmp_path / "labels.csv").write_text("id,label,purpose\n" + f"{ids[1]},neutral,train\n{ids[3]},positive,check\n")
    tree = run.recipe.model_dump(mode="json") | {"schema_version": run.recipe.schema_version}
    tree["train"]["target_labels"] = "labels.csv"
    recipe = make_recipe(tree, tmp_path / "recipe.yaml")
    assert recipe.train.target_labels == str(tmp_path / "labels.csv")
    given = read_inputs(recipe).corpus.given
    start = run.corpus.train[-1].start
    assert given is not None and (given.rows.tolist(), given.check_rows.tolist()) == ([start + 1], [start + 3])
    assert given.labels.tolist() == [run.corpus.classes.index("neutral")]
