"""Log lines of a worker: a file a rank in the run's folder, each line with run, rank, epoch and step."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OURS = ("trainers", "datasets_manifest")
_FORMAT = "%(asctime)s %(levelname)s run=%(run)s rank=%(rank)d epoch=%(epoch)d step=%(step)d %(name)s: %(message)s"


class LogContext(logging.Filter):
    """Where a worker is; whoever moves it on sets `epoch` and `step`, both from 1, 0 before the first.

    As a filter it writes the context into every record, and lets through what is ours, and warnings of others.
    """

    def __init__(self, run: str, rank: int) -> None:
        super().__init__()
        self.run, self.rank, self.epoch, self.step = run, rank, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        record.run, record.rank, record.epoch, record.step = self.run, self.rank, self.epoch, self.step
        return record.levelno >= logging.WARNING or record.name.partition(".")[0] in OURS


class _LogFile(logging.FileHandler):
    """A disk that is full loses lines; it does not fill standard error with a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def log_name(rank: int) -> str:
    """Of a worker's log in the run's folder."""
    return f"logs/rank-{rank}.log"


@contextmanager
def worker_log(folder: Path, context: LogContext) -> Iterator[None]:
    """Append this process's log to `<folder>/logs/rank-<rank>.log`, as long as the context lasts.

    A folder that cannot be written is no reason not to train: the lines are lost then.
    """
    file = folder / log_name(context.rank)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = _LogFile(file, encoding="utf-8")
    except OSError as error:
        logging.getLogger(__name__).warning("there is no log: %s", error)
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.addFilter(context)
    levels = {name: logging.getLogger(name).level for name in OURS}
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
