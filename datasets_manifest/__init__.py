"""What the data is and how it streams. Imports nothing else of ours; torch, transformers and MLflow are not needed here."""
