"""Rules of Kubernetes' and KubeRay's controllers that no schema of fields can say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from datasets_manifest.errors import InputError
from deploy import operator_rules
from deploy.commands import command_fault, shell_faults
from services.jobs.job_request import refuse_passwords
from trainers.recipe import Recipe, make_recipe

CLUSTER_AT = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec"), "RayService": ("spec", "rayClusterConfig")}
DATA = "/data"
COMPONENT = "app.kubernetes.io/component"


@dataclass(frozen=True)
class Facts:
    """What the rules are held against."""

    ray_version: str
    image_fault: Callable[[str], str | None]
    secret_faults: Callable[[dict[str, Any], str], Iterator[str]]


def faults(content: dict[str, Any], facts: Facts) -> Iterator[str]:
    """What is wrong with one object, its schema apart."""
    kind, name = content["kind"], content["metadata"]["name"]
    if COMPONENT not in content["metadata"].get("labels", {}):
        yield f"{name}: no label {COMPONENT}, by which a part of all is applied"
    for role, pod in pods(content):
        yield from (f"{name}: {role}: {fault}" for fault in _pod_faults(pod, facts))
    if kind in CLUSTER_AT:
        yield from (f"{name}: {fault}" for fault in _cluster_faults(cluster_of(content), facts))
        yield from (f"{name}: {fault}" for fault in operator_rules.group_faults(kind, cluster_of(content)))
    if kind == "RayJob":
        yield from (f"{name}: {fault}" for fault in _job_faults(content["spec"]))
        yield from (f"{name}: {fault}" for fault in operator_rules.job_faults(content))
    if kind == "RayService":
        yield from (f"{name}: {fault}" for fault in _serve_faults(content["spec"]["serveConfigV2"]))
        yield from (f"{name}: {fault}" for fault in operator_rules.probe_faults(content["spec"]))
    if kind == "NetworkPolicy":
        yield from (f"{name}: {fault}" for fault in operator_rules.network_faults(content["spec"]))
    if kind == "Deployment":
        labels = content["spec"]["template"]["metadata"]["labels"]
        if not content["spec"]["selector"]["matchLabels"].items() <= labels.items():
            yield f"{name}: the selector does not find the template's pods"


def cluster_of(content: dict[str, Any]) -> dict[str, Any]:
    found: Any = content
    for key in CLUSTER_AT[content["kind"]]:
        found = found[key]
    return dict(found)


def templates(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(role, pod template) of everything an object starts."""
    if content["kind"] in CLUSTER_AT:
        cluster = cluster_of(content)
        yield "head", cluster["headGroupSpec"]["template"]
        if "submitterPodTemplate" in content["spec"]:
            yield "submitter", content["spec"]["submitterPodTemplate"]
        for group in cluster["workerGroupSpecs"]:
            yield f"group {group['groupName']}", group["template"]
    elif content["kind"] == "Deployment":
        yield "pod", content["spec"]["template"]


def pods(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(role, pod spec) of everything an object starts."""
    for role, template in templates(content):
        yield role, template["spec"]


def _pod_faults(pod: dict[str, Any], facts: Facts) -> Iterator[str]:
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
    yield from (f"volume {name} is mounted and not there" for name in sorted(mounted - volumes))
    yield from (f"volume {name} is mounted nowhere" for name in sorted(volumes - mounted))
    for container in containers:
        if container["resources"]["requests"] != container["resources"]["limits"]:
            yield f"container {container['name']}: requests differ from limits"
        if fault := facts.image_fault(container["image"]):
            yield fault
        if fault := command_fault(container.get("command", [])):
            yield fault
        written = {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}
        yield from facts.secret_faults(written, f"container {container['name']}")


def _cluster_faults(cluster: dict[str, Any], facts: Facts) -> Iterator[str]:
    if cluster["rayVersion"] != facts.ray_version:
        yield f"rayVersion {cluster['rayVersion']}: requirements.lock has {facts.ray_version}"
    scales = cluster["enableInTreeAutoscaling"]
    if not scales and "autoscalerOptions" in cluster:
        yield "autoscalerOptions without enableInTreeAutoscaling"
    for group in cluster["workerGroupSpecs"]:
        name, fewest, most = group["groupName"], group["minReplicas"], group["maxReplicas"]
        if not fewest <= group["replicas"] <= most:
            yield f"group {name}: replicas {group['replicas']} is not between {fewest} and {most}"
        pod = group["template"]["spec"]
        if scales and pod.get("restartPolicy") != "Never":
            yield f"group {name}: the autoscaler v2 wants restartPolicy Never"
        grace = Recipe.model_fields["cluster"].default.grace_s
        if pod.get("terminationGracePeriodSeconds", 30) <= grace:
            yield f"group {name}: terminationGracePeriodSeconds leaves no time for cluster.grace_s, {grace:g} s"
        drains = _pre_stop(pod["containers"][0])
        if drains[:1] != ["drain-node"] or len(drains) != 2:
            yield f"group {name}: preStop is not `drain-node SECONDS`; training would end without a notice"
        elif not grace <= float(drains[1]) < pod.get("terminationGracePeriodSeconds", 30):
            yield f"group {name}: drain-node {drains[1]} is not between cluster.grace_s and terminationGracePeriodSeconds"
    groups = [group["template"]["spec"] for group in cluster["workerGroupSpecs"]]
    for pod in (cluster["headGroupSpec"]["template"]["spec"], *groups):
        ray = pod["containers"][0]
        mounts = {mount["mountPath"]: mount["name"] for mount in ray.get("volumeMounts", [])}
        memory = {volume["name"] for volume in pod.get("volumes", []) if "emptyDir" in volume}
        held = ray["resources"]["limits"]["memory"]
        for volume in pod.get("volumes", []):
            if volume["name"] == mounts.get("/dev/shm") and _bytes(volume["emptyDir"]["sizeLimit"]) > _bytes(held):
                yield f"{ray['name']}: /dev/shm of {volume['emptyDir']['sizeLimit']} in a container of {held}"
        if mounts.get("/dev/shm") not in memory:
            yield f"{ray['name']}: /dev/shm is not a volume in memory; the object store would fall back to disk"
        if DATA not in mounts:
            yield f"{ray['name']}: {DATA} is not mounted; every node must see data and runs at the same path"
        if not _pre_stop(ray):
            yield f"{ray['name']}: no preStop"


def _pre_stop(container: dict[str, Any]) -> list[str]:
    return container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])


def _job_faults(spec: dict[str, Any]) -> Iterator[str]:
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes: true"
    yield from (f"no {key}" for key in ("ttlSecondsAfterFinished", "activeDeadlineSeconds") if key not in spec)
    if "clusterSelector" not in spec and "backoffLimit" not in spec:
        yield "no backoffLimit"
    if "ttlSecondsAfterFinished" in spec and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
    if "clusterSelector" in spec and spec.get("backoffLimit"):
        yield "backoffLimit does not go with clusterSelector"
    line = re.sub(rf"^sh \S+/{operator_rules.RUN_JOB} \S+ ", "", spec["entrypoint"])
    yield from shell_faults(line)
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    mounts = tuple(f"{mount['mountPath']}/" for mount in head.get("volumeMounts", []))
    for word in spec["entrypoint"].split():
        if word.endswith((".yaml", ".sh")) and not word.startswith(mounts):
            yield f"entrypoint: {word} lies in no volume of the head"


def _serve_faults(text: str) -> Iterator[str]:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    from services.serving.deployment import APP, BuildArguments

    content = yaml.safe_load(text)
    try:
        config = ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        yield f"serveConfigV2: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
        return
    unknown = {*content} - {*ServeDeploySchema.model_fields}
    unknown |= {key for one in content["applications"] for key in {*one} - {*ServeApplicationSchema.model_fields}}
    yield from (f"serveConfigV2: Ray does not know {key}" for key in sorted(unknown))
    for application in config.applications:
        module, _, attribute = application.import_path.partition(":")
        if not hasattr(import_module(module), attribute):
            yield f"serveConfigV2: {application.import_path} does not exist"
        if application.name != APP:
            yield f"serveConfigV2: the application is named {application.name}; wanted {APP}"
        try:
            BuildArguments.model_validate(application.args)
        except ValidationError as error:
            yield f"serveConfigV2: args: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}"


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|Ti)", quantity).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30, "Ti": 40}[unit]


def recipe_faults(file: Path, content: dict[str, Any]) -> Iterator[str]:
    """Of the recipes that travel as a ConfigMap."""
    try:
        refuse_passwords(content)
        if "data" in content:
            recipe = make_recipe(content)
            for path in (recipe.run.storage, recipe.data.target, *recipe.data.sources):
                if not path.startswith(f"{DATA}/"):
                    yield f"{path} is not below {DATA}"
        elif not (file.parent / str(content.get("recipe"))).is_file():
            yield f"recipe {content.get('recipe')}: there is no such file"
    except InputError as error:
        yield str(error)


def reference_faults(objects: list[dict[str, Any]], page: str) -> Iterator[str]:
    """Claims, accounts and classes that are named must be there; Secrets too, or be made by the page."""
    there = {(content["kind"], content["metadata"]["name"]) for content in objects}
    by_operator = {content["metadata"]["name"] for content in objects if content["kind"] == "RayCluster"}
    started = [template for content in objects for _, template in templates(content)]
    yield from operator_rules.together_faults(objects, started)
    for content in objects:
        for _, pod in pods(content):
            for volume in pod.get("volumes", []):
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                if claim and ("PersistentVolumeClaim", claim) not in there:
                    yield f"claim {claim} is not there"
            account = pod.get("serviceAccountName")
            if account and ("ServiceAccount", account) not in there:
                yield f"account {account} is not there"
            for secret, key in _secrets(pod):
                if secret not in by_operator and not (f"generic {secret}" in page and key in page):
                    yield f"docs/deploy.md does not say how to make Secret {secret}, key {key}"


def _secrets(pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for container in pod["containers"]:
        for entry in container.get("env", []):
            if "valueFrom" in entry:
                yield entry["valueFrom"]["secretKeyRef"]["name"], entry["valueFrom"]["secretKeyRef"]["key"]
        for source in container.get("envFrom", []):
            if "secretRef" in source:
                yield source["secretRef"]["name"], ""
    for volume in pod.get("volumes", []):
        if "secret" in volume:
            yield volume["secret"]["secretName"], ""
