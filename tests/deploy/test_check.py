"""deploy/ has no fault, and each rule finds the fault it is for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.check import HERE, check
from deploy.commands import fault, shell_faults
from deploy.locked import LOCK, packages, select


def test_no_fault_is_found() -> None:
    assert check() == []


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("compose.yaml", "name: m2can\n", "name: [m2can\n", "compose.yaml: is not YAML"),
        ("compose.yaml", "image: m2can:0.1.0", "image: m2can:latest", "wanted the tag"),
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
        ("kuberay/base/cluster.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"),
        ("kuberay/base/train.yaml", "shutdownAfterJobFinishes: true", "suspend: true", "suspend needs"),
        ("kuberay/base/train.yaml", "submissionMode: K8sJobMode", "clusterSelector: {a: b}", "does not go with"),
        ("kuberay/base/train.yaml", "m2can train /etc", "m2can training /etc", "no command 'training'"),
        ("kuberay/base/train.yaml", "/etc/m2can/train.yaml --a", "/etc/train.yaml --a", "in no volume"),
        ("kuberay/base/service.yaml", "services.serving:build", "services.serving:make", "does not exist"),
        ("kuberay/base/service.yaml", "          replicas: 2", "          replica: 2", "serveConfigV2: args"),
        ("kuberay/base/api.yaml", "key: auth_token}}", "key: auth_token}}, value: x", "value"),
        ("kuberay/base/api.yaml", "claimName: m2can-data", "claimName: other", "claim other is not there"),
        ("kuberay/base/api.yaml", "{name: mlflow-client, key: password}", "{name: mlflow-user, key: password}", "Secret mlflow-user"),
        ("kuberay/base/recipes/train.yaml", "epochs: 10", "epoch: 10", "train.epochs"),
        ("kuberay/base/recipes/train.yaml", "storage: /data/runs", "storage: runs", "is not below /data"),
        ("kuberay/base/kustomization.yaml", "network.yaml", "networks.yaml", "there is no networks.yaml"),
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
