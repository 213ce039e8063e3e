"""A job that may run beside a few others only waits for its turn, before it starts anything heavy."""

from __future__ import annotations

import getpass
import os
import sys
import time
from collections.abc import Callable, Sequence

from services.jobs.job_log import TURN
from services.jobs.jobs import BY, Job, JobServer, JobsUnavailable

EVERY_S = 5.0
_KINDS = ("train", "tune")


def submitter() -> str:
    """Who submits from here: the user's name, or number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def jobs_before(identity: str, jobs: Sequence[Job]) -> list[Job]:
    """The runs and sweeps of the same submitter that were submitted before this job and have not ended, oldest first.

    Args:
        jobs: newest first.
    """
    own = next((number for number, job in enumerate(jobs) if job.id == identity), None)
    if own is None:
        return []
    by = jobs[own].metadata.get(BY)
    earlier = [job for job in jobs[own + 1 :] if job.kind in _KINDS and job.metadata.get(BY) == by]
    return [job for job in reversed(earlier) if not job.has_ended]


def wait_for_turn(
    identity: str,
    most: int,
    server: JobServer,
    *,
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    every_s: float = EVERY_S,
) -> None:
    """Return once less than `most` jobs of the same submitter that came before have not ended. What is waited for is told."""
    began, told = time.monotonic(), ""
    while True:
        try:
            before = jobs_before(identity, server.list_jobs(waits=False))
        except JobsUnavailable as error:
            words = f"it is not known what runs ({error})"
        else:
            if len(before) < most:
                break
            words = (
                f"at most {most} of {before[0].metadata.get(BY, 'the same submitter')}'s jobs run at once; before it: "
            )
            words += ", ".join(f"{job.id} ({job.status.lower()})" for job in before)
        if words != told:
            told = words
            tell(f"note: {TURN}{words}")
        time.sleep(every_s)
    if told:
        tell(f"note: the job's turn has come, after {time.monotonic() - began:.0f} s")
