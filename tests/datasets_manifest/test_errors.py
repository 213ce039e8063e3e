"""pydantic's errors → InputError: nested models, lists, dicts and unions keep the path that the user wrote."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets_manifest.errors import InputError, from_validation_error


class Sgd(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.9


class Adam(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)


class Run(BaseModel):
    model_config = ConfigDict(extra="forbid")
    optimizer: Annotated[Sgd | Adam, Field(discriminator="kind")] = Sgd()
    fallback: Sgd | Adam | None = None
    stages: list[Adam] = []
    by_name: dict[str, Adam | None] | None = None
    learning_rate: float = Field(default=1e-3, alias="lr")
    warmup: int | Literal["auto"] = 0


@pytest.mark.parametrize(
    ("content", "field", "wanted"),
    [
        ({"optimizer": {"kind": "adam", "beta": 1}}, "optimizer.beta", "`optimizer.betas`"),
        ({"optimizer": {"kind": "sgd", "momentun": 1}}, "optimizer.momentun", "`optimizer.momentum`"),
        ({"optimizer": {"kind": "adam", "betas": [1, "x"]}}, "optimizer.betas.1", "a valid number"),
        ({"optimizer": {"kind": "adm"}}, "optimizer", None),
        ({"fallback": {"kind": "adam", "beta": 1}}, "fallback.beta", None),
        ({"stages": [{}, {"beta": 1}]}, "stages.1.beta", "`stages.1.betas`"),
        ({"stages": [{}, {"betas": "x"}]}, "stages.1.betas", "a list"),
        ({"by_name": {"a": None, "b": {"beta": 1}}}, "by_name.b.beta", "`by_name.b.betas`"),
        ({"lrr": 1}, "lrr", "`lr`"),
        ({"lr": "x"}, "lr", "a valid number"),
        ({"warmup": "aut"}, "warmup", "'auto'"),
        ({"warmup": []}, "warmup", "'auto'"),
        ({"optimzer": {}, "lr": "x"}, "optimzer", "`optimizer`"),
    ],
)
def test_faults_of_nested_models_keep_the_users_path(content: object, field: str, wanted: str | None) -> None:
    with pytest.raises(ValidationError) as caught:
        Run.model_validate(content)
    error = from_validation_error(caught.value, Run, "run.yaml")
    assert error.field == field
    assert str(error).startswith(f"run.yaml: {field}: ")
    assert wanted is None or wanted in str(error.wanted)


def test_a_large_value_is_shown_short() -> None:
    nested: list[object] = ["x"] * 1000
    for _ in range(50):
        nested = [nested] * 9
    assert len(str(InputError("wrong", value=nested))) < 400
    assert len(str(InputError("wrong", value="x" * 10**6))) < 400
