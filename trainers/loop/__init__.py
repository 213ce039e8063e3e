"""Training on one worker: step, epochs, pseudo-label state, scoring. Imports model and below; knows neither Ray nor MLflow."""
