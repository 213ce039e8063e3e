"""Sweeps that come with the project."""
