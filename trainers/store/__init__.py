"""Runs that lie in an object store: their working copies on this machine, what is brought and what is sent.

Imports datasets_manifest alone.
"""

from __future__ import annotations


def is_store(location: object) -> bool:
    """Whether a place of runs is an address, and no folder."""
    return "://" in str(location)
