"""Training: the method, the recipe, the loop, the Ray Train driver, MLflow and the reports of a run.

Imports datasets_manifest.
"""
