"""A Ray that does not start in time on a busy machine is started once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from trainers.cluster import local_cluster
from trainers.failures import RunFailed

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


@pytest.mark.parametrize("late", [1, 2])
def test_a_start_that_is_late_is_tried_once_more(
    late: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[dict[str, Any]] = []

    def init(address: str, **options: Any) -> None:
        started.append(options)
        if len(started) <= late:
            raise Exception(LATE)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(local_cluster, "kill_own_ray", lambda: None)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if late == 1:
        local_cluster._start_patiently({"log_to_driver": False})
    else:
        with pytest.raises(RunFailed, match="did not start within half a minute, twice: this machine is too busy"):
            local_cluster._start_patiently({"log_to_driver": False})
    assert started == 2 * [{"log_to_driver": False, "include_dashboard": False}]
    assert capsys.readouterr().err == "note: Ray did not start within half a minute; once more\n"


def test_another_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: Any, **__: Any) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(OSError, match="no memory"):
        local_cluster._start_patiently({})
