"""What can be known of deploy/ without a cluster:  python -m deploy.check [--crds helm-chart/kuberay-operator/crds]

YAML, the fields we use, rules of the controllers, versions against the lock, secrets by reference, commands against their
own parsers. Where kubectl or kustomize is installed the overlays are rendered and checked as a cluster would get them.
With a checkout of KubeRay at hand, `--crds` holds them against the operator's own schemas too.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from datasets_manifest.errors import InputError
from deploy import cross_references, kubernetes, operator_rules
from deploy.commands import command_fault, shell_faults
from deploy.crds import Crds
from deploy.images import dockerfile_faults, image_fault
from deploy.locked import ROOT, locked, packages, version_of

HERE = Path(__file__).parent
OVERLAYS = ("single-node", "multi-node", "queue")
_SECRET_NAME = re.compile(r"(PASSWORD|TOKEN|SECRET|ACCESS_KEY|CREDENTIALS)", re.I)
_SECRET_ASSIGNED = re.compile(r"\b[A-Z_]*(?:PASSWORD|AUTH_TOKEN|SECRET_KEY|ACCESS_KEY)=(?![\"']?\$)[\"']?\w+")
_PASSWORD_IN_ADDRESS = re.compile(r"\w://[^/\s:@{}$]+:[^/\s@{}$]+@")


def check(folder: Path = HERE, render: bool = True, crds: Crds | None = None) -> list[str]:
    """All faults, each with its file.

    Args:
        render: render the overlays, where a tool for it is installed.
        crds: the operator's schemas; None: its objects are held against the fields in schemas/ alone.
    """
    faults = [*_texts(folder), *dockerfile_faults(folder), *_mlflow(folder), *_ray_up(folder), *_compose(folder)]
    return list(dict.fromkeys([*faults, *_kubernetes(folder, render, crds)]))


def documents(file: Path) -> tuple[list[Any], list[str]]:
    """The documents of a YAML file, and what is wrong with it."""
    try:
        return [document for document in yaml.safe_load_all(file.read_text()) if document is not None], []
    except yaml.YAMLError as error:
        return [], [f"{file.name}: is not YAML ({str(error).splitlines()[0]})"]


def schema_faults(content: Any, schema: str, where: str) -> Iterator[str]:
    for error in sorted(_validator(schema).iter_errors(content), key=lambda error: error.json_path):
        yield f"{where}: {error.json_path}: {error.message[:200]}"


@cache
def _validator(schema: str) -> Any:
    return jsonschema.Draft202012Validator(yaml.safe_load((HERE / "schemas" / f"{schema}.yaml").read_text()))


def secret_faults(variables: dict[str, Any], where: str) -> Iterator[str]:
    """A variable that is a secret by its name must be a reference: a file's path or nothing at all."""
    for name, value in variables.items():
        is_place = name.endswith(("_FILE", "_PATH")) and str(value).startswith("/")
        if _SECRET_NAME.search(name) and not is_place:
            yield f"{where}: {name} holds its value; wanted a reference to a secret"


def _texts(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in (".yaml", ".ini", ".sh", ".py", "") and "secrets" not in file.parts:
            found = _PASSWORD_IN_ADDRESS.search(file.read_text())
            if found:
                yield f"{file.relative_to(folder)}: an address with a password: {found.group()}"
            if found := _SECRET_ASSIGNED.search(file.read_text()):
                yield f"{file.relative_to(folder)}: a secret in the open: {found.group()}"
            if file.suffix == ".ini" and re.search(
                r"^\s*\w*(password|secret|token)\w*\s*=\s*\S", file.read_text(), re.M
            ):
                yield f"{file.relative_to(folder)}: holds a password"


def _mlflow(folder: Path) -> Iterator[str]:
    for name, block in packages(re.sub(r"^#.*\n", "", (folder / "mlflow/requirements.lock").read_text())).items():
        if "==" not in block or "--hash=sha256:" not in block:
            yield f"mlflow/requirements.lock: {name} has no version or no hash"
        if name in locked():
            yield f"mlflow/requirements.lock: {name} is in requirements.lock already"
    script = (folder / "mlflow/start.sh").read_text().replace("\\\n", " ")
    started = re.search(r"^exec (mlflow server .*)$", script, re.M)
    if started is None:
        yield "mlflow/start.sh: starts no mlflow server"
        return
    line = re.sub(r'"?\$\{\w+:-(\w[^}]*)\}"?', r"\1", started.group(1))
    yield from (f"mlflow/start.sh: {fault}" for fault in shell_faults(line))
    if "--app-name basic-auth" not in line or "--allowed-hosts" not in line:
        yield "mlflow/start.sh: wanted --app-name basic-auth and --allowed-hosts"


def _ray_up(folder: Path) -> Iterator[str]:
    from ray.autoscaler import __file__ as autoscaler

    found, faults = documents(folder / "ray-cluster.yaml")
    yield from faults
    for content in found:
        schema = json.loads(Path(autoscaler).with_name("ray-schema.json").read_text())
        wrong = [
            f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(content)
        ]
        if wrong:
            yield from (f"ray-cluster.yaml: {fault[:300]}" for fault in wrong)
            continue
        docker = content["docker"]
        if fault := image_fault(docker["image"]):
            yield f"ray-cluster.yaml: {fault}"
        if any("--gpus" in option for option in docker.get("run_options", []) + docker.get("head_run_options", [])):
            yield "ray-cluster.yaml: --gpus for the head, which may have no GPU; wanted in worker_run_options"
        starts = [*content["head_start_ray_commands"], *content["worker_start_ray_commands"]]
        for command in starts:
            yield from (f"ray-cluster.yaml: {fault}" for fault in shell_faults(command))
            if "ray start" in command and "RAY_AUTH_MODE=token" not in command:
                yield f"ray-cluster.yaml: {command}: starts without RAY_AUTH_MODE=token"


def _compose(folder: Path) -> Iterator[str]:
    """compose.yaml by itself, then with what is laid over it."""
    found, faults = documents(folder / "compose.yaml")
    over, more = documents(folder / "compose.gpu.yaml")
    if faults or more:
        yield from [*faults, *more]
        return
    for where, content in (("compose.yaml", found[0]), ("compose.gpu.yaml", _laid_over(found[0], over[0]))):
        if wrong := list(schema_faults(content, "compose", where)):
            yield from wrong
            return
        for name, service in content["services"].items():
            yield from (f"{where}: {name}: {fault}" for fault in _service_faults(service, content))
        yield from (f"{where}: {fault}" for fault in cross_references.compose_faults(content, folder))


def _laid_over(below: Any, above: Any) -> Any:
    """Mappings key by key, as compose does; all else is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _laid_over(below.get(key), value) for key, value in above.items()}


def _service_faults(service: dict[str, Any], content: dict[str, Any]) -> Iterator[str]:
    if fault := image_fault(service["image"]):
        yield fault
    if fault := command_fault(service.get("command", [])):
        yield fault
    environment = service.get("environment", {})
    yield from secret_faults(environment, "environment")
    if service.get("command", [""])[0] == "ray" and environment.get("RAY_AUTH_MODE") != "token":
        yield "starts Ray without RAY_AUTH_MODE=token"
    names = [s if isinstance(s, str) else s["source"] for s in service.get("secrets", [])]
    parts = (("secrets", names), ("volumes", [volume.split(":")[0] for volume in service.get("volumes", [])]))
    for part, used in (*parts, ("services", service.get("depends_on", {}))):
        yield from (f"{part}: {name} is not declared" for name in used if name not in content[part])
    for other, condition in service.get("depends_on", {}).items():
        waits = condition["condition"] == "service_healthy"
        if waits and "healthcheck" not in content["services"].get(other, {}):
            yield f"waits for the health of {other}, which has no healthcheck"
        if condition["condition"] == "service_started":
            yield f"waits for the start of {other}, which may not answer yet; wanted service_healthy"
    if "build" in service and "USER_ID" not in service["build"].get("args", {}):
        yield "build without USER_ID: its user could not read the secrets, which are the host user's alone"


def _kubernetes(folder: Path, render: bool, crds: Crds | None) -> Iterator[str]:
    facts = kubernetes.Facts(version_of("ray"), image_fault, secret_faults)
    objects: list[Any] = []
    generated: dict[str, list[str]] = {}
    for file in sorted((folder / "kuberay").rglob("*.yaml")) + sorted((folder / "mlflow").glob("*.yaml")):
        where = str(file.relative_to(folder))
        found, faults = documents(file)
        yield from faults
        for content in found:
            if file.name == "kustomization.yaml":
                yield from schema_faults(content, "kustomization", where)
                yield from (f"{where}: {fault}" for fault in cross_references.kustomization_faults(file, content))
                for made in content.get("configMapGenerator", []):
                    generated.setdefault(made["name"], []).extend(Path(name).name for name in made["files"])
            elif "recipes" in file.parts:
                yield from (f"{where}: {fault}" for fault in kubernetes.recipe_faults(file, content))
            elif wrong := list(schema_faults(content, "kubernetes", where)):
                yield from wrong
            else:
                yield from (f"{where}: {fault}" for fault in kubernetes.faults(content, facts))
                yield from (f"{where}: {fault}" for fault in (crds.faults(content) if crds else ()))
                objects.append(content)
    yield from kubernetes.reference_faults(objects, (ROOT / "docs/deploy.md").read_text())
    yield from cross_references.kubernetes_faults(objects, folder, generated)
    if render and (tool := renderer()):
        for overlay in OVERLAYS:
            yield from _rendered(tool, folder / "kuberay/overlays" / overlay, facts, crds)


def renderer() -> list[str] | None:
    """The command that renders a kustomization here, if there is one."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return ["kubectl", "kustomize"] if shutil.which("kubectl") else None


def _rendered(tool: list[str], overlay: Path, facts: kubernetes.Facts, crds: Crds | None) -> Iterator[str]:
    done = subprocess.run([*tool, str(overlay)], capture_output=True, text=True, timeout=60)
    if done.returncode:
        yield f"{overlay.name}: {done.stderr.strip().splitlines()[-1]}"
        return
    fitting = []
    for content in yaml.safe_load_all(done.stdout):
        where = f"{overlay.name}, rendered: {content['kind']}"
        if wrong := list(schema_faults(content, "kubernetes", where)):
            yield from wrong
            continue
        yield from (f"{where}: {fault}" for fault in kubernetes.faults(content, facts))
        yield from (f"{where}: {fault}" for fault in (crds.faults(content) if crds else ()))
        fitting.append(content)
    yield from (f"{overlay.name}, rendered: {fault}" for fault in operator_rules.recipe_size_faults(fitting))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crds", type=Path, help="KubeRay's CustomResourceDefinitions, a file or a folder")
    place = parser.parse_args().crds
    try:
        faults = check(crds=Crds(place) if place else None)
    except InputError as error:
        sys.exit(f"deploy.check: {error}")
    print("\n".join(faults), file=sys.stderr) if faults else print("deploy/: no fault found")
    print("overlays rendered" if renderer() else "overlays not rendered: neither kubectl nor kustomize is here")
    print(f"held against {place}" if place else "not held against the operator's own schemas: no --crds")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
