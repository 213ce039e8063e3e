"""Signals: the first asks for a checkpoint, the grace ends, the exit code names the signal, a closed terminal is left."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.cli import stopping
from services.cli.stopping import SIGNALS, end_on_signals, exit_code, stop_on_signals
from tests.trainers.tiny_run import small_recipe
from trainers.failures import RunStopped
from trainers.tracking.address import resolve_tracking_uri
from trainers.tracking.mlflow_run import open_client


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


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    """A real command in its own group, as a terminal has it: Ray Train would take Ctrl-C for itself."""
    recipe = tmp_path / "recipe.json"
    changes = ["run.name=broken", "train.epochs=40", "train.batch_size=3", "cluster.workers=1"]
    recipe.write_text(small_recipe(tmp_path, changes).model_dump_json())
    log = tmp_path / "log"
    command = [sys.executable, "-m", "services.cli.main", "train", str(recipe)]
    environment = os.environ | {"RAY_ADDRESS": "local", "PYTHONUNBUFFERED": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        until = time.monotonic() + 200
        while " step " not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(100) == 130, log.read_text()
    finally:
        process.kill()
    assert log.read_text().splitlines()[-1].endswith("run.name=broken goes on from there")
    run = tmp_path / "runs" / "broken"
    assert list(run.glob("checkpoint_*"))
    client = open_client(resolve_tracking_uri(None, tmp_path / "runs"))
    experiment = client.get_experiment_by_name("m2can")
    assert [found.info.status for found in client.search_runs([experiment.experiment_id])] == ["KILLED"]
