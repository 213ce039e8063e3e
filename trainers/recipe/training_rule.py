"""The rule for what a recipe leaves to it (`null`): rates, epochs and pseudo labels follow what is trained and the data's size.

1. What is trained decides the rates (RATES): encoders that start at random, new layers on frozen encoders, adapters (LoRA) of
   encoders, or pretrained encoders as a whole. A modality that is not read does not count. Of two encoders that are trained in
   different ways the later one in this list decides.
2. As many epochs as make LEAST_STEPS steps, at least LEAST_EPOCHS and at most MOST_EPOCHS.
3. On frozen encoders, unless `uacr.prior` is `uniform`, pseudo labels begin with the floor's, before the first epoch; else after
   three tenths of the epochs. They grow to all of the target over seven tenths of the epochs.
"""

from __future__ import annotations

from typing import Any, Literal

from trainers.m2can.names import ENCODERS_READ
from trainers.recipe.data_sections import PictureEncoderSection, TextEncoderSection
from trainers.recipe.overrides import Tree, flatten, merge, put
from trainers.recipe.presets import DECIDED_BY_RULE
from trainers.recipe.recipe import Recipe

Trained = Literal["random encoders", "heads on frozen encoders", "adapters of encoders", "pretrained encoders"]
RATES: dict[Trained, dict[str, float]] = {
    "random encoders": {
        "encoders": 2e-3, "projections": 2e-3, "fusion": 2e-3, "heads": 2e-3,
        "discriminators_source": 1e-3, "discriminators_target": 1e-3,
    },
    "heads on frozen encoders": {
        "encoders": 0.0, "projections": 1e-3, "fusion": 1e-3, "heads": 1e-3,
        "discriminators_source": 5e-4, "discriminators_target": 5e-4,
    },
    # Adapters want about ten times the rate of whole encoders: Schulman et al., "LoRA Without Regret", 2025.
    "adapters of encoders": {
        "encoders": 2e-4, "projections": 5e-4, "fusion": 5e-4, "heads": 5e-4,
        "discriminators_source": 2e-4, "discriminators_target": 3e-4,
    },
    "pretrained encoders": {
        "encoders": 2e-5, "projections": 5e-4, "fusion": 5e-4, "heads": 5e-4,
        "discriminators_source": 2e-4, "discriminators_target": 3e-4,
    },
}  # fmt: skip
LEAST_STEPS: dict[Trained, int] = {
    "random encoders": 400,
    "heads on frozen encoders": 300,
    "adapters of encoders": 300,
    "pretrained encoders": 300,
}
LEAST_EPOCHS, MOST_EPOCHS = 10, 100
WARMUP_SHARE = 0.3  # of the epochs
GROWTH = 0.7  # of the rate of pseudo labels, over the epochs after the warm-up: 0.1 an epoch in ten epochs


def what_is_trained(recipe: Recipe) -> Trained:
    read = ENCODERS_READ[recipe.network.modalities]
    encoders: list[TextEncoderSection | PictureEncoderSection] = [getattr(recipe.encoders, name) for name in read]
    trained = [encoder for encoder in encoders if encoder.freeze != "all"]
    if not trained:
        return "heads on frozen encoders"
    whole = [encoder for encoder in trained if encoder.lora is None]
    if any(encoder.tiny is None and encoder.weights != "random" for encoder in whole):
        return "pretrained encoders"
    return "random encoders" if len(whole) == len(trained) else "adapters of encoders"


def left_to_the_rule(recipe: Recipe) -> list[str]:
    """The keys that the rule decides and that this recipe does not state."""
    flat = recipe.flat()
    return [key for key in DECIDED_BY_RULE if flat[key] is None]


def decide(recipe: Recipe, rows: int, before: Recipe | None = None) -> tuple[Recipe, list[str]]:
    """Fill in what the recipe leaves to the rule.

    Args:
        rows: training records of the longest source.
        before: the recipe of the run that goes on; what stands there stays.

    Returns:
        the recipe with all values, and a note that names those that the rule has chosen.
    """
    missing = left_to_the_rule(recipe)
    if not missing:
        return recipe, []
    trained = what_is_trained(recipe)
    steps = -(-(recipe.data.samples_per_epoch or rows) // recipe.train.batch_size)
    epochs = recipe.train.epochs or (before.train.epochs if before else None) or _epochs(LEAST_STEPS[trained], steps)
    later = max(1, round(WARMUP_SHARE * epochs))  # where the network alone gives the first pseudo labels
    from_floor = (
        trained == "heads on frozen encoders" and recipe.uacr.prior != "uniform" and recipe.preset != "published"
    )
    stated = recipe.uacr.warmup
    warmup = stated if stated is not None else 0 if from_floor else later
    found: dict[str, Any] = {f"optimizer.lr.{part}": rate for part, rate in RATES[trained].items()}
    found |= {"train.epochs": epochs, "uacr.warmup": warmup}
    found |= {"uacr.update": min(1.0, round(GROWTH / max(1, epochs - (warmup or later)), 4))}
    if before is not None:
        found |= {key: value for key, value in before.flat().items() if key in found and value is not None}
    chosen: Tree = {}
    for key in missing:
        put(chosen, key, found[key])
    filled = Recipe.model_validate(merge(recipe.model_dump(mode="json"), chosen))
    values = ", ".join(f"{key}={value:g}" for key, value in flatten(chosen).items())
    return filled, [f"chosen for {trained} and {steps} {'step' if steps == 1 else 'steps'} an epoch: {values}"]


def _epochs(least_steps: int, steps: int) -> int:
    return min(max(-(-least_steps // steps), LEAST_EPOCHS), MOST_EPOCHS)
