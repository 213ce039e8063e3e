"""Errors that end a command with exit code 1. The message says what to do next."""

from __future__ import annotations

import re

from datasets_manifest.errors import first_line, without_password
from trainers.failures import is_of_mlflow

_NOT_WRITTEN = re.compile(r"disk is full|disk I/O error|readonly database|No space left")  # SQLite's words


class ServiceUnavailable(RuntimeError):
    """Another service does not answer, or refuses."""


def in_words(error: BaseException) -> ServiceUnavailable | None:
    """An error of MLflow, its database or the way there, for command line, control plane and serving; None: another one."""
    if not is_of_mlflow(error):
        return None
    why = without_password(first_line(error))
    if _NOT_WRITTEN.search(why):
        room = "make room or let this user write there, then give the command again"
        return ServiceUnavailable(f"MLflow's store cannot be written: {why}; {room}")
    return ServiceUnavailable(
        f"MLflow does not answer, or refuses: {why}; is its address right "
        "(--tracking-uri, MLFLOW_TRACKING_URI, tracking.uri) and does it run? `m2can doctor` looks"
    )
