"""A job waits for its turn: behind jobs of the same submitter that came before, and it says behind which."""

from __future__ import annotations

from typing import Any

import pytest

from services.jobs import turn
from services.jobs.job_log import waits_for
from services.jobs.jobs import BY, Job, JobsUnavailable
from services.jobs.turn import jobs_before, submitter, wait_for_turn


def job(identity: str, status: str = "RUNNING", by: str = "ana", kind: str = "train") -> Job:
    return Job(identity, kind, status, identity, "", "", None, {BY: by})


class Server:
    """Answers with one list of jobs after the other, newest first; an error is raised."""

    def __init__(self, *answers: list[Job] | Exception) -> None:
        self.answers = list(answers)

    def list_jobs(self, *, waits: bool) -> list[Job]:
        assert not waits  # the logs of all jobs are not read every few seconds
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_before_a_job_are_those_of_its_submitter_that_came_first_and_have_not_ended() -> None:
    jobs = [
        job("later"), job("own", "PENDING"), job("third", "PENDING", kind="tune"), job("second", "FAILED"),
        job("of-bo", by="bo"), job("looks", kind="data-check"), job("first"),
    ]  # fmt: skip
    assert [found.id for found in jobs_before("own", jobs)] == ["first", "third"]
    assert jobs_before("unknown", jobs) == []


def waited(most: int, *answers: list[Job] | Exception) -> tuple[list[str], Server]:
    told: list[str] = []
    server = Server(*answers)
    stand_in: Any = server
    wait_for_turn("own", most, stand_in, tell=told.append, every_s=0)
    return told, server


def test_a_job_says_behind_which_it_waits_and_when_its_turn_has_come() -> None:
    own, first, second = job("own"), job("first"), job("second", "PENDING")
    away, stopped = JobsUnavailable("no answer"), job("second", "STOPPED")
    told, server = waited(1, [own, second, first], [own, second, first], away, [own, second], [own, stopped])
    assert told[0] == (
        "note: the job waits for its turn: at most 1 of ana's jobs run at once; before it: first (running), second (pending)"
    )
    assert told[1] == "note: the job waits for its turn: it is not known what runs (no answer)"
    assert told[2].endswith("before it: second (pending)")
    assert told[3] == "note: the job's turn has come, after 0 s"
    assert len(told) == 4 and not server.answers
    assert waits_for("\n".join(told[:1])) == (
        "waits for its turn: at most 1 of ana's jobs run at once; before it: first (running), second (pending)"
    )
    assert waits_for("\n".join(told)) is None


def test_a_job_with_room_begins_without_a_word() -> None:
    assert waited(2, [job("later"), job("own"), job("first")])[0] == []


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise OSError("no such user")

    assert submitter()
    monkeypatch.setattr(turn.getpass, "getuser", nobody)
    assert submitter().isdigit()
