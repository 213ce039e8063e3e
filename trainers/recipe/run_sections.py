"""Sections of how and where a run is carried out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ByteSize, Field, field_validator

from trainers.recipe.base import Count, Positive, Section


class Train(Section):
    """How it trains."""

    epochs: Count | None = Field(
        10,
        description="Number of epochs; see `data.samples_per_epoch`. `null`: as many as make enough steps, see "
        "[Method](method.md).",
    )
    start_from: str | None = Field(
        None,
        description="What training starts from, see [Method](method.md). The name or folder of a finished run: its last "
        "checkpoint with all that moves; `train.epochs` counts the epochs that it has. A checkpoint's folder (`runs/NAME/best`) "
        "or a registered model, as `m2can models list` prints it: its weights, as far as they fit. `null`: the encoders' own "
        "weights.",
    )
    patience: Count | None = Field(
        None,
        description="Epochs without a better label-free score (`selection.validator`) after which the run ends early; those of "
        "`uacr.warmup` do not count. The schedule stays as planned. `null`: the run has all its epochs.",
    )
    batch_size: Count = Field(8, description="Samples of each domain in a step, over all workers.")
    eval_batch_size: Count | None = Field(
        None,
        description="Samples at a time, on each worker, when the network only predicts. `null`: 256 on a GPU, 64 on a CPU.",
    )
    seed: int = Field(
        123456, ge=0, lt=2**32, description="Of weights, order and views. The same seed gives the same run."
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "fp64"] = Field(
        "fp32",
        description="What the network computes in. `auto`: `bf16` on Ampere GPUs or later, else `fp32`. `tf32`: float32 whose "
        "products are rounded to TF32 (Ampere GPUs or later). With `bf16` and `fp16` weights and loss terms stay float32, "
        "and on a GPU what float32 products are left are rounded to TF32.",
    )
    accumulate: Count = Field(
        1,
        description="Number of parts in which a worker's samples of a step go through the network: less memory, a forward "
        "pass more, the same step.",
    )
    compile: bool = Field(
        False,
        description="Compile the encoders' blocks (a transformer's layers, a ResNet's residual blocks) with torch.compile, in "
        "the first step. On the CPU those of the text encoder alone.",
    )
    target_labels: Literal["unused", "few", "oracle"] | Annotated[str, Field(pattern=r"(?i)\.csv$")] = Field(
        "unused",
        description="Labels of the target's training records that training uses, see [A few labels](method.md#a-few-labels). "
        "The path of a CSV with the columns `id` and `label`, relative to the recipe's folder: those in it. `few`: those that "
        "the target's manifest gives. A part is held out and measures the accuracy. `oracle`: all of the manifest's, an upper "
        "bound for comparisons.",
    )

    @property
    def has_few_labels(self) -> bool:
        """Whether some records of the target have labels that training uses."""
        return self.target_labels not in ("unused", "oracle")


class Cluster(Section):
    """Workers and the cluster they run on."""

    workers: Count | tuple[Count, Count] = Field(
        1, description="Number of workers, or the fewest and the most that a run may go on with."
    )
    address: str | None = Field(
        None,
        description="Address of a Ray cluster. `null`: RAY_ADDRESS, else that of `ray start` here, else a Ray of its own.",
    )
    cpus_per_worker: Positive | None = Field(
        None,
        description="CPUs of a worker. `null`: the workers have half the cluster's CPUs, the other half prepares data.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: a GPU where there is one.")
    max_failures: Annotated[int, Field(ge=-1)] = Field(
        1, description="How often the workers are started again after a failure. −1: without end."
    )
    timeout_s: Annotated[float, Field(ge=1)] = Field(
        1800, description="Seconds after which a worker that the others wait for is given up."
    )
    grace_s: Positive = Field(
        60, description="Seconds from a request to stop to the end of the command, in which a checkpoint is written."
    )

    @field_validator("workers")
    @classmethod
    def _fewest_before_most(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(workers, tuple) and workers[0] > workers[1]:
            raise ValueError(f"the fewest workers, {workers[0]}, are more than the most, {workers[1]}")
        return workers

    @property
    def fewest_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Checkpoints(Section):
    """Which checkpoints are written and which of them stay."""

    keep: Count | None = Field(None, description="How many epochs' checkpoints stay. `null`: all.")
    every_steps: Count | None = Field(
        None, description="Steps between checkpoints within an epoch. `null`: at the ends of epochs only."
    )
    max_disk: ByteSize | None = Field(
        None,
        description="Bytes, or such as 20GB, for all of a run's checkpoints and its frozen weights: as many stay as fit. "
        "`null`: no limit.",
    )


class Tracking(Section):
    """What is written to MLflow."""

    enabled: bool = Field(True, description="Whether a run is written to MLflow.")
    uri: str | None = Field(
        None, description="Where MLflow is. `null`: MLFLOW_TRACKING_URI, else a SQLite file in the storage folder."
    )
    experiment: str = Field("m2can", description="MLflow's experiment.")
    register_as: str | None = Field(None, description="Name of the registered model. `null`: m2can-<target>.")


class Run(Section):
    """Name and place of a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] | None = Field(
        None, description="Name of the run's folder. `null`: made of the target and the time."
    )
    storage: str = Field(
        "runs",
        description="Folder of runs, relative to the working folder; or `s3://bucket/…` (docs: Operating a cluster).",
    )
