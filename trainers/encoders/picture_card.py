"""How an encoder wants its pictures: from the card that its library keeps beside the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision
from PIL import Image
from pydantic import ValidationError

from datasets_manifest.errors import InputError, first_line
from datasets_manifest.stream.images import PictureViews
from trainers.encoders.hub_models import picture_size
from trainers.encoders.weights import is_weights_file
from trainers.recipe import Recipe
from trainers.recipe.data_sections import OF_THE_CARD, PictureEncoderSection

_FILES = ("preprocessor_config.json", "processor_config.json")  # the second is that of a whole dual encoder
_PUBLISHED = {key: getattr(PictureViews(), key) for key in OF_THE_CARD}


@dataclass(frozen=True)
class PictureCard:
    """values: of data.pictures, by OF_THE_CARD. whence: where they stand, in words. assumed: the encoder has no card."""

    values: dict[str, Any]
    whence: str
    assumed: bool = False


def picture_card(section: PictureEncoderSection) -> PictureCard:
    """The card of an encoder; ImageNet's usual values for one that has none.

    Raises:
        InputError: pictures that are no squares, or a card that cannot be read.
    """
    kind, _, name = section.name.partition(":")
    if kind == "torchvision" and not is_weights_file(section.weights) and section.weights != "random":
        found = _of_torchvision(name, section.weights)
    elif kind == "timm":
        found = _of_timm(name)
    elif kind == "hf":
        found = _of_transformers(name)
    else:
        found = None
    if found is not None:
        return found
    if section.tiny is not None or section.weights == "random":
        return PictureCard(_PUBLISHED, "ImageNet's: the encoder starts at random")
    size = picture_size(name) if kind == "hf" else None
    sides = {} if size is None else {"crop": size, "resize": size * _PUBLISHED["resize"] // _PUBLISHED["crop"]}
    return PictureCard(_PUBLISHED | sides, f"ImageNet's, assumed: no card of {section.name} was found", assumed=True)


def with_views(recipe: Recipe, card: PictureCard) -> Recipe:
    """The recipe with the card's values where it leaves them open; a stated size goes before the card's.

    Raises:
        InputError: a value of the card is out of its range.
    """
    section = recipe.data.pictures
    chosen = {key: card.values[key] for key in section.left_to_the_card}
    if isinstance(chosen.get("resize"), int):
        chosen["resize"] = max(chosen["resize"], section.crop or card.values["crop"])
    if "crop" in chosen and isinstance(section.resize, int):
        chosen["crop"] = min(chosen["crop"], section.resize)
    made = recipe.with_pictures(chosen)
    try:
        made.data.pictures.views()
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "crop"
        raise InputError(
            f"is not usable as it stands {card.whence} ({first['msg']})",
            field=f"data.pictures.{key}",
            value=chosen.get(key),
            wanted=f"data.pictures.{key} in the recipe",
        ) from None
    return made


def described(recipe: Recipe) -> str:
    """The views in words: `224 × 224 out of a shorter side of 256, bilinear, rgb, mean 0.485 0.456 0.406, …`."""
    views = recipe.data.pictures.views()
    cut = "squashed" if views.resize == "squash" else f"out of a shorter side of {views.resize}"
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (views.mean, views.std))
    size = f"{views.crop} × {views.crop} {cut}"
    return f"{size}, {views.interpolation}, {views.channels}, mean {mean}, deviation {std}"


def _of_torchvision(name: str, weights: str) -> PictureCard | None:
    if name not in torchvision.models.list_models(module=torchvision.models):  # told when the encoder is built
        return None
    try:
        known = torchvision.models.get_model_weights(name)
        chosen = known["DEFAULT" if weights == "pretrained" else weights]
    except (ValueError, KeyError):  # told when the encoder is built
        return None
    card = chosen.transforms()
    values = {
        "resize": card.resize_size[0],
        "crop": card.crop_size[0],
        "interpolation": card.interpolation.value,
        "mean": tuple(card.mean),
        "std": tuple(card.std),
        "channels": "rgb",
    }
    return PictureCard(values, f"of torchvision's {chosen}")


def _of_transformers(name: str) -> PictureCard | None:
    """From preprocessor_config.json or processor_config.json; None if there is none."""
    from transformers import AutoImageProcessor

    there = [file for file in _FILES if (Path(name) / file).is_file()]
    try:
        return _of_processor(AutoImageProcessor.from_pretrained(name, trust_remote_code=False), name, there)
    except InputError:
        raise
    except Exception as error:  # what a damaged card is read as
        if not there and isinstance(error, OSError | ValueError | KeyError):
            return None
        raise InputError(
            f"its card cannot be read ({first_line(error)})",
            file=Path(name) / there[0] if there else None,
            field="encoders.picture.name",
            value=name,
            wanted="the file as the library writes it",
        ) from None


def _of_processor(card: Any, name: str, there: list[str]) -> PictureCard | None:
    """there: which of the files lie in the folder; none for a name of the hub."""
    size, cut = dict(getattr(card, "size", None) or {}), dict(getattr(card, "crop_size", None) or {})
    shorter, sides = size.get("shortest_edge"), (size.get("height"), size.get("width"))
    values: dict[str, Any] = {"channels": "bgr" if getattr(card, "do_flip_channel_order", False) else "rgb"}
    if getattr(card, "do_center_crop", False) and cut:
        values["crop"] = _square(cut["height"], cut["width"], name)
        values["resize"] = shorter or _square(*_whole(sides), name)
    elif shorter and getattr(card, "crop_pct", None):  # ConvNeXt and ResNet: below 384 pixels a part is cut out
        values |= {"crop": shorter, "resize": int(shorter / card.crop_pct) if shorter < 384 else "squash"}
    elif sides[0] and sides[1]:
        values |= {"crop": _square(*_whole(sides), name), "resize": "squash"}
    elif shorter:
        values |= {"crop": shorter, "resize": shorter}
    else:
        return None
    values["interpolation"] = Image.Resampling(int(card.resample)).name.lower()
    # What it makes of a byte is (byte · factor − shift − mean) / deviation; ours is (byte / 255 − mean) / deviation.
    factor = 255 * (card.rescale_factor if card.do_rescale else 1.0)
    shift = 1.0 if getattr(card, "rescale_offset", False) else 0.0
    means, stds = (card.image_mean, card.image_std) if card.do_normalize else ([0.0] * 3, [1.0] * 3)
    exact = factor == 1 and not shift
    values["mean"] = tuple(float(x) if exact else (x + shift) / factor for x in means)
    values["std"] = tuple(float(x) if exact else x / factor for x in stds)
    return PictureCard(values, f"of {name}'s {[*there, _FILES[0]][0]}")


def _whole(sides: tuple[Any, Any]) -> tuple[int, int]:
    return int(sides[0] or 0), int(sides[1] or 0)


def _of_timm(name: str) -> PictureCard | None:
    try:
        from timm.data import resolve_data_config
        from timm.models import get_pretrained_cfg
    except ImportError:  # told when the encoder is built
        return None
    try:
        known = get_pretrained_cfg(name)
    except RuntimeError:  # weights of this tag are not known; told when the encoder is built
        known = None
    if known is None:
        return None
    return _of_timm_config(resolve_data_config(pretrained_cfg=known.to_dict()), name)


def _of_timm_config(config: dict[str, Any], name: str) -> PictureCard:
    _, height, width = config["input_size"]
    crop = _square(height, width, name)
    squashed = config["crop_mode"] == "squash"
    values = {
        "resize": "squash" if squashed else math.floor(crop / config["crop_pct"]),
        "crop": crop,
        "interpolation": config["interpolation"],
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "channels": "rgb",
    }
    return PictureCard(values, f"of timm's pretrained_cfg of {name}")


def _square(height: int, width: int, name: str) -> int:
    if height != width:
        raise InputError(
            f"wants pictures of {height} × {width} pixels, which are no squares",
            field="encoders.picture.name",
            value=name,
            wanted="an encoder of square pictures",
        )
    return height
