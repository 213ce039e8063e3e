"""How a command ends that is asked to: by SIGTERM (exit code 143), by Ctrl-C (130), by a terminal that closes (129)."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from trainers.failures import RunStopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_received: list[int] = []  # the first signal is the one that the exit code names
_handled: list[object] = []  # what stands inside of another keeps what that one has received


def exit_code() -> int:
    """128 and the number of the signal that asked the command to stop."""
    return 128 + (_received[0] if _received else signal.SIGTERM)


@contextmanager
def stop_on_signals(grace_s: float, going_on: Callable[[], str]) -> Iterator[threading.Event]:
    """The event is set by the first signal: the workers then leave a checkpoint.

    RunStopped follows after `grace_s` seconds if the run has not ended by then, or at once with a second Ctrl-C. Outside the
    main thread signals cannot be handled: nothing is done there.

    Args:
        going_on: says how the run goes on.
    """
    stop = threading.Event()

    def asked(number: int, _: object) -> None:
        if stop.is_set():
            if number == signal.SIGINT:
                raise RunStopped(f"interrupted at once; {going_on()} from the last checkpoint")
            return
        _note(number)
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, grace_s)
        again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        _tell(f"m2can: asked to stop; writing a checkpoint{again}")

    def too_late(*_: object) -> NoReturn:
        raise RunStopped(
            f"no step ended within {grace_s:g} s (cluster.grace_s); {going_on()} from the last checkpoint, an earlier one"
        )

    with _handling(asked, too_late):
        yield stop


@contextmanager
def end_on_signals(going_on: str | Callable[[], str]) -> Iterator[None]:
    """RunStopped follows a signal at once. Inside, `stop_on_signals` may take over for a while.

    Args:
        going_on: says how what is stopped goes on.
    """

    def asked(number: int, _: object) -> None:
        if not _received:  # what is closed now is not cut off by another one
            _note(number)
            raise RunStopped(f"stopped; {going_on if isinstance(going_on, str) else going_on()}")

    with _handling(asked, None):
        yield


@contextmanager
def _handling(
    asked: Callable[[int, object], None], too_late: Callable[[int, object], NoReturn] | None
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _handled:
        _received.clear()
    handlers = dict.fromkeys(SIGNALS, asked) | ({signal.SIGALRM: too_late} if too_late else {})
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _handled.append(handlers)
    try:
        yield
    finally:
        _handled.pop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(number: int) -> None:
    _received.append(number)
    if number == signal.SIGHUP:
        _leave_terminal()


def _leave_terminal() -> None:
    """What is printed from now on goes nowhere: writing to a terminal that is gone raises an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            if os.isatty(descriptor) or _is_hung_up(descriptor):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _is_hung_up(descriptor: int) -> bool:
    try:
        os.write(descriptor, b"")
    except OSError:
        return True
    return False


def _tell(words: str) -> None:
    with contextlib.suppress(OSError):
        print(words, file=sys.stderr, flush=True)
