"""What a run wrote down and what it came to: the journal of epochs, findings, the chosen epoch.

Imports model and validators. Knows neither Ray nor MLflow.
"""
