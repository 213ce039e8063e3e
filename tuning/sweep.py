"""A sweep file: which recipe, which keys are searched or compared, how trials are scored.

    name: thresholds
    recipe: recipe.yaml
    trials: 12
    space:
      uacr.start: {low: 0.1, high: 0.6}
      optimizer.lr.encoders: {low: 1.0e-5, high: 1.0e-3, log: true}
      sam.rho: {choices: [0, 0.05]}

A comparison has `variants` (overrides by name) and `seeds` in place of `space`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from datasets_manifest.errors import InputError, from_validation_error, nearest
from trainers.recipe import Recipe, apply_override, make_recipe, read_tree
from trainers.recipe.recipes import packaged_recipe
from trainers.validators import Validator

Count = Annotated[int, Field(ge=1)]
LEAVE_ONE_SOURCE_OUT: Final = "leave_one_source_out"
_NOT_SEARCHED = ("run.", "tracking.", "cluster.", "checkpoint.", "selection.", "train.seed", "schema_version", "preset")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choices(_Section):
    choices: Annotated[list[Any], Field(min_length=1)]

    def described(self) -> str:
        return "one of " + ", ".join(map(str, self.choices))


class Range(_Section):
    """From `low` to `high`, both included. `step`: only every so far; a grid needs it."""

    low: float
    high: float
    log: bool = False
    integer: bool = False
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range has a low above 0 and no step")
        if self.integer and any(x is not None and x != int(x) for x in (self.low, self.high, self.step)):
            raise ValueError("an integer range has whole numbers only")
        return self

    def number(self, value: float) -> float | int:
        return int(value) if self.integer else value

    def described(self) -> str:
        """In words: `0.1 to 0.6, logarithmic`."""
        more = {
            "whole numbers": self.integer,
            "logarithmic": self.log,
            f"every {self.step or 0:g}": self.step is not None,
        }
        return ", ".join([f"{self.low:g} to {self.high:g}", *(word for word, holds in more.items() if holds)])

    def grid(self) -> list[float | int]:
        assert self.step is not None
        count = int((self.high - self.low) / self.step + 1e-9)
        return [self.number(round(self.low + i * self.step, 12)) for i in range(count + 1)]


Axis = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(
        lambda part: (
            "choices" if isinstance(part, Choices) or (isinstance(part, dict) and "choices" in part) else "range"
        )
    ),
]


class Asha(_Section):
    """Asynchronous successive halving: of the trials that reach an epoch, only the best 1/reduction go on.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, arXiv:1810.05934.
    """

    grace_epochs: Count = 1
    reduction: Annotated[float, Field(gt=1)] = 3


class Sweep(_Section):
    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,59}$")]
    recipe: str | dict[str, Any] | None = None  # a file, relative to the sweep's; a recipe that comes along; a recipe
    set: list[str] = []  # overrides for all trials
    space: dict[str, Axis] = {}
    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    trials: Count = 10  # a grid has as many as it has points
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # of the search
    objective: Validator | Literal["leave_one_source_out"] = "infomax"
    asha: Asha | None = None
    variants: dict[str, list[str]] = {}
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = []
    share_features: bool = True  # computed once, where all trials freeze the same encoders
    max_concurrent: Count | None = None  # None: as many as the cluster's CPUs or GPUs hold

    @model_validator(mode="after")
    def _searches_or_compares(self) -> Sweep:
        if bool(self.space) == bool(self.variants):
            raise ValueError("a sweep has either a `space` to search or `variants` to compare")
        if bool(self.variants) != bool(self.seeds):
            raise ValueError("`variants` and `seeds` go together")
        if self.algorithm == "grid":
            loose = [key for key, part in self.space.items() if isinstance(part, Range) and part.step is None]
            if loose:
                raise ValueError(f"a grid needs `choices` or a `step`; {loose[0]} has neither")
        if self.objective == LEAVE_ONE_SOURCE_OUT and self.asha is not None:
            raise ValueError("leave_one_source_out has its score at a trial's end only: `asha` has nothing to go by")
        return self

    @property
    def is_comparison(self) -> bool:
        return bool(self.variants)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep with its recipe's values, as they were when it was read.

    tree: the recipe's values with the sweep's overrides. anchor: the file its paths are relative to.
    """

    sweep: Sweep
    file: Path
    tree: dict[str, Any]
    anchor: Path

    def recipe(self, overrides: list[str]) -> Recipe:
        """Raises InputError: names the key and the value."""
        tree = copy.deepcopy(self.tree)
        for override in overrides:
            apply_override(tree, override)
        return make_recipe(tree, self.anchor)

    def trial_overrides(self, config: dict[str, Any]) -> list[str]:
        """What a trial's configuration changes in the recipe."""
        sweep = self.sweep
        chosen = [] if sweep.objective == LEAVE_ONE_SOURCE_OUT else [f"selection.validator={sweep.objective}"]
        if sweep.is_comparison:
            return [*chosen, *sweep.variants[config["variant"]], f"train.seed={config['seed']}"]
        return [*chosen, *(as_override(key, config[key]) for key in sweep.space)]


def as_override(key: str, value: Any) -> str:
    """`key=value` with the value as YAML reads it back."""
    written = yaml.safe_dump(value, default_flow_style=True, width=10**9).strip()
    return f"{key}={written.removesuffix('...').strip()}"


def packaged_sweep(name: str) -> Path | None:
    """The file of a sweep that comes along (`ablation`, `baselines`), None if there is none."""
    known = {path.stem: path for path in Path(str(files("tuning.sweeps"))).glob("*.yaml")}
    return known.get(name)


def load_sweep(
    path: Path, recipe: Path | None = None, overrides: list[str] | None = None, name: str | None = None
) -> SweepPlan:
    """Read a sweep file and its recipe; every key and every end of a range is tried in the recipe.

    Args:
        recipe: in place of the file's own.
        overrides: of the recipe, after the file's own.
        name: in place of the file's own.

    Raises:
        InputError: names the file, the key, the value and the nearest valid key.
    """
    file = path if path.is_file() else packaged_sweep(str(path)) or path
    content = read_tree(file, [])
    if recipe is not None:
        content["recipe"] = str(recipe.resolve())
    if name is not None:
        content["name"] = name
    try:
        sweep = Sweep.model_validate(content)
    except ValidationError as error:
        raise from_validation_error(error, Sweep, file) from None
    extra = [*sweep.set, *(overrides or [])]
    if sweep.recipe is None:
        raise InputError("is not given", file=file, field="recipe", wanted="a recipe file, or --recipe FILE")
    if isinstance(sweep.recipe, dict):
        tree, anchor = copy.deepcopy(sweep.recipe), file
        for override in extra:
            apply_override(tree, override)
    else:
        beside = file.resolve().parent / sweep.recipe
        anchor = beside if beside.is_file() else packaged_recipe(sweep.recipe) or beside
        tree = read_tree(anchor, extra)
    plan = SweepPlan(sweep, file, tree, anchor)
    _try_all(plan)
    return plan


def _try_all(plan: SweepPlan) -> None:
    sweep = plan.sweep
    base = plan.recipe([])
    if sweep.objective == LEAVE_ONE_SOURCE_OUT and len(base.data.sources) < 2:
        wanted = "at least 2 for the objective leave_one_source_out"
        raise InputError("has too few sources", file=plan.anchor, field="data.sources", value=1, wanted=wanted)
    for key, part in sweep.space.items():
        _require_searchable(plan, key, base)
        probes = part.choices if isinstance(part, Choices) else [part.number(part.low), part.number(part.high)]
        for value in probes:
            _try(plan, f"space.{key}", [as_override(key, value)])
    for name, overrides in sweep.variants.items():
        _try(plan, f"variants.{name}", overrides)


def _require_searchable(plan: SweepPlan, key: str, base: Recipe) -> None:
    if key.startswith(_NOT_SEARCHED):
        wanted = "a key that changes what is computed"
        raise InputError("is not for a search to change", file=plan.file, field=f"space.{key}", wanted=wanted)
    known = base.flat()
    above = [name for name in known if key.startswith(f"{name}.") and known[name] is None]  # `lora: null`
    if key not in known and not above and not any(name.startswith(f"{key}.") for name in known):
        close = nearest(key, known)
        wanted = "a key of the recipe" + (f" (nearest: {close})" if close else "")
        raise InputError("is no key of the recipe", file=plan.file, field=f"space.{key}", wanted=wanted)


def _try(plan: SweepPlan, field: str, overrides: list[str]) -> None:
    try:
        plan.recipe(overrides)
    except InputError as error:
        problem = f"does not fit the recipe: {error.field or 'it'} {error.problem}"
        raise InputError(problem, file=plan.file, field=field, value=error.value, wanted=error.wanted) from None
