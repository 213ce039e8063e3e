"""`m2can features`: a recipe's frozen encoders over all records that training reads, once.

rows ──blocks──▶ views (tasks on CPUs) ──▶ encoders (an actor each GPU) ──▶ shards, written by the command
                 └── without GPUs one actor a CPU does both ──┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from datasets_manifest.features import feature_files
from datasets_manifest.features.feature_views import encode_views
from datasets_manifest.files import require_folder
from datasets_manifest.stream.encode import Encoding, index_table
from trainers.compute.device_batches import make_encoding
from trainers.model.card import ModelCard
from trainers.model.features import FrozenEncoders, described, encoder_weights, require_frozen
from trainers.preflight.features import begin_encoders, seeded_network
from trainers.preflight.inputs import read_inputs
from trainers.preflight.preparation import prepare
from trainers.recipe import Recipe

ROWS = 64  # of a block: what the encoders see at a time, of each view
STRONG_VIEWS = 2


@dataclass(frozen=True)
class FeatureSummary:
    """Counts of records.

    records: with features. with_bad_pictures: some of their pictures could not be read. resumed: written by an earlier,
    interrupted call. strong_views: of each. bytes: of the shards. notes: what should be known of the encoders and what
    they read.
    """

    records: int
    with_bad_pictures: int
    resumed: int
    strong_views: int
    bytes: int
    out: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureJob:
    """What every task and actor is given, beside the table."""

    card: ModelCard
    encoding: Encoding
    strong: int


def compute_features(
    recipe: Recipe,
    out: Path,
    *,
    strong: int = STRONG_VIEWS,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    start_ray: Callable[[], object] = lambda: None,
) -> FeatureSummary:
    """Compute the features of all records of a recipe's domains into the folder `out`, or those that are missing there.

    The encoders compute in float32, in float64 where `train.precision` is fp64; features are float32.

    Args:
        strong: number of strong views, 1 or more.
        on_rows: called with records done and records in all.
        start_ray: called once recipe, data and folder were found good; afterwards Ray must be running.

    Raises:
        InputError: an encoder is trained, the recipe or its data are not right, or `out` holds something else.
        OSError: disk full or not writable.
    """
    require_frozen(recipe)
    require_folder(out, "OUT")
    inputs = read_inputs(_without_run(recipe))
    prepared = prepare(inputs.recipe, inputs)
    notes = prepared.notes[len(inputs.notes) :]  # those of the encoders; the others are of training
    corpus, card = prepared.corpus, prepared.card
    network = seeded_network(card)
    begin_encoders(network, prepared.start.model if prepared.start is not None else None, prepared.taken)
    records = feature_files.records_of(corpus)
    content = described(card, network, records, strong)
    feature_files.require_same(out, content)
    missing = feature_files.missing_shards(out, records.num_rows)
    if missing:
        start_ray()
    feature_files.begin(out, content)
    done = resumed = records.num_rows - sum(len(_rows(shard, records)) for shard in missing)
    on_rows(done, records.num_rows)
    if missing:
        job = FeatureJob(card, make_encoding(card.recipe, card.vocabulary), strong)
        rows = np.concatenate([_rows(shard, records) for shard in missing])
        blocks = computed_on_ray(job, encoder_weights(network), corpus.table, rows)
        for number in write_shards(out, records, missing, blocks):
            done += number
            on_rows(done, records.num_rows)
    shards = feature_files.finish(out)["shards"]
    folder = feature_files.FeatureFolder(out, "OUT")
    bad, size = folder.with_bad_pictures(), sum(shard["bytes"] for shard in shards.values())
    return FeatureSummary(records.num_rows, bad, resumed, strong, size, str(out), tuple(notes))


def _without_run(recipe: Recipe) -> Recipe:
    """No run begins: its name and its MLflow are not looked at, nor features that the recipe is to be trained on."""
    update: dict[str, Any] = {
        "encoders": recipe.encoders.model_copy(update={"features": None}),
        "run": recipe.run.model_copy(update={"name": None}),
        "tracking": recipe.tracking.model_copy(update={"enabled": False}),
    }
    return recipe.model_copy(update=update)


def _rows(shard: int, records: pa.Table) -> np.ndarray:
    return feature_files.rows_of_shard(shard, records.num_rows)


def write_shards(out: Path, records: pa.Table, shards: list[int], blocks: Iterator[pa.Table]) -> Iterator[int]:
    """Write blocks of computed rows as they come, in order, a shard at a time; the number of records in each."""
    pending: list[pa.Table] = []
    for shard in shards:
        size = len(_rows(shard, records))
        while sum(block.num_rows for block in pending) < size:
            pending.append(next(blocks))
        joined = pa.concat_tables(pending)
        feature_files.write_shard(out, shard, records, joined.slice(0, size))
        pending = [joined.slice(size)]
        yield size


def computed_on_ray(
    job: FeatureJob, weights: dict[str, Tensor], table: pa.Table, rows: np.ndarray
) -> Iterator[pa.Table]:
    """The features of rows of a table, in order; Ray must be running."""
    import ray.data

    from datasets_manifest.stream.ray_stream import quiet

    quiet()
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0.0)) if job.card.recipe.cluster.device != "cpu" else 0
    cpus = max(1, int(resources.get("CPU", 1.0)))
    index = index_table(np.zeros_like(rows), rows, np.zeros_like(rows))
    given = {"table": ray.put(table), "job": ray.put(job)}
    dataset = ray.data.from_blocks([index.slice(start, ROWS) for start in range(0, len(rows), ROWS)])
    how = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    if gpus:
        dataset = dataset.map_batches(encode_block, fn_kwargs=given, num_cpus=1, **how)
    dataset = dataset.map_batches(
        EncoderActor,
        fn_constructor_kwargs={**given, "weights": ray.put(weights)},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gpus or cpus),
        num_cpus=0.5 if gpus else 1,
        num_gpus=1 if gpus else 0,
        **how,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def encode_block(index: pa.Table, table: Any, job: Any) -> pa.Table:
    """A Ray Data task: rows of the table that the reference names, in all views."""
    import ray

    found = ray.get(job)
    return encode_views(index, ray.get(table), found.encoding, found.strong)


class EncoderActor:
    """A Ray Data actor: the frozen encoders, on the GPU that Ray gave it. It makes the views of rows that have none yet."""

    def __init__(self, table: Any, job: Any, weights: Any) -> None:
        import ray

        torch.set_num_threads(1)
        self.table, self.job = ray.get(table), ray.get(job)
        device = torch.device("cuda" if ray.get_runtime_context().get_accelerator_ids().get("GPU") else "cpu")
        self.encoders = FrozenEncoders(self.job.card, ray.get(weights), device)

    def __call__(self, block: pa.Table) -> pa.Table:
        job = self.job
        if "bad" not in block.column_names:
            block = encode_views(block, self.table, job.encoding, job.strong)
        return self.encoders(block, job.encoding, job.strong)
