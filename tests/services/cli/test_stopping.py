"""Signals: the first asks for a checkpoint, the grace ends, the exit code names the signal, a closed terminal is left."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from services.cli import stopping
from services.cli.stopping import SIGNALS, end_on_signals, exit_code, stop_on_signals
from trainers.failures import RunStopped


def going_on() -> str:
    return "run.name=mine goes on"


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_asks_for_a_checkpoint(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_leave_terminal", lambda: None)
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with stop_on_signals(60, going_on) as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
    assert exit_code() == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_after_the_grace_it_ends_and_says_how_it_goes_on() -> None:
    ended = r"no step ended within 0\.05 s \(cluster\.grace_s\); run\.name=mine goes on from the last checkpoint"
    with pytest.raises(RunStopped, match=ended), stop_on_signals(0.05, going_on):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert exit_code() == 143


def test_a_second_ctrl_c_ends_at_once_and_another_sigterm_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunStopped, match=r"interrupted at once; run\.name=mine goes on"), stop_on_signals(60, going_on):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert exit_code() == 130
    assert capfd.readouterr().err == "m2can: asked to stop; writing a checkpoint; Ctrl-C again ends at once\n"


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_sweep_ends_at_once(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_leave_terminal", lambda: None)
    with (
        pytest.raises(RunStopped, match="stopped; the same command goes on"),
        end_on_signals("the same command goes on"),
    ):
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert exit_code() == 128 + number


def test_a_run_is_stopped_at_once_before_and_after_it_trains() -> None:
    def run(at: str) -> None:
        def here(place: str) -> None:
            if place == at:
                os.kill(os.getpid(), signal.SIGTERM)

        with end_on_signals(going_on):
            here("before")
            with stop_on_signals(60, going_on) as stop:
                assert not stop.is_set()
            here("after")

    for place in ("before", "after"):
        with pytest.raises(RunStopped, match=r"^stopped; run\.name=mine goes on$"):
            run(place)
        assert exit_code() == 143
    run("nowhere")


def test_a_stopped_run_is_closed_without_another_interruption() -> None:
    with pytest.raises(RunStopped, match=r"^with a checkpoint$"), end_on_signals(going_on):
        try:
            with stop_on_signals(60, going_on) as stop:
                os.kill(os.getpid(), signal.SIGTERM)
                assert stop.wait(5)
                raise RunStopped("with a checkpoint")
        finally:
            os.kill(os.getpid(), signal.SIGINT)
    assert exit_code() == 143


HUNG_UP = """
import os, signal, sys, threading
from services.cli.stopping import stop_on_signals
with stop_on_signals(60, str) as stop:
    sys.stdout.write("ready"); sys.stdout.flush()
    waits = threading.Thread(target=stop.wait, args=(30,))  # the main thread handles the signal and must not hold its lock
    waits.start()
    waits.join()
    print("written to a terminal that is gone", flush=True)
    print("and on standard error", file=sys.stderr, flush=True)
    os.write(int(sys.argv[1]), b"whole")
"""


def test_a_terminal_that_closes_ends_no_output_in_an_error() -> None:
    terminal, its_end = pty.openpty()
    read, write = os.pipe()
    command = [sys.executable, "-c", HUNG_UP, str(write)]
    process = subprocess.Popen(
        command, stdin=its_end, stdout=its_end, stderr=its_end, pass_fds=[write], start_new_session=True
    )
    os.close(its_end)
    os.close(write)
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0 and os.read(read, 5) == b"whole"
    os.close(read)
