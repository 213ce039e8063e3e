"""Sweeps: many Train runs, compared and chosen from without target labels."""
