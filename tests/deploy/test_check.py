"""deploy/ has no fault, and each rule finds the fault it is for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from datasets_manifest.errors import InputError
from deploy.check import HERE, OVERLAYS, check, renderer
from deploy.commands import fault, shell_faults
from deploy.crds import Crds, closed
from deploy.locked import LOCK, ROOT, packages, select
from deploy.make_secrets import make
from services.web.auth import Tokens


def test_no_fault_is_found() -> None:
    assert check() == []


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("compose.yaml", "name: m2can\n", "name: [m2can\n", "compose.yaml: is not YAML"),
        ("compose.yaml", "image: m2can:0.2.0", "image: m2can:latest", "wanted the tag"),
        ("compose.yaml", "postgres:17.5-bookworm", "postgres:latest", "wanted a tag with a version"),
        ("compose.yaml", "stop_grace_period", "stop_grace_time", "stop_grace_time"),
        ("compose.yaml", "POSTGRES_PASSWORD_FILE: /run/secrets/postgres_password", "POSTGRES_PASSWORD: m", "holds its value"),
        ("compose.yaml", "  s3_config: {file: secrets/s3_config}\n", "", "secrets: s3_config is not declared"),
        ("compose.yaml", "[m2can, api, --host", "[m2can, api, --hosts", "No such option: --hosts"),
        ("compose.yaml", "--dashboard-host=0.0.0.0", "--dash-host=0.0.0.0", "ray start: No such option"),
        ("compose.yaml", '"127.0.0.1:5000:5000"', '"5000:5000"', "does not match"),
        ("Dockerfile", "--no-deps --require-hashes -r /tmp/wanted.txt \\\n && if", "-r /tmp/wanted.txt \\\n && if", "wanted --no-deps"),
        ("Dockerfile", "USER m2can\nWORKDIR /data", "WORKDIR /data", "runs as root"),
        ("Dockerfile", "PYTHON=3.11", "PYTHON=3.10", "requires-python"),
        ("mlflow/basic_auth.ini", "default_permission", "admin_password = x\ndefault_permission", "holds a password"),
        ("mlflow/basic_auth.ini", "psycopg2://", "psycopg2://u:p@h/d", "an address with a password"),
        ("mlflow/start.sh", "--app-name basic-auth ", "", "--app-name basic-auth"),
        ("mlflow/start.sh", "--artifacts-destination", "--artifact-destination", "mlflow server: No such option"),
        ("mlflow/requirements.lock", "flask-wtf==1.3.0", "flask-wtf", "has no version"),
        ("ray-cluster.yaml", "head_start_ray_commands", "head_start_commands", "head_start_commands"),
        ("ray-cluster.yaml", "RAY_AUTH_MODE=token ", "", "without RAY_AUTH_MODE=token"),
        ("kuberay/base/cluster.yaml", "rayVersion: 2.60.0", "rayVersion: 2.59.0", "requirements.lock has"),
        ("kuberay/base/cluster.yaml", "authOptions: {mode: token}", "authOptions: {mode: disabled}", "authOptions"),
        ("kuberay/base/cluster.yaml", "restartPolicy: Never", "restartPolicy: Always", "restartPolicy"),
        ("kuberay/base/cluster.yaml", "          restartPolicy: Never\n", "", "wants restartPolicy Never"),
        ("kuberay/base/cluster.yaml", "mountPath: /dev/shm", "mountPath: /shm", "/dev/shm is not a volume in memory"),
        ("kuberay/base/cluster.yaml", "requests: {cpu: \"8\"", "requests: {cpu: \"4\"", "requests differ from limits"),
        ("kuberay/base/cluster.yaml", " replicas: 0", " replicas: 9", "is not between"),
        ("kuberay/base/cluster.yaml", "terminationGracePeriodSeconds: 120", "terminationGracePeriodSeconds: 30", "cluster.grace_s"),
        ("kuberay/base/train.yaml", '[drain-node, "90"]', "[sh, -c, ray stop]", "preStop is not `drain-node SECONDS`"),
        ("kuberay/base/train.yaml", '[drain-node, "90"]', "[drain-node]", "preStop is not `drain-node SECONDS`"),
        ("kuberay/base/train.yaml", '[drain-node, "90"]', '[drain-node, "120"]', "drain-node 120 is not between"),
        ("kuberay/base/cluster.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"),
        ("kuberay/base/train.yaml", "shutdownAfterJobFinishes: true", "suspend: true", "suspend needs"),
        ("kuberay/base/train.yaml", "submissionMode: K8sJobMode", "clusterSelector: {a: b}", "does not go with"),
        ("kuberay/base/train.yaml", "m2can train /etc", "m2can training /etc", "no command 'training'"),
        ("kuberay/base/train.yaml", "/etc/m2can/train.yaml --a", "/etc/train.yaml --a", "in no volume"),
        ("kuberay/base/service.yaml", "services.serving.deployment:build", "services.serving.deployment:make", "does not exist"),
        ("kuberay/base/service.yaml", "          replicas: 2", "          replica: 2", "serveConfigV2: args"),
        ("kuberay/base/api.yaml", "key: auth_token}}", "key: auth_token}}, value: x", "value"),
        ("kuberay/base/api.yaml", "claimName: m2can-data", "claimName: other", "claim other is not there"),
        ("kuberay/base/api.yaml", "{name: mlflow-client, key: password}", "{name: mlflow-user, key: password}", "Secret mlflow-user"),
        ("kuberay/base/recipes/train.yaml", "epochs: 10", "epoch: 10", "train.epochs"),
        ("kuberay/base/recipes/train.yaml", "storage: /data/runs", "storage: runs", "is not below /data"),
        ("kuberay/base/kustomization.yaml", "network.yaml", "networks.yaml", "there is no networks.yaml"),
        ("kuberay/base/kustomization.yaml", "train.yaml, tune.yaml", "tune.yaml", "train.yaml is in this folder and not"),
        ("kuberay/base/kustomization.yaml", "recipes/sweep.yaml", "recipes/sweeps.yaml", "there is no recipes/sweeps.yaml"),
        ("kuberay/base/train.yaml", "labels: {app.kubernetes.io/component: train}", "labels: {}", "no label app.kubernetes.io"),
        ("kuberay/base/train.yaml", "  ttlSecondsAfterFinished: 600\n", "", "no ttlSecondsAfterFinished"),
        ("kuberay/base/train.yaml", "  backoffLimit: 2\n", "", "no backoffLimit"),
        ("kuberay/base/train.yaml", "/etc/m2can/train.yaml --a", "/etc/m2can/other.yaml --a", "other.yaml is in no ConfigMap"),
        ("kuberay/base/train.yaml", "configMap: {name: m2can-recipes}", "configMap: {name: others}", "nothing makes the ConfigMap others"),
        ("kuberay/base/service.yaml", "route_prefix", "route_prefx", "Ray does not know route_prefx"),
        ("kuberay/base/service.yaml", "tracking_uri: http://mlflow:", "tracking_uri: http://mlfow:", "host mlfow is no Service"),
        ("kuberay/base/cluster.yaml", 'nvidia.com/gpu: "1"', 'nvidia.com/gpus: "1"', "nvidia.com/gpus"),
        ("kuberay/base/cluster.yaml", ', nvidia.com/gpu: "1"', "", "no group has nvidia.com/gpu"),
        ("kuberay/base/cluster.yaml", 'cpu: "16", memory', 'cpu: "16", nvidia.com/gpu: "1", memory', "GPU nodes to decode"),
        ("kuberay/base/cluster.yaml", "key: nvidia.com/gpu", "key: gpu", "group gpu: does not tolerate"),
        ("kuberay/base/cluster.yaml", "priorityClassName: m2can-batch", "priorityClassName: high", "PriorityClass high"),
        ("mlflow/server.yaml", "priorityClassName", "# priorityClassName", "pods of mlflow have no priorityClassName"),
        ("kuberay/base/service.yaml", "path: /-/healthz", "path: /healthz", "the operator's own calls wget"),
        ("kuberay/base/service.yaml", "readinessProbe: {httpGet", "livenessProbe: {httpGet", "the operator's own calls wget"),
        ("kuberay/base/service.yaml", "port: 8000, request", "port: 8001, request", "'port': 8001"),
        ("kuberay/base/network.yaml", "namespaceSelector: {}", "namespaceSelector: {matchLabels: {a: b}}", "may be in another"),
        ("kuberay/base/network.yaml", ": kuberay-operator}", ": operator}", "does not let in pods"),
        ("kuberay/base/train.yaml", "sh /etc/m2can/run-job.sh m2can-train m2can", "m2can", "exit code 2, would be tried again"),
        ("kuberay/base/train.yaml", "jobId: m2can-train", "jobId: m2can-tune", "stops the job m2can-train"),
        ("kuberay/base/train.yaml", "/etc/m2can/run-job.sh", "/opt/run-job.sh", "/opt/run-job.sh lies in no volume"),
        ("kuberay/base/train.yaml", 'value: "90"', 'value: "3"', "RAY_JOB_STOP_WAIT_TIME_S leaves no time"),
        ("kuberay/base/train.yaml", "metadata: {name: m2can-train, labels: {", "metadata: {name: m2can-train, labels: {kueue.x-k8s.io/queue-name: q, ", "without suspend"),
        ("kuberay/base/train.yaml", "metadata: {name: m2can-train, labels: {", "metadata: {name: m2can-train, labels: {kueue.x-k8s.io/queue-name: q, ", "wanted enableInTreeAutoscaling: false"),
        ("kuberay/base/train.yaml", "name: m2can-s3", "name: bucket", "how to make Secret bucket"),
        ("kuberay/base/kustomization.yaml", ", recipes/run-job.sh", "", "run-job.sh is in no ConfigMap"),
        ("kuberay/base/disruption.yaml", "component: serve, ray", "component: server, ray", "PodDisruptionBudget m2can-serve: its selector"),
        ("kuberay/base/disruption.yaml", "minAvailable: 1", "minAvailable: 50%", "minAvailable"),
        ("kuberay/base/cluster.yaml", "sizeLimit: 8Gi", "sizeLimit: 64Gi", "/dev/shm of 64Gi in a container of 32Gi"),
        ("kuberay/base/api.yaml", "m2can-head-svc", "ray-head-svc", "host ray-head-svc is no Service"),
        ("mlflow/server.yaml", "selector: {app: mlflow}", "selector: {app: other}", "its selector finds no pod"),
        ("mlflow/server.yaml", "/opt/mlflow/start.sh", "/opt/start.sh", "there is no /opt/start.sh in the image"),
        ("mlflow/start.sh", "take PGPASSWORD postgres_password", "export PGPASSWORD=mlflow", "a secret in the open"),
        ("compose.yaml", "/opt/mlflow/make_bucket.py", "/opt/mlflow/bucket.py", "there is no /opt/mlflow/bucket.py"),
        ("compose.yaml", "target: mlflow,", "target: server,", "has no stage server"),
        ("compose.yaml", "dockerfile: deploy/Dockerfile,", "dockerfile: deploy/Dockerfiles,", "there is no deploy/Dockerfiles"),
        ("compose.yaml", "PGHOST: postgres", "PGHOST: database", "host database is no service"),
        ("compose.yaml", "http://head:8265", "http://ray:8265", "host ray is no service"),
        ("compose.yaml", "{file: secrets/ray_token}", "{file: secrets/token}", "make_secrets.py writes no secrets/token"),
        ("compose.yaml", "{s3: {condition: service_healthy}}", "{s3: {condition: service_started}}", "may not answer yet"),
        ("compose.yaml", 'args: {USER_ID: "${USER_ID:-1000}", ', "args: {", "build without USER_ID"),
        ("ray-cluster.yaml", 'run_options: ["--shm', 'run_options: ["--gpus=all", "--shm', "--gpus for the head"),
        ("Dockerfile", "@sha256:", "#", "wanted a digest"),
        ("Dockerfile", "--no-install-recommends g++", "--no-install-recommends git", "no C++ compiler"),
        ("compose.gpu.yaml", "driver: nvidia", "drive: nvidia", "compose.gpu.yaml: $.services.worker.deploy"),
        ("compose.gpu.yaml", "worker:", "workers:", "compose.gpu.yaml: $.services.workers"),
        ("Dockerfile", "COPY tuning /src/tuning\n", "", "the package tuning is not copied"),
        ("Dockerfile", "USER_ID=1000", "USER_ID=0", "makes a user that is root"),
        ("Dockerfile", "FROM python:${PYTHON}", "FROM python:slim", "wanted a tag with a version"),
        ("Dockerfile.dockerignore", "!tuning\n", "", "COPY tuning: Dockerfile.dockerignore keeps it out"),
    ],
)  # fmt: skip
def test_a_fault_is_found(tmp_path: Path, file: str, old: str, new: str, words: str) -> None:
    folder = tmp_path / "deploy"
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("__pycache__", "secrets"))
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    found = check(folder, render=False)
    assert any(words in fault for fault in found), found


@pytest.mark.skipif(renderer() is None, reason="neither kubectl nor kustomize is installed")
def test_an_overlays_recipe_uses_all_its_gpus(tmp_path: Path) -> None:
    folder = tmp_path / "deploy"
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("__pycache__", "secrets"))
    recipe = folder / "kuberay/overlays/multi-node/recipes/train.yaml"
    recipe.write_text(recipe.read_text().replace("[8, 32]", "[8, 16]"))
    assert [fault for fault in check(folder) if "queue" not in fault] == [
        "multi-node, rendered: m2can-train: train.yaml: 16 workers for 32 GPUs",
        "multi-node, rendered: m2can-tune: sweep.yaml: 16 workers for 32 GPUs",
    ]


def test_every_overlay_is_rendered() -> None:
    assert {place.name for place in (HERE / "kuberay/overlays").iterdir()} == {*OVERLAYS}


CRD = {
    "kind": "CustomResourceDefinition",
    "spec": {
        "group": "ray.io",
        "names": {"kind": "RayCluster"},
        "versions": [{
            "name": "v1",
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
                "spec": {"type": "object", "properties": {
                    "cpu": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "free": {"type": "object", "properties": {"a": {}}, "x-kubernetes-preserve-unknown-fields": True},
                    "none": {"type": "string", "nullable": True},
                }},
            }}},
        }],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"cpu": 1, "labels": {"a": "b"}, "free": {"b": 1}, "none": None}, ""),
        ({"cpu": "1", "replica": 2}, "$.spec: Additional properties are not allowed ('replica' was unexpected)"),
        ({"labels": {"a": 1}}, "$.spec.labels.a: 1 is not of type 'string'"),
        ({"cpu": 1.5}, "$.spec.cpu: 1.5 is not of type 'integer', 'string'"),
    ],
)
def test_fields_that_the_operators_schema_does_not_list_are_faults(
    tmp_path: Path, spec: dict[str, object], fault: str
) -> None:
    (tmp_path / "crd.yaml").write_text(yaml.safe_dump(CRD))
    found = list(
        Crds(tmp_path).faults(
            {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "x"}, "spec": spec}
        )
    )
    assert found == ([fault] if fault else [])
    assert list(Crds(tmp_path).faults({"apiVersion": "v1", "kind": "Service", "spec": spec})) == []


def test_manifests_are_held_against_the_schemas_that_are_given(tmp_path: Path) -> None:
    (tmp_path / "crd.yaml").write_text(yaml.safe_dump(CRD))
    found = check(render=False, crds=Crds(tmp_path / "crd.yaml"))
    assert found and all(
        fault.startswith("kuberay/base/cluster.yaml: $.spec: Additional properties") for fault in found
    )


def test_a_place_without_schemas_is_refused(tmp_path: Path) -> None:
    for place, words in ((tmp_path, "holds no CustomResourceDefinition"), (tmp_path / "none", "there is no such file")):
        with pytest.raises(InputError, match=words):
            Crds(place)


def test_a_list_in_a_schema_is_closed_too() -> None:
    assert closed({"items": [{"properties": {"a": {}}}]})["items"][0]["additionalProperties"] is False


@pytest.mark.parametrize(("code", "stops"), [(0, False), (1, False), (2, True), (143, False)])
def test_a_refused_recipe_stops_its_rayjob(tmp_path: Path, code: int, stops: bool) -> None:
    for name, line in (("m2can", f'echo "$@"; exit {code}'), ("ray", 'echo "ray $@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    script = ["sh", str(HERE / "kuberay/base/recipes/run-job.sh"), "m2can-train", "m2can", "train", "a b.yaml"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "STOPPED_WITHIN_S": "0"}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    stopped = "ray job stop --address http://127.0.0.1:8265 --no-wait m2can-train\n" if stops else ""
    assert (done.returncode, done.stdout) == (code, "train a b.yaml\n" + stopped)
    assert ("not tried again" in done.stderr) is stops


def test_secrets_are_random_private_and_kept(tmp_path: Path) -> None:
    script = [sys.executable, "-S", str(HERE / "make_secrets.py")]  # -S: a host for compose has nothing but Python
    for folder in ("a", "b"):
        subprocess.run([*script, str(tmp_path / folder)], check=True, capture_output=True, cwd=tmp_path)
    files = {file.name: file for file in (tmp_path / "a").iterdir()}
    assert {file.stat().st_mode & 0o777 for file in files.values()} == {0o600}
    contents = [file.read_text() for file in files.values()]
    assert len(set(contents)) == len(files) and min(map(len, contents)) >= 40
    assert not [name for name, file in files.items() if file.read_text() == (tmp_path / "b" / name).read_text()]
    assert make(tmp_path / "a") == [] and [file.read_text() for file in files.values()] == contents
    tokens = Tokens.read(files["api_tokens.yaml"])
    assert tokens.identify(f"Bearer {files['operator_token'].read_text()}").name == "operator"


def test_files_of_the_page_are_files_that_are_made(tmp_path: Path) -> None:
    named = re.findall(r"--from-file=(?:[\w.]+=)?(\S+)", (ROOT / "docs" / "deploy.md").read_text())
    assert len(named) == 9 and set(named) <= set(make(tmp_path / "made"))


def test_the_page_says_what_was_run() -> None:
    told = json.loads((ROOT / "benchmarks" / "results" / "stack.json").read_text())
    assert told["basic_auth"] and "<!-- stack:store -->" in (ROOT / "docs" / "deploy.md").read_text()


def test_parts_are_applied_by_labels_that_exist() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    objects = [
        o for f in (HERE / "kuberay/base").glob("*.yaml") for o in yaml.safe_load_all(f.read_text()) if "metadata" in o
    ]
    parts = {content["metadata"]["labels"]["app.kubernetes.io/component"] for content in objects} | {"mlflow"}
    asked = re.findall(r"component(?:=(\w+)| in \(([\w, ]+)\))", page)
    assert asked and {name for one, many in asked for name in (one or many).split(", ")} <= parts
    assert all(f"`{part}`" in page for part in parts)


def test_commands_are_parsed_and_not_run() -> None:
    assert fault(["data", "check", "a.yaml", "--html", "b.html"]) is None
    assert "No such option" in str(fault(["train", "recipe.yaml", "--worker", "2"]))
    assert shell_faults("FOO=1 m2can data list --json | head -1 > out && true") == []
    assert len(shell_faults("m2can data lists; m2can data list --jso")) == 2


def test_the_images_install_what_runs_and_nothing_else() -> None:
    runtime, mlflow = packages(select("runtime")), packages(select("mlflow"))
    assert {"torch", "ray", "mlflow", "typer", "nvidia-nccl-cu13"} <= runtime.keys()
    assert not {"pytest", "mkdocs", "mypy", "moto"} & runtime.keys()
    assert {"mlflow", "sqlalchemy", "boto3"} <= mlflow.keys() and not {"torch", "ray"} & mlflow.keys()
    assert not {"torch", "triton", "nvidia-nccl-cu13"} & packages(select("runtime", without_torch=True)).keys()
    assert (runtime | mlflow).items() <= packages(LOCK.read_text()).items()
