"""Everything of one process that serves, whatever runs it: the settings, and the app around resolver and engine. No Ray."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from datasets_manifest.errors import InputError
from services.drift.sample import SIZE, Sampler
from services.serving.admission import Admission
from services.serving.app import make_app
from services.serving.engine import Engine
from services.serving.limits import Limits
from services.serving.resolver import Resolver, name_of
from services.web.auth import Tokens
from trainers.exported.background import OnnxInBackground
from trainers.exported.graph import require_packages
from trainers.model.predictor import Predictions, Predictor
from trainers.model.reference import fingerprint
from trainers.tracking.registered_models import client_for, fetch_bundle, find_model

Runtime = Literal["torch", "onnx"]


@dataclass(frozen=True)
class ServeConfig:
    """models: `NAME`, `NAME@alias` or `NAME:version` in the registry; of a name alone the champion is served, else the candidate.

    grace_s: how long requests under way may take to end once the service is asked to. runtime: `onnx` computes with
    onnxruntime on the CPU, as soon as a version that was loaded has been exported. sample: file for a sample of what is
    predicted, of at most sample_size records of a version; None: none is kept.
    """

    models: list[str]
    tracking_uri: str
    tokens: Tokens
    limits: Limits = field(default_factory=Limits)
    replicas: int = 1
    gpus_per_replica: float | None = None  # None: one where this node has one
    alias_ttl_s: float = 1.0
    grace_s: float = 30.0
    runtime: Runtime = "torch"
    sample: Path | None = None
    sample_size: int = SIZE


class Service:
    """Resolver, engine, admission and the app around them."""

    def __init__(self, config: ServeConfig) -> None:
        torch.set_num_threads(1)
        self._uri, self._runtime = config.tracking_uri, config.runtime
        self._sampler = None if config.sample is None else Sampler(config.sample, config.sample_size)
        self._fingerprints: dict[str, str] = {}  # of the versions that were loaded
        self.admission = Admission(config.limits)
        self.app = make_app(
            Resolver(config.models, config.tracking_uri, config.alias_ttl_s),
            Engine(self._load, on_predictions=None if self._sampler is None else self._keep_sample),
            config.tokens,
            config.limits,
            self.admission,
        )

    def _load(self, model_id: str) -> Predictor:
        loaded = OnnxInBackground if self._runtime == "onnx" else Predictor
        folder = fetch_bundle(client_for(self._uri), model_id)
        self._fingerprints[model_id] = fingerprint(folder)
        return loaded.load(folder)

    def _keep_sample(self, model_id: str, predictions: Predictions) -> None:
        assert self._sampler is not None
        self._sampler.add(model_id, self._fingerprints[model_id], predictions)

    def close(self) -> None:
        """Write the rest of the sample."""
        if self._sampler is not None:
            self._sampler.close()


def require_models(config: ServeConfig) -> None:
    """Raises InputError: a model that is not in the registry or named twice, or what the runtime needs is not installed."""
    counts = Counter(map(name_of, config.models))
    if twice := [name for name, count in counts.items() if count > 1]:
        wanted = "each model once; requests for it may name any of its versions and aliases"
        raise InputError("is named twice", field="MODEL", value=twice[0], wanted=wanted)
    if config.runtime == "onnx":
        require_packages("onnx")
    client = client_for(config.tracking_uri)
    for model in config.models:
        find_model(client, model)
