"""Fixtures of the tests of the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.services.registered import Registered


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """Two versions of one model. Tests may move aliases of their own, and alter no file."""
    from tests.services.registered import register_two

    return register_two(tmp_path_factory.mktemp("registered"))
