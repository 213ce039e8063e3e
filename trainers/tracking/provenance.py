"""Where a model comes from, as short hashes: its code, its data, its environment."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

import datasets_manifest
import trainers
from datasets_manifest.records.corpus import Corpus
from datasets_manifest.records.sharded_table import ShardedTable, some_rows
from trainers.recipe import Recipe

JOB_ID_VARIABLE = "M2CAN_JOB_ID"
_DIGITS = 16
_ROWS_OF_SHARDS = 65_536  # of a split
# Packages whose version changes what a run computes or whether its parts understand each other.
MAIN_PACKAGES = (
    "torch",
    "torchvision",
    "ray",
    "mlflow",
    "transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
    "opencv-python-headless",
)


def code_version() -> str:
    """`<version>+<hash>`: the package's version and a hash of the sources of method, data and loop."""
    digest = hashlib.sha256()
    for package in (datasets_manifest, trainers):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    try:
        number = version("m2can")
    except PackageNotFoundError:
        number = "0"
    return f"{number}+{digest.hexdigest()[:_DIGITS]}"


def job_tags() -> dict[str, str]:
    """Of an MLflow run: which Ray job it belongs to, if it belongs to one."""
    job = os.environ.get(JOB_ID_VARIABLE)
    return {"m2can.job": job} if job else {}


def data_fingerprint(corpus: Corpus) -> str:
    """Hash of classes, splits and all records: ids, texts, labels and the pictures' file names, wherever they lie."""
    return _hash_of(data_hashes(corpus))


def data_hashes(corpus: Corpus) -> dict[str, str]:
    """The same in parts: of the classes, of each split of each domain, and of the target's labels that were given.

    Of rows in shards, which are too many to be read once more, all labels count and the content of some rows.
    """
    hashes = {"classes": _hash_of(corpus.classes)}
    for part in [*corpus.train, *(part for part in corpus.val if part is not None)]:
        table = corpus.table.slice(part.start, len(part))
        digest = hashlib.sha256()
        if isinstance(table, ShardedTable):
            digest.update(table.labels.tobytes())
            table = table.take(some_rows(table, _ROWS_OF_SHARDS))
        for batch in table.to_batches(max_chunksize=4096):
            rows = batch.to_pydict()
            names = [[os.path.basename(path) for path in paths] for paths in rows["images"]]
            content = [rows["id"], rows["texts"], names, rows["label"]]
            digest.update(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())
        hashes[f"{part.domain}, split {part.split}"] = digest.hexdigest()[:_DIGITS]
    if (given := corpus.given) is not None:
        arrays = given.rows, given.labels, given.check_rows, given.check_labels
        hashes["train.target_labels"] = _hash_of([array.tolist() for array in arrays])
    return hashes


def recipe_hash(recipe: Recipe) -> str:
    """Hash of all values of a recipe but the run's name and places."""
    content = recipe.model_dump(mode="json", exclude={"run", "tracking", "cluster"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def environment() -> dict[str, Any]:
    """Python, the main packages' versions, and a hash over all that is installed."""
    installed = sorted({f"{d.metadata['Name']}=={d.version}".lower() for d in distributions() if d.metadata["Name"]})
    main = {}
    for name in MAIN_PACKAGES:
        try:
            main[name] = version(name)
        except PackageNotFoundError:
            continue
    digest = hashlib.sha256("\n".join([platform.python_version(), *installed]).encode()).hexdigest()
    return {"hash": digest[:_DIGITS], "python": platform.python_version(), "packages": main}


def _hash_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_DIGITS]
