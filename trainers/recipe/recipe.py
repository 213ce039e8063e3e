"""Recipe: everything one run needs, as one validated object for command line, tuning and checkpoint."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from datasets_manifest.stream.images import PictureViews
from trainers.recipe.base import Section
from trainers.recipe.data_sections import Data, Encoders
from trainers.recipe.from_version_1 import SCHEMA_VERSION
from trainers.recipe.method_sections import (
    NetworkSection,
    ObjectiveSection,
    OptimizerSection,
    Sam,
    ScheduleSection,
    Selection,
    Uacr,
)
from trainers.recipe.overrides import flatten
from trainers.recipe.run_sections import Checkpoints, Cluster, Run, Tracking, Train


class Recipe(Section):
    schema_version: int = Field(
        SCHEMA_VERSION, description="Form of the recipe. An older one is brought to today's when it is read."
    )
    preset: Literal["recommended", "published"] = Field(
        "recommended",
        description="Where the values come from that a recipe leaves out. `published` also drops the alpha channel of "
        "transparent pictures, as the authors' code does; with `recommended` they are laid on white.",
    )
    data: Data
    encoders: Encoders = Encoders()
    network: NetworkSection = NetworkSection()
    objective: ObjectiveSection = ObjectiveSection()
    uacr: Uacr = Uacr()
    sam: Sam = Sam()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    train: Train = Train()
    selection: Selection = Selection()
    cluster: Cluster = Cluster()
    checkpoint: Checkpoints = Checkpoints()
    tracking: Tracking = Tracking()
    run: Run = Run()

    @model_validator(mode="after")
    def _every_worker_has_rows(self) -> Recipe:
        if self.cluster.most_workers > self.train.batch_size:
            raise ValueError(
                f"cluster.workers {self.cluster.most_workers} is more than the rows of a batch, "
                f"train.batch_size {self.train.batch_size}: a worker would have none"
            )
        return self

    @property
    def target_takes_part(self) -> bool:
        """Whether any component reads the target: with all of them off, training is source-only."""
        any_term = any(self.objective.weights().values())
        return self.uacr.enabled or any_term or self.train.target_labels != "unused"

    @property
    def uses_pseudo_labels(self) -> bool:
        """Whether UACR labels the target: not where its own labels are trained on, for an upper bound."""
        return self.uacr.enabled and self.train.target_labels != "oracle"

    def picture_views(self) -> PictureViews:
        """Those of data.pictures. The published code drops the alpha channel of a transparent picture."""
        views = self.data.pictures.views()
        return views.model_copy(update={"transparency": "dropped"}) if self.preset == "published" else views

    def with_pictures(self, values: dict[str, Any]) -> Recipe:
        """The recipe with these values of data.pictures."""
        data = self.data.model_copy(update={"pictures": self.data.pictures.model_copy(update=values)})
        return self.model_copy(update={"data": data})

    def without_adapters(self) -> Recipe:
        """The recipe of the network after its adapters were merged into plain weights."""
        parts = {name: getattr(self.encoders, name).model_copy(update={"lora": None}) for name in ("text", "picture")}
        return self.model_copy(update={"encoders": self.encoders.model_copy(update=parts)})

    def flat(self) -> dict[str, Any]:
        """Dotted keys → plain values."""
        return flatten(self.model_dump(mode="json"))
