"""Train M2CAN from Python. Every name is imported when it is first used: `import m2can` itself costs almost nothing.

import m2can

result = m2can.train("recipe.yaml", overrides={"train.epochs": 5}, workers=2)
predictor = m2can.Predictor.load(result.checkpoint)
predictor.predict(["a lovely day"], ["day.jpg"]).labels
predictor.predict(frame)  # a pandas frame or a datasets.Dataset; `train` takes these, too
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets_manifest.errors import InputError as InputError
    from datasets_manifest.postcards.generate import write_postcards as write_postcards
    from m2can import models as models
    from m2can.prediction import Predictor as Predictor
    from m2can.training import load_recipe as load_recipe
    from m2can.training import train as train
    from m2can.training import tune as tune
    from trainers.failures import RunFailed as RunFailed
    from trainers.failures import TrackingUnavailable as TrackingUnavailable
    from trainers.recipe import Recipe as Recipe
    from trainers.run_result import Result as Result
    from tuning.driver import SweepResult as SweepResult

    __version__: str

_PLACES = {
    "InputError": "datasets_manifest.errors",
    "Predictor": "m2can.prediction",
    "Recipe": "trainers.recipe.recipe",
    "Result": "trainers.training_run",
    "RunFailed": "trainers.failures",
    "SweepResult": "tuning.driver",
    "TrackingUnavailable": "trainers.failures",
    "load_recipe": "m2can.training",
    "train": "m2can.training",
    "tune": "m2can.training",
    "write_postcards": "datasets_manifest.postcards.generate",
}
__all__ = ["__version__", "models", *_PLACES]


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("m2can.models")
    if name == "__version__":
        from importlib.metadata import version

        return version("m2can")
    if name not in _PLACES:
        raise AttributeError(f"module 'm2can' has no attribute {name!r}")
    globals()[name] = getattr(import_module(_PLACES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
