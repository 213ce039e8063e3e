"""What a cluster lacks for a run's workers, and which jobs have it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import ray
from ray.util import placement_group_table

SHOWN = ("CPU", "GPU")  # the resources of a worker
_ANSWER_S = 5
_JOB_DIGITS = 8  # the last of a placement group's id are its job's


def lacking(workers: int, resources: Mapping[str, float]) -> str | None:
    """What the cluster lacks for so many workers that Ray has not placed, in words; None: they are placed."""
    groups = list(placement_group_table().values())
    own = ray.get_runtime_context().get_job_id()
    states = {group["state"] for group in groups if _job_of(group) == own}
    if "CREATED" in states:
        return None
    needs = {name: resources.get(name, 0.0) * workers for name in SHOWN if resources.get(name)}
    free = ray.available_resources()
    if "PENDING" not in states and all(free.get(name, 0.0) >= need for name, need in needs.items()):
        return None  # Ray Train is about to ask for them
    return in_words(needs, ray.cluster_resources(), free, held_by_jobs(groups))


def held_by_jobs(groups: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The resources of placed groups, as all workers of a run are, by the id that their job was submitted under."""
    held: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    names = _submitted_as()
    for group in groups:
        if group["state"] == "CREATED":
            job = _job_of(group)
            for bundle in group["bundles"].values():
                for name in SHOWN:
                    held[names.get(job, f"Ray's job {job}")][name] += bundle.get(name, 0.0)
    return held


def in_words(
    needs: Mapping[str, float],
    total: Mapping[str, float],
    free: Mapping[str, float],
    held: Mapping[str, Mapping[str, float]],
) -> str:
    """For example: needs 2 GPU; 1 of 4 GPU are free; train-a has 3 GPU."""
    parts = [f"needs {_listed(needs)}"]
    for name in needs:
        parts.append(f"{free.get(name, 0.0):.3g} of {total.get(name, 0.0):.3g} {name} are free")
    parts += [f"{job} has {_listed(own)}" for job, own in sorted(held.items()) if any(own.get(name) for name in needs)]
    others = {
        name: total.get(name, 0.0) - free.get(name, 0.0) - sum(own.get(name, 0.0) for own in held.values())
        for name in needs
    }
    if any(amount > 0.01 for amount in others.values()):
        parts.append(f"tasks and actors have {_listed(others)}")
    return "; ".join(parts)


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:.3g} {name}" for name, amount in amounts.items() if amount > 0.01)


def _job_of(group: Mapping[str, Any]) -> str:
    return str(group["placement_group_id"])[-_JOB_DIGITS:]


def _submitted_as() -> dict[str, str]:
    """Ray's number of each job → the id that it was submitted under; empty where no dashboard answers."""
    from ray.util.state import list_jobs

    with contextlib.suppress(Exception):  # only names are lost
        return {job.job_id: job.submission_id for job in list_jobs(timeout=_ANSWER_S) if job.submission_id}
    return {}
