"""What images are called, and how the Dockerfile makes ours."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.locked import ROOT

OURS = ("m2can", "m2can-mlflow")


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def image_fault(image: str) -> str | None:
    """Ours carry the project's version; others a number, never `latest`."""
    name, _, tag = image.partition("@")[0].rpartition(":")
    if name.rsplit("/", 1)[-1] in OURS:
        version = project()["project"]["version"]
        return None if tag == version else f"image {image}: wanted the tag {version}"
    return None if re.match(r"\d+\.\d+", tag) else f"image {image}: wanted a tag with a version"


def stages(dockerfile: str) -> dict[str, str]:
    """Stage → its lines, what it is made from first."""
    found = {}
    for stage in re.split(r"^FROM ", dockerfile, flags=re.M)[1:]:
        head = stage.split("\n", 1)[0].split()
        found[head[-1]] = stage
    return found


def dockerfile_faults(folder: Path) -> Iterator[str]:
    """Versions, users, hashes, and that everything that is copied is there and let through."""
    text = (folder / "Dockerfile").read_text()
    lines = text.replace("\\\n", " ").splitlines()
    for tag in re.findall(r"-t (\S+)", text):
        if fault := image_fault(tag):
            yield f"Dockerfile: {fault}"
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.M))
    wanted = project()["project"]["requires-python"]
    if not arguments.get("PYTHON", "").startswith(wanted.removeprefix(">=")):
        yield f"Dockerfile: PYTHON is not that of requires-python {wanted}"
    found = stages(text)
    yield from (f"Dockerfile: {fault}" for fault in _stage_faults(found, arguments))
    copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    let_through = re.findall(r"^!(\S+)", (folder / "Dockerfile.dockerignore").read_text(), re.M)
    for source in copied:
        if not (ROOT / source).exists():
            yield f"Dockerfile: COPY {source}: there is no such file"
        if not any(source == place or source.startswith(f"{place}/") for place in let_through):
            yield f"Dockerfile: COPY {source}: Dockerfile.dockerignore keeps it out"
    included = project()["tool"]["setuptools"]["packages"]["find"]["include"]
    for package in sorted({pattern.rstrip("*") for pattern in included} - set(copied)):
        yield f"Dockerfile: the package {package} is not copied"
    for line in lines:
        for install in re.findall(r"pip install ([^&;]*)", line):
            hashed, own, cpu = "--require-hashes" in install, install.rstrip().endswith("."), "TORCH_INDEX" in install
            if not (hashed or own or cpu) or "--no-deps" not in install:
                yield f"Dockerfile: pip install {install.strip()}: wanted --no-deps --require-hashes"


def _stage_faults(found: dict[str, str], arguments: dict[str, str]) -> Iterator[str]:
    known: set[str] = set()
    for number, (name, stage) in enumerate(found.items()):
        source = _expand(stage.split()[0], arguments)
        if source not in known and (fault := image_fault(source)):
            yield fault
        if source not in known and not re.search(r"@sha256:[0-9a-f]{64}$", source):
            yield f"image {source}: wanted a digest, @sha256:…, beside the tag"
        if name == "cluster" and "install -y --no-install-recommends g++" not in stage:
            yield "stage cluster has no C++ compiler, which train.compile needs"
        known.add(name)
        for user in re.findall(r"--uid (\S+)", stage):
            if _expand(user, arguments) == "0":
                yield f"stage {name} makes a user that is root"
        users = re.findall(r"^USER (\S+)", stage, re.M)
        if number and (not users or users[-1] in ("root", "0")):
            yield f"stage {name} runs as root"


def _expand(word: str, arguments: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda name: arguments.get(name[1], ""), word)
