"""The command `m2can`. Exit codes: 0 done, 2 bad input, 1 failed, 128 and a signal's number where one stopped it."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from datasets_manifest.errors import InputError, without_password
from services.cli.commands import (
    adapt,
    api,
    data,
    demo,
    doctor,
    drift,
    features,
    jobs,
    predict,
    runs,
    serve,
    token,
    train,
    tune,
)

app = typer.Typer(
    name="m2can",
    help="Train M2CAN on labelled image-text domains and an unlabelled target, on a Ray cluster; look models up in MLflow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("train", epilog="Example:  m2can train recipe.yaml --workers 2 --set train.epochs=5")(train.train)
app.command(
    "evaluate", epilog="Example:  m2can evaluate models:/m2can-mountain@candidate --data mountain/manifest.yaml"
)(predict.evaluate)
app.command("predict", epilog='Example:  m2can predict runs/my-run/checkpoint_1 --text "a lovely day" --image day.jpg')(
    predict.predict
)
app.command("adapt", epilog="Example:  m2can adapt m2can-mountain@champion --target river/manifest.yaml")(adapt.adapt)
app.command("tune", epilog="Examples:  m2can tune sweep.yaml    m2can tune ablation --recipe recipe.yaml")(tune.tune)
app.command(
    "features",
    epilog="Example:  m2can features recipe.yaml features, then m2can train recipe.yaml --set encoders.features=features",
)(features.features)
app.command("demo", epilog="Example:  m2can demo --folder demo --workers 1")(demo.demo)
app.command("doctor", epilog="Example:  m2can doctor --json")(doctor.doctor)
app.command("serve", epilog="Example:  m2can serve m2can-mountain@champion --port 8000 --tokens tokens.yaml")(
    serve.serve
)
app.command("api", epilog="Example:  m2can api --root /data --tokens tokens.yaml --address http://head:8265")(api.api)
app.command("token", epilog="Example:  m2can token ci --scope read --scope submit")(token.token)
app.add_typer(drift.app, name="models")  # all of `models`: import, export and drift, too
app.add_typer(runs.app, name="runs")
app.add_typer(jobs.app, name="jobs")
app.add_typer(data.app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        from services.doctor import versions

        typer.echo("\n".join(f"{name:24} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show versions and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command; bad input ends with one line and exit code 2, a failure with exit code 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show must not end a command
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # hides the progress bars of downloads
    logging.getLogger("mlflow.store.db.utils").setLevel(
        logging.CRITICAL
    )  # its traceback of what is said below in a line
    from services.errors import ServiceUnavailable, in_words
    from trainers.failures import RunFailed, RunStopped, TrackingUnavailable

    try:
        app()
    except InputError as error:
        _end(error, 2)
    except (RunFailed, TrackingUnavailable, ServiceUnavailable) as error:
        _end(error, 1)
    except RunStopped as stopped:
        from services.cli.stopping import exit_code

        _end(stopped, exit_code())
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except Exception as error:
        words = in_words(error) or _of_files(error)
        if words is None:
            raise
        _end(words, 1)


def _of_files(error: Exception) -> str | None:
    """A disk that is full, or a file that must not be read or written, in words."""
    from datasets_manifest.disk import CannotWrite, cannot_write

    if isinstance(error, CannotWrite):
        return str(error)
    named = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else None
    if isinstance(error, PermissionError):  # of reading, too
        return f"{named}: {error.strerror}" if named else None
    told = cannot_write(Path(named or Path.cwd() / "."), error) if isinstance(error, OSError) else None
    return str(told) if told else None


def _end(words: object, code: int) -> NoReturn:
    print(f"m2can: {without_password(str(words))}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
