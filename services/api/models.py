"""Bodies of requests and responses of the control plane, with the examples of its OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.jobs.jobs import Job

NAME_PATTERN = r"^[^/:@'\s%\\]{1,200}$"
MAX_DEPTH = 32
_EXAMPLE_RECIPE = {
    "preset": "recommended",
    "data": {"sources": ["/data/reviews/manifest.yaml"], "target": "/data/shop/manifest.yaml"},
    "train": {"epochs": 10},
}
_EXAMPLE_SWEEP = {"name": "thresholds", "trials": 20, "space": {"uacr.start": {"choices": [0.2, 0.3]}}}


def _is_flat_enough(tree: dict[str, Any]) -> dict[str, Any]:
    """Refuse nesting deeper than any recipe's: it would overflow Python's stack later."""
    level: list[Any] = [tree]
    for _ in range(MAX_DEPTH):
        level = [part for node in level for part in (node.values() if isinstance(node, dict) else node)]
        level = [part for part in level if isinstance(part, dict | list)]
        if not level:
            return tree
    raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")


Tree = Annotated[dict[str, Any], AfterValidator(_is_flat_enough)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


MaxRunning = Annotated[
    int | None,
    Field(ge=1, description="Wait while so many jobs of this caller that came before have not ended.", examples=[2]),
]


class JobIn(_Body):
    """A recipe to train. With the `run.name` of an interrupted run it resumes that run."""

    recipe: Tree = Field(description="What a recipe file holds.", examples=[_EXAMPLE_RECIPE])
    max_running: MaxRunning = None


class SweepIn(_Body):
    """A sweep, and the recipe it starts from."""

    sweep: Tree = Field(description="What a sweep file holds, without `recipe`.", examples=[_EXAMPLE_SWEEP])
    recipe: Tree = Field(description="What a recipe file holds.", examples=[_EXAMPLE_RECIPE])
    max_running: MaxRunning = None


class CheckIn(_Body):
    """Manifests to check."""

    manifests: Annotated[list[str], Field(min_length=1, max_length=64)] = Field(examples=[["/data/shop/manifest.yaml"]])


class PromoteIn(_Body):
    version: str = Field(pattern=r"^[0-9]{1,9}$", examples=["3"])
    alias: str = Field("champion", pattern=r"^[a-z][a-z0-9_-]{0,40}$")


class JobPage(BaseModel):
    """`next`: the cursor of the page after this one; null on the last."""

    jobs: list[Job]
    next: str | None


class ModelOut(BaseModel):
    """A registered version, without the address of its files."""

    name: str
    version: str
    aliases: list[str]
    run_id: str | None
    created: str
    tags: dict[str, str]


class ModelPage(BaseModel):
    models: list[ModelOut]
    next: str | None
