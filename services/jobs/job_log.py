"""What a job's log says of the job: its own lines, and what it waits for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainers.cluster.monitor import WAITS

TURN = "the job waits for its turn: "

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAYLET = re.compile(r"\((?:raylet|autoscaler|gcs_server)\b[^)]*\) ")  # a process of Ray, in front of what it tells


class OwnLines:
    """Leaves out what Ray tells of its own processes: such a line, and the dump after it, which is indented.

    What went wrong with a node stands in a line of ours; the dumps stay in Ray's logs.
    """

    def __init__(self) -> None:
        self._rest = ""  # a line that has not ended
        self._in_dump = False

    def of(self, text: str, last: bool = False) -> Iterator[str]:
        """The lines of ours in the log's next part, with their ends.

        Args:
            last: nothing follows.
        """
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            if self._is_own(line):
                yield f"{line}\n"
        if last and self._rest and self._is_own(self._rest):
            yield self._rest

    def _is_own(self, line: str) -> bool:
        plain = _COLOUR.sub("", line)
        if _RAYLET.match(plain):
            self._in_dump = True
        elif plain.strip() and not plain[0].isspace():
            self._in_dump = False
        return not self._in_dump


def waits_for(log: str) -> str | None:
    """What a job that runs waits for, by the last line of its log; None: it does not wait."""
    lines = [line for line in OwnLines().of(log, last=True) if line.strip()]
    for begins, waits in ((WAITS, "waits for resources"), (TURN, "waits for its turn")):
        _, found, words = lines[-1].partition(begins) if lines else ("", "", "")
        if found:
            return f"{waits}: {words.strip()}"
    return None
