"""A run in an object store: `s3://bucket/prefix/<run>`, with a working copy in a folder of each machine that works on it.

The store is what counts: a working copy may be lost at any time, and a machine that never saw the run begins with what is
there. An object appears whole or not at all; of a checkpoint files.json is sent last, and one without it is no checkpoint.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pyarrow import fs

from datasets_manifest.errors import InputError, first_line
from datasets_manifest.files import whole_file
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.store_faults import described_store, endpoint
from trainers.store import is_store

SCHEMES = ("s3", "gs")  # in others a file cannot be written, or each file is a commit
COPIES = "M2CAN_WORKING_COPIES"
FIELD = "run.storage"
RECIPE, LAST = "recipe.json", "files.json"  # of a run the first file, of a checkpoint the last
_AT_A_TIME = 8
_CHUNK = 16 * 2**20  # bytes
# What a driver needs to know of a run: all but weights, pictures and logs.
_SMALL = (RECIPE, "start.json", "journal/*.json", "report/summary.json", "floor/*", "checkpoint_*.json")


@dataclass(frozen=True)
class RunStore:
    """uri: of the run, or of the folder of runs. copies: the kind of working copy; those that are only read lie apart."""

    uri: str
    copies: str = "work"

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]

    @property
    def folder(self) -> Path:
        """The working copy on this machine; it need not exist."""
        scheme, _, path = self.uri.partition("://")
        # Two servers may have a bucket of the same name.
        server = hashlib.sha256((endpoint() or "").encode()).hexdigest()[:8]
        home = os.environ.get(COPIES) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2can"
        return Path(home).absolute() / self.copies / f"{scheme}-{server}" / path

    @property
    def parent(self) -> RunStore:
        return RunStore(self.uri.rpartition("/")[0], self.copies)

    def __truediv__(self, name: str) -> RunStore:
        return RunStore(f"{self.uri}/{name}", self.copies)

    def __str__(self) -> str:
        return self.uri

    def filesystem(self) -> tuple[fs.FileSystem, str]:
        """With the run's path in it."""
        return storage.open_filesystem(self.uri)

    def listing(self) -> dict[str, fs.FileInfo]:
        """All objects of the run, by their names in it. Raises OSError."""
        filesystem, path = self.filesystem()
        found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
        return {info.path[len(path) + 1 :]: info for info in found if info.type == fs.FileType.File}

    def has(self, name: str) -> bool:
        """Raises OSError."""
        return storage.is_file(f"{self.uri}/{name}")

    def is_there(self) -> bool:
        """Whether the store has anything of this name. Raises OSError."""
        return storage.is_folder(self.uri)

    def bring(self, kinds: Sequence[str] = _SMALL) -> None:
        """Make the working copy what the store has, without weights, pictures and logs. What is not in the store goes.

        Args:
            kinds: patterns of the names that are brought.

        Raises:
            OSError: the store, or this machine's disk.
        """
        there = self.listing()
        whole = {name.partition("/")[0] for name in there if name.endswith(f"/{LAST}")}
        for file in [path for path in self.folder.rglob("*") if path.is_file() or path.is_symlink()]:
            name = file.relative_to(self.folder).as_posix()
            if name not in there and not file.name.startswith("."):
                file.unlink(missing_ok=True)
        for name in [name for name in there if name.startswith("checkpoint_") and name.partition("/")[0] not in whole]:
            del there[name]  # its writer was killed
        self._bring([info for name, info in there.items() if any(fnmatch(name, kind) for kind in kinds)])

    def runs(self) -> list[RunStore]:
        """The runs in this folder of runs, each brought as `bring` does. Raises OSError."""
        filesystem, path = self.filesystem()
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        folders = [self / info.base_name for info in found if info.type == fs.FileType.Directory]
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            runs = [run for run, is_one in zip(folders, pool.map(_is_run, folders), strict=True) if is_one]
            list(pool.map(RunStore.bring, runs))
        return runs

    def bring_part(self, *names: str) -> None:
        """Bring the files of these names, or in the folders of these names, where the store has them. Raises OSError."""
        there = self.listing()
        self._bring([info for name, info in there.items() if any(name == n or name.startswith(f"{n}/") for n in names)])

    def bring_checkpoint(self, name: str, *beside: str) -> Path:
        """Bring a checkpoint whole, with the files `beside` it that it may name; its folder.

        Raises:
            OSError: the store, or this machine's disk.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder.parent / f".{self.name}.lock"):  # the workers of a machine ask for the same at once
            self.bring_part(name, *beside)
        return self.folder / name

    def send(self, *names: str) -> None:
        """Send files and folders of the working copy, those that are there; a folder's files.json goes last.

        Raises:
            OSError: the store did not take them.
        """
        for name in names:
            place = self.folder / name
            files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
            last = [file for file in files if file.name == LAST and file.parent == place]
            for part in ([file for file in files if file not in last], last):
                self._each(lambda file: self.put(file, file.relative_to(self.folder).as_posix()), part)

    def put(self, file: Path, name: str) -> None:
        """Send a file of this machine under a name in the run. Raises OSError: the store did not take it."""
        filesystem, path = self.filesystem()
        with file.open("rb") as source, filesystem.open_output_stream(f"{path}/{name}") as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)

    def send_all(self, last: Sequence[str] = ()) -> None:
        """Make the store what the working copy is; the files named `last` are sent behind all others. Raises OSError."""
        there, here = self.listing(), {}
        for file in self.folder.rglob("*"):
            if file.is_file():
                here[file.relative_to(self.folder).as_posix()] = file
        new = [name for name, file in here.items() if name not in there or not _is_same(file, there[name])]
        for part in ([name for name in new if name not in last], [name for name in last if name in new]):
            self._each(lambda name: self.put(here[name], name), part)
        filesystem, path = self.filesystem()
        self._each(lambda name: filesystem.delete_file(f"{path}/{name}"), [name for name in there if name not in here])

    def delete(self, *names: str) -> None:
        """Delete folders of the run, or all of it; its working copy, too. Raises OSError."""
        filesystem, path = self.filesystem()
        for place, copy in [(f"{path}/{name}", self.folder / name) for name in names] or [(path, self.folder)]:
            if filesystem.get_file_info(place).type == fs.FileType.Directory:
                filesystem.delete_dir(place)
            shutil.rmtree(copy, ignore_errors=True)

    def _bring(self, infos: list[fs.FileInfo]) -> None:
        filesystem, path = self.filesystem()

        def bring(info: fs.FileInfo) -> None:
            file = self.folder / info.path[len(path) + 1 :]
            if file.is_file() and _is_same(file, info):
                return
            with whole_file(file, size=info.size) as draft:
                with filesystem.open_input_stream(info.path) as source, draft.open("wb") as target:
                    shutil.copyfileobj(source, target, _CHUNK)
                os.utime(draft, ns=(info.mtime_ns, info.mtime_ns))

        self._each(bring, infos)

    @staticmethod
    def _each(what: Callable[[Any], None], items: list[Any]) -> None:
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            list(pool.map(what, items))


def _is_same(file: Path, info: fs.FileInfo) -> bool:
    """Whether a file is the one that was brought."""
    return (file.stat().st_size, file.stat().st_mtime_ns) == (info.size, info.mtime_ns)


def _is_run(store: RunStore) -> bool:
    return store.has(RECIPE)


def store_of(location: str, copies: str = "work", field: str = FIELD) -> RunStore:
    """Raises InputError: an address of another kind, or without a bucket."""
    scheme, _, path = location.partition("://")
    if scheme.lower() not in SCHEMES or not path or path.startswith("/"):
        wanted = "a folder, or " + " or ".join(f"{known}://bucket/…" for known in SCHEMES)
        raise InputError("is no place where runs can lie", field=field, value=location, wanted=wanted)
    return RunStore(storage.normalise(location), copies)


@contextmanager
def store_told(store: RunStore, field: str = FIELD) -> Iterator[None]:
    """Put what the store says into words. Raises InputError: names bucket, endpoint, and the variable that is missing."""
    try:
        yield
    except OSError as error:
        if getattr(error, "filename", None) is not None:  # this machine's disk
            raise
        problem = f"the store does not answer as it should ({first_line(error)[:300]})"
        wanted = f"a store that this machine may read and write: {described_store(store.uri, error)}"
        raise InputError(problem, field=field, value=store.uri, wanted=wanted) from None


@contextmanager
def written_to(out: str, last: str, field: str = "OUT") -> Iterator[Path]:
    """The folder to write to; of an address in a store a copy on this machine, with what the store has, which is sent at the end.

    What an interrupted command has written is sent, too: the next one goes on with it, on whatever machine.

    Args:
        last: the file that tells that all is there.

    Raises:
        InputError: the store cannot be read or written.
    """
    if not is_store(out):
        yield Path(out)
        return
    store = store_of(out, "out", field)
    require_store(store, field)
    with store_told(store, field):
        store.bring(["*"])
    try:
        yield store.folder
    finally:
        with store_told(store, field):
            store.send_all([last])
        shutil.rmtree(store.folder, ignore_errors=True)


def require_store(store: RunStore, field: str = FIELD) -> None:
    """Look whether the store can be written, read and deleted from.

    Raises:
        InputError: names bucket, endpoint, and the variable that is missing.
    """
    filesystem, path = store.filesystem()
    place = f"{path}/.look-{os.urandom(8).hex()}"
    with store_told(store, field):
        with filesystem.open_output_stream(place) as stream:
            stream.write(b"look")
        filesystem.delete_file(place)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
