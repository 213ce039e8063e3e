"""What every command shows: an example, JSON for programs, completion, colours only on a terminal."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from services.cli.main import app

_SERVERS = ("m2can serve", "m2can api", "m2can demo")  # they run, and answer nothing


def commands(command: object, name: str) -> Iterator[tuple[str, object]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for part, child in below.items():
        yield from commands(child, f"{name} {part}")


ALL = dict(commands(typer.main.get_command(app), "m2can"))


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_an_example_a_sentence_and_json(name: str) -> None:
    command = ALL[name]
    epilog = command.epilog or ""  # type: ignore[attr-defined]
    assert epilog.startswith(("Example:  ", "Examples:  ")) and name in epilog
    assert command.help  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]
    assert ("--json" in options) == (name not in _SERVERS)
    for parameter in command.params:  # type: ignore[attr-defined]
        assert parameter.name == "help" or parameter.help, parameter.name


M2CAN = str(Path(sys.executable).with_name("m2can"))  # installed, not as a module: completion goes by the name


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [M2CAN, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_shell_completes_commands_and_options() -> None:
    done = run(_M2CAN_COMPLETE="complete_bash", COMP_WORDS="m2can jobs l", COMP_CWORD="2")
    assert done.stdout.split() == ["list", "logs"]
    done = run(_M2CAN_COMPLETE="complete_bash", COMP_WORDS="m2can models promote --if", COMP_CWORD="3")
    assert done.stdout.split() == ["--if-better-than"]


def test_completion_is_installed_for_the_shell_that_asks(tmp_path: Path) -> None:
    # The shell is told by the parent process: under make that is sh, for which there is no completion.
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(M2CAN)} --install-completion; exit $?"],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    scripts = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".bashrc"]
    assert any("complete_bash" in path.read_text() for path in scripts)
    assert str(scripts[0]) in (tmp_path / ".bashrc").read_text()


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    assert "\x1b[" not in run("jobs", "--help").stdout
    assert "\x1b[" not in run("jobs", "list", "--nonsense").stderr
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "services.cli.main", "jobs", "--help"],
        stdout=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0 and b"\x1b[" in shown
