"""Modality dropout: learned features in the place of what a record lacks, and of what a step leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets_manifest.errors import InputError
from datasets_manifest.features.feature_files import Features
from datasets_manifest.features.feature_stream import FeatureStream
from datasets_manifest.stream.encode import blank_texts, blank_tokens
from datasets_manifest.stream.plan import EpochPlan, StepSlice
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.compute.device_batches import left_out, make_encoding, to_batch
from trainers.exported.graph import inputs_of, trace
from trainers.loop.loop import Loop
from trainers.model.checkpoint import save_model
from trainers.model.predictor import Predictor
from trainers.recipe import make_recipe

ON = ["network.modality_dropout=0.3", "train.epochs=3"]


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """Before its first step."""
    return make_loop(prepared_run(tmp_path_factory.mktemp("on"), ON))


def steps_of(plan: EpochPlan, rank: int, world_size: int) -> list[StepSlice]:
    return list(plan.worker_steps(rank, world_size))


def test_what_is_left_out_follows_from_the_draw_alone(loop: Loop) -> None:
    """The same rows on one worker and on two, in both views alike, others in the next epoch."""
    plan = loop.plan()
    (whole, *_), (first, *_), (second, *_) = (steps_of(plan, *place) for place in ((0, 1), (0, 2), (1, 2)))
    domains = len(whole.rows_DB)

    def of(slice_: StepSlice) -> torch.Tensor:
        nothing = torch.zeros(2 * slice_.rows_DB.size, 2, dtype=torch.bool)
        return left_out(slice_, nothing, 1, 0.3).view(2, domains, -1, 2)

    assert torch.equal(torch.cat([of(first), of(second)], 2), of(whole))
    assert torch.equal(of(whole)[0], of(whole)[1])
    assert not torch.equal(of(replace(whole, epoch=1)), of(whole))
    many = replace(whole, rows_DB=np.arange(4000)[None], positions_DB=np.arange(4000)[None])
    drawn = left_out(many, torch.zeros(4000, 2, dtype=torch.bool), 1, 0.3)
    assert drawn.double().mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.03)
    assert not drawn.all(1).any()


def test_a_row_keeps_what_it_has_alone(loop: Loop) -> None:
    slice_ = steps_of(loop.plan(), 0, 1)[0]
    lacks = torch.tensor([[True, False], [False, True]]).repeat(slice_.rows_DB.size, 1)
    assert not left_out(slice_, lacks, 1, 0.5).any()
    drawn = left_out(slice_, torch.zeros_like(lacks), 1, 0.5)
    assert drawn.any(1).all()  # 1/2 each: every row that has both loses one


def test_the_learned_feature_stands_for_what_is_missing(tmp_path: Path) -> None:
    loop = make_loop(prepared_run(tmp_path, ON))
    save_model(tmp_path / "model", loop.network, loop.card)
    picture = str(next(tmp_path.rglob("*.jpg")))
    texts, images = ["a lovely day", "a lovely day", None], [[picture], None, [picture]]
    before = Predictor.load(tmp_path / "model").predict(texts, images).probs
    missing = loop.network.missing
    assert missing is not None
    for vector, place in ((missing.picture, 1), (missing.text, 2)):
        with torch.no_grad():
            vector.normal_(std=3, generator=torch.Generator().manual_seed(1))
        save_model(tmp_path / f"model-{place}", loop.network, loop.card)
        with torch.no_grad():
            vector.zero_()
        after = Predictor.load(tmp_path / f"model-{place}").predict(texts, images).probs
        others = [row for row in range(3) if row != place]
        assert after[others] == pytest.approx(before[others], abs=1e-6)
        assert np.abs(after[place] - before[place]).max() > 1e-4


def test_training_moves_them_and_a_run_that_goes_on_is_the_same(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, ON)
    whole, first = make_loop(run), make_loop(run)
    for _ in range(2):
        whole.run_epoch()
    first.run_epoch()
    first.save(tmp_path / "checkpoint_1", {})
    second = make_loop(run)
    second.load(tmp_path / "checkpoint_1")
    second.run_epoch()
    wanted, found = whole.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert wanted["missing.text"].any() and wanted["missing.picture"].any()
    plain = make_loop(prepared_run(tmp_path, ["train.epochs=3"]))
    assert set(wanted) - set(plain.network.state_dict()) == {"missing.text", "missing.picture"}
    groups = [group["name"] for group in plain.parts.optimizers["network"].param_groups]
    assert "missing" not in groups


def test_nothing_is_left_out_where_it_is_zero_or_in_evaluation(tmp_path: Path) -> None:
    loop = make_loop(prepared_run(tmp_path, ["network.modality_dropout=0"]))
    steps = steps_of(loop.plan(), 0, 1)[:3]
    with loop.batches.train(steps) as feed:
        batches = list(feed)
    with loop.batches.evaluate([steps[0].rows_DB.ravel()]) as feed:
        batches += list(feed)
    for _, batch in batches:
        assert batch.missing_N2 is not None and batch.picture_counts is not None
        assert torch.equal(batch.missing_N2[:, 1], batch.picture_counts[:-1] == 0)
        assert not batch.missing_N2[:, 0].any()  # all of them have a text


def test_which_texts_are_blank(loop: Loop) -> None:
    encoding = make_encoding(loop.recipe, loop.card.vocabulary)
    assert blank_texts([[], [""], ["  "], ["a"], ["", "b"]], encoding).tolist() == [True, True, True, False, False]
    assert blank_tokens(encoding) == 2  # [CLS] and [SEP]


def test_features_say_which_texts_are_blank() -> None:
    text, picture = (np.ones((2, 3, width), np.float32) for width in (4, 5))
    lacks = np.array([[False, False], [True, False], [False, True]])
    stream = FeatureStream(Features(text, picture, {}, lacks))
    encoding: Any = None
    host = next(stream.evaluate([np.array([0, 1, 2])], encoding))
    batch = to_batch(host, np.full((1, 3), -1), device=torch.device("cpu"), dtype=torch.float32)
    assert batch.missing_N2 is not None
    assert batch.missing_N2.tolist() == [[False, False], [True, False], [False, True]]


def test_the_graph_has_them(loop: Loop) -> None:
    network = loop.network.eval()
    assert network.missing is not None
    with torch.no_grad():
        network.missing.text.fill_(0.5)
        network.missing.picture.fill_(-0.5)
    predictor = Predictor(network, loop.card, loop.device)
    count = blank_tokens(predictor.encoding)
    program = trace(network, predictor.example_batch(), count).module()
    picture = str(next(Path(loop.recipe.run.storage).parent.rglob("*.jpg")))
    batch = predictor._batch([["a lovely day"], [], ["a day"]], [[], [picture], [picture]])[0]
    assert batch is not None
    logits, fused = program(*inputs_of(batch))
    with torch.inference_mode():
        outputs = network(batch)
    torch.testing.assert_close(logits, outputs.logits_HQDBC[:, 0, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fused, outputs.fused_DBK[0], atol=1e-5, rtol=1e-4)


def test_at_most_half_of_each() -> None:
    with pytest.raises(InputError, match=r"network\.modality_dropout: .*found 0\.6"):
        make_recipe({"data": {"sources": ["a"], "target": "b"}, "network": {"modality_dropout": 0.6}})
