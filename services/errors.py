"""Errors that end a command with exit code 1. The message says what to do next."""


class ServiceUnavailable(RuntimeError):
    """Another service does not answer, or refuses."""
