"""One training step: passes, accumulation, gradients, loss scale, its clock. Imports model and below."""
