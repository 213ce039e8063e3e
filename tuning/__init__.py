"""Sweeps: search spaces, schedulers, trials and their report. One trial is one training run. Imports trainers."""
