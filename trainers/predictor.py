"""Models registered by version 0.1 import Predictor from here; it stands in trainers.model.predictor."""

from trainers.model.predictor import Predictor

__all__ = ["Predictor"]
