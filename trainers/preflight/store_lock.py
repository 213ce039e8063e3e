"""The same for a run in an object store: an object beside its journal, written anew with every beat of its holder.

Stores have no locks: of two commands that begin in the same second, the one whose object stays goes on.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from datasets_manifest.manifest import storage
from trainers.preflight.run_lock import LOCK_FILE, Holder, taken, this_process
from trainers.store.run_store import RunStore, store_told

BEAT_S = 5.0
DEAD_AFTER_S = 4 * BEAT_S
FIELD = "run.name"


def require_free_store(store: RunStore, on_wait: Callable[[str], None] = lambda words: None) -> None:
    """Refuse a run that another command works on; of another machine's, the heartbeat is watched for DEAD_AFTER_S seconds.

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
        on_wait(f"{store} belongs to {holder}; looking for {DEAD_AFTER_S:g} s whether that process is alive")
        until = time.monotonic() + DEAD_AFTER_S
        while time.monotonic() < until:
            time.sleep(BEAT_S / 5)
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
    own, over = this_process(), threading.Event()
    with store_told(store):
        _write(store, own, 0)
        holder, _ = _read(store)
    if holder is not None and holder != own:
        raise taken(store.name, FIELD, holder)
    beating = threading.Thread(target=_keep_beating, args=(store, own, over), daemon=True, name="m2can-store-heartbeat")
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        with contextlib.suppress(OSError):
            if _read(store)[0] == own:
                filesystem, path = store.filesystem()
                filesystem.delete_file(f"{path}/{LOCK_FILE}")


def _keep_beating(store: RunStore, own: Holder, over: threading.Event) -> None:
    number = 0
    while not over.wait(BEAT_S):
        with contextlib.suppress(OSError):  # the store may be away for a moment
            if _read(store)[0] not in (own, None):
                return
            number += 1
            _write(store, own, number)


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
