"""Searched keys that cannot have acted: whatever their value, the trials would have been the same."""

from __future__ import annotations

from collections.abc import Callable

from trainers.recipe import Recipe
from tuning.sweep import SweepPlan
from tuning.trial_results import Trial

# (key or beginning of keys, whether it is idle with this recipe, why)
_RULES: list[tuple[str, Callable[[Recipe], bool], str]] = [
    ("uacr.", lambda recipe: not recipe.uacr.enabled, "uacr.enabled is false"),
    ("objective.temperature", lambda recipe: recipe.objective.mcc == 0, "objective.mcc is 0"),
    ("objective.smoothing", lambda recipe: recipe.objective.cdafa == 0, "objective.cdafa is 0"),
    ("objective.discriminators", lambda recipe: recipe.objective.cdafa == 0, "objective.cdafa is 0"),
    ("optimizer.lr.discriminators_", lambda recipe: recipe.objective.cdafa == 0, "objective.cdafa is 0"),
    *(
        (
            key,
            lambda recipe: recipe.encoders.text.freeze == recipe.encoders.picture.freeze == "all",
            "both encoders are frozen",
        )
        for key in ("optimizer.lr.encoders", "optimizer.layer_decay")
    ),
    ("optimizer.betas", lambda recipe: recipe.optimizer.type == "adadelta", "adadelta has no betas"),
    ("optimizer.eps", lambda recipe: recipe.optimizer.type == "sgd", "sgd has no eps"),
    ("schedule.power", lambda recipe: recipe.schedule.mode != "poly", "schedule.mode is not poly"),
    ("schedule.lowest_lr", lambda recipe: recipe.schedule.mode not in ("poly", "cosine"), "schedule.mode has no end"),
    ("schedule.multistep", lambda recipe: recipe.schedule.mode != "multistep", "schedule.mode is not multistep"),
    ("encoders.picture.", lambda recipe: recipe.network.modalities == "text", "network.modalities is text"),
    ("data.pictures.", lambda recipe: recipe.network.modalities == "text", "network.modalities is text"),
    ("encoders.text.", lambda recipe: recipe.network.modalities == "pictures", "network.modalities is pictures"),
    ("data.texts.", lambda recipe: recipe.network.modalities == "pictures", "network.modalities is pictures"),
]


def idle_keys(plan: SweepPlan, trials: list[Trial]) -> dict[str, str]:
    """Searched key → why it cannot have acted in any of the trials; empty without finished trials.

    Args:
        trials: of the sweep; those that finished count.
    """
    finished = [trial for trial in trials if trial.finished]
    if not finished:
        return {}
    found = {}
    recipes = [plan.recipe(plan.trial_overrides(trial.config)) for trial in finished]
    labelled = any(
        "uacr/kept" in record.metrics and record.metrics["uacr/kept"] > 0 for t in finished for record in t.records
    )
    for key in plan.sweep.space:
        reasons = [_why_idle(key, recipe) for recipe in recipes]
        if all(reasons):
            found[key] = str(reasons[0])
        elif key.startswith("uacr.") and key != "uacr.enabled" and not labelled and any(t.records for t in finished):
            found[key] = "no trial used a pseudo label"
        elif len(finished) > 1 and len({repr(trial.config.get(key)) for trial in finished}) == 1:
            found[key] = f"all trials had the value {finished[0].config.get(key)}"
    return found


def _why_idle(key: str, recipe: Recipe) -> str | None:
    if key == "uacr.enabled":
        return None
    return next((why for stem, idle, why in _RULES if key.startswith(stem) and idle(recipe)), None)
