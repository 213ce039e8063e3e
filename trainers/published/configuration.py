"""Configuration files of the published implementation → the tree of a `published` recipe.

What its form leaves open stays as the preset has it. Three keys have no meaning here and are read without effect:
`dataset.workers` and `trainer.log_iter`, since Ray decides both, and `net.ema_decay`, which the published code does not use
either. Values that would mean another computation than ours are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from datasets_manifest.errors import InputError, from_validation_error, nearest
from datasets_manifest.manifest import catalog
from datasets_manifest.stream.images import IMAGENET_MEAN, IMAGENET_STD

Tree = dict[str, Any]

DATA_SETS = ("AVA", "PCCD", "RPCD", "TumEmo", "Twitter", "Yelp")
# Published key: its type, its default, and the recipe keys that it sets. Keys without one are read by a function below
# or have no effect.
_SPLIT_KEYS: dict[str, tuple[Any, ...]] = {
    **{f"{name}.data_list": (str | None, None) for name in DATA_SETS},
    **{f"{name}.data_root": (str | None, None) for name in DATA_SETS},
    **{f"{name}.n_sample": (Annotated[int, Field(ge=1)] | None, None) for name in DATA_SETS},
    "text_encode.max_length": (int, 200, "data.texts.max_tokens"),
    "transforms_weak.resize": (int, 256, "data.pictures.resize"),
    "transforms_weak.center_crop": (int, 224, "data.pictures.crop"),
    "transforms_weak.mean": (list[float], list(IMAGENET_MEAN)),
    "transforms_weak.std": (list[float], list(IMAGENET_STD)),
    "transforms_strong.rand_resize_crop": (int, 224),
    "transforms_strong.rand_flip": (float, 0.5, "data.pictures.strong.flip"),
    "transforms_strong.rand_gray_scale": (float, 0.2, "data.pictures.strong.greyscale"),
    "transforms_strong.mean": (list[float], list(IMAGENET_MEAN)),
    "transforms_strong.std": (list[float], list(IMAGENET_STD)),
    "transforms_strong.rand_apply.p": (float, 0.8, "data.pictures.strong.jitter_p"),
    **{
        f"transforms_strong.rand_apply.color_jitter.{name}": (float, default)
        for name, default in (("brightness", 0.4), ("contrast", 0.4), ("saturation", 0.4), ("hue", 0.1))
    },
}
_KEYS: dict[str, tuple[Any, ...]] = {
    "dataset.types": (Annotated[list[str], Field(min_length=2)], ...),
    "dataset.batch_size": (int, 8, "train.batch_size"),
    "dataset.bert_model": (str, "bert-base-uncased", "encoders.text.name"),
    "dataset.workers": (int, 8),
    **{f"dataset.train.{key}": entry for key, entry in _SPLIT_KEYS.items()},
    **{f"dataset.val.{key}": entry[:2] for key, entry in _SPLIT_KEYS.items()},
    "net.num_classes": (int | None, None),
    "net.start_rate": (float, 0.3, "uacr.start"),
    "net.update_rate": (float, 0.3, "uacr.update"),
    "net.ema_decay": (float, 0.99),
    "criterion.cross_modal_contrastive_loss_rate": (float, 0.5, "objective.cmcfa"),
    "criterion.cross_domain_contrastive_loss_rate": (float, 0.2, "objective.cdcfa"),
    "criterion.mm_D_loss_rate": (float, 0.05, "objective.cdafa", "objective.mcc"),
    "trainer.epochs": (int, 10, "train.epochs"),
    "trainer.eval_on": (Literal[True], True),
    "trainer.eval_mode.epoch": (Literal[1], 1),
    "trainer.log_iter": (int, 200),
    "trainer.lr_scheduler.mode": (Literal["poly", "cosine", "multistep"], "poly", "schedule.mode"),
    "trainer.lr_scheduler.kwargs.power": (float, 0.99, "schedule.power"),
    "trainer.lr_scheduler.kwargs.lowest_lr": (float, 1e-6),
    "trainer.lr_scheduler.kwargs.targetlr": (float, 0.0),
    "trainer.lr_scheduler.kwargs.multistep": (list[int], [], "schedule.multistep"),
    "trainer.optimizer.type": (Literal["adam", "SGD", "adamw", "adadelta"], "adam"),
    "trainer.optimizer.kwargs.betas": (str | list[float], "0.9 0.999"),
    "trainer.optimizer.kwargs.eps": (float, 1e-8, "optimizer.eps"),
    "trainer.optimizer.kwargs.momentum": (float, 0.9),
    "trainer.optimizer.kwargs.weight_decay": (float, 0.0, "optimizer.weight_decay"),
    "trainer.optimizer.kwargs.lr": (float, 0.001),  # the published code replaces it by the rates of the parts
    "trainer.optimizer.backbone_lr": (float, 2e-5, "optimizer.lr.encoders"),
    "trainer.optimizer.extractor_lr": (float, 2e-5, "optimizer.lr.projections"),
    "trainer.optimizer.mlb_lr": (float, 5e-4, "optimizer.lr.fusion"),
    "trainer.optimizer.classifier_lr": (float, 5e-4, "optimizer.lr.heads"),
    "trainer.optimizer.mmdiscriminator1_lr": (float, 2e-4, "optimizer.lr.discriminators_source"),
    "trainer.optimizer.mmdiscriminator2_lr": (float, 3e-4, "optimizer.lr.discriminators_target"),
    "hyper_para.rho": (float, 0.05, "sam.rho"),
    "hyper_para.eps": (float, 0.8, "objective.smoothing"),
    "hyper_para.temperature": (float, 2.0, "objective.temperature"),
    "seed": (int, 123456, "train.seed"),
    "snapshot_dir": (str | None, None, "run.storage"),
}


def _model(name: str, keys: dict[str, tuple[Any, ...]]) -> type[BaseModel]:
    """A pydantic model of dotted keys; a section whose keys all have defaults may be left out."""
    fields: dict[str, Any] = {key: entry[:2] for key, entry in keys.items() if "." not in key}
    for section in dict.fromkeys(key.split(".")[0] for key in keys if "." in key):
        inside = {key.partition(".")[2]: entry for key, entry in keys.items() if key.startswith(f"{section}.")}
        model = _model(section, inside)
        wanted = any(entry[1] is ... for entry in inside.values())
        fields[section] = (model, ... if wanted else model())
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True), **fields)


PublishedConfig: Any = _model("PublishedConfig", _KEYS)


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
    for published, (_, _, *ours) in _KEYS.items():
        value = _get(stated, published)
        if value is not None:
            for key in ours:
                _set(tree, key, value)
    optimizer = config.trainer.optimizer
    _set(tree, "optimizer.type", optimizer.type.lower())
    beta1, beta2 = _betas(optimizer.kwargs.betas, file)
    _set(tree, "optimizer.betas", [optimizer.kwargs.momentum if optimizer.type == "SGD" else beta1, beta2])
    schedule = config.trainer.lr_scheduler
    lowest = schedule.kwargs.targetlr if schedule.mode == "cosine" else schedule.kwargs.lowest_lr
    _set(tree, "schedule.lowest_lr", lowest)
    jitter = config.dataset.train.transforms_strong.rand_apply.color_jitter
    _set(tree, "data.pictures.strong.jitter", [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
    *sources, target = [_reference(config.dataset, name) for name in config.dataset.types]
    _set(tree, "data.sources", sources)
    _set(tree, "data.target", target)
    _set(tree, "data.samples_per_epoch", _samples(config.dataset, file))
    return tree


def _check(config: Any, file: object) -> None:
    dataset = config.dataset
    known = [name for name, entry in catalog.entries().items() if name in DATA_SETS and entry.layout]
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


def _samples(dataset: Any, file: object) -> int:
    """Samples drawn of each domain in an epoch: one number for all."""
    counts = {
        name: getattr(dataset.train, name).n_sample or catalog.find(name).counts["train"] for name in dataset.types
    }
    if len(set(counts.values())) > 1:
        wanted = "one number for all domains"
        raise InputError("the domains differ", file=file, field="dataset.train.*.n_sample", value=counts, wanted=wanted)
    return next(iter(counts.values()))


def _reference(dataset: Any, name: str) -> str:
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
