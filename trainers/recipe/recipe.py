"""Recipe: everything one run needs, as one validated object for command line, tuning and checkpoint.

A recipe file states only what differs from its preset:

    preset: recommended            # or `published`
    data: {sources: [a/manifest.yaml, b/manifest.yaml], target: c/manifest.yaml}
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator

from datasets_manifest.errors import InputError, first_line, from_validation_error, nearest
from datasets_manifest.manifest.catalog import is_reference
from datasets_manifest.stream.images import PictureViews
from trainers.published.configuration import is_published_form, recipe_tree
from trainers.recipe.method_sections import (
    Count,
    DiscriminatorSection,
    Fraction,
    NetworkSection,
    NotNegative,
    ObjectiveSection,
    Positive,
    Sam,
    Section,
    Uacr,
)
from trainers.recipe.schema_versions import Migration, migrate
from trainers.validators import Validator

Freeze = Literal["none", "all"] | Annotated[int, Field(ge=1)]


SCHEMA_VERSION = 1  # of recipes; whoever changes a key's name or meaning raises it and adds to MIGRATIONS
MIGRATIONS: dict[int, Migration] = {}


class Texts(Section):
    """How texts become tokens."""

    cleaning: Literal["published", "proper", "none"] = "proper"
    form: Literal["published", "plain"] = "plain"
    max_tokens: Annotated[int, Field(ge=3, le=8192)] = 200
    word_dropout: Fraction = 0.1


class Data(Section):
    """Manifests and how they are read. Paths are relative to the recipe's folder."""

    sources: Annotated[list[str], Field(min_length=1)]
    target: str
    train_split: str = "train"
    val_split: str = "val"
    samples_per_epoch: Count | None = None  # of each domain; None: the longest source
    max_bad_fraction: Fraction = 0.05  # of a domain's records; more unusable ones end the run
    kept_views: ByteSize = ByteSize(2**30)  # of scored rows in a worker's memory, as many as fit; 0: none
    pictures: PictureViews = PictureViews()
    texts: Texts = Texts()


class TextEncoderSection(Section):
    """`name`: `tiny` (random, for demos), a local folder or a hub name of a transformers encoder."""

    name: str = "bert-base-uncased"
    weights: str = "pretrained"  # `pretrained`, `random`, or a safetensors or weights-only file
    pooling: Literal["pooler", "cls", "mean"] = "mean"
    freeze: Freeze = "none"
    dropout: Fraction | None = None  # None: as the encoder's own configuration says
    activation_checkpointing: bool = False  # keep only the blocks' inputs and compute the rest again: less memory
    hidden: Count = 64  # of `tiny`
    layers: Annotated[int, Field(ge=0)] = 1  # of `tiny`; 0: the mean of the words' embeddings


class PictureEncoderSection(Section):
    """`name`: `tiny` (random, for demos), `torchvision:<model>` or `timm:<model>`."""

    name: str = "torchvision:resnet50"
    weights: str = "pretrained"  # `pretrained`, a torchvision weights name, `random`, or a file
    freeze: Freeze = "none"
    batch_norm: Literal["per_sample", "batch", "ghost", "frozen"] = "batch"
    ghosts: Count = 2  # of `ghost`: parts of the global batch with statistics of their own, for as many workers or one
    head: Literal["none", "identity_linear"] = (
        "none"  # the published one: a square linear layer that starts as identity
    )
    width: Count = 16  # of `tiny`
    activation_checkpointing: bool = False


class Encoders(Section):
    text: TextEncoderSection = TextEncoderSection()
    picture: PictureEncoderSection = PictureEncoderSection()


class LearningRates(Section):
    encoders: NotNegative = 2e-5
    projections: NotNegative = 2e-5
    fusion: NotNegative = 5e-4
    heads: NotNegative = 5e-4
    discriminators_source: NotNegative = 2e-4
    discriminators_target: NotNegative = 3e-4


class OptimizerSection(Section):
    type: Literal["adam", "adamw", "sgd", "adadelta"] = "adam"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)  # of adam and adamw
    eps: Positive = 1e-8  # of adam, adamw and adadelta
    momentum: Fraction = 0.9  # of sgd
    weight_decay: NotNegative = 0.0
    lr: LearningRates = LearningRates()
    # How all rates of `lr` follow the global batch: times (train.batch_size / reference_batch) or its square root.
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    reference_batch: Count | None = None  # the batch size that `lr` was found with

    @model_validator(mode="after")
    def _has_reference(self) -> OptimizerSection:
        if (self.scale_lr == "none") != (self.reference_batch is None):
            raise ValueError("scale_lr `linear` or `sqrt` and reference_batch go together: state both or neither")
        return self


class ScheduleSection(Section):
    mode: Literal["poly", "cosine", "multistep", "constant"] = "poly"
    power: Positive = 0.99  # of poly
    lowest_lr: NotNegative = 1e-6  # of poly
    target_lr: NotNegative = 0.0  # of cosine
    multistep: list[Count] = Field(default_factory=list)  # epochs after which the rate falls to a tenth


class Train(Section):
    epochs: Count = 10
    batch_size: Count = 8  # of each domain, over all workers
    eval_batch_size: Count = 64
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 123456
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"  # bf16, fp16: the network only; weights stay fp32
    accumulate: Count = 1  # parts in which a worker's slice goes through the network; all terms stay exact
    compile: bool = False  # torch.compile of the encoders; on the CPU of the text encoder alone
    # Memory layout of pictures, colours innermost: faster convolutions. `auto`: on CPUs and, in half precision or TF32,
    # on GPUs; not where batch norm has many groups, whose kernels are slower that way.
    channels_last: bool | Literal["auto"] = "auto"
    tf32: bool = False  # float32 products in TF32
    target_labels: Literal["unused", "oracle"] = "unused"  # `oracle` trains on the target's labels: an upper bound


class Selection(Section):
    """How the checkpoint is chosen without target labels."""

    validator: Validator = "infomax"
    gate: Fraction = 0.03  # source accuracy that an epoch may lie below the best epoch's and still be chosen


class Cluster(Section):
    workers: Count | tuple[Count, Count] = 1  # a number, or the fewest and the most (elastic)
    address: str | None = None  # of a Ray cluster; None: the one that is running here, else a local one
    cpus_per_worker: Positive | None = None  # None: half the cluster's CPUs, shared; the other half prepares data
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_failures: Annotated[int, Field(ge=-1)] = 1  # restarts of the workers; -1: without end
    resize_interval_s: Positive = 60  # elastic workers: time between looks at whether the cluster has grown or shrunk
    timeout_s: Annotated[float, Field(ge=1)] = 1800  # a worker that the others wait for so long is given up
    grace_s: Positive = 60  # from a request to stop until the command ends without its checkpoint

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
    keep: Count | None = None  # how many epochs' checkpoints stay; None: all
    every_steps: Count | None = None  # also within an epoch; None: at epochs' ends only
    max_disk: ByteSize | None = None  # bytes, or such as 20GB, for all of a run's checkpoints: as many stay as fit


class Tracking(Section):
    enabled: bool = True
    uri: str | None = None  # None: MLFLOW_TRACKING_URI, else a SQLite file in the storage folder
    experiment: str = "m2can"
    register_as: str | None = None  # None: m2can-<target>


class Run(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] | None = None  # None: target and time
    storage: str = "runs"  # folder of runs, relative to the working folder


class Recipe(Section):
    schema_version: int = SCHEMA_VERSION
    preset: Literal["recommended", "published"] = "recommended"
    data: Data
    encoders: Encoders = Encoders()
    network: NetworkSection = NetworkSection()
    objective: ObjectiveSection = ObjectiveSection()
    discriminators: DiscriminatorSection = DiscriminatorSection()
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
    def _workers_fit(self) -> Recipe:
        if self.cluster.most_workers > self.train.batch_size:
            raise ValueError(
                f"cluster.workers {self.cluster.most_workers} is more than the rows of a batch, "
                f"train.batch_size {self.train.batch_size}: a worker would have none"
            )
        picture, workers = self.encoders.picture, self.cluster.workers
        if picture.batch_norm == "ghost" and workers not in (1, picture.ghosts):
            raise ValueError(
                f"cluster.workers {workers} would cut the parts whose statistics batch_norm `ghost` takes: "
                f"wanted 1 or encoders.picture.ghosts, {picture.ghosts}"
            )
        return self

    @property
    def target_takes_part(self) -> bool:
        """Whether any component reads the target: with all of them off, training is source-only."""
        o = self.objective
        terms = (o.cmcfa, o.cdcfa, o.cdafa, o.mcc, o.moments, o.imitation)
        return self.uacr.enabled or any(terms) or self.train.target_labels == "oracle"

    def flat(self) -> dict[str, Any]:
        """Dotted keys → plain values."""
        return _flatten(self.model_dump(mode="json"))


# A preset is a tree of values that differ from the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "data": {"texts": {"cleaning": "published", "form": "published"}},
        "encoders": {
            "text": {"pooling": "pooler"},
            "picture": {"weights": "IMAGENET1K_V1", "batch_norm": "per_sample", "head": "identity_linear"},
        },
    },
    # What helped on both data sets of benchmarks/comparison.py; SAM, which doubles a step's cost, did not.
    "recommended": {"uacr": {"warmup": 3, "update": 0.1, "threshold": 0.8}, "sam": {"rho": 0.0}},
}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, apply `a.b=c` overrides (values are YAML), validate.

    Raises:
        InputError: names the file, the key, the value and the nearest valid key.
    """
    return make_recipe(read_tree(path, overrides or []), Path(path))


def read_tree(path: str | Path, overrides: list[str]) -> dict[str, Any]:
    """The values a recipe file states, with `a.b=c` overrides, not yet validated.

    The file may also be a configuration of the published implementation (see trainers.published.configuration).

    Raises:
        InputError: not a YAML mapping, or an override that has no such form.
    """
    tree = _read_yaml(Path(path))
    if is_published_form(tree):
        tree = recipe_tree(tree, path)
    for override in overrides:
        apply_override(tree, override)
    return tree


def make_recipe(tree: dict[str, Any], file: Path | str | None = None) -> Recipe:
    """Validate a tree of values on top of its preset. Manifest paths become relative to `file`'s folder."""
    tree = migrate(
        {"schema_version": SCHEMA_VERSION, **copy.deepcopy(tree)},
        current=SCHEMA_VERSION,
        migrations=MIGRATIONS,
        file=file,
    )
    name = tree.get("preset", "recommended")
    if not isinstance(name, str) or name not in PRESETS:
        close = nearest(str(name), PRESETS)
        wanted = f"one of {', '.join(PRESETS)}" + (f" (nearest: {close})" if close else "")
        raise InputError("unknown preset", file=file, field="preset", value=name, wanted=wanted)
    try:
        recipe = Recipe.model_validate(_merge(PRESETS[name], tree))
    except ValidationError as error:
        raise from_validation_error(error, Recipe, file) from None
    return _anchored(recipe, Path(file).resolve().parent) if isinstance(file, Path) else recipe


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    def anchor(path: str) -> str:
        return path if "://" in path or is_reference(path) else str(folder / path)

    data = recipe.data
    placed = {"sources": [anchor(s) for s in data.sources], "target": anchor(data.target)}
    return recipe.model_copy(update={"data": data.model_copy(update=placed)})


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError("there is no such file" if not file.exists() else "is a folder", file=file, wanted="a recipe")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"is not YAML ({first_line(error)})", file=file) from None
    if not isinstance(tree, dict):
        raise InputError("does not hold a mapping", file=file, value=tree, wanted="keys such as `data:`")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set the value that `a.b=c` states, c being YAML. Raises InputError: no such form, or no section."""
    key, equals, written = override.partition("=")
    if not equals or not key.strip():
        raise InputError("is not of the form a.b=c", field="--set", value=override)
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError as error:
        raise InputError("has a value that is not YAML", field=f"--set {key}", value=written) from error
    *parents, last = key.strip().split(".")
    node = tree
    for depth, parent in enumerate(parents):
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError("is not a section", field=f"--set {'.'.join(parents[: depth + 1])}", value=node)
    node[last] = value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        merged[key] = _merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in _flatten(value, f"{prefix}{key}.").items()}
