"""From a recipe to modules and back: building networks, checkpoints and model folders, the predictor.

Imports recipe and m2can. Knows neither Ray nor MLflow.
"""
