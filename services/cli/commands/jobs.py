"""`m2can jobs`"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from services.cli.options import AsJson, Dashboard, show

if TYPE_CHECKING:
    from services.jobs.jobs import Job, JobServer

app = typer.Typer(help="Run recipes and sweeps as Ray jobs on a cluster.", no_args_is_help=True)

Identity = Annotated[str, typer.Argument(metavar="ID", help="A job's id, as `m2can jobs list` shows it.")]


@app.command(
    epilog="Examples:  m2can jobs submit train recipe.yaml --address http://head:8265 --set train.epochs=5 --wait    "
    "m2can jobs submit tune ablation --recipe recipe.yaml"
)
def submit(
    kind: Annotated[Literal["train", "tune"], typer.Argument(help="What to do on the cluster.")],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A recipe (or one that comes along, such as AVA); for tune a sweep, as for `m2can tune`.",
        ),
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a recipe key; may be repeated.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="For tune: a recipe in place of the sweep's own.")] = None,
    address: Dashboard = None,
    max_running: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Wait while N of your jobs that were submitted before have not ended."),
    ] = None,
    id_: Annotated[str | None, typer.Option("--id", help="The job's id; default: made from kind and time.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end; exit code 1 if it fails.")] = False,
    json_: AsJson = False,
) -> None:
    """Validate a recipe here, send it with the code to a cluster.

    A run that was cut off goes on when it is submitted again with the same run.name.
    """
    from services.jobs.jobs import BY, CodePackage, JobServer, new_id
    from services.jobs.turn import submitter

    def show_size(code: CodePackage) -> None:
        typer.echo(f"code: {code.files} files, {code.bytes / 1024:.0f} KiB", err=True)

    identity = id_ or new_id(kind)
    request = _request(kind, identity, file, list(set_ or []), recipe).model_copy(update={"max_running": max_running})
    server = JobServer(address)
    job = server.submit(request, {BY: submitter()}, on_code=show_size)
    if wait:
        try:
            job = _follow_to_end(server, identity, quiet=json_)
        except KeyboardInterrupt:
            typer.echo(f"m2can: the job goes on; next: m2can jobs stop {identity}", err=True)
            raise
    show(json_, job, f"{job.id}  {job.status}  run {job.run_name}")
    if not json_ and not wait:
        typer.echo(f"next: m2can jobs logs {job.id} --follow", err=True)
    if wait and job.status != "SUCCEEDED":
        typer.echo(f"m2can: {job.message}", err=True)
        raise typer.Exit(1)


@app.command("list", epilog="Example:  m2can jobs list --status RUNNING --json")
def list_(
    address: Dashboard = None,
    status: Annotated[str | None, typer.Option(help="Only jobs of this status, e.g. RUNNING.")] = None,
    run: Annotated[str | None, typer.Option(help="Only jobs that worked on this run or sweep.")] = None,
    json_: AsJson = False,
) -> None:
    """Jobs of this tool, newest first."""
    from services.jobs.jobs import JobServer

    found = JobServer(address).list_jobs(status.upper() if status else None, run)
    lines = []
    for job in found:
        lines.append(f"{job.id:42} {job.status:10} {job.kind:10} run {job.run_name}  {job.submitted}")
        if job.status == "RUNNING" and job.message.startswith("waits"):
            lines.append(f"    {job.message}")
    show(json_, found, *(lines or ["no job; `m2can jobs submit train RECIPE` sends one"]))


@app.command(epilog="Example:  m2can jobs status train-1123-1200-3fa1c2 --json")
def status(identity: Identity, address: Dashboard = None, json_: AsJson = False) -> None:
    """One job."""
    from services.jobs.jobs import JobServer

    job = JobServer(address).get(identity)
    rows = {key: value for key, value in vars(job).items() if key != "metadata"} | job.metadata
    lines = [f"{name:28} {value if value is not None else '–'}" for name, value in rows.items()]
    show(json_, job, *lines)


@app.command(epilog="Example:  m2can jobs logs train-1123-1200-3fa1c2 --follow")
def logs(
    identity: Identity,
    address: Dashboard = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    json_: AsJson = False,
) -> None:
    """What a job printed."""
    from services.jobs.jobs import JobServer

    server = JobServer(address)
    if follow and not json_:
        asyncio.run(_print_lines(server, identity, err=False))
        return
    if follow:
        server.wait(identity)
    lines = server.logs(identity).splitlines()
    show(json_, {"id": identity, "lines": lines}, *lines)


@app.command(epilog="Example:  m2can jobs stop train-1123-1200-3fa1c2")
def stop(identity: Identity, address: Dashboard = None, json_: AsJson = False) -> None:
    """End a job. Its run keeps what it has reached."""
    from services.jobs.jobs import JobServer

    job = JobServer(address).stop(identity)
    asked = "" if job.has_ended else "  asked to stop; it has cluster.grace_s for a checkpoint"
    show(json_, job, f"{job.id}  {job.status}{asked}")


@app.command(epilog="Example:  m2can jobs delete train-1123-1200-3fa1c2")
def delete(identity: Identity, address: Dashboard = None, json_: AsJson = False) -> None:
    """Delete an ended job and its logs; checkpoints and MLflow run stay."""
    from services.jobs.jobs import JobServer

    JobServer(address).delete(identity)
    show(json_, {"id": identity, "deleted": True}, f"{identity}  deleted")


def _request(kind: str, identity: str, file: Path, overrides: list[str], recipe: Path | None) -> Any:
    """Raises InputError: the recipe or the sweep is not valid."""
    from datasets_manifest.errors import InputError
    from services.jobs.job_request import train_request
    from trainers.recipe import load_recipe
    from trainers.recipe.recipes import packaged_recipe
    from trainers.tracking.provenance import environment

    if kind == "tune":
        from services.jobs.sweep_request import tune_request
        from tuning.sweep import load_sweep

        return tune_request(identity, load_sweep(file, recipe, overrides), environment())
    if recipe is not None:
        problem = "goes with `submit tune` only"
        raise InputError(problem, field="--recipe", value=str(recipe), wanted="the recipe as FILE of `submit train`")
    found = file if file.is_file() else packaged_recipe(str(file)) or file
    return train_request(identity, load_recipe(found, overrides), environment())


def _follow_to_end(server: JobServer, identity: str, *, quiet: bool) -> Job:
    from services.jobs.jobs import JobsUnavailable

    if not quiet:
        try:
            asyncio.run(_print_lines(server, identity, err=True))
        except JobsUnavailable as error:  # the log broke off; the job may well go on
            typer.echo(f"m2can: {error}", err=True)
    return server.wait(identity)


async def _print_lines(server: JobServer, identity: str, *, err: bool) -> None:
    async for lines in server.follow(identity):
        typer.echo(lines, nl=False, err=err)
