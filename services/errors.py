"""Errors that end a command with exit code 1. The message has a next step."""

from __future__ import annotations


class ServiceUnavailable(RuntimeError):
    """Another service does not answer, or refuses."""
