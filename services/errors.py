"""What ends a command with exit code 1: something outside does not answer. The message has a next step."""

from __future__ import annotations


class ServiceUnavailable(RuntimeError):
    """A service outside does not answer, or refuses."""
