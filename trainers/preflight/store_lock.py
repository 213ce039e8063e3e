"""The lock of a run that lies in an object store: an object in it, written anew with every beat of its holder.

Stores have no locks: two commands that begin within the same second may both go on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from datasets_manifest.manifest import storage
from trainers.preflight import run_lock
from trainers.preflight.run_lock import LOCK_FILE, Holder, heart, taken, this_process
from trainers.store.run_store import RunStore, store_told

FIELD = "run.name"


def require_free_store(store: RunStore, on_wait: Callable[[str], None] = lambda words: None) -> None:
    """Refuse a run that another command works on; of another machine's, the heartbeat is watched as run_lock does.

    Args:
        on_wait: called with the reason before heartbeats are watched.

    Raises:
        InputError: says who has it.
    """
    with store_told(store):
        holder, beat = _read(store)
        if holder is None:
            return
        if holder.is_local:
            if holder.is_running():
                raise taken(store.name, FIELD, holder)
            return
        on_wait(f"{store} belongs to {holder}; looking for {run_lock.DEAD_AFTER_S:g} s whether that process is alive")
        until = time.monotonic() + run_lock.DEAD_AFTER_S
        while time.monotonic() < until:
            time.sleep(run_lock.BEAT_S / 5)
            now, number = _read(store)
            if now is None:
                return
            if (now, number) != (holder, beat):
                raise taken(store.name, FIELD, now)


@contextmanager
def store_lock(store: RunStore, on_wait: Callable[[str], None] = lambda words: None) -> Iterator[None]:
    """Hold the lock of a run in a store. The lock of a process that has died is taken over.

    Raises:
        InputError: another command holds it, or the store cannot be written.
    """
    require_free_store(store, on_wait)
    own, numbers = this_process(), itertools.count()
    with store_told(store):
        _write(store, own, next(numbers))
        holder, _ = _read(store)
    if holder is not None and holder != own:
        raise taken(store.name, FIELD, holder)
    try:
        with heart(lambda: _beat(store, own, next(numbers))):
            yield
    finally:
        with contextlib.suppress(OSError):
            if _read(store)[0] == own:
                filesystem, path = store.filesystem()
                filesystem.delete_file(f"{path}/{LOCK_FILE}")


def _beat(store: RunStore, own: Holder, number: int) -> bool:
    """Write the lock anew; False: it is another's now."""
    is_ours = _read(store)[0] in (own, None)
    if is_ours:
        _write(store, own, number)
    return is_ours


def _write(store: RunStore, own: Holder, beat: int) -> None:
    filesystem, path = store.filesystem()
    with filesystem.open_output_stream(f"{path}/{LOCK_FILE}") as stream:
        stream.write(json.dumps({"holder": asdict(own), "beat": beat}).encode())


def _read(store: RunStore) -> tuple[Holder | None, int]:
    """Who holds the lock and his last beat. Raises OSError: the store does not answer."""
    try:
        content = json.loads(storage.read_bytes(f"{store.uri}/{LOCK_FILE}"))
        return Holder(**content["holder"]), int(content["beat"])
    except FileNotFoundError:
        return None, 0
    except (ValueError, TypeError, KeyError):
        return None, 0
