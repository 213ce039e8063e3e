"""What a recipe names: its run's folder and its data. Looked at without torch or Ray, whose imports take seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets_manifest.errors import InputError
from datasets_manifest.files import read_json, require_folder
from datasets_manifest.manifest import storage
from datasets_manifest.records.corpus import Corpus, load_corpus
from datasets_manifest.records.picture_check import require_pictures
from datasets_manifest.records.sharded_table import in_memory, labels_of
from datasets_manifest.records.target_labels import TargetLabels, own_target_labels, read_target_labels
from trainers.journal.findings import before_start
from trainers.preflight.run_lock import require_free
from trainers.preflight.start import Start, find_start, require_same_run
from trainers.preflight.store_lock import require_free_store
from trainers.recipe import Recipe, make_recipe
from trainers.recipe.overrides import differing
from trainers.recipe.training_rule import decide, left_to_the_rule
from trainers.store.run_store import require_store, store_told
from trainers.tracking.address import run_storage, run_store
from trainers.tracking.mlflow_check import require_tracking
from trainers.tracking.provenance import data_hashes
from trainers.validators import NEED_SOURCE_VALIDATION

DATA = "data.json"  # in a run's folder: hashes of the data that it began with
# What may differ when a run goes on under its name: where and on what it runs, not what is computed.
_FREE = ("cluster.", "checkpoint.", "tracking.", "run.", "selection.")


@dataclass(frozen=True)
class Inputs:
    """A recipe with all its values, its data, what it starts from, and what its user should know of them.

    before: the recipe of the run that goes on under this name, or whose training goes on under another.
    """

    recipe: Recipe
    corpus: Corpus
    notes: list[str]
    start: Start | None = None
    before: Recipe | None = None


def read_inputs(recipe: Recipe) -> Inputs:
    """Look at the run's name and folder, read the manifests, look for the pictures' files. Nothing is written.

    Raises:
        InputError: what is wrong with the recipe or the data.
    """
    data, runs = recipe.data, run_storage(recipe)
    folder = runs / recipe.run.name if recipe.run.name is not None else None
    require_folder(runs, "run.storage")
    if folder is not None:
        require_free(folder)
    bring_run(recipe)
    if folder is not None:
        require_own_name(recipe, folder)
    require_tracking(recipe)
    stored = run_store(recipe)
    corpus = load_corpus(
        data.sources, data.target, data.train_split, data.val_split, runs if stored is None else stored.uri
    )
    if recipe.train.has_few_labels:
        target = corpus.train[-1]
        of_target = corpus.table.slice(target.start, len(target))
        ids = in_memory(of_target.select(["id"]))["id"].to_pylist()
        given = given_labels(recipe, ids, labels_of(of_target), corpus.classes, target.start)
        corpus = replace(corpus, given=given)
    goes_on = folder is not None and require_same_data(corpus, folder)
    _check_against_data(recipe, corpus)
    start = find_start(recipe, runs, folder)
    before = recipe_of_run(folder) if folder is not None else None
    if before is None and start is not None and start.epoch is not None:
        before = start.card.recipe  # a run whose training goes on keeps what the rule chose for it
    longest_source = max(len(part) for part in corpus.train[:-1])
    recipe, chosen = decide(recipe, longest_source, before)
    if start is not None and start.epoch is not None:
        require_same_run(start, recipe, corpus)
    steps = -(-(data.samples_per_epoch or longest_source) // recipe.train.batch_size)
    warnings = [str(finding) for finding in before_start(recipe, steps)]
    notes = corpus.notes + require_pictures(corpus, data.max_bad_fraction, again=goes_on) + chosen + warnings
    return Inputs(recipe, corpus, notes, start, before)


def bring_run(recipe: Recipe) -> None:
    """Where runs lie in an object store: look at the store, and bring what it has of this run. Nothing is done elsewhere.

    Raises:
        InputError: the store cannot be read or written, or another command works on the run.
    """
    runs = run_store(recipe)
    if runs is None:
        return
    require_store(runs)
    if recipe.run.name is not None:
        run = runs / recipe.run.name
        require_free_store(run, on_wait=lambda words: print(f"note: {words}", file=sys.stderr, flush=True))
        with store_told(run):
            run.bring()


def given_labels(
    recipe: Recipe, ids: Sequence[str], labels_N: np.ndarray, classes: Sequence[str], start: int = 0
) -> TargetLabels | None:
    """The target's labels that the recipe lets training use; None: it lets it use none.

    Args:
        ids, labels_N: of the target's training records.
        start: row number of the first of them.

    Raises:
        InputError: there is none, or they do not fit the records.
    """
    named = recipe.train.target_labels
    if not recipe.train.has_few_labels:
        return None
    if named == "few":
        return own_target_labels(labels_N, ids, start)
    return read_target_labels(named if storage.is_uri(named) else Path(named), ids, start, classes)


def recipe_of_run(folder: Path) -> Recipe | None:
    """The recipe with which a run's folder was begun; None if there is none. Raises InputError: it is damaged.

    Where it leaves a key of pictures open, it is older than the key: pictures were made in the published way then.
    """
    file = folder / "recipe.json"
    if not file.is_file():
        return None
    recipe = make_recipe(read_json(file), str(file))
    views = recipe.data.pictures.views()
    return recipe.with_pictures({key: getattr(views, key) for key in recipe.data.pictures.left_to_the_card})


def require_own_name(recipe: Recipe, folder: Path) -> None:
    """A run's folder that is there belongs to this run only if the recipe is the same.

    Raises:
        InputError: the name is another recipe's.
    """
    found = recipe_of_run(folder)
    if found is not None:
        before, now, open_keys = found.flat(), recipe.flat(), left_to_the_rule(recipe)
        open_keys += [] if recipe.data.texts.max_tokens is not None else ["data.texts.max_tokens"]
        open_keys += [f"data.pictures.{key}" for key in recipe.data.pictures.left_to_the_card]
        changed = [key for key in differing(now, before) if not key.startswith(_FREE) and key not in open_keys]
        if changed:
            raise InputError(
                f"is the name of a run with another recipe (it differs in {', '.join(changed[:3])})",
                field="run.name",
                value=folder.name,
                wanted=f"another name, or {changed[0]}={before.get(changed[0])}",
            )


def require_same_data(corpus: Corpus, folder: Path) -> bool:
    """A run goes on with the records that it began with: its checkpoints name them by their row.

    Returns:
        whether there is such a run; False also for one of an older version, which did not keep what it began with.

    Raises:
        InputError: records, labels or classes are others now.
    """
    file = folder / DATA
    if not file.is_file():
        return False
    before, now = read_json(file), data_hashes(corpus)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        raise InputError(
            f"is the name of a run that began with other data ({', '.join(changed[:3])} changed since)",
            field="run.name",
            value=folder.name,
            wanted="the data as they were, or another name",
        )
    return True


def _check_against_data(recipe: Recipe, corpus: Corpus) -> None:
    """Raises InputError: a key that does not fit the number of classes, rows or splits."""
    data = recipe.data
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
