"""Validators against implementations that are written out sample by sample, and against values worked out by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainers.validators import ValidatorInputs, choose_candidate, epoch_score, verdicts
from trainers.validators.agreement import ensv
from trainers.validators.choice import VALIDATORS, candidate_scores
from trainers.validators.confidence import bnm, corr_c, negative_entropy, source_accuracy
from trainers.validators.mixing import interpolation_consistency, mixval
from trainers.validators.reweighting import density_ratio, dev, devn
from trainers.validators.structure import class_ami, snd

RNG = np.random.default_rng(5)
PROBS = RNG.dirichlet([0.5, 0.5, 1.0], 7)
SURE = np.eye(3)[[0, 1, 2, 0, 1, 2]]
COLLAPSED = np.eye(3)[[1] * 6]
FEATURES = RNG.normal(size=(3, 8))


def test_entropy_of_a_fair_coin_and_of_a_certainty() -> None:
    assert negative_entropy(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx(-math.log(2) / 2)


def test_source_accuracy() -> None:
    assert source_accuracy(np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]), np.array([0, 1, 1])) == pytest.approx(2 / 3)
    assert math.isnan(source_accuracy(np.empty((0, 2)), np.empty(0, int)))


def test_corr_c_is_the_cosine_to_the_identity() -> None:
    matrix = [[sum(p[a] * p[b] for p in PROBS) for b in range(3)] for a in range(3)]
    inner = sum(matrix[a][b] * (a == b) for a, b in itertools.product(range(3), repeat=2))
    length = math.sqrt(sum(cell**2 for row in matrix for cell in row))
    assert corr_c(PROBS) == pytest.approx(inner / (length * math.sqrt(3)))
    assert corr_c(SURE) == pytest.approx(1.0)
    assert corr_c(COLLAPSED) == pytest.approx(1 / math.sqrt(3))


def test_bnm_is_the_nuclear_norm() -> None:
    assert bnm(PROBS) == pytest.approx(np.linalg.svd(PROBS, compute_uv=False).sum() / math.sqrt(7 * 3))
    assert bnm(SURE) == pytest.approx(1.0)
    assert bnm(COLLAPSED) == pytest.approx(1 / math.sqrt(3))


def test_snd_is_the_entropy_of_soft_neighbourhoods() -> None:
    entropies = []
    for i, p in enumerate(PROBS):
        cosines = [p @ q / np.linalg.norm(p) / np.linalg.norm(q) for j, q in enumerate(PROBS) if j != i]
        weights = np.exp(np.array(cosines) / 0.05)
        weights /= weights.sum()
        entropies.append(-(weights * np.log(weights)).sum())
    assert snd(PROBS) == pytest.approx(np.mean(entropies))
    assert snd(np.tile(PROBS, (100, 1))) == pytest.approx(snd(np.tile(PROBS, (100, 1))[::-1]))  # beyond one block
    assert snd(COLLAPSED) == pytest.approx(math.log(5))  # blind to a collapse, as its docstring says


def test_dev_by_hand() -> None:
    weights, losses = np.array([0.5, 1.0, 3.0]), np.array([1.0, 0.0, 1.0])
    weighted = [0.5, 0.0, 3.0]
    mean_w, mean_l = 1.5, 3.5 / 3
    cov = sum((a - mean_l) * (b - mean_w) for a, b in zip(weighted, weights, strict=True)) / 2
    var = sum((b - mean_w) ** 2 for b in weights) / 2
    eta = -cov / var
    assert dev(weights, losses) == pytest.approx(-(mean_l + eta * mean_w - eta))
    assert devn(weights, losses) == pytest.approx(dev(weights / 3, losses))
    assert dev(np.ones(4), np.array([0, 1, 1, 0.0])) == pytest.approx(-0.5)  # equal weights: the plain risk


def test_density_ratio_favours_rows_that_look_like_the_target() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(0, 1, (2000, 1)), rng.normal(1, 1, (1000, 1))
    weights = density_ratio(source, target)
    # The true ratio of these two normal densities is exp(x − 1/2), whose mean over the source is 1.
    assert np.corrcoef(weights, np.exp(source[:, 0] - 0.5))[0, 1] > 0.99
    assert weights.mean() == pytest.approx(1.0, abs=0.1)


def test_class_ami_sees_whether_clusters_are_classes() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 40)
    features = 5 * np.eye(3)[labels] + rng.normal(0, 0.2, (120, 3))
    assert class_ami(np.eye(3)[labels], features) == pytest.approx(1.0)
    assert class_ami(np.eye(3)[rng.permutation(labels)], features) == pytest.approx(0.0, abs=0.05)
    assert class_ami(np.eye(3)[labels], features * rng.uniform(0.1, 9, (120, 1))) == pytest.approx(1.0)


def test_interpolation_consistency_counts_both_kinds_of_pairs() -> None:
    mixed = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    dominant, other = np.array([0, 0, 1, 0]), np.array([0, 0, 0, 1])
    assert interpolation_consistency(mixed, dominant, other).tolist() == [0.5, 0.5]
    assert np.isnan(interpolation_consistency(mixed[:2], dominant[:2], other[:2])[1])


def test_mixval_averages_ranks_and_a_collapse_ranks_last() -> None:
    assert mixval([np.array([0.9, 0.5]), np.array([0.7, 0.8]), np.array([1.0, np.nan])]) == [2.0, 2.0, 2.0]
    assert mixval([np.array([0.9, 0.9]), np.array([0.7, 0.8]), np.array([0.9, np.nan])]) == [2.75, 1.5, 1.75]


def test_ensv_by_hand() -> None:
    a = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    b = np.array([[0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    c = np.array([[0.1, 0.9], [0.2, 0.8], [0.2, 0.8]])
    # mean of the first class: 1.6/3, 1.3/3, 1.4/3 → classes 0, 1, 1
    assert ensv([a, b, c]) == pytest.approx([1 / 3, 1.0, 2 / 3])


def evidence(quality: float, seed: int) -> ValidatorInputs:
    """A candidate whose predictions are right with probability `quality`, on target and sources."""
    rng = np.random.default_rng(seed)
    true = np.arange(300) % 3

    def predict() -> np.ndarray:
        label = np.where(rng.random(300) < quality, true, (true + rng.integers(1, 3, 300)) % 3)
        return 0.7 * np.eye(3)[label] + 0.1

    target, source = predict(), predict()
    label = target.argmax(1)
    return ValidatorInputs(target, target @ FEATURES, source, source @ FEATURES, true, target, label, np.roll(label, 1))


def test_every_validator_gives_every_candidate_a_number() -> None:
    candidates = [evidence(quality, 3) for quality in (0.5, 0.9)]
    for validator in VALIDATORS:
        scores = candidate_scores(validator, candidates)
        assert len(scores) == 2 and np.isfinite(scores).all(), validator
        assert np.isfinite(epoch_score(validator, candidates[0])), validator
    for validator in ("ensv", "source_accuracy", "dev", "devn"):
        assert choose_candidate(validator, [*candidates, evidence(0.7, 4)], gate=1.0) == 1, validator


def test_verdicts_tell_the_regret() -> None:
    rows = verdicts([evidence(0.9, 1), evidence(0.6, 2)], [0.9, 0.6], gate=1.0)
    assert {row["validator"] for row in rows} == set(VALIDATORS)
    for row in rows:
        assert row["regret"] == pytest.approx(0.3 * row["position"])
        assert row["accuracy"] == [0.9, 0.6][row["position"]]
    assert [row["regret"] for row in rows] == sorted(row["regret"] for row in rows)
    unlabelled = verdicts([evidence(0.9, 1), evidence(0.6, 2)], [None, None], gate=1.0)
    assert all(row["regret"] is None for row in unlabelled)


def test_without_source_validation_rows_nothing_is_gated_and_validators_that_need_them_are_left_out() -> None:
    nothing = {"source_probs_MC": np.empty((0, 3)), "source_labels_M": np.empty(0, int)}
    bare = [replace(evidence(q, 3), **nothing) for q in (0.9, 0.5)]
    assert {row["validator"] for row in verdicts(bare, [0.9, 0.5], gate=0.0)}.isdisjoint(
        {"source_accuracy", "dev", "devn"}
    )
    assert choose_candidate("ensv", bare, gate=0.0) in (0, 1)


def test_the_loop_collects_the_same_rows_for_one_worker_and_two(tmp_path: Path) -> None:
    """The collectors of two workers, each with its share of the batches, add up to the collector of one."""
    import torch

    from tests.trainers.tiny_run import make_loop, prepared_run
    from trainers.compute.device_batches import make_encoding, to_batch
    from trainers.loop.validator_inputs import ValidatorInputsCollector
    from trainers.m2can.collective import Collective

    loop = make_loop(prepared_run(tmp_path, ["train.epochs=1"]))
    loop.network.eval()
    parts = [loop.corpus.train[-1], *(part for part in loop.corpus.val if part is not None)]
    rows = np.concatenate([part.rows for part in parts])
    batches = loop.batches.source.evaluate(np.array_split(rows, 6), make_encoding(loop.recipe, loop.card.vocabulary))
    one, *halves = (ValidatorInputsCollector(loop.corpus, loop.batches.labels, loop.network) for _ in range(3))
    with torch.inference_mode():
        for number, host in enumerate(batches):
            labels = np.full((1, len(host.rows)), -1)
            outputs = loop.network(to_batch(host, labels, device=loop.device, dtype=loop.dtype))
            one.add(host.rows, outputs)
            halves[number % 2].add(host.rows, outputs)

    class Sum(Collective):
        def sum_(self, x: torch.Tensor) -> torch.Tensor:
            other = halves[1]._seen if x.shape == halves[1]._seen.shape else halves[1]._projected
            return x + other

    whole, joined = one.finish(Collective()), halves[0].finish(Sum())
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(array, joined.arrays()[name], err_msg=name)
    assert ValidatorInputs.from_arrays(whole.arrays()) is not None
    sources = np.concatenate([part.rows for part in loop.corpus.val[:-1] if part is not None])
    assert whole.source_labels_M.tolist() == loop.batches.labels[sources].tolist()
    assert whole.target_probs_NC.sum(1) == pytest.approx(np.ones(len(loop.corpus.train[-1])), abs=1e-5)
