"""The audit log of the control plane."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any


class AuditLog:
    """One JSON line for every request: caller, method, path, status. Never a body, a token or a query.

    file: made with mode 600.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600), "a+b") as log:
            if log.tell() and os.pread(log.fileno(), 1, log.tell() - 1) != b"\n":
                log.write(b"\n")  # a process that was killed left half a line

    def write(self, **content: Any) -> None:
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()), **content}) + "\n"
        with self._lock, self._file.open("a", encoding="utf-8") as stream:
            stream.write(line)
