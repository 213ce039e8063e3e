"""Does a command line fit `m2can`, `ray` or `mlflow`? Parsed by each one's own parser; nothing is run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import click
import typer.main
from typer.exceptions import TyperException

from services.cli.main import app

ROOT: Any = typer.main.get_command(app)


def fault(words: Sequence[str]) -> str | None:
    """What is wrong with `m2can` and its arguments, or None.

    Args:
        words: without `m2can` itself.
    """
    return _fault(ROOT, "m2can", words)


def shell_faults(line: str) -> list[str]:
    """What is wrong with the commands of ours, Ray's and MLflow's in a line for the shell."""
    faults = []
    for words in _simple_commands(line):
        found = command_fault(words)
        if found:
            faults.append(found)
    return faults


def command_fault(words: Sequence[str]) -> str | None:
    """What is wrong with one command; None also for a program that is none of ours, Ray's or MLflow's."""
    rest = list(words)
    while rest and "=" in rest[0] and not rest[0].startswith("-"):  # assignments before the command
        rest = rest[1:]
    if not rest:
        return None
    program, arguments = rest[0].rsplit("/", 1)[-1], rest[1:]
    if program == "m2can":
        return fault(arguments)
    if program == "ray":
        from ray.scripts.scripts import cli

        return _fault(cli, "ray", arguments)
    if program == "mlflow":
        from mlflow.cli import cli as mlflow_cli

        return _fault(mlflow_cli, "mlflow", arguments)
    return None


def commands() -> list[str]:
    """All commands of m2can, such as `data check`."""

    def walk(command: Any, path: str) -> list[str]:
        if not hasattr(command, "commands"):
            return [path]
        return [name for key in sorted(command.commands) for name in walk(command.commands[key], f"{path} {key}")]

    return [name.strip() for name in walk(ROOT, "")]


def _fault(command: Any, path: str, words: Sequence[str]) -> str | None:
    rest = list(words)
    if rest in (["--version"], ["--help"]):
        return None
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            known = ", ".join(sorted(command.commands))
            return f"{path}: no command {rest[0] if rest else ''!r}; there are {known}"
        path, command, rest = f"{path} {rest[0]}", command.commands[rest[0]], rest[1:]
    if "--help" in rest:
        return None
    try:
        command.make_context(path, rest)
    except (TyperException, click.ClickException) as error:
        return f"{path}: {error.format_message()}"
    return None


def _simple_commands(line: str) -> list[list[str]]:
    """A line's commands, cut at operators; what is redirected to is left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if skip:
            skip = False
        elif set(word) <= set("|&;()"):
            found.append([])
        elif set(word) <= set("<>&"):
            skip = True
        else:
            found[-1].append(word)
    return [words for words in found if words]
