"""The encoders a recipe names: torchvision, timm and transformers models, weights, picture cards, adapters (LoRA).

Imports recipe and m2can. Knows neither Ray nor MLflow.
"""
