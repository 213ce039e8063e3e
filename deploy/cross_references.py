"""Names in one file that must exist in another: hosts, files, stages, ConfigMaps, labels."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from deploy import kubernetes
from deploy.images import stages
from deploy.make_secrets import make

_HOST = re.compile(r"(?<![\w.@/-])(?:https?://)?([a-z][a-z0-9.-]*):\d{4,5}\b")
_OWN = {"localhost"}
_SCRIPTS = "/opt/mlflow/"


def compose_faults(content: dict[str, Any], folder: Path) -> Iterator[str]:
    """References of compose.yaml, which fits its schema."""
    for name, service in content["services"].items():
        if "build" in service:
            yield from (f"{name}: build: {fault}" for fault in _build_faults(service["build"], folder))
        environment = service.get("environment", {})
        words = [*service.get("command", []), *map(str, environment.values())]
        hosts = {host for word in words for host in _hosts(word)} | {environment.get("PGHOST", "localhost")}
        yield from (f"{name}: host {host} is no service" for host in sorted(hosts - content["services"].keys() - _OWN))
        yield from (f"{name}: {fault}" for fault in _script_faults(service.get("command", []), folder))
    for name, secret in content["secrets"].items():
        if secret["file"].removeprefix("secrets/") not in _secret_files():
            yield f"secrets: {name}: make_secrets.py writes no {secret['file']}"


def kubernetes_faults(objects: list[dict[str, Any]], folder: Path, generated: dict[str, list[str]]) -> Iterator[str]:
    """References among all manifests, which fit their schemas.

    Args:
        generated: ConfigMaps that kustomize makes, with the names of their files.
    """
    page = (Path(__file__).parents[1] / "docs/deploy.md").read_text()
    templates = [o["spec"]["template"]["metadata"]["labels"] for o in objects if o["kind"] == "Deployment"]
    hosts = {o["metadata"]["name"] for o in objects if o["kind"] == "Service"} | _OWN
    hosts |= {f"{o['metadata']['name']}-head-svc" for o in objects if o["kind"] == "RayCluster"}
    for content in objects:
        name = content["metadata"]["name"]
        if content["kind"] == "Service":
            wanted = content["spec"]["selector"].items()
            if not any(wanted <= labels.items() for labels in templates):
                yield f"Service {name}: its selector finds no pod"
        named = set(_hosts(content["spec"]["serveConfigV2"])) if content["kind"] == "RayService" else set()
        for role, pod in kubernetes.pods(content):
            for container in [*pod.get("initContainers", []), *pod["containers"]]:
                command = container.get("command", [])
                for word in [*command, *(entry.get("value", "") for entry in container.get("env", []))]:
                    named |= set(_hosts(word))
                yield from (f"{name}: {role}: {fault}" for fault in _script_faults(command, folder))
            for config in sorted(_config_maps(pod)):
                if config not in generated and f"configmap {config}" not in page:
                    yield f"{name}: {role}: nothing makes the ConfigMap {config}"
        yield from (f"{name}: host {host} is no Service" for host in sorted(named - hosts))
        if content["kind"] == "RayJob":
            files = {file for made in generated.values() for file in made}
            for word in content["spec"]["entrypoint"].split():
                if word.endswith((".yaml", ".sh")) and Path(word).name not in files:
                    yield f"{name}: entrypoint: {Path(word).name} is in no ConfigMap that kustomize makes"


def kustomization_faults(file: Path, content: dict[str, Any]) -> Iterator[str]:
    """Every resource that it names exists, and every file beside it is named."""
    resources = content.get("resources", [])
    yield from (f"there is no {name}" for name in resources if not (file.parent / name).exists())
    beside = {other.name for other in file.parent.glob("*.yaml")} - {file.name}
    yield from (f"{name} is in this folder and not among the resources" for name in sorted(beside - set(resources)))
    for generator in content.get("configMapGenerator", []):
        yield from (f"there is no {name}" for name in generator["files"] if not (file.parent / name).is_file())


def _build_faults(build: dict[str, Any], folder: Path) -> Iterator[str]:
    dockerfile = folder / build["context"] / build["dockerfile"].replace("deploy", folder.name, 1)
    if not dockerfile.is_file():
        yield f"there is no {build['dockerfile']}"
    elif build["target"] not in stages(dockerfile.read_text()):
        yield f"{build['dockerfile']} has no stage {build['target']}"


def _script_faults(command: list[str], folder: Path) -> Iterator[str]:
    for word in command:
        name = word.removeprefix(_SCRIPTS)
        if word.endswith((".sh", ".py")) and (name == word or not (folder / "mlflow" / name).is_file()):
            yield f"there is no {word} in the image"


def _hosts(text: str) -> list[str]:
    return _HOST.findall(text.split("=", 1)[1] if text.startswith("--") and "=" in text else text)


def _config_maps(pod: dict[str, Any]) -> set[str]:
    found = {volume["configMap"]["name"] for volume in pod.get("volumes", []) if "configMap" in volume}
    sources = [source for container in pod["containers"] for source in container.get("envFrom", [])]
    return found | {source["configMapRef"]["name"] for source in sources if "configMapRef" in source}


@cache
def _secret_files() -> set[str]:
    with tempfile.TemporaryDirectory() as folder:
        return set(make(Path(folder)))
