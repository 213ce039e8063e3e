"""The driver: Recipe → Ray Train → chosen checkpoint → MLflow."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from datasets_manifest.errors import InputError
from datasets_manifest.files import write_atomically
from datasets_manifest.manifest.corpus import Corpus, load_corpus, require_pictures
from trainers.cluster.disk import evaluation_bytes, require_disk, retention
from trainers.cluster.journal_callback import JournalCallback
from trainers.cluster.memory_hints import ended_by_memory, hints
from trainers.cluster.monitor import Listener, start_monitor
from trainers.cluster.resources import worker_resources
from trainers.cluster.worker import WorkerConfig
from trainers.cluster.worker_entrypoint import train_worker
from trainers.failures import RunFailed, RunStopped
from trainers.model.build import build_network
from trainers.model.checkpoint import ModelCard, read_json
from trainers.model.encoders import text_config
from trainers.model.network_checks import require_parts, require_statistics
from trainers.model.precision import expected_device, require_device
from trainers.model.sizes import state_sizes
from trainers.model.vocabulary import make_vocabulary
from trainers.recipe.recipe import Recipe, make_recipe
from trainers.tracking.address import run_storage
from trainers.tracking.journal import EpochRecord, Journal
from trainers.tracking.outcome import Outcome, choose_epoch_of
from trainers.validators import NEED_SOURCE_VALIDATION


@dataclass(frozen=True)
class Prepared:
    """A recipe whose inputs were all looked at: what is wrong is found here, before anything of a cluster is taken."""

    recipe: Recipe
    name: str
    folder: Path
    corpus: Corpus
    card: ModelCard
    notes: list[str]
    checkpoint_bytes: int  # of one checkpoint; a little more than its real size
    state_bytes: int  # on each worker, whatever the batch: weights, gradients, optimizer state


def prepare(recipe: Recipe) -> Prepared:
    """Read the manifests, look for the pictures' files, try the encoders.

    Raises:
        InputError: what is wrong with the recipe or the data.
    """
    data, storage = recipe.data, run_storage(recipe)
    corpus = load_corpus(data.sources, data.target, data.train_split, data.val_split)
    if isinstance(recipe.uacr.prior, list) and len(recipe.uacr.prior) != len(corpus.classes):
        raise InputError(
            "needs a share for every class",
            field="uacr.prior",
            value=recipe.uacr.prior,
            wanted=f"{len(corpus.classes)} numbers, for {', '.join(corpus.classes)}",
        )
    samples = data.samples_per_epoch or max(len(part) for part in corpus.train[:-1])
    steps = -(-samples // recipe.train.batch_size)
    if samples // steps < recipe.cluster.most_workers:
        raise InputError(
            f"a step has {samples // steps} rows of each domain: some workers would have none",
            field="cluster.workers",
            value=recipe.cluster.workers,
            wanted=f"at most {samples // steps}",
        )
    validator = recipe.selection.validator
    if validator in NEED_SOURCE_VALIDATION and not any(corpus.val[:-1]):
        raise InputError(
            "needs labelled validation rows of a source, and no source has that split",
            field="selection.validator",
            value=validator,
            wanted=f"`infomax`, `ensv`, …, or the split `{data.val_split}` in a source's manifest",
        )
    notes = corpus.notes + require_pictures(corpus, data.max_bad_fraction)
    vocabulary = make_vocabulary(recipe, corpus)
    card = ModelCard(
        recipe=recipe,
        classes=corpus.classes,
        sources=[part.domain for part in corpus.train[:-1]],
        target=corpus.target,
        text_config=text_config(recipe.encoders.text, vocabulary.size, vocabulary.pad_id, data.texts.max_tokens),
        vocabulary=vocabulary,
    )
    device = expected_device(recipe)
    if device is not None:
        require_device(recipe, device)
    network = build_network(recipe, card.text_config, len(corpus.classes), load_weights=True)
    require_statistics(network, data.pictures.crop)
    require_parts(network, recipe.train.accumulate)
    name = recipe.run.name or f"{corpus.target}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    sizes = state_sizes(card, network)
    size = sizes.files + evaluation_bytes(recipe, corpus)
    notes += require_disk(recipe, size, storage / name)
    return Prepared(recipe, name, storage / name, corpus, card, notes, size, sizes.memory)


def train(
    prepared: Prepared,
    *,
    on_step: Callable[[dict[str, Any]], None] = lambda content: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    trace: Path | None = None,
    profile: bool = False,
    stop: threading.Event | None = None,
    share: float = 1.0,
) -> Outcome:
    """Run the workers to the end. Ray must be running.

    Args:
        share: part of the cluster's CPUs that this run may take, 0 to 1.
        profile: write a profile of a few steps of the first worker to the run's folder, `profile/`.
        stop: once it is set, the workers leave a checkpoint between two steps and the run ends.

    Raises:
        InputError: the cluster lacks what the recipe asks for.
        RunFailed: training ended without a model.
        RunStopped: `stop` was set.
    """
    _claim(prepared)
    trainer, listener = start_workers(
        prepared,
        train_worker,
        restarts=prepared.recipe.cluster.max_failures,
        on_step=on_step,
        on_epoch=on_epoch,
        trace=trace,
        profile=profile,
        stop=stop,
        share=share,
    )
    with ended_with(listener, prepared), listener:
        result = trainer.fit()
    if listener.stopped is not None:
        raise RunStopped(
            f"{prepared.name}: stopped in epoch {listener.stopped['epoch']} after step {listener.stopped['step']}; "
            f"run.name={prepared.name} goes on from there"
        )
    kept = {int(m["epoch"]): Path(found.path) for found, m in result.best_checkpoints if not m.get("partial")}
    return choose_epoch_of(
        prepared.name, prepared.folder, prepared.card, prepared.corpus, listener.journal.read(), kept
    )


def start_workers(
    prepared: Prepared,
    worker: Callable[[dict[str, Any]], None],
    *,
    restarts: int,
    on_step: Callable[[dict[str, Any]], None] = lambda content: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    trace: Path | None = None,
    profile: bool = False,
    stop: threading.Event | None = None,
    share: float = 1.0,
) -> tuple[TorchTrainer, Listener]:
    """The trainer whose `fit` runs `worker` on the recipe's workers, and what listens to them meanwhile.

    Raises:
        InputError: the cluster lacks what the recipe asks for.
    """
    recipe = prepared.recipe
    scaling, data_share = worker_resources(recipe, share)
    journal = Journal(str(prepared.folder / "journal"))
    monitor = start_monitor()
    config = WorkerConfig(
        card=prepared.card,
        corpus=replace(prepared.corpus, table=prepared.corpus.table.slice(0, 0)),
        table=ray.put(prepared.corpus.table),
        share=data_share,
        monitor=monitor,
        trace=trace is not None,
        profile=profile,
        threads=max(1, int(scaling.resources_per_worker["CPU"])),
        folder=prepared.folder,
    )
    trainer = TorchTrainer(
        worker,
        train_loop_config={"worker": ray.put(config)},
        torch_config=TorchConfig(timeout_s=int(recipe.cluster.timeout_s)),
        scaling_config=scaling,
        run_config=RunConfig(
            name=prepared.name,
            storage_path=str(prepared.folder.parent),
            failure_config=FailureConfig(max_failures=restarts),
            checkpoint_config=retention(recipe, prepared.checkpoint_bytes),
            callbacks=[JournalCallback(journal.folder)],
        ),
    )
    listener = Listener(
        monitor,
        journal,
        on_step=on_step,
        on_epoch=on_epoch,
        stop=stop or threading.Event(),
        run_folder=prepared.folder,
        trace=trace,
    )
    return trainer, listener


@contextlib.contextmanager
def ended_with(listener: Listener, prepared: Prepared) -> Iterator[None]:
    """Put what ended the workers into words.

    Raises:
        RunFailed: they failed, or told the driver of something that no restart can mend.
    """
    failed: ray.train.TrainingFailedError | None = None
    try:
        yield
    except ray.train.TrainingFailedError as error:
        failed = error
    full = listener.out_of_memory or (ended_by_memory(failed) if failed is not None else None)
    if full is not None:
        raise RunFailed(hints(prepared.recipe, prepared.state_bytes, full)) from failed
    if listener.fatal is not None or failed is not None:
        raise RunFailed(listener.fatal or f"{failed}\nThe workers: {listener.where()}") from failed


# What may differ when a run goes on under its name: where and on what it runs, not what is computed.
_FREE = ("cluster.", "checkpoint.", "tracking.", "run.", "selection.", "data.kept_views")


def _claim(prepared: Prepared) -> None:
    """Make the run's folder with its recipe, unless it is there. Raises InputError: the name is another recipe's."""
    file = prepared.folder / "recipe.json"
    require_own_name(prepared)
    if not file.is_file():
        recipe = prepared.recipe.model_dump(mode="json")
        write_atomically(file, json.dumps(recipe, indent=1, ensure_ascii=False) + "\n")


def require_own_name(prepared: Prepared) -> None:
    """A run's folder that is there belongs to this run only if the recipe is the same.

    Raises:
        InputError: the name is another recipe's.
    """
    file = prepared.folder / "recipe.json"
    if file.is_file():
        before, now = make_recipe(read_json(file), str(file)).flat(), prepared.recipe.flat()
        changed = [key for key in now if now[key] != before.get(key) and not key.startswith(_FREE)]
        if changed:
            raise InputError(
                f"is the name of a run with another recipe (it differs in {', '.join(changed[:3])})",
                field="run.name",
                value=prepared.name,
                wanted=f"another name, or {changed[0]}={before.get(changed[0])}",
            )


def set_threads() -> None:
    """The driver's own work (trying the network, pictures) must not take the workers' cores."""
    torch.set_num_threads(1)
