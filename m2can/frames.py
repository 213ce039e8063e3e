"""Frames given to `m2can.train` → manifests in the run's folder, which all workers can read."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.recipe import Recipe

DATA = "data"  # in the run's folder


@contextmanager
def written_frames(
    recipe: Recipe, sources: Mapping[str, Any], target: Mapping[str, Any], classes: list[str] | None
) -> Iterator[dict[str, Any]]:
    """Write the frames into the run's folder and yield the recipe's keys that name them, by dotted key.

    A run that goes on under its name must have the same data. What was written is removed if no run comes of it.

    Args:
        recipe: says where runs lie and, if it does, what this one is called.
        sources, target, classes: see `m2can.train`.

    Raises:
        InputError: the frames cannot be used, or the run that has this name has other data.
    """
    from datasets_manifest.errors import InputError
    from datasets_manifest.files import made_folder
    from datasets_manifest.packing.frames import classes_of, splits_of, write_domain
    from trainers.tracking.address import require_folder_of_runs, run_storage

    if len(target) != 1:
        raise InputError(
            "is one domain", field="target", value=list(target), wanted="a mapping of its name to its frame"
        )
    domains = {name: splits_of(name, data) for name, data in sources.items()}
    (target_name,) = target
    if target_name in domains:
        raise InputError("is a source, too", field="target", value=target_name, wanted="a name of its own")
    names = list(classes) if classes is not None else classes_of(domains)
    if len(names) < 2:
        raise InputError(
            "fewer than two classes", field="label", value=names, wanted="sources with labels, or `classes`"
        )
    domains[target_name] = splits_of(target_name, target[target_name])
    name = recipe.run.name or f"{target_name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    require_folder_of_runs(recipe, "data given as frames")
    run = run_storage(recipe) / name
    goes_on = (run / "recipe.json").is_file()
    if not goes_on:
        shutil.rmtree(run / DATA, ignore_errors=True)
    manifests = {}
    with made_folder(run):
        try:
            for domain, splits in domains.items():
                folder = run / DATA / domain
                manifests[domain] = str(folder / "manifest.yaml")
                if goes_on:
                    _require_same(domain, splits, names, folder, name)
                else:
                    write_domain(domain, splits, names, folder)
            yield {
                "run.name": name,
                "data.sources": [manifests[domain] for domain in sources],
                "data.target": manifests[target_name],
            }
        finally:
            if not (run / "recipe.json").is_file():
                shutil.rmtree(run / DATA, ignore_errors=True)


def _require_same(domain: str, splits: Mapping[str, Any], classes: list[str], folder: Path, run: str) -> None:
    """Raises InputError: what stands in `folder` was not written of these frames."""
    from datasets_manifest.errors import InputError
    from datasets_manifest.files import digests
    from datasets_manifest.packing.frames import write_domain

    with tempfile.TemporaryDirectory(prefix="m2can-frames-") as place:
        write_domain(domain, splits, classes, Path(place) / "new")
        if digests(Path(place) / "new") != (digests(folder) if folder.is_dir() else {}):
            problem = f"is the name of a run whose data for {domain} differ from the frame given"
            raise InputError(problem, field="run.name", value=run, wanted="another name, or the same data")
