"""Is this machine fit for a run? The checks of `m2can doctor`, and the versions of `m2can --version`."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

MIN_DISK, MIN_MEMORY, MIN_SHM = 5 * 2**30, 4 * 2**30, 2**30
_GIB = 2**30
Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """Result of one check. level: a `problem` stops a run, a `note` may slow one down or surprise."""

    name: str
    level: Level
    found: str
    advice: str = ""


def versions() -> dict[str, str]:
    """Versions for a bug report: ours, Python, system and the main packages; `missing` for an absent one."""
    from trainers.tracking.provenance import MAIN_PACKAGES

    found = {"m2can": _version("m2can"), "python": platform.python_version(), "system": platform.platform()}
    return found | {name: _version(name) for name in MAIN_PACKAGES}


def examine(storage: Path, data_root: str | None = None, tracking_uri: str | None = None) -> list[Finding]:
    """Check packages, devices, memory, folders and addresses; nothing is started.

    Args:
        storage: folder of runs, need not exist.
        data_root: of the catalog's data sets; None: M2CAN_DATA_ROOT.
        tracking_uri: MLflow; None: MLFLOW_TRACKING_URI, else the store in `storage`.
    """
    return [
        _packages(),
        _devices(),
        _memory(),
        _shared_memory(),
        _disk(storage),
        _data_root(data_root or os.environ.get("M2CAN_DATA_ROOT")),
        _mlflow(tracking_uri, storage),
        *_ray_needs(),
        _ray_token(),
        *_known_problems(),
    ]


def report(findings: list[Finding]) -> dict[str, Any]:
    return {"versions": versions(), "findings": [asdict(finding) for finding in findings], "ok": is_fit(findings)}


def is_fit(findings: list[Finding]) -> bool:
    return all(finding.level != "problem" for finding in findings)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _packages() -> Finding:
    missing = [name for name, number in versions().items() if number == "missing"]
    if missing:
        return Finding("packages", "problem", f"missing: {', '.join(missing)}", "make install")
    try:
        import mlflow  # noqa: F401
        import ray  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        advice = "torch and torchvision go in pairs; make install"
        return Finding("packages", "problem", f"cannot be imported: {error}", advice)
    return Finding("packages", "ok", "all there and importable")


def _devices() -> Finding:
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    found = f"{cpus} CPUs, " + (", ".join(gpus) if gpus else "no GPU")
    if not gpus and shutil.which("nvidia-smi"):
        advice = "nvidia-smi is here and torch sees no GPU: driver older than its CUDA?"
        return Finding("devices", "problem", found, advice)
    if cpus < 2:
        return Finding("devices", "note", found, "data and training share one CPU")
    return Finding("devices", "ok" if gpus else "note", found, "" if gpus else "real encoders train slowly without one")


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()))
    return _at_least("memory", total, MIN_MEMORY, "Ray and two workers alone take about that")


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "note", "/dev/shm is not here", "Ray's object store lies on disk")
    size = shutil.disk_usage(folder).total
    advice = "Ray's object store would lie on disk: --shm-size, or a memory volume at /dev/shm"
    return _at_least("shared memory", size, MIN_SHM, advice, "note")


def _disk(storage: Path) -> Finding:
    from datasets_manifest.disk import nearest_folder

    folder = nearest_folder(storage)
    if not os.access(folder, os.W_OK):
        return Finding("runs", "problem", f"{folder} cannot be written", "another --storage, or its permissions")
    advice = "checkpoints: set checkpoint.keep, or another --storage"
    return _at_least("runs", shutil.disk_usage(folder).free, MIN_DISK, advice, "problem", f"at {folder}")


def _at_least(name: str, size: int, wanted: int, advice: str, level: Level = "problem", where: str = "") -> Finding:
    found = f"{size / _GIB:.1f} GiB {where}".strip()
    if size < wanted:
        return Finding(name, level, found, f"wanted {wanted / _GIB:.0f} GiB; {advice}")
    return Finding(name, "ok", found)


def _data_root(root: str | None) -> Finding:
    if root is None:
        return Finding("data root", "ok", "not set", "only needed for the data sets known by name")
    if "://" in root:
        return Finding("data root", "ok", root, "an object store is not checked here but by `m2can data check`")
    if not Path(root).is_dir():
        return Finding("data root", "problem", f"{root} is no folder", "M2CAN_DATA_ROOT or --data-root; is it mounted?")
    from datasets_manifest.manifest.catalog import entries

    there = [name for name in entries() if (Path(root) / name).is_dir()]
    return Finding("data root", "ok", f"{root}: {', '.join(there) or 'none of the known data sets'}")


def _mlflow(tracking_uri: str | None, storage: Path) -> Finding:
    from datasets_manifest.errors import InputError, without_password
    from services.jobs.preflight import check_mlflow
    from trainers.recipe.run_sections import Tracking
    from trainers.tracking.address import resolve_tracking_uri

    try:
        uri = resolve_tracking_uri(tracking_uri, storage.absolute())
        if uri.startswith("sqlite"):
            return Finding("MLflow", "ok", uri, "a file: one machine; a server for more")
        check_mlflow(uri, Tracking().experiment, timeout_s=10)
    except InputError as error:
        return Finding("MLflow", "problem", str(error), "the address, MLFLOW_TRACKING_USERNAME and …_PASSWORD")
    return Finding("MLflow", "ok", f"answers at {without_password(uri)}")


def _ray_needs() -> Iterator[Finding]:
    from trainers.preflight.ray_needs import lacks, ray_temp_folder

    found = [Finding("Ray", "problem", f"{lack.field} {lack.value}: {lack.problem}", lack.remedy) for lack in lacks()]
    yield from found or [Finding("Ray", "ok", f"can start; its files go to {ray_temp_folder() / 'ray'}")]


def _ray_token() -> Finding:
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    if file.is_file() and file.stat().st_mode & 0o077:
        return Finding("Ray token", "note", f"{file} can be read by others", f"chmod 600 {file}")
    return Finding(
        "Ray token", "ok", f"RAY_AUTH_MODE {mode}", "" if mode == "token" else "jobs want RAY_AUTH_MODE=token"
    )


def _known_problems() -> Iterator[Finding]:
    """Settings and surroundings that are known to go wrong."""
    if os.environ.get("RAY_TRAIN_V2_ENABLED") == "0":
        yield Finding("Ray Train", "problem", "RAY_TRAIN_V2_ENABLED=0", "unset it: runs need version 2")
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith(("file:", "/")):
        advice = "MLflow no longer tracks to folders: sqlite:///file.db or a server"
        yield Finding("MLFLOW_TRACKING_URI", "problem", uri, advice)
    for name in ("http_proxy", "HTTP_PROXY"):
        if os.environ.get(name) and "127.0.0.1" not in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")):
            yield Finding("proxy", "note", f"{name} is set", "NO_PROXY=127.0.0.1,localhost and the cluster's hosts")
            break
