"""What all sections of a recipe share."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

T = TypeVar("T")
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and not _takes_booleans(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("is a boolean (YAML takes on, off, yes and no for one), which does not belong here")
        return value


def _takes_booleans(annotation: Any) -> bool:
    return bool in (annotation, *get_args(annotation))


def decided(value: T | None) -> T:
    """A value that a recipe may leave to trainers.recipe.training_rule. Raises ValueError: the rule was not applied yet."""
    if value is None:
        raise ValueError("the recipe leaves a value to the rule, and the rule was not applied")
    return value
