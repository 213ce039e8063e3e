"""Models of the MLflow registry: look up, promote, bring here.

A model is named `NAME` (its newest version), `NAME@alias` or `NAME:version`, with or without `models:/`. MLflow is found at
`tracking_uri`, at MLFLOW_TRACKING_URI, or else in the folder of runs `storage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.tracking.registered_models import ModelVersion

if TYPE_CHECKING:
    from services.promotion import Metric, Promotion

__all__ = ["ModelVersion", "fetch", "find", "promote", "rollback", "search"]


def find(model: str, *, tracking_uri: str | None = None, storage: str | Path = "runs") -> ModelVersion:
    """One version with its aliases and tags.

    Raises:
        InputError: it is not in the registry.

    Example:
        >>> import m2can
        >>> m2can.models.find("m2can-mountain@candidate").version
        '1'
    """
    from trainers.tracking.registered_models import client_for, find_model

    return find_model(client_for(tracking_uri, Path(storage)), model)


def search(
    text: str = "",
    *,
    target: str | None = None,
    source: str | None = None,
    alias: str | None = None,
    min_accuracy: float | None = None,
    tracking_uri: str | None = None,
    storage: str | Path = "runs",
) -> Sequence[ModelVersion]:
    """All versions for which everything given holds, newest first.

    Args:
        text: part of the name or of a tag's value.
        min_accuracy: target accuracy of the chosen epoch, 0 to 1; versions without labels fall out.

    Example:
        >>> import m2can
        >>> [version.name for version in m2can.models.search(target="mountain")]
        ['m2can-mountain']
    """
    from services.registry import search_models
    from trainers.tracking.registered_models import client_for

    client = client_for(tracking_uri, Path(storage))
    return search_models(client, text=text, target=target, source=source, alias=alias, min_accuracy=min_accuracy)


def fetch(model: str, to: str | Path, *, tracking_uri: str | None = None, storage: str | Path = "runs") -> Path:
    """Write a version's files to the new folder `to`, checked.

    Returns:
        the folder inside it that `m2can.Predictor.load` reads.

    Raises:
        InputError: `to` exists, the model is not in the registry, or its files were altered.

    Example:
        >>> import m2can
        >>> m2can.Predictor.load(m2can.models.fetch("m2can-mountain@candidate", "fetched")).card.target
        'mountain'
    """
    from services.registry import fetch as fetch_version
    from trainers.tracking.registered_models import bundle_of, client_for

    fetch_version(client_for(tracking_uri, Path(storage)), model, Path(to))
    return bundle_of(Path(to))


def promote(
    model: str,
    to: str = "champion",
    *,
    if_better_than: str | None = None,
    on: str | Path | None = None,
    split: str = "val",
    metric: Metric = "accuracy",
    tracking_uri: str | None = None,
    storage: str | Path = "runs",
) -> Promotion:
    """Point the alias `to` at a version; services take it up without restart.

    Args:
        if_better_than: alias or version to beat on the labelled manifest `on`; without both nothing is checked.

    Raises:
        InputError: the version or the manifest is none.
        PromotionRefused: the version is not better (services.promotion).

    Example:
        >>> import m2can
        >>> m2can.models.promote("m2can-mountain@candidate").after
        '1'
    """
    from datasets_manifest.errors import InputError
    from services.promotion import Gate
    from services.promotion import promote as promote_version
    from trainers.tracking.registered_models import client_for

    if (if_better_than is None) != (on is None):
        raise InputError("go together", field="if_better_than, on", wanted="both or neither")
    gate = Gate(if_better_than, on, split, metric) if if_better_than is not None and on is not None else None
    return promote_version(client_for(tracking_uri, Path(storage)), model, to, gate)


def rollback(
    name: str, alias: str = "champion", *, tracking_uri: str | None = None, storage: str | Path = "runs"
) -> Promotion:
    """Give an alias back to the version that had it before its last promotion.

    Raises:
        InputError: no version had it before.

    Example:
        >>> import m2can
        >>> m2can.models.rollback("m2can-mountain")
        Traceback (most recent call last):
        datasets_manifest.errors.InputError: NAME: no version had @champion before; ...
    """
    from services.promotion import rollback as roll_back
    from trainers.tracking.registered_models import client_for

    return roll_back(client_for(tracking_uri, Path(storage)), name, alias)
