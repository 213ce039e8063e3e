"""Which Ray cluster a command joins, where its address comes from, and whether anybody answers there."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from datasets_manifest.errors import InputError
from trainers.preflight.ray_needs import ray_temp_folder

TOLD_AFTER_S = 5.0
GIVEN_UP_AFTER_S = 30.0
_STATE_FILE = "ray_current_cluster"  # `ray start` writes it, `ray stop` removes it; a private Ray does neither


@dataclass(frozen=True)
class Found:
    """A cluster's address. origin: who named it, in words."""

    address: str
    origin: str


def find_cluster(address: str | None) -> Found | None:
    """The cluster to join; None: start one for this command alone.

    Only clusters that were made to be joined count: one that is named, a job's own (RAY_ADDRESS), and that of `ray start`
    on this machine. The private Ray of another command is never joined.
    """
    named = ((address, "cluster.address (recipe, --set or --address)"), (os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS"))
    for place, origin in named:
        if place == "local":
            return None
        if place and place != "auto":
            return Found(place, origin)
    file = ray_temp_folder() / "ray" / _STATE_FILE
    with contextlib.suppress(OSError):
        if place := file.read_text().strip():
            return Found(place, f"Ray's state file {file}, which `ray start` wrote and `ray stop` removes")
    return None


def require_answer(found: Found, tell: Callable[[str], None]) -> None:
    """Wait until somebody answers at the address.

    Args:
        tell: called once with a line, after TOLD_AFTER_S seconds.

    Raises:
        InputError: the address has no host and port, or nobody answered for GIVEN_UP_AFTER_S seconds.
    """
    host, port = _host_and_port(found)
    began, told = time.monotonic(), False
    while not _answers(host, port):
        waited = time.monotonic() - began
        if waited >= GIVEN_UP_AFTER_S:
            raise InputError(
                f"no Ray cluster answers for {GIVEN_UP_AFTER_S:g} s; the address comes from {found.origin}",
                field="cluster.address",
                value=found.address,
                wanted="the address of a cluster that runs, or `local` for a Ray of this command's own",
            )
        if waited >= TOLD_AFTER_S and not told:
            told = True
            tell(f"waiting for a Ray cluster at {found.address}; the address comes from {found.origin}")
        time.sleep(0.5)


def _host_and_port(found: Found) -> tuple[str, int]:
    match = re.fullmatch(r"(?:ray://)?\[?(?P<host>[^/@]+?)\]?:(?P<port>\d{1,5})/?", found.address)
    if match is None:
        problem = f"is not a Ray cluster's address; it comes from {found.origin}"
        raise InputError(problem, field="cluster.address", value=found.address, wanted="HOST:PORT, or `local`")
    return match["host"], int(match["port"])


def is_open(host: str, port: int, timeout_s: float = 2.0) -> bool:
    """Whether a connection is accepted. A busy machine does that, too: it is the kernel that answers."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False


def _answers(host: str, port: int, timeout_s: float = 2.0) -> bool:
    """Whether a server of gRPC answers; with TLS, whether a connection is accepted."""
    if not is_open(host, port, timeout_s):
        return False
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", "false", ""):
        return True
    import grpc  # type: ignore[import-untyped]

    # A process that hangs still accepts connections; only one that runs says what it speaks.
    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            return False
    return True
