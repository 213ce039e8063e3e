"""Fixtures of the tests of tracking. MLflow and Ray are imported by those tests alone that ask for them: it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trainers.journal.journal import Journal


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder whose SQLite store is set up once: that takes seconds."""
    from trainers.tracking.address import resolve_tracking_uri
    from trainers.tracking.mlflow_run import open_client

    storage = tmp_path_factory.mktemp("a storage")
    open_client(resolve_tracking_uri(None, storage))
    return storage


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    from trainers.journal.journal import Journal

    return Journal(str(tmp_path / "journal"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may depend on the working folder or on the environment's MLflow, or be written into the folder."""
    folder = tmp_path / "working folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    assert not list(folder.iterdir())
