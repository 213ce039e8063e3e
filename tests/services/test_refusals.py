"""A refusal leaves no trace: whatever a command refuses, store, folders and files are as before, and no Ray was started."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.packing.pack import Packing, pack
from services.cli.job_entrypoint import run_preflight
from services.jobs.job_request import train_request
from tests.services.cli.conftest import run_m2can  # noqa: F401  (a fixture)
from tests.services.registered import NAME, Registered
from tests.trainers.tiny_run import small_recipe
from trainers.cluster import find_cluster
from trainers.preflight.preparation import claim, prepare
from trainers.preflight.run_lock import driver_lock
from trainers.recipe import make_recipe, stated_values
from trainers.tracking.registered_models import client_for

WITH_PASSWORD = "http://me:pw@h"  # pragma: allowlist secret
CARDS = {domain: f"postcards/{domain}/manifest.yaml" for domain in ("seaside", "city", "mountain")}


@pytest.fixture(scope="module")
def place(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with data, recipes, sweeps, runs that ended or are at work, and a store."""
    folder = tmp_path_factory.mktemp("place")
    recipe = small_recipe(folder, ["run.name=done", f"run.storage={folder / 'runs'}"])
    tree = stated_values(recipe.model_copy(update={"run": recipe.run.model_copy(update={"name": None})}))
    tree["data"] |= {"sources": [CARDS["seaside"], CARDS["city"]], "target": CARDS["mountain"]}
    tree["run"] = {"storage": "runs"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    claim(prepare(recipe))
    (folder / "runs" / "done" / "report").mkdir()
    (folder / "runs" / "done" / "report" / "summary.json").write_text('{"chosen_epoch": 1}')
    sweep = {
        "name": "radius",
        "recipe": "recipe.yaml",
        "algorithm": "grid",
        "space": {"sam.rho": {"choices": [0, 0.1]}},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (folder / "runs" / "known").mkdir()
    (folder / "runs" / "known" / "sweep.json").write_text(json.dumps({"sweep": {"name": "known"}, "tree": {}}))
    (folder / "other").mkdir()
    (folder / "other" / "note.txt").write_text("mine")
    (folder / "tokens.yaml").write_text("[]")
    (folder / "tokens.yaml").chmod(0o644)
    (folder / "records.csv").write_text("text,label\na,yes\nb,no\n")
    (folder / "records.yaml").write_text("{}")
    packed = pack(load_manifest(folder / CARDS["city"]), folder / "packed", Packing()).manifest.parent
    shard = next((packed / "shards").glob("val-*"))
    shard.write_bytes(b"\0" * shard.stat().st_size)
    shutil.copytree(folder / "postcards" / "city", folder / "half")
    (folder / "half" / "val.jsonl").write_text('{"text": "a", "label": "unheard of"}\n')
    shutil.copy(registered.storage / "mlflow.db", folder / "runs")
    client = client_for(None, folder / "runs")
    client.delete_experiment(client.create_experiment("gone"))
    client.set_registered_model_alias(NAME, "champion", "1")
    with driver_lock(folder / "runs" / "held"):
        yield folder


def snapshot(*folders: Path) -> dict[str, object]:
    """Every file and folder: rights, time of the last change, content."""
    found: dict[str, object] = {}
    for root in folders:
        for path in [root, *root.rglob("*")]:
            state = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            if path.name != ".driver.json":  # the heartbeat of the command at work
                changed = state.st_mtime_ns if path.is_file() else 0  # a folder may have held a draft
                found[str(path)] = (state.st_mode, changed, content)
    return found


TRAIN = ("train", "recipe.yaml", "--set")
REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "train: no file": (("train", "nowhere.yaml"), 2, "there is no such file"),
    "train: key": ((*TRAIN, "train.epoch=3"), 2, "train.epochs"),
    "train: text encoder": ((*TRAIN, "encoders.text.name=/nowhere/bert"), 2, "no encoder could be read"),
    "train: picture encoder": ((*TRAIN, "encoders.picture.name=torchvision:resnet5"), 2, "torchvision has no such"),
    "train: weights": ((*TRAIN, "encoders.picture.weights=/nowhere.pt"), 2, "encoders.picture.weights"),
    "train: device": ((*TRAIN, "cluster.device=cuda"), 2, "no CUDA device is here"),
    "train: disk": ((*TRAIN, "checkpoint.max_disk=1000"), 2, "checkpoint.max_disk: a checkpoint takes"),
    "train: other recipe": ((*TRAIN, "run.name=done", "--set", "train.batch_size=4"), 2, "with another recipe"),
    "train: at work": ((*TRAIN, "run.name=held"), 2, "another command is at work on it"),
    "train: experiment": ((*TRAIN, "tracking.experiment=gone"), 2, "tracking.experiment: was deleted in MLflow"),
    "train: driver": ((*TRAIN, "tracking.uri=mysql+nodriver://h/db"), 2, "tracking.uri"),
    "train: scheme": ((*TRAIN, "tracking.uri=ftp://h"), 2, "is no address MLflow can track to"),
    "train: storage": ((*TRAIN, "run.storage=recipe.yaml"), 2, "run.storage: is a file"),
    "train: trace": (("train", "recipe.yaml", "--trace", "other"), 2, "--trace: is a folder"),
    "train: workers": ((*TRAIN, "cluster.workers=50"), 2, "more than the rows of a batch, train.batch_size 6"),
    "train: target": ((*TRAIN, "data.target=nowhere.yaml"), 2, "nowhere.yaml: no such file"),
    "train: cluster": (("train", "recipe.yaml", "--address", "127.0.0.1:9"), 2, "no Ray cluster answers"),
    "dry run: encoder": ((*TRAIN, "encoders.picture.name=timm:no", "--dry-run"), 2, "encoders.picture.name"),
    "dry run: experiment": ((*TRAIN, "tracking.experiment=gone", "--dry-run"), 2, "was deleted in MLflow"),
    "tune: key": (("tune", "recipe.yaml"), 2, "unknown key"),
    "tune: other sweep": (("tune", "sweep.yaml", "--name", "known"), 2, "is the name of a sweep that differs"),
    "tune: at work": (("tune", "sweep.yaml", "--name", "held"), 2, "another command is at work on it"),
    "tune: experiment": (("tune", "sweep.yaml", "--set", "tracking.experiment=gone"), 2, "was deleted in MLflow"),
    "tune: encoder": (("tune", "sweep.yaml", "--set", "encoders.text.name=/nowhere/bert"), 2, "no encoder could be read"),
    "tune: disk": (("tune", "sweep.yaml", "--set", "checkpoint.max_disk=1000"), 2, "a checkpoint takes"),
    "generate: other files": (("data", "generate", "other"), 2, "holds other files"),
    "generate: file": (("data", "generate", "recipe.yaml"), 2, "is not a folder"),
    "init: manifest there": (("data", "init", "records.csv"), 2, "records.yaml: exists already"),
    "init: no records": (("data", "init", "recipe.yaml"), 2, "recipe.yaml"),
    "check: no manifest": (("data", "check", "nowhere.yaml", "--html", "page.html"), 2, "nowhere.yaml: no such file"),
    "pack: not empty": (("data", "pack", CARDS["city"], "other"), 2, "the folder is not empty"),
    "pack: a file": (("data", "pack", CARDS["city"], "recipe.yaml"), 2, "is a file"),
    "pack: bad second split": (("data", "pack", "half/manifest.yaml", "new"), 2, "unheard of"),
    "unpack: not empty": (("data", "unpack", "packed/manifest.yaml", "other"), 2, "the folder is not empty"),
    "unpack: damaged": (("data", "unpack", "packed/manifest.yaml", "new/folder"), 2, "cannot be unpacked"),
    "predict: model": (("predict", "nowhere", "--data", CARDS["city"], "--out", "p.csv"), 2, "no such folder"),
    "predict: form": (("predict", NAME, "--data", CARDS["city"], "--out", "p.xlsx"), 2, "not written in this form"),
    "predict: data": (("predict", NAME, "--data", "nowhere.yaml", "--out", "new/"), 2, "nowhere.yaml: no such file"),
    "predict: folder": (("predict", NAME, "--data", CARDS["city"], "--out", "other/"), 2, "is not empty"),
    "evaluate: split": (("evaluate", NAME, "--data", CARDS["city"], "--split", "test"), 2, "split"),
    "fetch: folder": (("models", "fetch", NAME, "--to", "other"), 2, "exists already"),
    "fetch: version": (("models", "fetch", f"{NAME}:9", "--to", "new/folder"), 2, "is not in the registry"),
    "promote: version": (("models", "promote", f"{NAME}:9"), 2, "is not in the registry"),
    "promote: alias": (("models", "promote", NAME, "--to", "a b"), 2, "cannot be an alias"),
    "promote: half a gate": (("models", "promote", NAME, "--on", CARDS["city"]), 2, "go together"),
    "promote: not better": (
        ("models", "promote", f"{NAME}:2", "--if-better-than", "2", "--on", CARDS["city"]), 1, "is not promoted"
    ),
    "promote: data": (
        ("models", "promote", NAME, "--if-better-than", "1", "--on", "nowhere.yaml"), 2, "nowhere.yaml: no such file"
    ),
    "rollback": (("models", "rollback", NAME), 2, "no version had @champion before"),
    "compare": (("models", "compare", NAME, f"{NAME}:9"), 2, "is not in the registry"),
    "delete: in use": (("models", "delete", f"{NAME}:1"), 2, "is in use"),
    "delete: no number": (("models", "delete", NAME), 2, "names no version"),
    "import: file": (("models", "import", "recipe.yaml", "--out", "new/model"), 2, "recipe.yaml"),
    "export: form": (("models", "export", NAME, "new/best.pth"), 2, "names one form"),
    "export: records": (("models", "export", NAME, "new/out", "--onnx", "--data", "nowhere.yaml"), 2, "no such file"),
    "export: parts": (("models", "export", NAME, "new/best.pth", "--published"), 2, "has no published form"),
    "runs: show": (("runs", "show", "dome"), 2, "nearest: done"),
    "runs: storage": (("runs", "list", "--storage", "nowhere"), 2, "there is no such folder"),
    "runs: delete unasked": (("runs", "delete", "done"), 2, "nobody can be asked here"),
    "jobs: recipe": (("jobs", "submit", "train", "recipe.yaml", "--set", "train.epoch=1"), 2, "train.epochs"),
    "jobs: id": (("jobs", "submit", "train", "recipe.yaml", "--id", "../x"), 2, "cannot be a job's id"),
    "jobs: password": (
        ("jobs", "submit", "train", "recipe.yaml", "--set", f"tracking.uri={WITH_PASSWORD}"), 2, "has a password in it"
    ),
    "jobs: away": (
        ("jobs", "submit", "train", "recipe.yaml", "--address", "http://127.0.0.1:9"), 1, "no job server answers"
    ),
    "serve: model": (("serve", "no-such-model"), 2, "is not in the registry"),
    "serve: host": (("serve", NAME, "--host", "0.0.0.0"), 2, "is reached by others"),
    "serve: tokens": (("serve", NAME, "--tokens", "tokens.yaml"), 2, "others may read it"),
    "serve: port": (("serve", NAME, "--port", "{taken}"), 2, "--port: cannot be used"),
    "serve locally: port": (("serve", NAME, "--local", "--port", "{taken}"), 2, "--port: cannot be used"),
    "api: host": (("api", "--host", "0.0.0.0"), 2, "is reached by others"),
    "api: tokens": (("api", "--tokens", "tokens.yaml"), 2, "others may read it"),
    "api: password": (("api", "--tracking-uri", WITH_PASSWORD, "--storage", "new"), 2, "has a password in it"),
    "token": (("token", "ci", "--scope", "all"), 2, "NAME, --scope"),
    "no store": (("models", "list", "--storage", "new"), 2, "there is no MLflow store yet"),
}  # fmt: skip


@pytest.fixture
def nothing_changes(
    place: Path, registered: Registered, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """In `place`; fails if anything there changed, or if a Ray was started or joined."""
    monkeypatch.chdir(place)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "M2CAN_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(find_cluster, "GIVEN_UP_AFTER_S", 0.0)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started or joined"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    before = snapshot(place, registered.folder)
    yield
    after = snapshot(place, registered.folder)
    changed = [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
    assert changed == []


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_command_leaves_no_trace(case: str, run_m2can: Any) -> None:  # noqa: F811
    arguments, wanted, words = REFUSED[case]
    if "device" in case and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, err = run_m2can(*(argument.format(taken=port) for argument in arguments))
    assert code == wanted, err
    assert words in err and "Traceback" not in err and out == ""
    assert len([line for line in err.splitlines() if line.startswith("m2can: ")]) == 1


def job(place: Path, **changes: Any) -> Any:
    tree = yaml.safe_load((place / "recipe.yaml").read_text()) | {"run": {"storage": str(place / "elsewhere")}}
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return train_request("train-1", make_recipe(tree, place / "recipe.yaml"))


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"target": "nowhere.yaml"}}, "nowhere.yaml: no such file"),
        ({"tracking": {"experiment": "gone", "uri": "sqlite:///{runs}/mlflow.db"}}, "was deleted in MLflow"),
        ({"tracking": {"uri": "http://127.0.0.1:9"}}, "MLflow does not answer"),
        ({"run": {"name": "done"}}, "a run of this name has ended"),
    ],
)
def test_a_jobs_preflight_leaves_no_trace(
    place: Path, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if "tracking" in changes:
        changes = {"tracking": {key: text.format(runs=place / "runs") for key, text in changes["tracking"].items()}}
    if "run" in changes:
        changes = {"run": {**changes["run"], "storage": str(place / "runs")}}
    with pytest.raises(InputError, match=words):
        run_preflight(job(place, **changes))


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoders.text.name": "/nowhere/bert"}, "no encoder could be read"),
        ({"tracking.experiment": "gone"}, "was deleted in MLflow"),
        ({"run.storage": "new/runs", "encoders.picture.name": "no"}, "unknown picture encoder"),
    ],
)
def test_frames_given_from_python_leave_no_trace(changes: dict[str, str], words: str) -> None:
    import pandas as pd

    import m2can

    forum = pd.DataFrame({"text": ["good", "bad", "very good", "too bad"] * 10, "label": ["pos", "neg"] * 20})
    recipe = {"encoders": {"text": {"name": "tiny:32"}, "picture": {"name": "tiny:4"}}, "train": {"batch_size": 6}}
    with pytest.raises(InputError, match=words):
        m2can.train(recipe, sources={"forum": forum}, target={"shop": forum[["text"]]}, overrides=changes)
