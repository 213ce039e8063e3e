"""Configuration files of the published implementation → the tree of a `published` recipe.

What its form leaves open stays as the preset has it. Three keys have no meaning here and are read without effect:
`dataset.workers` and `trainer.log_iter`, since Ray decides both, and `net.ema_decay`, which the published code does not use
either. Values that would mean another computation than ours are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets_manifest.errors import InputError, from_validation_error, nearest
from datasets_manifest.manifest import catalog
from datasets_manifest.stream.images import IMAGENET_MEAN, IMAGENET_STD

Tree = dict[str, Any]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Places(_Form):
    data_list: str | None = None
    data_root: str | None = None
    n_sample: Annotated[int, Field(ge=1)] | None = None


class _TextEncode(_Form):
    max_length: int = 200


class _Weak(_Form):
    resize: int = 256
    center_crop: int = 224
    mean: list[float] = list(IMAGENET_MEAN)
    std: list[float] = list(IMAGENET_STD)


class _ColorJitter(_Form):
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1


class _RandApply(_Form):
    p: float = 0.8
    color_jitter: _ColorJitter = _ColorJitter()


class _Strong(_Form):
    rand_resize_crop: int = 224
    rand_flip: float = 0.5
    rand_gray_scale: float = 0.2
    mean: list[float] = list(IMAGENET_MEAN)
    std: list[float] = list(IMAGENET_STD)
    rand_apply: _RandApply = _RandApply()


class _Split(_Form):
    AVA: _Places = _Places()
    PCCD: _Places = _Places()
    RPCD: _Places = _Places()
    TumEmo: _Places = _Places()
    Twitter: _Places = _Places()
    Yelp: _Places = _Places()
    text_encode: _TextEncode = _TextEncode()
    transforms_weak: _Weak = _Weak()
    transforms_strong: _Strong = _Strong()


class _Dataset(_Form):
    types: Annotated[list[str], Field(min_length=2)]
    batch_size: int = 8
    bert_model: str = "bert-base-uncased"
    workers: int = 8
    train: _Split = _Split()
    val: _Split = _Split()


class _Net(_Form):
    num_classes: int | None = None
    start_rate: float = 0.3
    update_rate: float = 0.3
    ema_decay: float = 0.99


class _Criterion(_Form):
    cross_modal_contrastive_loss_rate: float = 0.5
    cross_domain_contrastive_loss_rate: float = 0.2
    mm_D_loss_rate: float = 0.05


class _ScheduleKwargs(_Form):
    power: float = 0.99
    lowest_lr: float = 1e-6
    targetlr: float = 0.0
    multistep: list[int] = []


class _Schedule(_Form):
    mode: Literal["poly", "cosine", "multistep"] = "poly"
    kwargs: _ScheduleKwargs = _ScheduleKwargs()


class _OptimizerKwargs(_Form):
    betas: str | list[float] = "0.9 0.999"
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr: float = 0.001  # the published code replaces it by the rates of the parts


class _Optimizer(_Form):
    type: Literal["adam", "SGD", "adamw", "adadelta"] = "adam"
    kwargs: _OptimizerKwargs = _OptimizerKwargs()
    backbone_lr: float = 2e-5
    extractor_lr: float = 2e-5
    mlb_lr: float = 5e-4
    classifier_lr: float = 5e-4
    mmdiscriminator1_lr: float = 2e-4
    mmdiscriminator2_lr: float = 3e-4


class _EvalMode(_Form):
    epoch: Literal[1] = 1


class _Trainer(_Form):
    epochs: int = 10
    eval_on: Literal[True] = True
    eval_mode: _EvalMode = _EvalMode()
    log_iter: int = 200
    lr_scheduler: _Schedule = _Schedule()
    optimizer: _Optimizer = _Optimizer()


class _HyperPara(_Form):
    rho: float = 0.05
    eps: float = 0.8
    temperature: float = 2.0


class PublishedConfig(_Form):
    """The published form; the defaults are its own."""

    dataset: _Dataset
    net: _Net = _Net()
    criterion: _Criterion = _Criterion()
    trainer: _Trainer = _Trainer()
    hyper_para: _HyperPara = _HyperPara()
    seed: int = 123456
    snapshot_dir: str | None = None


# Published key → keys of a recipe. What is not here is mapped by a function below, or has no effect.
_KEYS: dict[str, tuple[str, ...]] = {
    "dataset.batch_size": ("train.batch_size",),
    "dataset.bert_model": ("encoders.text.name",),
    "dataset.train.text_encode.max_length": ("data.texts.max_tokens",),
    "dataset.train.transforms_weak.resize": ("data.pictures.resize",),
    "dataset.train.transforms_weak.center_crop": ("data.pictures.crop",),
    "dataset.train.transforms_strong.rand_flip": ("data.pictures.strong.flip",),
    "dataset.train.transforms_strong.rand_gray_scale": ("data.pictures.strong.greyscale",),
    "dataset.train.transforms_strong.rand_apply.p": ("data.pictures.strong.jitter.p",),
    **{
        f"dataset.train.transforms_strong.rand_apply.color_jitter.{name}": (f"data.pictures.strong.jitter.{name}",)
        for name in ("brightness", "contrast", "saturation", "hue")
    },
    "net.start_rate": ("uacr.start",),
    "net.update_rate": ("uacr.update",),
    "criterion.cross_modal_contrastive_loss_rate": ("objective.cmcfa",),
    "criterion.cross_domain_contrastive_loss_rate": ("objective.cdcfa",),
    "criterion.mm_D_loss_rate": ("objective.cdafa", "objective.mcc"),
    "trainer.epochs": ("train.epochs",),
    "trainer.lr_scheduler.mode": ("schedule.mode",),
    "trainer.lr_scheduler.kwargs.power": ("schedule.power",),
    "trainer.lr_scheduler.kwargs.lowest_lr": ("schedule.lowest_lr",),
    "trainer.lr_scheduler.kwargs.targetlr": ("schedule.target_lr",),
    "trainer.lr_scheduler.kwargs.multistep": ("schedule.multistep",),
    "trainer.optimizer.kwargs.eps": ("optimizer.eps",),
    "trainer.optimizer.kwargs.momentum": ("optimizer.momentum",),
    "trainer.optimizer.kwargs.weight_decay": ("optimizer.weight_decay",),
    "trainer.optimizer.backbone_lr": ("optimizer.lr.encoders",),
    "trainer.optimizer.extractor_lr": ("optimizer.lr.projections",),
    "trainer.optimizer.mlb_lr": ("optimizer.lr.fusion",),
    "trainer.optimizer.classifier_lr": ("optimizer.lr.heads",),
    "trainer.optimizer.mmdiscriminator1_lr": ("optimizer.lr.discriminators_source",),
    "trainer.optimizer.mmdiscriminator2_lr": ("optimizer.lr.discriminators_target",),
    "hyper_para.rho": ("sam.rho",),
    "hyper_para.eps": ("objective.smoothing",),
    "hyper_para.temperature": ("objective.temperature",),
    "seed": ("train.seed",),
    "snapshot_dir": ("run.storage",),
}


def is_published_form(tree: Tree) -> bool:
    """Whether a configuration is of the published form: a recipe has `data`, it has `dataset`."""
    return "dataset" in tree and "data" not in tree


def recipe_tree(content: Tree, file: object) -> Tree:
    """The tree of values a recipe file would state.

    Raises:
        InputError: an unknown key (naming the nearest), a wrong value, or one that means what we do not compute.
    """
    try:
        config = PublishedConfig.model_validate(content)
    except ValidationError as error:
        raise from_validation_error(error, PublishedConfig, file) from None
    _check(config, file)
    tree: Tree = {"preset": "published"}
    stated = config.model_dump(exclude_unset=True)
    for published, ours in _KEYS.items():
        value = _get(stated, published)
        if value is not None:
            for key in ours:
                _set(tree, key, value)
    optimizer = config.trainer.optimizer
    _set(tree, "optimizer.type", optimizer.type.lower())
    _set(tree, "optimizer.betas", _betas(optimizer.kwargs.betas, file))
    *sources, target = [_reference(config.dataset, name) for name in config.dataset.types]
    _set(tree, "data.sources", sources)
    _set(tree, "data.target", target)
    _set(tree, "data.samples_per_epoch", _samples(config.dataset, file))
    return tree


def _check(config: PublishedConfig, file: object) -> None:
    dataset = config.dataset
    known = [name for name, entry in catalog.entries().items() if name in _Split.model_fields and entry.layout]
    for name in dataset.types:
        if name not in known:
            close = nearest(name, known)
            wanted = f"one of {', '.join(known)}" + (f" (nearest: {close})" if close else "")
            raise InputError("not a published data set", file=file, field="dataset.types", value=name, wanted=wanted)
    classes = [catalog.find(name).classes for name in dataset.types]
    number = config.net.num_classes
    if any(each != classes[0] for each in classes) or (number is not None and number != len(classes[0])):
        found = {name: len(each) for name, each in zip(dataset.types, classes, strict=True)}
        raise InputError(
            "does not fit the data sets", file=file, field="net.num_classes", value=number, wanted=f"{found}"
        )
    for split_name, split in (("train", dataset.train), ("val", dataset.val)):
        field = f"dataset.{split_name}"
        weak, strong = split.transforms_weak, split.transforms_strong
        for name, view in (("transforms_weak", weak), ("transforms_strong", strong)):
            _same(file, f"{field}.{name}.mean", view.mean, list(IMAGENET_MEAN))
            _same(file, f"{field}.{name}.std", view.std, list(IMAGENET_STD))
    train, val = dataset.train, dataset.val
    crop = train.transforms_weak.center_crop
    _same(file, "dataset.train.transforms_strong.rand_resize_crop", train.transforms_strong.rand_resize_crop, crop)
    if "text_encode" in val.model_fields_set:
        _same(file, "dataset.val.text_encode", val.text_encode, train.text_encode)
    if "transforms_weak" in val.model_fields_set:
        _same(file, "dataset.val.transforms_weak", val.transforms_weak, train.transforms_weak)
    for name in dataset.types:
        counted = getattr(val, name).n_sample
        if counted is not None:
            _same(file, f"dataset.val.{name}.n_sample", counted, catalog.find(name).counts["val"])


def _same(file: object, field: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise InputError("no other value is computed here", file=file, field=field, value=found, wanted=str(wanted))


def _samples(dataset: _Dataset, file: object) -> int:
    """Samples drawn of each domain in an epoch: one number for all."""
    counts = {
        name: getattr(dataset.train, name).n_sample or catalog.find(name).counts["train"] for name in dataset.types
    }
    if len(set(counts.values())) > 1:
        wanted = "one number for all domains"
        raise InputError("the domains differ", file=file, field="dataset.train.*.n_sample", value=counts, wanted=wanted)
    return next(iter(counts.values()))


def _reference(dataset: _Dataset, name: str) -> str:
    """The catalog's reference to a data set, with the places that the configuration gives."""
    train, val = getattr(dataset.train, name), getattr(dataset.val, name)
    places = {"root": train.data_root or val.data_root, "train": train.data_list, "val": val.data_list}
    return catalog.reference(name, **{key: place for key, place in places.items() if place is not None})


def _betas(written: str | list[float], file: object) -> list[float]:
    try:
        betas = [float(each) for each in (written.split() if isinstance(written, str) else written)]
    except ValueError:
        betas = []
    if len(betas) != 2:
        field = "trainer.optimizer.kwargs.betas"
        raise InputError("not two numbers", file=file, field=field, value=written, wanted='"0.9 0.999"')
    return betas


def _get(tree: Tree, key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node


def _set(tree: Tree, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value
