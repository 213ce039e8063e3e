"""What is used of MLflow beyond its documented interface is still there, and still does the same.

A failure here after an upgrade of MLflow names the inner name or the behaviour that changed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow.pyfunc
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from packaging.version import Version

from trainers.tracking import mlflow_compat
from trainers.tracking.address import resolve_tracking_uri
from trainers.tracking.mlflow_run import open_client, open_experiment
from trainers.tracking.registration import ModelToLog, save

CLIENT = {
    "create_logged_model": {"experiment_id", "name", "source_run_id", "tags"},
    "search_logged_models": {"experiment_ids", "filter_string"},
    "log_outputs": {"run_id", "models"},
    "log_model_artifacts": {"model_id", "local_dir"},
    "set_logged_model_tags": {"model_id", "tags"},
    "finalize_logged_model": {"model_id", "status"},
    "create_model_version": {"name", "source", "run_id", "tags", "model_id"},
    "get_metric_history": {"run_id", "key"},
}


def test_the_release_is_the_one_that_was_tried() -> None:
    assert Version("3.17") <= Version(mlflow.__version__) < Version("3.18"), "try it, then widen pyproject.toml"


@pytest.mark.parametrize("name", CLIENT)
def test_the_client_has_the_methods_that_registration_calls(name: str) -> None:
    method = getattr(MlflowClient, name, None)
    assert method is not None, f"MlflowClient.{name} is gone"
    missing = CLIENT[name] - set(inspect.signature(method).parameters)
    assert not missing, f"MlflowClient.{name} takes no {missing} any more"


def test_the_inner_names_mean_what_they_did() -> None:
    assert mlflow_compat.PARENT_TAG == "mlflow.parentRunId"
    assert mlflow_compat.VERSIONS_TAG == "mlflow.modelVersions"
    assert mlflow_compat.REGISTERED_MODEL_META_FILE_NAME == "registered_model_meta"
    limits = (mlflow_compat.MAX_METRICS_PER_BATCH, mlflow_compat.MAX_PARAMS_TAGS_PER_BATCH)
    assert min(limits) >= 100
    assert mlflow_compat.MAX_ENTITY_KEY_LENGTH >= 250
    assert mlflow_compat.MAX_PARAM_VAL_LENGTH >= 6000


def test_mlflow_s_pages_are_told_that_models_are_trained(tmp_path: Path) -> None:
    uri = resolve_tracking_uri(None, tmp_path)
    tags = open_client(uri).get_experiment(open_experiment(uri, "m2can", tmp_path)).tags
    ((key, kind),) = mlflow_compat.EXPERIMENT_KIND.items()
    assert tags[key] == kind
    pages = (Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js").glob("main.*.js")
    assert any(key in text and f'"{kind}"' in text for text in (page.read_text(encoding="utf-8") for page in pages))


def test_a_name_that_is_gone_is_told_with_the_release_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.utils.mlflow_tags", SimpleNamespace(MLFLOW_PARENT_RUN_ID=""))
    with pytest.raises(ImportError, match=r"MLFLOW_MODEL_VERSIONS.*wanted mlflow>=3\.17,<3\.18"):
        importlib.reload(mlflow_compat)
    monkeypatch.undo()
    importlib.reload(mlflow_compat)


def test_what_the_user_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    mlflow_compat.set_defaults()
    assert mlflow_compat.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 7
    assert mlflow_compat.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get() is True


def test_saved_code_and_origin_lie_where_loading_looks(store: Path, tmp_path: Path, elsewhere: None) -> None:
    """`code_paths` become <model>/code, MLmodel names the logged model, no pickle is written."""
    uri = resolve_tracking_uri(None, store)
    client = open_client(uri)
    assert not mlflow_compat.is_served(client)
    logged = client.create_logged_model(open_experiment(uri, "compat", store), name="model")
    assert logged.status == LoggedModelStatus.PENDING
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("model.safetensors", "model.json", "tokenizer.json"):
        (bundle / name).write_text("{}")
    save(tmp_path / "model", ModelToLog(bundle, "compat"), logged)
    found = mlflow.models.Model.load(str(tmp_path / "model"))
    assert (found.model_id, found.flavors["python_function"]["code"]) == (logged.model_id, "code")
    assert (tmp_path / "model" / "pyfunc_model.py").is_file()
    assert {path.name for path in (tmp_path / "model" / "code").iterdir()} == {"datasets_manifest", "trainers"}
    assert not list((tmp_path / "model").rglob("*.pkl"))
    assert json.loads((tmp_path / "model" / "artifacts" / "bundle" / "model.json").read_text()) == {}
