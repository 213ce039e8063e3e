"""From a recipe to a network and back: building and its optimizers, checkpoints and model folders, the predictor.

Imports encoders, compute, recipe and m2can. Knows neither Ray nor MLflow.
"""
