"""What KubeRay 1.7, its autoscaler, Kueue and the scheduler want beyond the fields of a schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from trainers.recipe import Recipe, make_recipe

GPU = "nvidia.com/gpu"
OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}
QUEUE = "kueue.x-k8s.io/queue-name"
RUN_JOB = "run-job.sh"


def ray_container(group: dict[str, Any]) -> dict[str, Any]:
    """The first container of a head's or worker group's pods, the one that runs Ray."""
    return dict(group["template"]["spec"]["containers"][0])


def gpus(group: dict[str, Any]) -> int:
    """GPUs of one pod of a group."""
    return int(ray_container(group)["resources"]["limits"].get(GPU, 0))


def group_faults(kind: str, cluster: dict[str, Any]) -> Iterator[str]:
    """Groups with GPUs, and without where the autoscaler must have a choice.

    Args:
        kind: RayCluster, RayJob or RayService.
        cluster: the RayCluster's spec in it.
    """
    groups = cluster["workerGroupSpecs"]
    if not any(gpus(group) for group in groups):
        yield f"no group has {GPU}"
    without = [group for group in groups if not gpus(group)]
    if kind != "RayService" and cluster["enableInTreeAutoscaling"] and not without:
        yield f"no group without {GPU}: the autoscaler would start GPU nodes to decode pictures"
    for group in groups:
        tolerated = any(one["key"] == GPU for one in group["template"]["spec"].get("tolerations", []))
        if bool(gpus(group)) != tolerated:
            wanted = "does not tolerate the taint of" if gpus(group) else "has no GPU and tolerates the taint of"
            yield f"group {group['groupName']}: {wanted} {GPU} nodes"


def probe_faults(spec: dict[str, Any]) -> Iterator[str]:
    """Of a RayService: workers are ready when Serve's proxy says so, asked without a program in the image.

    KubeRay leaves a probe of ours alone. In place of none it puts a command that calls wget.
    """
    port = yaml.safe_load(spec["serveConfigV2"]).get("http_options", {}).get("port", 8000)
    wanted = {"path": "/-/healthz", "port": port}
    for group in spec["rayClusterConfig"]["workerGroupSpecs"]:
        if ray_container(group).get("readinessProbe", {}).get("httpGet") != wanted:
            yield f"group {group['groupName']}: wanted a readinessProbe httpGet {wanted}; the operator's own calls wget"


def network_faults(spec: dict[str, Any]) -> Iterator[str]:
    """The operator is let in from wherever it was installed."""
    peers = [peer for rule in spec["ingress"] for peer in rule.get("from", [])]
    for peer in peers:
        if peer.get("namespaceSelector"):
            yield f"a namespace is chosen by {peer['namespaceSelector']}: the operator may be in another"
    if {"namespaceSelector": {}, "podSelector": {"matchLabels": OPERATOR}} not in peers:
        yield f"does not let in pods of any namespace with the label {OPERATOR}"


def job_faults(content: dict[str, Any]) -> Iterator[str]:
    """Of a RayJob: retries, queues and the time to stop."""
    spec = content["spec"]
    words, job = spec["entrypoint"].split(), spec.get("jobId")
    through_script = words[:1] == ["sh"] and words[1].endswith(f"/{RUN_JOB}")
    if spec.get("backoffLimit") and not through_script:
        yield f"backoffLimit without {RUN_JOB}: a refused recipe, exit code 2, would be tried again on new clusters"
    if through_script and words[2] != job:
        yield f"entrypoint: {RUN_JOB} stops the job {words[2]}; jobId is {job}"
    cluster = spec.get("rayClusterSpec")
    if cluster:
        entries = ray_container(cluster["headGroupSpec"])["env"]
        waits = [float(entry["value"]) for entry in entries if entry["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
        grace = Recipe.model_fields["cluster"].default.grace_s
        if not waits or waits[0] <= grace:
            yield f"head: RAY_JOB_STOP_WAIT_TIME_S leaves no time for cluster.grace_s, {grace:g} s"
    if QUEUE in content["metadata"].get("labels", {}):
        if not spec.get("suspend"):
            yield f"{QUEUE} without suspend: true: it would start before Kueue lets it"
        if cluster is None or cluster["enableInTreeAutoscaling"]:
            yield f"{QUEUE} with a cluster whose size Kueue does not know; wanted enableInTreeAutoscaling: false"


def together_faults(objects: list[dict[str, Any]], templates: list[dict[str, Any]]) -> Iterator[str]:
    """Names that objects have for each other: priority classes, and pods that a budget keeps.

    Args:
        templates: all pod templates of the objects, each with `metadata` and `spec`.
    """
    classes = {content["metadata"]["name"] for content in objects if content["kind"] == "PriorityClass"}
    for template in templates:
        name = template["spec"].get("priorityClassName")
        if name is None:
            container = template["spec"]["containers"][0]["name"]
            yield f"pods of {container} have no priorityClassName: online inference would evict them"
        elif name not in classes:
            yield f"PriorityClass {name} is not there"
    found = [template.get("metadata", {}).get("labels", {}) for template in templates]
    for content in objects:
        if content["kind"] == "PodDisruptionBudget":
            wanted = content["spec"]["selector"]["matchLabels"].items()
            ours = {(key, value) for key, value in wanted if not key.startswith("ray.io/")}  # those the operator adds
            if not any(ours <= labels.items() for labels in found):
                yield f"PodDisruptionBudget {content['metadata']['name']}: its selector finds no pod"


def recipe_size_faults(objects: list[dict[str, Any]]) -> Iterator[str]:
    """Of an overlay, rendered: each RayJob's recipe has a worker for each GPU that the job may get, no more and no less.

    More are refused before the start, fewer leave GPUs idle.
    """
    files: dict[str, str] = {}
    for content in objects:
        if content["kind"] == "ConfigMap":
            files |= content.get("data", {})
    for content in objects:
        if content["kind"] != "RayJob":
            continue
        groups = content["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        most = sum(group["maxReplicas"] * gpus(group) for group in groups)
        for word in content["spec"]["entrypoint"].split():
            text = files.get(Path(word).name) if word.endswith(".yaml") else None
            if text is not None:
                recipe = yaml.safe_load(text)
                recipe = recipe if "data" in recipe else yaml.safe_load(files[recipe["recipe"]])
                workers = make_recipe(recipe).cluster.most_workers
                if workers != most:
                    yield f"{content['metadata']['name']}: {Path(word).name}: {workers} workers for {most} GPUs"
