from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from datasets_manifest.errors import InputError
from tests.trainers.tracking.tracked import client, make_bundle, model_for, record, rows, sender
from trainers.journal.journal import Journal
from trainers.tracking.registration import ALIAS, SCORE_TAG, SOURCE_TAG, STARTED_TAG, ModelToLog

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize(
    "cut", ["log_outputs", "log_model_artifacts", "finalize_logged_model", "create_model_version", "set_terminated"]
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_ending_cut_off_anywhere_is_finished_by_the_next(
    store: Path, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str, after: bool
) -> None:
    name = f"cut-{cut}-{after}".replace("_", "-")
    journal.append(record(1))
    whole = getattr(MlflowClient, cut)
    calls: list[str] = []

    def fail_once(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        calls.append(cut)
        if len(calls) > 1:
            return whole(self, *args, **kwargs)
        if after:
            whole(self, *args, **kwargs)
        raise MlflowException("cut off")

    monkeypatch.setattr(MlflowClient, cut, fail_once)
    tracked = sender(store, journal, name).finish("FINISHED", model=model_for(tmp_path, name))
    assert tracked.model_version == "1"
    run = client(store).get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    assert rows(client(store), tracked.run_id, "epoch") == [(10, 1.0)]
    assert len(client(store).search_model_versions(f"name = '{name}'")) == 1
    logged = client(store).search_logged_models([run.info.experiment_id], f"source_run_id = '{tracked.run_id}'")
    assert [each.status.name for each in logged] == ["READY"]
    assert int(client(store).get_model_version_by_alias(name, ALIAS).version) == 1


def test_the_alias_moves_to_newer_versions_only(store: Path, journal: Journal, tmp_path: Path) -> None:
    model = model_for(tmp_path, "m2can-alias")
    older = sender(store, journal, "older").finish("FINISHED", model=model)
    newer = sender(store, journal, "newer").finish("FINISHED", model=model)
    assert (older.model_version, newer.model_version) == ("1", "2")
    assert sender(store, journal, "older").finish("FINISHED", model=model).model_version == "1"
    assert int(client(store).get_model_version_by_alias("m2can-alias", ALIAS).version) == 2


def scored(tmp_path: Path, name: str, score: float, accuracy: float, **changes: Any) -> ModelToLog:
    model = model_for(tmp_path, name)
    tags = {SCORE_TAG: f"{score}", SOURCE_TAG: f"{accuracy}", "m2can.validator": changes.pop("validator", "infomax")}
    return replace(model, tags=model.tags | tags, gate=0.03, **changes)


def test_the_alias_moves_to_versions_that_are_not_worse(store: Path, journal: Journal, tmp_path: Path) -> None:
    name = "m2can-gated"

    def train(run: str, score: float, accuracy: float, **changes: Any) -> tuple[str | None, str]:
        """Why it is not the candidate, and which version is."""
        model = scored(tmp_path, name, score, accuracy, **changes)
        tracked = sender(store, journal, run).finish("FINISHED", model=model)
        return tracked.not_candidate, str(client(store).get_model_version_by_alias(name, ALIAS).version)

    assert train("first", 0.5, 0.9) == (None, "1")
    worse, present = train("forgot the sources", 0.8, 0.86)
    assert present == "1" and worse == "its source accuracy 0.86 is below 0.9 of version 1 by more than the gate 0.03"
    worse, present = train("unsure", 0.4, 0.95)
    assert present == "1" and "label-free score (infomax) 0.4 is below 0.5 of version 1" in str(worse)
    assert train("within the gate", 0.48, 0.88) == (None, "4")
    assert train("another validator", -7.0, 0.9, validator="mixval") == (None, "5")
    assert train("at any rate", -9.0, 0.1, validator="mixval", candidate="always") == (None, "6")
    assert train("forgot the sources", 0.8, 0.86) == (None, "6")  # again: it has its version, the newer one stays
    nothing = model_for(tmp_path, name)  # imported: nothing to compare
    assert sender(store, journal, "imported").finish("FINISHED", model=nothing).not_candidate is None
    assert int(client(store).get_model_version_by_alias(name, ALIAS).version) == 7


def test_the_scores_of_an_adapted_candidate_are_those_of_what_it_was_adapted_from(
    store: Path, journal: Journal, tmp_path: Path
) -> None:
    name = "m2can-adapted"
    good, bad = scored(tmp_path, name, 0.5, 0.9), scored(tmp_path, name, 0.5, 0.33)
    assert sender(store, journal, "good").finish("FINISHED", model=good).not_candidate is None
    plain = model_for(tmp_path, name)
    for run, started in (("adapted", "1"), ("adapted again", "2")):
        adapted = replace(plain, tags=plain.tags | {STARTED_TAG: f"{name}:{started}"})
        assert sender(store, journal, run).finish("FINISHED", model=adapted).not_candidate is None
    assert "below 0.9 of version 1" in str(sender(store, journal, "bad").finish("FINISHED", model=bad).not_candidate)
    assert int(client(store).get_model_version_by_alias(name, ALIAS).version) == 3
    client(store).delete_model_version(name, "1")  # then nothing is known to compare with
    assert sender(store, journal, "bad later").finish("FINISHED", model=bad).not_candidate is None


def test_the_saved_model_is_code_and_safetensors(store: Path, journal: Journal, tmp_path: Path) -> None:
    sender(store, journal, "saved").finish("FINISHED", model=model_for(tmp_path, "m2can-saved"))
    version = client(store).get_model_version_by_alias("m2can-saved", ALIAS)
    folder = Path(client(store).get_model_version_download_uri("m2can-saved", version.version).removeprefix("file://"))
    folder = Path(str(folder).replace("%20", " "))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "pyfunc_model.py", "input_example.json", "requirements.txt"} <= files
    assert {
        "code/trainers/model/predictor.py",
        "code/datasets_manifest/stream/encode.py",
        "code/trainers/m2can/network.py",
    } <= files
    assert "artifacts/bundle/model.safetensors" in files
    assert not [name for name in files if name.endswith((".pkl", ".pyc", ".pt"))]
    assert len({part for name in files for part in Path(name).parts[:1]} & {"tests", "services"}) == 0
    pins = (folder / "requirements.txt").read_text().split()
    assert all("==" in pin and "+" not in pin for pin in pins)
    assert {"torch", "transformers", "safetensors", "opencv-python-headless"} <= {pin.split("==")[0] for pin in pins}


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "it's"])
def test_a_name_that_cannot_be_registered_is_refused_before_training_ends(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="register_as: cannot be a registered model's name"):
        ModelToLog(make_bundle(tmp_path / "bundle"), name)


def test_an_incomplete_bundle_is_named(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: is missing"):
        ModelToLog(folder, "m2can-x")
