"""`m2can token`"""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.options import AsJson, show


def token(
    name: Annotated[str, typer.Argument(help="Whose token it is.")],
    scope: Annotated[list[str], typer.Option(help="read, submit, admin or predict; may be repeated.")],
    models: Annotated[
        list[str] | None,
        typer.Option(help="How names of models begin that its jobs may register; may be repeated. Default: any."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Make a token: it is shown once; the tokens file keeps its hash."""
    from services.web.auth import new_token

    secret, line = new_token(name, scope, models or ())
    show(
        json_,
        {"token": secret, "line": line},
        f"token (give it to {name}, it is not stored): {secret}",
        f"line for the tokens file: {line}",
    )
