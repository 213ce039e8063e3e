"""Training on one worker: epochs, pseudo-label state, scoring. Imports step and below; knows neither Ray nor MLflow."""
