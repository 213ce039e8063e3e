"""What a worker keeps of a scored target, however large it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from datasets_manifest.records.corpus import Corpus, Part
from tests.trainers.step.test_host_answers import Answers
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.loop.scoring import COLUMNS, gather_columns
from trainers.loop.validator_inputs import ValidatorInputsCollector, validator_rows
from trainers.m2can.collective import Collective
from trainers.validators.expected import expected_accuracy
from trainers.validators.inputs import MOST_ROWS


def test_sixteen_bytes_a_row(tmp_path: Path) -> None:
    loop = make_loop(prepared_run(tmp_path))
    metrics, scored = loop.run_epoch()
    rows = sum(map(len, scored.parts))
    assert metrics.items() >= expected_accuracy(scored.validator_inputs).metrics().items()
    assert set(scored.columns) == set(COLUMNS)
    assert sum(column.nbytes for column in scored.columns.values()) == 16 * rows


def test_the_classes_by_the_heads_of_both_modalities_are_evidence(tmp_path: Path) -> None:
    loop = make_loop(prepared_run(tmp_path))
    for head in (loop.network.text_head, loop.network.picture_head):
        torch.nn.init.normal_(head[-1].weight, std=2.0, generator=torch.Generator().manual_seed(2))
    evidence = loop.score().validator_inputs
    wanted = []
    for rows in validator_rows(loop.corpus, loop.batches.labels):
        with loop.batches.evaluate([rows]) as feed, torch.inference_mode():
            ((_, batch),) = feed
            outputs = loop.network.eval()(batch)
        wanted.append(torch.stack([outputs.text_logits_DBC[0], outputs.picture_logits_DBC[0]]).argmax(-1).numpy())
    assert np.array_equal(evidence.target_modalities_2N, wanted[0])
    assert np.array_equal(evidence.source_modalities_2M, wanted[1])
    assert not np.array_equal(wanted[0][0], wanted[0][1])


def test_nothing_larger_stays_behind_the_columns() -> None:
    rows = 1000
    columns = {name: [torch.rand(rows // 4) for _ in range(4)] for name in COLUMNS}
    columns["label"] = [torch.zeros(rows // 4, dtype=torch.int32) for _ in range(4)]
    found = gather_columns(columns, rows, Collective(), device=torch.device("cpu"), dtype=torch.float32)
    storages = {name: torch.from_numpy(column).untyped_storage().nbytes() for name, column in found.items()}
    assert sum(storages.values()) == 16 * rows
    assert not any(columns.values())  # the batches' own are let go


def test_evidence_does_not_grow_with_the_target(tmp_path: Path) -> None:
    network = make_loop(prepared_run(tmp_path)).network
    sizes = []
    for rows in (MOST_ROWS, 1_000_000):
        parts = [Part("source", "train", 0, 0), Part("target", "train", 0, rows)]
        corpus = Corpus(pa.table({}), ["a", "b"], parts, [Part("source", "val", rows, 2 * rows), None], [])
        collector = ValidatorInputsCollector(corpus, np.zeros(2 * rows, np.int64), network)
        tensors = [x for x in vars(collector).values() if isinstance(x, torch.Tensor)]
        arrays = [x for x in vars(collector).values() if isinstance(x, np.ndarray)]
        sizes.append(sum(x.nbytes for x in tensors) + sum(x.nbytes for x in arrays))
        assert all(len(x) <= 2 * MOST_ROWS for x in [*tensors, *arrays])
        assert max((x.base.nbytes for x in arrays if x.base is not None), default=0) <= 2 * MOST_ROWS * 8
    assert sizes[0] == sizes[1]


def test_scores_are_computed_in_what_steps_are(tmp_path: Path) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        loop = make_loop(prepared_run(tmp_path, [f"train.precision={precision}"]))
        for head in loop.network.heads:
            torch.nn.init.normal_(head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
        found.append(loop.score())
    single, half = (scored.columns for scored in found)
    assert half["prob"].dtype == np.float32
    assert not np.array_equal(half["prob"], single["prob"])
    for name in ("prob", "score"):
        np.testing.assert_allclose(half[name], single[name], atol=0.05)
    sure = single["prob"] > 0.55
    assert sure.any()
    assert np.array_equal(half["label"][sure], single["label"][sure])


def test_the_host_waits_for_no_batch_that_is_scored(tmp_path: Path) -> None:
    asked = []
    for rows in (64, 4):
        loop = make_loop(prepared_run(tmp_path, [f"train.eval_batch_size={rows}"]))
        with Answers() as answers:
            loop.score()
        asked.append(dict(answers.found))
    assert asked[0] == asked[1]
