"""Files on this machine, or in an object store by a URI (`s3://`, `gs://`, `hf://`).

A location is a local path, or a string with a scheme. Credentials and regions are looked up as the stores' own tools do;
S3 also takes its address from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import functools
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.file_names import as_stored

Location = Path | str

SCHEMES = ("s3", "gs", "hf")
_SECONDS = 20.0  # without an answer, after which a store counts as unreachable


def is_uri(location: Location) -> bool:
    """Whether the location has a scheme, known or not."""
    return isinstance(location, str) and "://" in location


def locate(folder: Location, written: str) -> Location:
    """`written` relative to `folder`; a URI and an absolute or `~` path are independent of it.

    Raises:
        InputError: a scheme that is not read, or a URI without bucket.
    """
    if is_uri(written):
        scheme, bucket = _split(written)
        if scheme not in SCHEMES or not bucket.strip("/"):
            wanted = "a local path or " + ", ".join(f"{known}://bucket/…" for known in SCHEMES)
            raise InputError("not a location that can be read", value=written, wanted=wanted)
        return written
    if isinstance(folder, str):
        if written.startswith("/"):
            raise InputError("a local path in a manifest that is not local", value=written, wanted="a relative path")
        return normalise(f"{folder.rstrip('/')}/{written}")
    return Path(as_stored(str(folder / os.path.expanduser(written))))


def normalise(uri: str) -> str:
    """Without `.`, `..` and doubled slashes; `..` stops at the bucket as that of a path does at `/`."""
    scheme, path = _split(uri)
    bucket, _, key = path.partition("/")
    return f"{scheme}://{bucket}{posixpath.normpath('/' + key.lstrip('/'))}".rstrip("/")


def parent(location: Location) -> Location:
    """The folder that holds it."""
    if isinstance(location, Path):
        return location.parent
    scheme, path = _split(location)
    return f"{scheme}://{posixpath.dirname(path)}"


def suffix(location: Location) -> str:
    """With its dot, in lower case."""
    return os.path.splitext(str(location))[1].lower()


def is_file(location: Location) -> bool:
    """Raises OSError: the store is unreachable or refuses."""
    return _kind(location) == fs.FileType.File


def is_folder(location: Location) -> bool:
    """In an object store: some object's name begins with it. Raises OSError: the store is unreachable or refuses."""
    return _kind(location) == fs.FileType.Directory


def size(location: Location) -> int:
    """In bytes. Raises OSError."""
    if not is_uri(location):
        return os.path.getsize(location)
    with open_input(location) as file:
        return int(file.size())


def read_bytes(location: Location) -> bytes:
    """The whole content. Raises OSError (FileNotFoundError if there is none)."""
    if not is_uri(location):
        return Path(location).read_bytes()
    with open_input(location) as file:
        return bytes(file.read())


def read_range(location: Location, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` on, fewer at the file's end. Raises OSError (FileNotFoundError if there is none)."""
    if not is_uri(location):
        descriptor = os.open(location, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
    with open_input(location) as file:
        return bytes(file.read_at(length, offset))


def open_input(location: Location) -> pa.NativeFile:
    """For reading at any position. Raises OSError."""
    if not is_uri(location):
        return pa.OSFile(str(location))
    filesystem, path = open_filesystem(str(location))
    return filesystem.open_input_file(path)


def list_files(folder: Location, *, allow_outside: bool = False) -> list[str]:
    """The paths of all files below a folder, relative to it, sorted.

    A link to a folder is followed if that lies below `folder` (`allow_outside`: anywhere) and the link leads not into a
    circle; else the link itself is in the list.

    Raises:
        OSError: the folder cannot be listed.
    """
    if isinstance(folder, Path):
        return sorted(path.relative_to(folder).as_posix() for path in _walk(folder, folder, allow_outside))
    filesystem, path = open_filesystem(folder)
    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    prefix = path.rstrip("/") + "/"
    return sorted(info.path.removeprefix(prefix) for info in infos if info.type == fs.FileType.File)


def _walk(folder: Path, root: Path, allow_outside: bool) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        path = folder / entry.name
        if not entry.is_dir() or (entry.is_symlink() and not _leads_on(path, root, allow_outside)):
            yield path
        else:
            yield from _walk(path, root, allow_outside)


def _leads_on(link: Path, root: Path, allow_outside: bool) -> bool:
    real = link.resolve()
    circle = link.parent.resolve().is_relative_to(real)
    return not circle and (allow_outside or real.is_relative_to(root.resolve()))


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI, kept open in this process, and the path in it.

    Raises:
        InputError: its scheme is not read here.
        OSError: no such store.
    """
    scheme, path = _split(uri)
    if scheme not in SCHEMES:
        raise InputError("not a location that can be read", value=uri, wanted=", ".join(f"{s}://" for s in SCHEMES))
    # Addresses and credentials may change between calls (tests, rotating keys), so they are part of the cache's key.
    return _connect(scheme, tuple(os.environ.get(name, "") for name in _S3_SETTINGS)), path


_S3_SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION")


@functools.lru_cache(maxsize=8)
def _connect(scheme: str, settings: tuple[str, ...]) -> fs.FileSystem:
    if scheme == "s3":
        special, general, _, region, default_region = settings
        return fs.S3FileSystem(
            endpoint_override=special or general or None,
            region=region or default_region or None,
            connect_timeout=_SECONDS,
            request_timeout=_SECONDS,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        )
    if scheme == "gs":
        return fs.GcsFileSystem()
    import fsspec  # type: ignore[import-untyped]

    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))


def _split(uri: str) -> tuple[str, str]:
    scheme, _, path = uri.partition("://")
    return scheme.lower(), path


def _kind(location: Location) -> fs.FileType:
    if not is_uri(location):
        try:
            if os.path.isfile(location):
                return fs.FileType.File
            return fs.FileType.Directory if os.path.isdir(location) else fs.FileType.NotFound
        except (OSError, ValueError):  # a name too long for the file system, or with a NUL in it
            return fs.FileType.NotFound
    filesystem, path = open_filesystem(str(location))
    return filesystem.get_file_info(path).type
