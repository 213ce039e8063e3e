"""Entry point of every job: `python -m services.cli.job_entrypoint`. The request is in its environment."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.jobs.job_request import JobRequest


def run() -> None:
    """Run the job; when it is stopped, whenever that is, its temporary folder goes."""
    from services.cli.stopping import end_on_signals, exit_code
    from trainers.failures import RunStopped

    try:
        with end_on_signals("submit it again"), tempfile.TemporaryDirectory(prefix="m2can-job-") as folder:
            _run(Path(folder))
    except RunStopped as stopped:
        print(f"m2can: {stopped}", file=sys.stderr)
        sys.exit(exit_code())


def _run(folder: Path) -> None:
    """Check what the job needs, then run `m2can` in this process; its exit code is the job's."""
    try:
        from datasets_manifest.errors import InputError
        from services.cli.main import main
        from services.jobs.job_request import VARIABLE, JobRequest, command_line
    except ModuleNotFoundError as error:
        wanted = "the folder of the environment's `python` must come first in PATH where Ray is started"
        sys.exit(f"m2can: {sys.executable} on the cluster lacks {error.name}: {wanted}")

    try:
        request = JobRequest.decoded(os.environ.get(VARIABLE, ""))
        if request.max_running is not None:
            from services.jobs.jobs import JobServer
            from services.jobs.turn import wait_for_turn

            wait_for_turn(request.id, request.max_running, JobServer())
        for note in environment_differences(request.environment):
            print(f"note: {note}", file=sys.stderr, flush=True)
        for line in run_preflight(request):
            print(f"preflight: {line}", file=sys.stderr, flush=True)
    except InputError as error:
        print(f"m2can: {error}", file=sys.stderr)
        sys.exit(2)
    sys.argv = ["m2can", *command_line(request, Path(folder))]
    main()


def run_preflight(request: JobRequest) -> list[str]:
    """What was checked before a run or a sweep begins, as sentences. Raises InputError: a check that failed."""
    from services.jobs.job_request import VARIABLE
    from services.jobs.preflight import preflight, refuse_finished
    from trainers.recipe import make_recipe

    if request.kind == "train":
        recipe = make_recipe(request.content, VARIABLE)
        refuse_finished(recipe)
        return preflight(recipe)
    if request.kind == "tune":
        from services.jobs.sweep_request import read_plan

        return preflight(read_plan(request.content).recipe([]))
    return []


def environment_differences(there: dict[str, Any]) -> list[str]:
    """Packages whose version on the cluster differs from that where the job was submitted."""
    from trainers.tracking.provenance import environment

    here = environment()
    if not there or here["hash"] == there.get("hash"):
        return []
    named = {"python": here["python"], **here["packages"]}
    submitted = {"python": there.get("python"), **there.get("packages", {})}
    return [
        f"{name} is {named.get(name, 'missing')} on the cluster, {value} where the job was submitted"
        for name, value in submitted.items()
        if named.get(name) != value
    ]


if __name__ == "__main__":
    run()
