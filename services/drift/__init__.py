"""Data after deployment: a bounded sample of what a model saw, and how it differs from what was there in training."""
