"""Features that all trials of a sweep share: computed once where every trial freezes the same encoders."""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import replace
from pathlib import Path

from datasets_manifest.errors import InputError
from datasets_manifest.features.feature_files import TOWERS, FeatureFolder
from trainers.features.compute import compute_features
from trainers.model.features import require_frozen
from trainers.recipe import Recipe
from trainers.recipe.overrides import put
from tuning.sweep import SweepPlan

FOLDER = "features"  # in the sweep's
_DECIDE = ("encoders.", "data.", "preset", "train.start_from")  # keys that may change what the encoders give
_FREE = ("data.samples_per_epoch", "data.max_bad_fraction", "encoders.prompts", "encoders.activation_checkpointing")


def changed_keys(plan: SweepPlan) -> set[str]:
    """The keys in which trials differ from each other."""
    overrides = [override for variant in plan.sweep.variants.values() for override in variant]
    return {*plan.sweep.space, *(override.partition("=")[0].strip() for override in overrides)}


def of_recipe(plan: SweepPlan, base: Recipe) -> str | None:
    """The features that a sweep's recipe names for all its trials, in words; None: it names none, or trials differ in them."""
    if base.encoders.features is None or "encoders.features" in changed_keys(plan):
        return None
    return f"those of the recipe, {base.encoders.features}"


def why_not(plan: SweepPlan, base: Recipe) -> str | None:
    """Why trials do not share features, in words; None: they do.

    Args:
        base: the recipe without a trial's values.
    """
    if not plan.sweep.share_features:
        return "share_features is false"
    if base.encoders.features is not None:
        return f"the recipe has its features, {base.encoders.features}"
    try:
        require_frozen(base)
    except InputError as error:
        return f"{error.field} is {error.value}"
    deciding = sorted(key for key in changed_keys(plan) if key.startswith(_DECIDE) and key not in _FREE)
    if deciding:
        return f"trials differ in {deciding[0]}"
    sections = [getattr(base.encoders, tower) for tower in TOWERS]
    if len(set(plan.sweep.seeds)) > 1 and any(section.tiny or section.weights == "random" for section in sections):
        return "an encoder is random, and trials have different seeds"
    return None


def share(plan: SweepPlan, base: Recipe, folder: Path) -> tuple[SweepPlan, str | None]:
    """Compute the features of a sweep's encoders, or what is missing of them, and the plan whose trials train on them.

    Ray must be running.

    Args:
        folder: of the sweep.

    Returns:
        the plan as it is, and None, where trials do not share features; else what they share, in words: the recipe's own, too.

    Raises:
        InputError: the recipe or its data are not right.
        OSError: disk full or not writable.
    """
    if why_not(plan, base) is not None:
        return plan, of_recipe(plan, base)
    place, started = folder / FOLDER, time.monotonic()
    _tell("all trials freeze the same encoders: their features are computed once (share_features)")
    summary = compute_features(base, place)
    said = FeatureFolder(place, "encoders.features").described()
    if summary.resumed < summary.records:
        said = f"{said}, computed in {time.monotonic() - started:.0f} s"
    _tell(f"trials train on features: {said}")
    tree = copy.deepcopy(plan.tree)
    put(tree, "encoders.features", str(place))
    return replace(plan, tree=tree), said


def _tell(words: str) -> None:
    print(f"note: {words}", file=sys.stderr, flush=True)
