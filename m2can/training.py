"""`m2can.train`, `m2can.tune` and `m2can.load_recipe`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from trainers.recipe import Recipe
    from trainers.run_result import Result
    from tuning.driver import SweepResult


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe, *, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """The validated recipe.

    Args:
        recipe: a file (a published configuration too), the name of a recipe that comes along (`AVA`, `PCCD`, `RPCD`,
            `TumEmo`, `Twitter`, `Yelp`), a nested mapping of its values, or a Recipe.
        overrides: values by dotted key, e.g. `{"train.epochs": 5}`.

    Raises:
        InputError: names the file, the key, the value and the nearest valid key.

    Example:
        >>> import m2can
        >>> data = {"sources": ["seaside/manifest.yaml", "city/manifest.yaml"], "target": "mountain/manifest.yaml"}
        >>> recipe = m2can.load_recipe({"data": data}, overrides={"train.epochs": 5})
        >>> recipe.train.epochs, recipe.preset
        (5, 'recommended')
    """
    import trainers.recipe as recipes
    from trainers.recipe.recipes import packaged_recipe
    from tuning.sweep import as_override

    changes = [as_override(key, value) for key, value in (overrides or {}).items()]
    if isinstance(recipe, str | Path):
        file = Path(recipe)
        return recipes.load_recipe(file if file.is_file() else packaged_recipe(str(recipe)) or file, changes)
    tree = recipe.model_dump(mode="json") if isinstance(recipe, recipes.Recipe) else _copied(recipe)
    for change in changes:
        recipes.apply_override(tree, change)
    return recipes.make_recipe(tree)


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    sources: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    classes: list[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    start_from: str | Path | None = None,
    workers: int | None = None,
    address: str | None = None,
    trace: str | Path | None = None,
    profile: bool = False,
    candidate: Literal["if-not-worse", "always"] = "if-not-worse",
    progress: bool = True,
) -> Result:
    """Train a recipe on a Ray cluster, choose an epoch without target labels, register the model in MLflow.

    Args:
        recipe: see `load_recipe`.
        sources: frames of the labelled domains by their names, in place of `data.sources`. A frame is a pandas DataFrame or
            a `datasets.Dataset` with the columns `text`, `image` or both, and `label`; of one frame a domain 15 % of the
            records become the split `val`. A mapping (a `datasets.DatasetDict`) names the splits itself.
            A text is a string or a list of strings. A picture is a path, the bytes of a file, a PIL image, a mapping of
            `bytes` and `path`, or a list of these; what is no path is written to the run's folder. docs/python.md has an
            example.
        target: the target's name and its frame or frames, in place of `data.target`. It needs no labels.
        classes: their names, if the frames hold numbers; None: the labels that the sources have, sorted.
        overrides: values by dotted key, e.g. `{"train.epochs": 5}`.
        start_from: a finished run, by name or folder, to which epochs are added (`train.epochs` counts those it has); or a
            checkpoint's folder or a registered model (`m2can-mountain:4`), whose weights are taken (train.start_from).
        workers: Ray Train workers (cluster.workers).
        address: Ray cluster (cluster.address); None joins the one of `ray start` here or starts one.
        trace: file for every step's loss terms, as JSON lines.
        profile: write a profile of a few steps to the run's folder.
        candidate: whether the alias `candidate` moves to the new version: if its label-free score and source accuracy are not
            below those of the version that has it by more than `selection.gate`, or `always`.
        progress: show steps and epochs on standard error, or as a bar on a terminal or in a notebook.

    Raises:
        InputError: the recipe, its data or the cluster are not right; found before training starts.
        RunFailed: training ended without a model.
        TrackingUnavailable: MLflow was away at the end; the run's folder holds everything.

    Example:
        >>> import m2can
        >>> cards = m2can.write_postcards("postcards", train=30, val=12)
        >>> data = {"sources": [str(cards["seaside"]), str(cards["city"])], "target": str(cards["mountain"])}
        >>> data["pictures"] = {"resize": 36, "crop": 32}
        >>> tiny = {"text": {"name": "tiny"}, "picture": {"name": "tiny"}}
        >>> train = {"epochs": 1, "batch_size": 6}
        >>> result = m2can.train({"data": data, "encoders": tiny, "train": train}, workers=1, progress=False)
        >>> result.target, result.last_epoch, result.report_page.name
        ('mountain', 1, 'report.html')
        >>> predictor = m2can.Predictor.load(result.checkpoint)
        >>> predictor.predict(["a lovely day"]).labels[0] in predictor.classes
        True
    """
    from services.cli.output import RunProgress
    from trainers.training_run import run

    _quiet_mlflow()
    began = None if start_from is None else str(start_from)
    places = {"cluster.workers": workers, "cluster.address": address, "train.start_from": began}
    changes = {**(overrides or {}), **{key: value for key, value in places.items() if value is not None}}
    with _data_of(recipe, changes, sources, target, classes) as named:
        loaded = load_recipe(recipe, overrides={**changes, **named})
        observer = RunProgress(as_json=False) if progress else None
        place = Path(trace) if trace else None
        return run(loaded, observer=observer, stop=nullcontext(), trace=place, profile=profile, candidate=candidate)


def tune(
    sweep: str | Path,
    recipe: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    address: str | None = None,
) -> SweepResult:
    """Search or compare recipes: each trial is one training run, chosen without target labels.

    A sweep that was cut off goes on when it is called again; trials that had ended are not repeated.

    Args:
        sweep: a sweep file, or the name of one that comes along (`ablation`, `baselines`).
        recipe: file or name of a recipe, in place of the sweep's own.
        overrides: values by dotted key, for all trials.
        name: of the sweep, in place of its own.
        address: Ray cluster (cluster.address); None joins the one of `ray start` here or starts one.

    Raises:
        InputError: the sweep, its recipe or the data are not right.
        RunFailed: no trial came to an end.
        TrackingUnavailable: MLflow was away at the end; the sweep's folder holds everything.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> import m2can
        >>> cards = m2can.write_postcards("postcards", train=30, val=12)
        >>> data = {"sources": [str(cards["seaside"]), str(cards["city"])], "target": str(cards["mountain"])}
        >>> data["pictures"] = {"resize": 36, "crop": 32}
        >>> tiny = {"text": {"name": "tiny"}, "picture": {"name": "tiny"}}
        >>> recipe = {"data": data, "encoders": tiny, "train": {"epochs": 1, "batch_size": 6}}
        >>> sweep = {"name": "radius", "recipe": "recipe.yaml", "algorithm": "grid"}
        >>> sweep["space"] = {"sam.rho": {"choices": [0.0, 0.05]}}
        >>> _ = Path("recipe.yaml").write_text(json.dumps(recipe))  # YAML, too
        >>> _ = Path("sweep.yaml").write_text(json.dumps(sweep))
        >>> result = m2can.tune("sweep.yaml")
        >>> len(result.trials), result.best.config["sam.rho"] in (0.0, 0.05)
        (2, True)
    """
    from trainers.recipe.recipes import packaged_recipe
    from tuning.driver import run_sweep
    from tuning.sweep import as_override, load_sweep

    _quiet_mlflow()
    given = {"cluster.address": address} if address is not None else {}
    changes = [as_override(key, value) for key, value in {**(overrides or {}), **given}.items()]
    file = Path(recipe) if recipe is not None else None
    if file is not None and not file.is_file():
        file = packaged_recipe(str(file)) or file
    return run_sweep(load_sweep(Path(sweep), file, changes, name))


def _data_of(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    changes: dict[str, Any],
    sources: Mapping[str, Any] | None,
    target: Mapping[str, Any] | None,
    classes: list[str] | None,
) -> AbstractContextManager[dict[str, Any]]:
    """The recipe's keys for frames that were given; they are on disk while this is entered."""
    from datasets_manifest.errors import InputError
    from m2can.frames import written_frames

    if sources is None and target is None and classes is None:
        return nullcontext({})
    if not isinstance(sources, Mapping) or not isinstance(target, Mapping):
        raise InputError("go together", field="sources, target", wanted="a mapping of names to frames for both")
    placeholders = {"data.sources": list(sources), "data.target": "target"}
    return written_frames(load_recipe(recipe, overrides={**changes, **placeholders}), sources, target, classes)


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _quiet_mlflow() -> None:
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
