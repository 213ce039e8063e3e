"""Log and register a trained model in MLflow: save it as code with safetensors, upload it, register it as `candidate`.

`mlflow.pyfunc.log_model` works on process-wide state (active run, tracking address) and makes a new model at every call.
Here the same steps go through a client with explicit ids, and each first checks whether it was done before, so that a
registration cut off anywhere can be repeated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

import datasets_manifest
import trainers
from datasets_manifest.errors import InputError
from datasets_manifest.files import digests
from trainers.model.trained_network import complete_model
from trainers.tracking.mlflow_compat import VERSIONS_TAG, is_served, origin_of
from trainers.tracking.mlflow_run import RunLink

_log = logging.getLogger(__name__)

ALIAS = "candidate"
ALWAYS, IF_NOT_WORSE = "always", "if-not-worse"
SCORE_TAG, SOURCE_TAG, VALIDATOR_TAG = "m2can.selection_score", "m2can.source_accuracy", "m2can.validator"
STARTED_TAG = "m2can.started_from"
CHECKSUMS = "files.json"
CHECKSUM_TAG = "m2can.files_sha256"
_MODEL_NAME = "model"
_BUNDLE_FILES = ("model.safetensors", "model.json", "tokenizer.json")
_REQUIREMENTS = Path(__file__).with_name("model_requirements.txt")


@dataclass(frozen=True)
class ModelToLog:
    """A model to be logged and registered.

    Args:
        bundle: folder with model.safetensors, model.json and tokenizer.json.
        registered_name: name in the registry, e.g. `m2can-postcards`; MLflow forbids `/` and `:`.
        tags: of the model and of its version.
        input_example: a small DataFrame with `text` and `image`.
        signature: columns in and out; see `signature_for`.
        candidate: whether the alias moves to this version: `always`, or `if-not-worse` than the one that has it.
        gate: by how much the label-free score and the source accuracy may be lower and still count as not worse.

    Raises:
        InputError: a file of the bundle is missing, or the name cannot be registered.
    """

    bundle: Path
    registered_name: str
    tags: dict[str, str] = field(default_factory=dict)
    input_example: Any = None
    signature: ModelSignature | None = None
    candidate: str = IF_NOT_WORSE
    gate: float = 0.0

    def __post_init__(self) -> None:
        for name in _BUNDLE_FILES:
            if not (self.bundle / name).is_file():
                wanted = f"a folder with {', '.join(_BUNDLE_FILES)}"
                raise InputError("is missing in the model folder", file=self.bundle / name, wanted=wanted)
        require_name(self.registered_name, "register_as")


def require_name(name: str, field: str) -> None:
    """Raises InputError: no registered model can be looked up by this name."""
    if not name.strip() or name != name.strip() or re.search(r"[/:@'\"]", name):
        wanted = "a name without quotes, /, : and @"
        raise InputError("cannot be a registered model's name", field=field, value=name, wanted=wanted)


def signature_for(classes: list[str]) -> ModelSignature:
    """Columns of the registered model. In, `Any`: a cell is one string, a list of strings, or null. Out: see
    trainers.model.predictor.Predictions.to_frame."""
    inputs = [ColSpec(AnyType(), name, required=False) for name in ("text", "image")]
    strings = Array(DataType.string)
    outputs: dict[str, Any] = {"label": DataType.string, "confidence": DataType.double}
    outputs |= {f"prob_{name}": DataType.double for name in classes}
    outputs |= {"disagreement": DataType.double, "head_labels": strings, "bad_pictures": strings}
    outputs["problem"] = DataType.string
    nullable = ("label", "confidence", "disagreement", "problem", *(f"prob_{name}" for name in classes))
    columns = [ColSpec(kind, name, required=name not in nullable) for name, kind in outputs.items()]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(columns))


@dataclass(frozen=True)
class Registered:
    """A version's number, and why `candidate` stayed where it was; None if the version has it or had it."""

    version: str
    not_candidate: str | None = None


def register(link: RunLink, model: ModelToLog) -> Registered:
    """Log and register the model of a run, unless that was done before.

    A run has one version. The alias moves to it unless it is worse than the version that has the alias, but never back from
    a newer version to an older one.

    Raises:
        MlflowException, OSError: MLflow or its artifact store is unreachable; another call continues from there.
    """
    client, name = link.client, model.registered_name
    known = client.search_model_versions(f"name = '{name}' and run_id = '{link.run_id}'")
    number = min((int(v.version) for v in known), default=None)
    if number is None:
        number = _create_version(link, model, _logged_model(link, model))
    present = _alias_at(client, name)
    if present is not None and int(present.version) >= number:
        return Registered(str(number))
    worse = None
    if present is not None and model.candidate != ALWAYS:
        worse = _worse(model, _scored(client, present))
    if worse is None:
        client.set_registered_model_alias(name, ALIAS, str(number))
    return Registered(str(number), worse)


def _worse(model: ModelToLog, present: ModelVersion) -> str | None:
    """In which of what both state the model is worse than the present candidate, by more than the gate; None: in nothing.

    Scores of two validators are not compared.
    """
    names = {SOURCE_TAG: "source accuracy"}
    if model.tags.get(VALIDATOR_TAG) == present.tags.get(VALIDATOR_TAG):
        names[SCORE_TAG] = f"label-free score ({model.tags.get(VALIDATOR_TAG)})"
    for tag, name in names.items():
        own, other = model.tags.get(tag), present.tags.get(tag)
        if own is not None and other is not None and float(own) < float(other) - model.gate:
            return (
                f"its {name} {own} is below {other} of version {present.version} by more than the gate {model.gate:g}"
            )
    return None


def _scored(client: MlflowClient, version: ModelVersion) -> ModelVersion:
    """The version whose scores count for `version`: itself, or what it was adapted from, for an adapted model has none.

    Without this the next model, however bad, would become the candidate.
    """
    while SOURCE_TAG not in version.tags:
        name, _, number = version.tags.get(STARTED_TAG, "").rpartition(":")
        if name != version.name or not number.isdigit() or int(number) >= int(version.version):
            break
        try:
            version = client.get_model_version(name, number)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            break
    return version


def _create_version(link: RunLink, model: ModelToLog, logged: LoggedModel) -> int:
    client = link.client
    _ensure_registered_model(client, model.registered_name)
    served = is_served(client)
    source = logged.model_uri if served else logged.artifact_location
    checksum = {CHECKSUM_TAG: logged.tags[CHECKSUM_TAG]} if CHECKSUM_TAG in logged.tags else {}
    made = client.create_model_version(
        model.registered_name, source, run_id=link.run_id, tags=model.tags | checksum, model_id=logged.model_id
    )
    number = int(made.version)
    if not served:
        versions = json.dumps([{"name": model.registered_name, "version": number}])
        client.set_logged_model_tags(logged.model_id, {VERSIONS_TAG: versions})
    return number


def _logged_model(link: RunLink, model: ModelToLog) -> LoggedModel:
    """The run's logged model, complete: found, finished if an earlier attempt was cut off, or made."""
    client, run_id = link.client, link.run_id
    found = [
        each
        for each in client.search_logged_models([link.experiment_id], f"source_run_id = '{run_id}'")
        if each.name == _MODEL_NAME and each.status != LoggedModelStatus.FAILED
    ]
    # READY first: what is pending beside it is a leftover.
    found.sort(key=lambda each: each.status != LoggedModelStatus.READY)
    logged = (
        found[0]
        if found
        else client.create_logged_model(link.experiment_id, name=_MODEL_NAME, source_run_id=run_id, tags=model.tags)
    )
    outputs = client.get_run(run_id).outputs
    if outputs is None or logged.model_id not in {each.model_id for each in outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    if logged.status == LoggedModelStatus.READY:
        return logged
    with tempfile.TemporaryDirectory(prefix="m2can-model-") as folder:
        save(Path(folder) / "model", model, logged)
        checksum = write_checksums(Path(folder) / "model")
        client.log_model_artifacts(logged.model_id, f"{folder}/model")
    client.set_logged_model_tags(logged.model_id, {CHECKSUM_TAG: checksum})
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def save(folder: Path, model: ModelToLog, logged: LoggedModel | None = None) -> None:
    """Write the pyfunc model into the new `folder`. Contacts nothing; `logged` is noted in it as its origin."""
    with complete_model(model.bundle.resolve()) as bundle:
        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=origin_of(logged) if logged is not None else None,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"bundle": str(bundle)},
            # Both packages land side by side in <model>/code, which MLflow puts first on the path when it loads: a fresh
            # process runs the code that was saved, installed or not; one that has ours imported already goes on with it.
            code_paths=[str(Path(package.__path__[0])) for package in (datasets_manifest, trainers)],
            signature=model.signature,
            input_example=model.input_example,
            pip_requirements=_pinned(model.bundle),
        )


def write_checksums(folder: Path) -> str:
    """Write files.json: size and SHA-256 of every file of a saved model.

    Returns:
        the SHA-256 of files.json, which the registry keeps: whoever alters a file in the artifact store cannot also
        alter this.
    """
    content = json.dumps(digests(folder), indent=1).encode()
    (folder / CHECKSUMS).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _pinned(bundle: Path) -> list[str]:
    """Explicit requirements: inferring them would load the model in another process, which takes most of a minute."""
    uses_timm = '"timm:' in (bundle / "model.json").read_text(encoding="utf-8")
    pins = []
    _, *names = _REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    for name in [*names, "timm"] if uses_timm else names:
        try:
            # The local part (`+cpu`) says from which index a wheel came; elsewhere it could not be installed.
            pins.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            _log.warning("the saved model does not name the package %s: it is not installed", name)
    return pins


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _alias_at(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that has the alias; None if there is none."""
    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        # A missing alias is reported as a bad parameter, a missing model as not existing.
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return None
