"""The floor of a run: found before the first step, without a trace in training, and predicting what was noted of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets_manifest.records.corpus import Part
from datasets_manifest.stream.evaluation_cache import EvaluationCache
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.loop import floor_features, floor_predictions
from trainers.loop.floor import FoundFloor, find_floor, has_floor
from trainers.loop.floor_features import rows_of
from trainers.loop.loop import Loop
from trainers.model.card import load_card
from trainers.model.floor_files import floor_metrics, write_floor
from trainers.model.predictor import Predictor
from trainers.model.reference import Seen
from trainers.model.trained_network import complete_model
from trainers.recipe import Recipe, make_recipe
from trainers.validators.inputs import MOST_ROWS, ValidatorInputs


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """Its source keeps what it evaluates."""
    loop = make_loop(prepared_run(tmp_path_factory.mktemp("floor")))
    loop.batches.source = EvaluationCache(loop.batches.source)
    return loop


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def found(loop: Loop, run: Path) -> FoundFloor:
    """Written at once: the network shares the encoders that training moves."""
    found = find_floor(loop)
    assert found is not None
    write_floor(run, found.network, loop.frozen, loop.card, found.metrics, found.evaluation)
    return found


def test_training_is_the_same_with_a_floor(loop: Loop, found: FoundFloor, tmp_path: Path) -> None:
    other = make_loop(prepared_run(tmp_path))
    before = torch.get_rng_state()
    metrics, plain = (
        {name: x for name, x in trained.run_epoch()[0].items() if not name.startswith(("time/", "speed/"))}
        for trained in (loop, other)
    )
    assert metrics == plain
    weights, others = loop.network.state_dict(), other.network.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    torch.set_rng_state(before)


def test_rows_that_an_epoch_scores_are_read_once(
    loop: Loop, found: FoundFloor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the sources' training parts are read for the floor alone, and not kept."""
    read: list[int] = []
    cache = loop.batches.source
    assert isinstance(cache, EvaluationCache)
    evaluate = cache.source.evaluate
    monkeypatch.setattr(
        type(cache.source),
        "evaluate",
        lambda _, rows, encoding: (read.extend(map(len, rows)), evaluate(rows, encoding))[1],
    )
    loop.score()
    assert not read
    kept = sum(len(host.rows) for host in cache._kept.values())
    assert kept == len(loop.batches.eval_plan()[1].rows)


def test_the_model_predicts_what_was_noted(loop: Loop, found: FoundFloor, run: Path) -> None:
    predictor, corpus = Predictor.load(run / "floor"), loop.corpus
    part = corpus.val[-1]
    assert part is not None
    rows = corpus.table.slice(part.start, len(part)).to_pylist()
    seen = predictor.predict([row["texts"] for row in rows], [row["images"] for row in rows])
    noted = found.evaluation[f"{part.domain}/{part.split}/label"].tolist()
    assert seen.labels == [corpus.classes[c] for c in noted]
    assert seen.confidence == pytest.approx(found.evaluation[f"{part.domain}/{part.split}/prob"].numpy(), abs=1e-4)
    right = np.mean([label == corpus.classes[row["label"]] for label, row in zip(seen.labels, rows, strict=True)])
    assert floor_metrics(run) == found.metrics
    assert found.metrics["target/val/accuracy"] == right
    assert 0 <= found.metrics["target/expected_accuracy"] <= 1
    inputs = ValidatorInputs.from_arrays({name: x.numpy() for name, x in found.evaluation.items()})
    accuracy = (inputs.source_probs_MC.argmax(1) == inputs.source_labels_M).mean()
    assert found.metrics["source/val/accuracy"] == pytest.approx(accuracy)  # sources of equal size
    target = corpus.table.slice(corpus.train[-1].start, 4).to_pylist()
    features = predictor.embed([row["texts"] for row in target], [row["images"] for row in target])
    assert features == pytest.approx(inputs.target_features_NK[:4], abs=1e-3)
    kept = Seen.read(run / "floor" / "model")  # which later records are compared with
    assert kept is not None and kept.facts_NF.shape == seen.seen.facts_NF.shape
    for mine, theirs in ((kept.probs_NC, seen.seen.probs_NC), (kept.facts_NF, seen.seen.facts_NF)):
        assert np.sort(mine, 0) == pytest.approx(np.sort(theirs, 0), abs=1e-4, nan_ok=True)
    assert predictor.predict(["a card"]).head_labels[0] == predictor.predict(["a card"]).labels  # it has one head


def test_frozen_weights_and_adapters_come_along(tmp_path: Path) -> None:
    """Frozen weights lie once in the run's folder; what is registered is complete and has no adapters."""
    loop = make_loop(prepared_run(tmp_path, ["encoders.text.freeze=all", "encoders.picture.lora.rank=2"]))
    found = find_floor(loop)
    assert found is not None
    folder = write_floor(tmp_path / "run", found.network, loop.frozen, loop.card, found.metrics, found.evaluation)
    assert (tmp_path / "run" / "frozen.safetensors").is_file()
    with complete_model(folder / "model") as complete:
        shutil.copytree(complete, tmp_path / "elsewhere")
    corpus, target = loop.corpus, loop.corpus.train[-1]
    rows = corpus.table.slice(target.start, len(target)).to_pylist()
    noted = [corpus.classes[c] for c in found.evaluation[f"{target.domain}/{target.split}/label"].tolist()]
    for place in (folder, tmp_path / "elsewhere"):
        seen = Predictor.load(place).predict([row["texts"] for row in rows], [row["images"] for row in rows])
        assert seen.labels == noted
    card = load_card(tmp_path / "elsewhere")
    assert card.floor and card.merged_adapters and not card.recipe.encoders.adapters


@pytest.mark.parametrize("modality", ["text", "pictures"])
def test_a_modality_that_is_not_read_does_not_count(tmp_path: Path, modality: str) -> None:
    loop = make_loop(prepared_run(tmp_path, [f"network.modalities={modality}"]))
    found = find_floor(loop)
    assert found is not None
    width = loop.network.text_encoder.width
    text, picture = found.network.floor.weight_CK.split([width, loop.network.picture_encoder.width], 1)
    unread, read = (picture, text) if modality == "text" else (text, picture)
    assert not unread.any() and read.any()


def test_features_that_are_not_finite_give_no_floor(tmp_path: Path) -> None:
    loop = make_loop(prepared_run(tmp_path))
    with torch.no_grad():
        next(loop.network.text_encoder.parameters()).fill_(float("nan"))
    assert find_floor(loop) is None


def test_large_parts_are_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor_features, "MOST_ROWS", MOST_ROWS + 100)
    part = Part("sea", "train", 500, 50_500)
    wanted = part.rows[:: len(part) // MOST_ROWS][:MOST_ROWS]
    rows = rows_of(part, wanted, seed=1)
    assert len(rows) == len(np.unique(rows)) == MOST_ROWS + 100
    assert np.isin(wanted, rows).all() and np.isin(rows, part.rows).all() and (np.diff(rows) > 0).all()
    assert np.array_equal(rows, rows_of(part, wanted, seed=1))
    assert not np.array_equal(rows, rows_of(part, wanted, seed=2))


def test_a_floor_of_a_part_says_which_rows_it_has(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor_features, "MOST_ROWS", 20)
    for module in (floor_features, floor_predictions):
        monkeypatch.setattr(module, "spread", lambda rows: rows[:5])
    target = loop.corpus.train[-1]
    found = find_floor(loop)
    assert found is not None
    named = f"{target.domain}/{target.split}"
    rows = found.evaluation[f"{named}/row"].numpy()
    assert len(rows) == len(found.evaluation[f"{named}/label"]) == 20
    assert np.array_equal(found.evaluation[f"{named}/true"].numpy(), loop.batches.labels[target.start + rows])


def recipe(**sections: object) -> Recipe:
    return make_recipe({"data": {"sources": ["a"], "target": "b"}, **sections})


def test_which_runs_have_one() -> None:
    alone = {"uacr": {"enabled": False}, "objective": dict.fromkeys(("cmcfa", "cdcfa", "cdafa", "mcc"), 0)}
    assert has_floor(recipe())
    assert not has_floor(recipe(preset="published"))
    assert not has_floor(recipe(train={"target_labels": "oracle"}))
    assert not has_floor(recipe(**alone))
