"""What users are told: each message that the code can give is given once by a test, and stands in one."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer.testing
import yaml
from ray.exceptions import AuthenticationError
from torch import nn

from datasets_manifest.errors import InputError
from datasets_manifest.files import read_json
from datasets_manifest.manifest import catalog, misplaced_keys
from datasets_manifest.manifest.loading import MAX_MANIFEST_BYTES, load_manifest
from datasets_manifest.packing.pack import unpack
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.class_folders import list_pictures
from datasets_manifest.records.corpus import load_corpus
from datasets_manifest.records.tables import find_separator
from datasets_manifest.records.text_files import read_text
from datasets_manifest.stream.text import TextTokenizer, build_tokenizer
from services import assessment, batch_prediction
from services.cli.main import app
from services.jobs import jobs
from services.jobs.preflight import check_capacity
from services.web.auth import Tokens
from trainers.cluster import dry_run, resources
from trainers.compute import compiled, precision, vocabulary
from trainers.encoders import encoders, picture_card
from trainers.failures import RunFailed
from trainers.journal import outcome
from trainers.journal.journal import Journal
from trainers.model import published_checkpoint
from trainers.published.configuration import recipe_tree
from trainers.recipe import load_recipe, make_recipe
from trainers.tracking import registered_models
from trainers.tracking.registration import ModelToLog
from trainers.tracking.sender import Sender
from tuning import driver, trial
from tuning.packing import Packing
from tuning.sweep import load_sweep

ROOT = Path(__file__).parents[1]
ROOMS = ("datasets_manifest", "trainers", "tuning", "services", "m2can")
RAISED = {"InputError", "RunFailed", "RunStopped", "TrackingUnavailable", "ServiceUnavailable", "JobsUnavailable"}
# Said where a test would need what is not at hand.
UNTESTED = {"timm is not installed"}


def domain(folder: Path, name: str, classes: list[str], labels: list[str | None], **keys: Any) -> str:
    folder.mkdir(parents=True)
    records = [{"text": f"record {n}"} | ({"label": label} if label else {}) for n, label in enumerate(labels)]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    content = {"name": name, "classes": classes, "splits": {"train": {"records": "train.jsonl", **keys}}}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "manifest.yaml")


def written(folder: Path, content: str | bytes, name: str = "file.yaml") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def corpus(folder: Path, names: str, classes: tuple[list[str], list[str]], labels: list[str | None]) -> Any:
    a, b = (domain(folder / n, n[0], c, labels) for n, c in zip((names[:2], names[2:]), classes, strict=True))
    return load_corpus([a], b)


YES_NO = ["yes", "no"]
OF_DATA: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no object": (lambda p: read_json(written(p, "[1]")), r"file\.yaml: is not a JSON object; found \[1\]; wanted"),
    "cut off": (lambda p: read_json(written(p, '{"a": ')), r"is not JSON, or was cut off \(Expecting value"),
    "gone": (lambda p: read_json(p / "x"), r"x: cannot be read \(No such file or directory\)$"),
    "domain": (lambda p: catalog.parse_reference("catalog:postcards/sea"), "no such domain; found 'sea'; wanted cat"),
    "lists": (
        lambda p: catalog.parse_reference("catalog:postcards/city?train=x"),
        "its domains have manifests, not lists; wanted no location but `root`",
    ),
    "location": (lambda p: catalog.parse_reference("catalog:AVA?trian=x"), "unknown location `trian`; wanted one of"),
    "root": (lambda p: catalog.data_root(), "data root: the folder of the data sets is not known; wanted --data-root"),
    "configuration": (
        lambda p: catalog._configured(written(p, "root: x")),
        "does not say where data are; found .*; wanted `data_root: <folder>`",
    ),
    "split": (
        lambda p: misplaced_keys.refuse_misplaced_keys({"splits": {"train": "a.csv"}}, p),
        "splits.train: not a mapping; found 'a.csv'; wanted `splits: {train: {records: a.csv}}`",
    ),
    "label": (
        lambda p: misplaced_keys.refuse_misplaced_keys({"classes": YES_NO, "labels": {True: "yes"}}, p),
        r"labels.True: YAML reads this as a bool, which stands in no record; wanted a string \(in quotes\)",
    ),
    "manifest size": (
        lambda p: load_manifest(written(p, b" " * (MAX_MANIFEST_BYTES + 1))),
        "too large for a manifest; found .*; wanted at most .* is this a records file",
    ),
    "postcards": (lambda p: write_postcards(p / "x", train=0), "train: is too small; found 0; wanted at least 1"),
    "folder": (lambda p: list(list_pictures(p / "gone", [])), r"gone: cannot be listed \("),
    "NUL in a text": (
        lambda p: list(list_pictures(written(p, "", "a.png").parent, [])) if written(p, "a\0", "a.txt") else None,
        r"a\.txt: holds a NUL byte; wanted a text saved as UTF-8",
    ),
    "NUL in a table": (
        lambda p: read_text(written(p, "a,b\n1,\0\n"), None, guess=False),
        r"line 2: holds a NUL byte; wanted a text file saved as UTF-8, or its `encoding`",
    ),
    "UTF-16": (
        lambda p: read_text(written(p, "abc"), "undefined", guess=False),
        "not undefined: .*; wanted another `encoding`",
    ),
    "two separators": (
        lambda p: find_separator(p, "id;text,image\n", {"id", "image"}),
        "line 1: the header has columns with ',' and with ';' as separator; wanted `separator` in the manifest",
    ),
    "one name": (
        lambda p: corpus(p, "a1a2", (YES_NO, YES_NO), ["yes", "no"]),
        r"name: another domain has this name \(.*; found 'a'; wanted a name of its own for every domain",
    ),
    "one class": (
        lambda p: corpus(p, "a1b2", (YES_NO, YES_NO), ["yes", None]),
        r"splits.train: a source must have labels of at least two classes; found \['yes'\]; wanted labels among yes, no",
    ),
    "other classes": (
        lambda p: corpus(p, "a1b2", (YES_NO, ["yes", "non"]), ["yes", None]),
        r"classes: the classes differ from those of .* \(only .* has no; only .* has non\)",
    ),
    "capitals": (
        lambda p: corpus(p, "a1b2", (YES_NO, ["Yes", "no"]), ["yes", None]),
        r"they differ by capitals alone, so `labels: \{Yes: yes\}` and these classes",
    ),
    "column": (
        lambda p: load_corpus([domain(p / "a", "a", YES_NO, ["yes", "no"], columns={"text": "txet"})], str(p / "a")),
        r"the manifest is a folder",
    ),
    "stated column": (
        lambda p: corpus_with_columns(p, {"text": "txet"}),
        r"columns.text: no such column; found 'txet'; wanted one of label, text \(nearest: text\)",
    ),
    "tokenizer": (
        lambda p: TextTokenizer("{}", 9, "a", "b", "c"), r"tokenizer: not a tokenizer \(.*; wanted the content of"
    ),
    "room for text": (
        lambda p: TextTokenizer(build_tokenizer(["a b"]), 2, "[CLS]", "[SEP]", "[PAD]"),
        "data.texts.max_tokens: leaves no room for text beside the tokenizer's 2 special tokens; found 2; wanted more",
    ),
    "tokens file": (
        lambda p: Tokens.read(private(written(p, "[]"))), "has no token; wanted the line that `m2can token NAME"
    ),
}  # fmt: skip


def private(file: Path) -> Path:
    file.chmod(0o600)
    return file


def corpus_with_columns(folder: Path, columns: dict[str, str]) -> Any:
    first = domain(folder / "a", "a", YES_NO, ["yes", "no"], columns=columns)
    return load_corpus([first], domain(folder / "b", "b", YES_NO, ["yes", "no"]))


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("M2CAN_DATA_ROOT", raising=False)
    monkeypatch.setenv("M2CAN_CONFIG", str(tmp_path / "no such configuration"))


@pytest.mark.parametrize("case", OF_DATA)
def test_messages_about_data(case: str, tmp_path: Path) -> None:
    call, words = OF_DATA[case]
    with pytest.raises(InputError, match=words) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def sweep(folder: Path, **keys: Any) -> Any:
    data = {"sources": ["a.yaml"], "target": "b.yaml"}
    content = {"name": "s", "recipe": {"data": data}, "space": {"sam.rho": {"choices": [0]}}, **keys}
    content = {key: value for key, value in content.items() if value is not None}
    return load_sweep(written(folder, yaml.safe_dump(content)))


def configuration(**changes: Any) -> Any:
    content: dict[str, Any] = {"dataset": {"types": ["AVA", "RPCD", "PCCD"]}, "net": {"num_classes": 2}}
    for key, value in changes.items():
        section, _, rest = key.partition("__")
        *parents, last = rest.split("__")
        node = content.setdefault(section, {})
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return recipe_tree(content, "config.yaml")


OF_RECIPES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: load_recipe(written(p, "")), "is empty; wanted keys such as `data:`"),
    "no keys": (lambda p: load_recipe(written(p, "hello")), "is no recipe: it holds no keys; found 'hello'; wanted"),
    "several keys": (
        lambda p: make_recipe({"data": {"sources": ["a"], "target": "b"}, "cluster": {"workers": 99}}),
        "cluster.workers 99 is more than the rows of a batch, train.batch_size [0-9]+: a worker would have none$",
    ),
    "sweep without recipe": (lambda p: sweep(p, recipe=None), "recipe: is not given; wanted a recipe file, or --reci"),
    "one source": (
        lambda p: sweep(p, objective="leave_one_source_out"),
        "data.sources: has too few sources; found 1; wanted at least 2 for the objective leave_one_source_out",
    ),
    "searched key": (
        lambda p: sweep(p, space={"sam.roh": {"choices": [0]}}),
        r"space.sam.roh: is no key of the recipe; wanted a key of the recipe \(nearest: sam.rho\)",
    ),
    "published value": (
        lambda p: configuration(dataset__train__transforms_weak__mean=[0.0, 0.0, 0.0]),
        r"dataset.train.transforms_weak.mean: no other value is computed here; found \[0.0, 0.0, 0.0\]; wanted \[0.485",
    ),
    "published counts": (
        lambda p: configuration(dataset__train__AVA__n_sample=5),
        "dataset.train.*.n_sample: the domains differ; found .*; wanted one number for all domains",
    ),
    "published betas": (
        lambda p: configuration(trainer__optimizer__kwargs__betas="0.9", dataset__train__AVA__n_sample=None),
        'betas: not two numbers; found \'0.9\'; wanted "0.9 0.999"',
    ),
    "head": (
        lambda p: encoders._append_identity(nn.Linear(2, 2), 2),
        "encoders.picture.head: needs a ResNet of torchvision; found 'identity_linear'; wanted `none`",
    ),
    "weights by name": (
        lambda p: encoders._torchvision("resnet18", "IMAGENET"),
        "encoders.picture.weights: unknown weights; found 'IMAGENET'; wanted IMAGENET1K_V1, `random` or a file",
    ),
    "pictures": (
        lambda p: picture_card._square(20, 30, "timm:x"),
        "encoders.picture.name: wants pictures of 20 × 30 pixels, which are no squares",
    ),
    "tensors": (
        lambda p: (_ for _ in ()).throw(published_checkpoint._misfit(p / "a.pth", ["x"], ["y", "z"])),
        r"model_state: its tensors are not the network's \(1 missing: x; 2 unexpected: y, z\)",
    ),
    "model folder": (
        lambda p: ModelToLog(p, "name"), "is missing in the model folder; wanted a folder with model.safetensors"
    ),
    "quote": (
        lambda p: Sender("sqlite://", "e", "it's", Journal(p), {}, {}, p), "run.name: has a quote in it; found"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_RECIPES)
def test_messages_about_recipes(case: str, tmp_path: Path) -> None:
    call, words = OF_RECIPES[case]
    with pytest.raises(InputError, match=words) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_messages_about_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe({"data": {"sources": ["a"], "target": "b"}, "train": {"precision": "bf16"}})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(
        InputError, match=r"train.precision: the GPU does not compute in it; found 'bf16'; wanted `fp16`"
    ):
        precision.require_device(recipe, torch.device("cuda"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("CXX", "python3")
    with pytest.raises(InputError, match=r"train.compile: torch.compile needs triton; found True; wanted `false`"):
        compiled.require_compiler(recipe, torch.device("cuda"))
    monkeypatch.setattr(resources, "most_resources", lambda: {"CPU": 8.0})
    tree = {"data": {"sources": ["a"], "target": "b"}, "cluster": {"device": "cuda", "workers": 2}}
    with pytest.raises(
        InputError, match=r"each worker takes a GPU and the cluster has 0; .* cluster\.device=cpu, or a"
    ):
        resources.worker_resources(make_recipe(tree))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(InputError, match=r"--workers: the cluster has fewer CPUs; found 3; wanted at most 2"):
        batch_prediction._require_cpus(3)


def test_what_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", unreachable)
    with pytest.raises(InputError, match=r"the weights could not be fetched \(no route to host\); .* or a network"):
        encoders._torchvision("resnet18", "pretrained")
    monkeypatch.setattr(registered_models, "download_artifacts", unreachable)
    client: Any = SimpleNamespace(get_model_version_download_uri=lambda *_: "runs:/x", tracking_uri="sqlite://")
    version: Any = SimpleNamespace(name="mine", version="3")
    with pytest.raises(InputError, match=r"MODEL: its files could not be fetched \(no route to host\); found 'mine:3'"):
        registered_models.download(client, version)


def test_weights_that_timm_does_not_know() -> None:
    with pytest.raises(InputError, match=r"picture\.name: timm cannot make it \(.*no_such"):
        encoders._timm("resnet18.no_such", True)
    assert picture_card._of_timm("resnet18.no_such") is None
    assert picture_card._of_torchvision("fasterrcnn_resnet50_fpn", "pretrained") is None


def test_a_data_set_is_not_unpacked_over_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(write_postcards(tmp_path, train=3, val=3)["city"])
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "volume")
    with pytest.raises(InputError, match="is a mount point, which cannot be replaced"):
        unpack(manifest, tmp_path / "volume")
    assert unpack(manifest, tmp_path / "new").is_file()


def test_a_model_without_a_vector_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_width_of", lambda model: None)
    with pytest.raises(
        InputError, match=r"encoders.picture.name: its head is not known; found 'resnet18'; wanted anot"
    ):
        encoders._torchvision("resnet18", None)


def test_a_tokenizer_without_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        backend_tokenizer = SimpleNamespace(to_str=lambda: "{}")
        cls_token = sep_token = pad_token = None

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: Bare())
    tree = {"data": {"sources": ["a"], "target": "b"}, "encoders": {"text": {"name": "gpt"}}}
    with pytest.raises(InputError, match=r"its tokenizer has no pad_token; found 'gpt'; wanted a tokenizer that names"):
        vocabulary.encoder_vocabulary(make_recipe(tree))


def test_messages_about_models_and_their_data(tmp_path: Path) -> None:
    model: Any = SimpleNamespace(classes=["yes", "no"])
    with pytest.raises(InputError, match=r"classes: has other classes than the model; found .*; wanted yes, no"):
        assessment.assess(model, domain(tmp_path / "a", "a", ["a", "b"], ["a"]), "train")
    with pytest.raises(
        InputError, match=r"splits.train: no record has a label; wanted labels to compare with; `m2can pre"
    ):
        assessment.assess(model, domain(tmp_path / "b", "b", YES_NO, [None]), "train")


def test_messages_about_runs_that_end_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = None
    with pytest.raises(
        RunFailed, match=r"mine ended and no epoch has both a checkpoint and a record .*/logs says what"
    ):
        outcome.choose_epoch_of("mine", tmp_path, nothing, nothing, [], {})
    plan = sweep(tmp_path, recipe={"data": {"sources": ["a.yaml", "b.yaml"], "target": "c.yaml"}})
    monkeypatch.setattr(trial, "train_run", lambda *_: SimpleNamespace(target_accuracy_chosen=None))
    with pytest.raises(
        InputError, match=r"has no labelled validation records, by which leave_one_source_out scores it"
    ):
        trial._leave_each_source_out(trial.TrialJob(plan, tmp_path, 1.0, None, None, Packing(1)), "t", [])


def test_messages_about_what_ended_on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(nullcontext[None]):
        measured = None

    monkeypatch.setattr(dry_run, "start_workers", lambda *_, **__: (SimpleNamespace(fit=lambda: None), Silent()))
    monkeypatch.setattr(dry_run, "ended_with", lambda *_: nullcontext())
    monkeypatch.setattr("trainers.cluster.driver.watch_cluster", lambda *_, **__: nullcontext())  # it would start a Ray
    monkeypatch.setattr(dry_run.dataclasses, "replace", lambda prepared, **_: prepared)
    recipe = SimpleNamespace(cluster=SimpleNamespace(grace_s=1.0))
    prepared: Any = SimpleNamespace(folder=tmp_path / "runs" / "mine", recipe=recipe, store=None)
    with pytest.raises(RunFailed, match=r"the dry run's workers ended before they had measured a step"):
        dry_run.dry_run(prepared)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(driver, "most_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(driver, "_run_trials", lambda *_: {"a": "OSError: full"})
    plan = sweep(tmp_path)
    with pytest.raises(RunFailed, match=r"no trial of s came to an end; the first error: OSError: full"):
        driver._run_claimed(plan, plan.recipe([]), tmp_path, tmp_path / "s", None, None, 3)
    recipe = make_recipe({"data": {"sources": ["a"], "target": "b"}, "cluster": {"workers": 4, "device": "cuda"}})
    with pytest.raises(
        InputError, match=r"the cluster can never hold so many workers of 1 GPU each; found 4; wanted at m"
    ):
        check_capacity(recipe, [{"CPU": 4.0}], {})


def test_messages_of_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        (["jobs", "submit", "train", "r.yaml", "--recipe", "x.yaml"], "--recipe: goes with `submit tune` only"),
        (["serve", "m", "--local", "--replicas", "2"], "--replicas: goes with Ray, not with --local; found 2"),
    ]
    for arguments, words in cases:
        result = typer.testing.CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, InputError) and words in str(result.exception)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AuthenticationError("no"), "the job server refuses the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        (
            RuntimeError("Request failed with status code 500\nmore"),
            "the job server refused: Request failed with .* 500$",
        ),
    ],
)
def test_messages_of_a_job_server(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str) -> None:
        raise error

    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    monkeypatch.setattr(jobs, "JobSubmissionClient", refuse)
    with pytest.raises(jobs.JobsUnavailable, match=words):
        jobs.JobServer("http://head:8265").list_jobs()


@pytest.mark.parametrize("stated", [True, False])
def test_a_token_that_is_not_there_is_named_with_its_file(
    stated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: str) -> None:
        raise AuthenticationError("no")

    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "my.token" if stated else tmp_path / ".ray" / "auth_token"
    if stated:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    monkeypatch.setattr(jobs, "JobSubmissionClient", refuse)
    with pytest.raises(jobs.JobsUnavailable, match=f"^no token here: {file} is not there; .* mode 600"):
        jobs.JobServer("http://head:8265").list_jobs()
    file.parent.mkdir(exist_ok=True)
    file.write_text("t")
    with pytest.raises(jobs.JobsUnavailable, match="the job server refuses the token"):
        jobs.JobServer("http://head:8265").list_jobs()


def parts(node: ast.AST) -> list[str]:
    """The words of a message, without the values in it."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return [word for value in node.values for word in parts(value)]
    if isinstance(node, ast.BinOp):
        return parts(node.left) + parts(node.right)
    return parts(node.body) if isinstance(node, ast.IfExp) else []


def messages() -> Iterator[tuple[str, list[str]]]:
    """(place, words) of each error that the code makes with words of its own."""
    for file in (file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            named: dict[str, list[ast.AST]] = {}
            for step in (step for step in ast.walk(function) if isinstance(step, ast.Assign)):
                target, value = step.targets[0], step.value
                pairs = [(target, value)]
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    pairs = list(zip(target.elts, value.elts, strict=True))
                for name, words in pairs:
                    if isinstance(name, ast.Name):
                        named.setdefault(name.id, []).append(words)
            for call in (call for call in ast.walk(function) if isinstance(call, ast.Call) and call.args):
                if getattr(call.func, "id", "") in RAISED:
                    first = call.args[0]
                    known = named.get(first.id, []) if isinstance(first, ast.Name) else [first]
                    yield f"{file.relative_to(ROOT)}:{call.lineno}", [word for each in known for word in parts(each)]


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.replace("\\", "")))


def test_each_message_stands_in_a_test() -> None:
    tests = plain(" ".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py")))
    found = list(messages())
    assert len(found) > 250
    missing = []
    for place, words in found:
        runs = [plain(part).split() for part in words if len(plain(part)) > 4]
        threes = [" ".join(run[i : i + 3]) for run in runs for i in range(max(1, len(run) - 2))]
        if threes and not any(three in tests for three in threes) and not UNTESTED & set(words):
            missing.append(f"{place}: {words}")
    assert missing == []
