"""Objects against the operator's own schemas, read from its CustomResourceDefinitions; fields that they do not know are faults.

The API server drops unknown fields without a word, so each object of a schema that lists its fields is closed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from datasets_manifest.errors import InputError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Crds:
    """The schemas of a file or folder of CustomResourceDefinitions.

    Raises:
        InputError: there is no such file, or no definition in it.
    """

    def __init__(self, place: Path) -> None:
        files = sorted(place.rglob("*.yaml")) if place.is_dir() else [place]
        self._validators: dict[tuple[str, str], Any] = {}
        for file in files:
            if not file.is_file():
                raise InputError("there is no such file", field="--crds", value=str(place), wanted="a file or folder")
            for document in yaml.load_all(file.read_text(), Loader=_Loader):
                if document and document.get("kind") == "CustomResourceDefinition":
                    self._add(document["spec"])
        if not self._validators:
            raise InputError(
                "holds no CustomResourceDefinition",
                field="--crds",
                value=str(place),
                wanted="helm-chart/kuberay-operator/crds of KubeRay",
            )

    def _add(self, spec: dict[str, Any]) -> None:
        for version in spec["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            named = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            self._validators[named] = jsonschema.Draft202012Validator(schema)

    def faults(self, content: dict[str, Any]) -> Iterator[str]:
        """What is wrong with an object; nothing for a kind that no definition is of."""
        validator = self._validators.get((content["apiVersion"], content["kind"]))
        for error in sorted(validator.iter_errors(content), key=lambda one: one.json_path) if validator else ():
            yield f"{error.json_path}: {error.message[:200]}"


def closed(schema: Any) -> Any:
    """An OpenAPI schema of Kubernetes as JSON schema in which an object has no other fields than those listed."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **({"pattern": schema["pattern"]} if "pattern" in schema else {})}
    made = {key: closed(value) for key, value in schema.items() if key not in ("properties", "default", "format")}
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        made["type"] = [schema["type"], "null"]
    if isinstance(schema.get("properties"), dict):
        made["properties"] = {name: closed(one) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made
