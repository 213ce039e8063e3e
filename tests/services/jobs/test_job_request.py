"""What a job is told, what its code is, and what is looked at before it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets_manifest.errors import InputError
from services.jobs.job_request import JobRequest, check_id, command_line, train_request, with_absolute_paths
from services.jobs.jobs import job_variables
from services.jobs.preflight import check_capacity, check_mlflow, check_nodes, refuse_finished
from services.jobs.sweep_request import tune_request
from services.jobs.working_folder import pack_code
from tests.trainers.tiny_run import small_recipe
from trainers.recipe import make_recipe
from tuning.sweep import load_sweep

RECIPE = {"data": {"sources": ["/d/a.yaml"], "target": "/d/b.yaml"}}


@pytest.mark.parametrize("identity", ["../up", "a;rm", "a b", "A", "1a", "", "a\n", "-a", "a" * 42, "ä"])
def test_ids_that_are_not_ours_are_refused(identity: str) -> None:
    with pytest.raises(InputError, match="cannot be a job's id"):
        check_id(identity)


def test_a_train_request_travels_whole_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    recipe = make_recipe(RECIPE | {"cluster": {"address": "ray://elsewhere:1"}, "train": {"epochs": 3}})
    request = JobRequest.decoded(train_request("job-a", recipe, {"hash": "x"}).encoded())
    assert request.run_name == "job-a"
    arguments = command_line(request, tmp_path)
    assert arguments == ["train", str(tmp_path / "recipe.json")]
    again = make_recipe(json.loads((tmp_path / "recipe.json").read_text()))
    assert again.run.storage == str(tmp_path / "runs")
    assert again.tracking.uri == "http://mlflow:5000"
    assert again.cluster.address is None
    assert again.train == recipe.train
    assert again.data == recipe.data


def test_ray_waits_for_a_run_s_grace_when_its_job_is_stopped() -> None:
    request = train_request("job-a", make_recipe(RECIPE | {"cluster": {"grace_s": 90.5}}))
    variables = job_variables(request, request.encoded())
    assert variables["RAY_JOB_STOP_WAIT_TIME_S"] == "111"  # and 20 s to close the MLflow run and Ray
    for recipe, seconds in (({"cluster": {"grace_s": 5}}, "25"), ({}, "80")):
        sweep = JobRequest(id="job-c", kind="tune", content={"name": "s", "recipe": recipe})
        assert job_variables(sweep, sweep.encoded())["RAY_JOB_STOP_WAIT_TIME_S"] == seconds
    check = JobRequest(id="job-b", kind="data-check", content={"manifests": []})
    assert "RAY_JOB_STOP_WAIT_TIME_S" not in job_variables(check, check.encoded())


def test_values_of_a_recipe_never_become_words_of_a_command(tmp_path: Path) -> None:
    nasty = "x$(touch /tmp/owned); `id` \"' \n--help"
    recipe = make_recipe(RECIPE | {"tracking": {"register_as": nasty}})
    arguments = command_line(train_request("job-a", recipe), tmp_path)
    assert not any("touch" in argument for argument in arguments)
    assert json.loads((tmp_path / "recipe.json").read_text())["tracking"]["register_as"] == nasty


@pytest.mark.parametrize(
    "tree",
    [
        {"tracking": {"uri": "postgresql://me:secret@db/mlflow"}},
        {"data": {"sources": ["s3://key:secret@bucket/a.yaml"], "target": "/b.yaml"}},
    ],
)
def test_a_password_does_not_travel_and_is_not_shown(tree: dict[str, object]) -> None:
    with pytest.raises(InputError, match="has a password in it") as caught:
        train_request("job-a", make_recipe(RECIPE | tree))
    assert "secret" not in str(caught.value)


def test_a_request_that_an_environment_cannot_hold_is_refused() -> None:
    recipe = make_recipe({"data": {"sources": [f"/d/{n:0100d}.yaml" for n in range(1000)], "target": "/b.yaml"}})
    with pytest.raises(InputError, match="too long to travel"):
        train_request("job-a", recipe).encoded()


SWEEP = """
name: thresholds
recipe: recipe.yaml
set: [train.epochs=3]
seeds: [0]
variants: {as it is: [], elsewhere: [data.target=other/c.yaml]}
"""


def test_a_sweep_brings_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder, another plan comes out than went in only in that its paths are absolute."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "recipe.yaml").write_text(
        "data: {sources: [a.yaml], target: b.yaml}\n"
        "encoders: {text: {freeze: all}, picture: {weights: w.pt, freeze: all}, features: f}\n"
        "optimizer: {lr: {heads: 1.0e-5}}"
    )
    (tmp_path / "there" / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "w.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    plan = load_sweep(tmp_path / "there" / "sweep.yaml", None, ["train.batch_size=4", "cluster.address=auto"])
    request = JobRequest.decoded(tune_request("job-a", plan).encoded())
    assert request.run_name == "thresholds"
    (tmp_path / "out").mkdir()
    arguments = command_line(request, tmp_path / "out")
    assert arguments == ["tune", str(tmp_path / "out" / "sweep.yaml")]
    again = load_sweep(Path(arguments[1]))
    before, after = plan.recipe([]), again.recipe([])
    assert after.data == before.data and after.data.target == str(tmp_path / "there" / "b.yaml")
    assert (after.train, after.optimizer) == (before.train, before.optimizer)
    assert after.train.batch_size == 4 and after.train.epochs == 3
    assert after.run.storage == str(tmp_path / "runs")
    assert after.encoders.picture.weights == str(tmp_path / "w.pt")
    assert after.encoders.features == str(tmp_path / "there" / "f")
    assert (after.tracking.uri, after.cluster.address) == ("http://mlflow:5000", None)
    elsewhere = again.recipe(again.sweep.variants["elsewhere"])
    assert elsewhere.data.target == str(tmp_path / "there" / "other" / "c.yaml")


def test_a_password_in_an_override_of_a_sweep_does_not_travel(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {sources: [a.yaml], target: b.yaml}")
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    plan = load_sweep(tmp_path / "sweep.yaml", None, ["tracking.uri=postgresql://me:secret@db/m"])
    with pytest.raises(InputError, match="has a password in it") as caught:
        tune_request("job-a", plan)
    assert "secret" not in str(caught.value)


def test_names_in_place_of_paths_stay_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "random", "encoder"):
        (tmp_path / name).mkdir()
    text = {"name": "tiny", "weights": "random"}
    assert with_absolute_paths(make_recipe(RECIPE | {"encoders": {"text": text}})).encoders.text.name == "tiny"
    placed = with_absolute_paths(make_recipe(RECIPE | {"encoders": {"text": {"name": "encoder"}}}))
    assert placed.encoders.text.name == str(tmp_path / "encoder")


def test_what_a_job_starts_from_has_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first" / "best").mkdir(parents=True)

    def start(named: str) -> str | None:
        return with_absolute_paths(make_recipe(RECIPE | {"train": {"start_from": named}})).train.start_from

    assert start("runs/first/best") == str(tmp_path / "runs" / "first" / "best")
    for name in ("first", "runs", "m2can-sea:4", "models:/m2can-sea@candidate"):  # a run's, a model's
        assert start(name) == name


def test_code_is_our_packages_without_caches_and_has_a_limit(tmp_path: Path) -> None:
    code = pack_code(tmp_path / "code")
    names = {path.relative_to(code.folder).as_posix() for path in code.folder.rglob("*") if path.is_file()}
    assert {
        "services/cli/job_entrypoint.py",
        "trainers/cluster/driver.py",
        "trainers/recipe/recipes/demo.yaml",
        "trainers/reports/templates/run.html",
        "tuning/templates/sweep.html",
        "datasets_manifest/postcards/words.yaml",
    } <= names
    assert not any("__pycache__" in name or name.startswith("tests") for name in names)
    assert code.bytes == sum((code.folder / name).stat().st_size for name in names)
    with pytest.raises(InputError, match="too large to be sent"):
        pack_code(tmp_path / "again", max_bytes=1000)


def test_resources_that_no_node_has_are_refused() -> None:
    recipe = make_recipe(RECIPE | {"cluster": {"workers": 4, "cpus_per_worker": 3, "device": "cuda"}})
    check_capacity(recipe, [{"CPU": 8, "GPU": 2}, {"CPU": 6, "GPU": 4}], {})
    with pytest.raises(InputError, match="at most 3"):  # eight GPUs, but CPUs for three workers only
        check_capacity(recipe, [{"CPU": 8, "GPU": 4}, {"CPU": 5, "GPU": 4}], {})


def test_what_an_autoscaler_may_add_counts() -> None:
    recipe = make_recipe(RECIPE | {"cluster": {"workers": 4, "cpus_per_worker": 3, "device": "cuda"}})
    check_capacity(recipe, [{"CPU": 4}], {"CPU": 64.0, "GPU": 8.0})
    with pytest.raises(InputError, match="at most 2"):
        check_capacity(recipe, [{"CPU": 4}], {"CPU": 64.0, "GPU": 2.0})


def test_mlflow_that_is_away_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="MLflow does not answer") as caught:
        check_mlflow("http://me:secret@127.0.0.1:9", "m2can", timeout_s=60)
    assert "secret" not in str(caught.value)


def test_a_finished_run_is_not_begun_again(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, ["run.name=done"])
    refuse_finished(recipe)
    report = Path(recipe.run.storage) / "done" / "report"
    report.mkdir(parents=True)
    (report / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="a run of this name has ended"):
        refuse_finished(recipe)


def test_every_node_is_asked_for_storage_and_data(tmp_path: Path, ray_cluster: None) -> None:
    import ray

    nodes = [node["NodeID"] for node in ray.nodes()]
    (tmp_path / "there.jpg").write_bytes(b"x")
    check_nodes(tmp_path / "storage", [str(tmp_path / "there.jpg")], nodes)
    assert not (tmp_path / "storage").exists()  # looked at, not made
    with pytest.raises(InputError, match=r"node \w+: .*gone.jpg: No such file"):
        check_nodes(tmp_path / "storage", [str(tmp_path / "gone.jpg")], nodes)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run\.storage: is a file"):
        check_nodes(tmp_path / "file", [], nodes)
