"""Sections of what the network reads: manifests, views, encoders."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from datasets_manifest.stream.images import (
    Channels,
    Deviations,
    Interpolation,
    Means,
    PictureViews,
    Side,
    StrongView,
    require_crop_fits,
)
from trainers.recipe.base import Count, Fraction, Positive, Section

MOST_TOKENS = 200  # of a text, where a recipe states no number
Freeze = Literal["none", "all"] | Annotated[int, Field(ge=1)]
_TINY_TEXT = re.compile(r"tiny(?::([1-9]\d{0,3})(?:x(\d{1,2}))?)?")
_TINY_PICTURE = re.compile(r"tiny(?::([1-9]\d{0,3}))?")


class Texts(Section):
    """How texts become tokens."""

    cleaning: Literal["published", "proper", "none"] = Field(
        "proper",
        description="`proper`: emoji to words, then links, users and hashtags to plain words. `published`: the authors' "
        "cleaning, and their form of a text, with a second class token before the sentences and a second separator at the "
        "end. `none`: texts as they are.",
    )
    max_tokens: Annotated[int, Field(ge=3, le=8192)] | None = Field(
        None,
        description="Most tokens of a text, special tokens included. The rest is cut off. `null`: 200, or as many as the "
        "encoder reads.",
    )
    word_dropout: Fraction = Field(0.1, description="Probability that a word is left out of the strong view.")

    @property
    def most_tokens(self) -> int:
        """`max_tokens`, and MOST_TOKENS as long as nobody asked the encoder."""
        return self.max_tokens or MOST_TOKENS

    @property
    def form(self) -> Literal["published", "plain"]:
        """How sentences and special tokens are put together."""
        return "published" if self.cleaning == "published" else "plain"


OF_THE_CARD = ("resize", "crop", "interpolation", "mean", "std", "channels")


class Pictures(Section):
    """How pictures become views. `null`: as the picture encoder's own card says, see [Encoders](encoders.md)."""

    resize: Side | Literal["squash"] | None = Field(
        None,
        description="Pixels of the shorter side before the weak view's centre is cut out. `squash`: both sides become "
        "`crop`, whatever the picture's shape.",
    )
    crop: Side | None = Field(None, description="Pixels of both sides of what the encoder sees.")
    interpolation: Interpolation | None = Field(None, description="Filter with which pictures are resized.")
    mean: Means | None = Field(
        None, description="What is subtracted from red, green and blue, whose values go from 0 to 1."
    )
    std: Deviations | None = Field(None, description="What red, green and blue are then divided by.")
    channels: Channels | None = Field(None, description="Order in which the encoder takes the colours.")
    strong: StrongView = StrongView()
    max_pictures: Count = Field(10, description="Most pictures of a record. The others are left out.")

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        require_crop_fits(self.crop, self.resize)
        return self

    @property
    def left_to_the_card(self) -> list[str]:
        """The keys whose values the encoder's card decides."""
        return [key for key in OF_THE_CARD if getattr(self, key) is None]

    def views(self) -> PictureViews:
        """The views; what is still open is as published: the recipe is older than the key, or nobody read a card."""
        known = {name: getattr(self, name) for name in type(self).model_fields}
        known = {name: value for name, value in known.items() if value is not None}
        if "resize" not in known:
            known["resize"] = max(PictureViews().shorter_side, self.crop or 0)
        if "crop" not in known and isinstance(known["resize"], int):
            known["crop"] = min(PictureViews().crop, known["resize"])
        return PictureViews(**known)


class Data(Section):
    """Manifests and how they are read. Paths are relative to the recipe's folder."""

    sources: list[str] = Field(min_length=1, description="Manifests of the labelled domains.")
    target: str = Field(description="Manifest of the domain without labels.")
    splits: tuple[str, str] = Field(
        ("train", "val"), description="Names of the split that is trained on and of the one that is evaluated on."
    )
    samples_per_epoch: Count | None = Field(
        None, description="Samples drawn of each domain in an epoch. `null`: as many as the longest source has."
    )
    max_bad_fraction: Fraction = Field(
        0.05, description="Part of a domain's records that may be unusable. More of them end the run."
    )
    pictures: Pictures = Pictures()
    texts: Texts = Texts()

    @property
    def train_split(self) -> str:
        return self.splits[0]

    @property
    def val_split(self) -> str:
        return self.splits[1]


class Lora(Section):
    """Low-rank adapters of an encoder (LoRA), by peft: two small matrices beside each target. They are trained, and the
    encoder's own weights are not. A registered model has them in its plain weights."""

    rank: Count = Field(8, description="Rank r of an adapter's matrices.")
    alpha: Positive = Field(16.0, description="α: what an adapter adds is multiplied by α / r.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout before an adapter.")
    targets: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="Names, or ends of names, of the linear layers and convolutions that get an adapter, such as `query`. "
        "`null`: all linear layers, or all convolutions of an encoder without linear layers.",
    )


_ADAPTER = (
    "Low-rank adapters (LoRA) in the place of training the encoder's own weights: `rank`, `alpha`, `dropout` and "
    "`targets`, see below. With a number for `freeze` the first blocks have none. `null`: none."
)


class TextEncoderSection(Section):
    """The text encoder."""

    name: str = Field(
        "bert-base-uncased",
        description="A local folder or a hub name of a transformers encoder, or of a dual encoder (CLIP, SigLIP, …), whose text "
        "tower is taken. `tiny`: a small BERT with random weights and "
        "without dropout, for demos; `tiny:32x2` has 32 hidden units and 2 layers.",
    )
    weights: str = Field(
        "pretrained", description="`pretrained`, `random`, or a file: safetensors, or a weights-only file of torch."
    )
    pooling: Literal["pooler", "cls", "mean"] = Field(
        "mean",
        description="A text's feature: the pooler's output, the first token's, or the mean over the tokens. The tower "
        "of a dual encoder gives its own.",
    )
    freeze: Freeze = Field(
        "none", description="What is not trained: `none`, `all`, or a number of blocks from the input."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Dropout of its layers and its attention; `null`: as its configuration says. In half precision on a GPU a "
        "layer without dropout attends to all texts in one call.",
    )
    lora: Lora | None = Field(None, description=_ADAPTER)

    @property
    def tiny(self) -> tuple[int, int] | None:
        """Hidden units and layers of `tiny`; None for other encoders."""
        found = _TINY_TEXT.fullmatch(self.name)
        return (int(found.group(1) or 64), int(found.group(2) or 1)) if found is not None else None

    @field_validator("name")
    @classmethod
    def _is_a_tiny_size(cls, name: str) -> str:
        _require_size(name, _TINY_TEXT, "`tiny:<hidden units>x<layers>`, for example tiny:32x1")
        name = name.removeprefix("hf:")  # as picture encoders have it
        found = _TINY_TEXT.fullmatch(name)
        hidden = int(found.group(1) or 64) if found is not None else 64
        if hidden % tiny_heads(hidden):
            raise ValueError(f"{hidden} hidden units cannot be divided among attention heads; wanted a multiple of 32")
        return name

    @model_validator(mode="after")
    def _something_is_adapted(self) -> Self:
        _require_unfrozen(self)
        return self


class PictureEncoderSection(Section):
    """The picture encoder."""

    name: str = Field(
        "torchvision:resnet50",
        description="`torchvision:<model>`, `timm:<model>`, or `hf:` and the folder or hub name of a transformers vision model "
        "or of a dual encoder (CLIP, SigLIP, …), whose vision tower is taken. `tiny`: a small ResNet with random weights, for "
        "demos; `tiny:8` begins with 8 channels.",
    )
    weights: str = Field(
        "pretrained", description="`pretrained`, the name of weights of torchvision, `random`, or a file."
    )
    freeze: Freeze = Field(
        "none", description="What is not trained: `none`, `all`, or a number of blocks from the input."
    )
    lora: Lora | None = Field(None, description=_ADAPTER)
    batch_norm: Literal["per_sample", "batch", "frozen"] = Field(
        "batch",
        description="Statistics of batch normalisation: of each record's pictures (as published), of the global batch, or "
        "those that came with the weights.",
    )
    head: Literal["none", "identity_linear"] = Field(
        "none", description="`identity_linear`: the published square linear layer, which starts as the identity."
    )

    @property
    def tiny(self) -> int | None:
        """Channels of `tiny`; None for other encoders."""
        found = _TINY_PICTURE.fullmatch(self.name)
        return int(found.group(1) or 16) if found is not None else None

    @field_validator("name")
    @classmethod
    def _is_a_tiny_size(cls, name: str) -> str:
        return _require_size(name, _TINY_PICTURE, "`tiny:<channels>`, for example tiny:8")

    @model_validator(mode="after")
    def _something_is_adapted(self) -> Self:
        if self.lora is not None and self.head != "none":
            raise ValueError(
                f"head: `{self.head}` is a layer to be trained, which does not go with lora; wanted `none`"
            )
        _require_unfrozen(self)
        return self


def tiny_heads(hidden: int) -> int:
    """Attention heads of a `tiny` text encoder: of 32 units and more."""
    return max(1, hidden // 32)


def _require_size(name: str, form: re.Pattern[str], wanted: str) -> str:
    if name.startswith("tiny:") and not form.fullmatch(name):
        raise ValueError(f"has no size that can be read; wanted {wanted}")
    return name


def _require_unfrozen(section: TextEncoderSection | PictureEncoderSection) -> None:
    if section.lora is not None and section.freeze == "all":
        wanted = "`freeze: none`: with lora the encoder's own weights are not trained"
        raise ValueError(f"freeze: `all` leaves no layer for lora; wanted {wanted}")


def _trained(section: TextEncoderSection | PictureEncoderSection) -> str:
    if section.freeze == "all":
        return "frozen"
    trained = "trained" if section.lora is None else f"LoRA of rank {section.lora.rank}"
    return trained if section.freeze == "none" else f"{trained} after {section.freeze} blocks"


class Encoders(Section):
    """The two encoders."""

    both: str | None = Field(
        None,
        description="Folder or hub name of a dual encoder (CLIP, SigLIP, …) in the place of both names. The projections start as "
        "its own and have no ReLU, so that the similarity of text and picture is the dual encoder's before the first step.",
    )
    prompts: Annotated[list[str], Field(min_length=1)] = Field(
        ["a photo of {}.", "a post about {}.", "{}"],
        description="Sentences in which a class's name takes the place of `{}`; their mean feature stands for the class where a "
        "dual encoder (`both`) classifies without training, see [Encoders](encoders.md#without-training).",
    )
    text: TextEncoderSection = TextEncoderSection()
    picture: PictureEncoderSection = PictureEncoderSection()
    features: str | None = Field(
        None,
        description="Folder with features of both encoders, computed once by `m2can features`: training reads them in the place "
        "of texts and pictures, see [Encoders](encoders.md). Both encoders must be frozen (`freeze: all`). Relative to the "
        "recipe's folder. `null`: the encoders run in every step.",
    )
    activation_checkpointing: Literal["none", "text", "pictures", "both"] = Field(
        "none",
        description="Which encoders keep only their blocks' inputs for the backward pass and compute the rest again: less "
        "memory, more time, the same result.",
    )

    @field_validator("prompts")
    @classmethod
    def _have_a_place_for_the_name(cls, prompts: list[str]) -> list[str]:
        for prompt in prompts:
            if "{}" not in prompt:
                raise ValueError(f"has no place for a class's name: {prompt!r}; wanted `{{}}` in each")
        return prompts

    @model_validator(mode="before")
    @classmethod
    def _both_names(cls, values: Any) -> Any:
        both = values.get("both") if isinstance(values, dict) else None
        if not isinstance(both, str):
            return values
        both = both.removeprefix("hf:")
        named: dict[str, Any] = {"both": both}
        for part, name in (("text", both), ("picture", f"hf:{both}")):
            section = values.get(part) or {}
            if not isinstance(section, dict):
                return values  # the section's own type refuses it
            if section.get("name", name) != name:
                raise ValueError(f"both: found beside {part}.name {section['name']}; wanted one of the two")
            named[part] = section | {"name": name}
        return values | named

    @model_validator(mode="after")
    def _features_are_of_frozen_encoders(self) -> Self:
        trained = [name for name in ("text", "picture") if getattr(self, name).freeze != "all"]
        if self.features is not None and trained:
            found = f"encoders.{trained[0]}.freeze: {getattr(self, trained[0]).freeze}"
            raise ValueError(f"features: of an encoder that is trained they would move; found {found}, wanted `all`")
        return self

    def described(self) -> str:
        """In words: `text models/bert (frozen), picture timm:vit_tiny_patch16_224 (LoRA of rank 8)`."""
        return ", ".join(
            f"{part} {section.name} ({_trained(section)})"
            for part, section in (("text", self.text), ("picture", self.picture))
        )

    @property
    def adapters(self) -> dict[str, Lora]:
        """The adapters of `text` and `picture`, of those that have one."""
        both = {"text": self.text.lora, "picture": self.picture.lora}
        return {name: lora for name, lora in both.items() if lora is not None}

    @property
    def checkpointed(self) -> tuple[bool, bool]:
        """Whether the text encoder and the picture encoder compute activations again."""
        which = self.activation_checkpointing
        return which in ("text", "both"), which in ("pictures", "both")
