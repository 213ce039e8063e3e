"""Body of a prediction request → texts and pictures for the predictor, within limits."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any

from fastapi import Request
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile

from datasets_manifest.errors import nearest, without_repeated_keys
from datasets_manifest.stream.picture_files import BadPicture, open_picture
from services.serving.limits import Limits
from services.web.problems import Problem, describe

_MOST_IN_A_LIST = 1000  # above every limit: what is longer is not looked at
_MOST_VALUES = 100_000  # above every limit: a body's values beside the characters of its texts


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except ValueError:
        raise ValueError("is not base64") from None


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


_FIELDS = {"text": "text", "texts": "text", "image": "images", "images": "images"}


class Sample(BaseModel):
    """A text or several; a picture or several as bytes, in JSON as base64 (with or without `data:image/…;base64,`).

    The fields are `text` and `image`, as in records; `texts` and `images` are the same.
    """

    model_config = ConfigDict(extra="forbid")

    text: Annotated[list[str], BeforeValidator(_listed), Field(max_length=_MOST_IN_A_LIST)] = []
    images: Annotated[
        list[Annotated[bytes, BeforeValidator(_decoded)]], BeforeValidator(_listed), Field(max_length=_MOST_IN_A_LIST)
    ] = []
    _pixels: int = PrivateAttr(0)

    @model_validator(mode="before")
    @classmethod
    def _names(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        found: dict[str, Any] = {}
        for name, value in content.items():
            field = field_of(name)
            if field in found:
                raise ValueError(f"{name!r} stands beside another name of the same")
            found[field] = value
        return {field: value for field, value in found.items() if value is not None}

    @model_validator(mode="after")
    def _has_content(self) -> Sample:
        if not self.images and not any(text.strip() for text in self.texts):
            raise ValueError("has neither text nor picture")
        return self

    @property
    def texts(self) -> list[str]:
        return self.text

    @property
    def pixels(self) -> int:
        """Of all pictures, by their headers; 0 before `check_limits`."""
        return self._pixels


class PredictIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    samples: Annotated[list[Sample], Field(min_length=1, max_length=_MOST_IN_A_LIST)]


def _documented(item: dict[str, Any]) -> dict[str, Any]:
    one_or_more = [item, {"type": "array", "items": item, "maxItems": _MOST_IN_A_LIST}, {"type": "null"}]
    return {"anyOf": one_or_more}


def _documented_sample(picture: dict[str, Any]) -> dict[str, Any]:
    kinds = {"text": _documented({"type": "string"}), "images": _documented(picture)}
    fields = {name: kinds[field] for name, field in _FIELDS.items()}
    return {"type": "object", "properties": fields, "additionalProperties": False, "minProperties": 1}


_IN_JSON = _documented_sample({"type": "string", "contentEncoding": "base64"})
_SEVERAL = {"type": "array", "items": _IN_JSON, "minItems": 1, "maxItems": _MOST_IN_A_LIST}
# What `read_samples` takes, for the OpenAPI document.
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [
                    _IN_JSON,
                    {
                        "type": "object",
                        "properties": {"samples": _SEVERAL},
                        "required": ["samples"],
                        "additionalProperties": False,
                    },
                ]
            }
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "text": {"type": "array", "items": {"type": "string"}},
                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                },
                "additionalProperties": False,
            }
        },
    },
}


def field_of(name: str) -> str:
    """The field of Sample that `name` stands for. Raises ValueError: none."""
    if name not in _FIELDS:
        close = nearest(name, [*_FIELDS, "samples"])
        raise ValueError(
            f"unknown field {name[:80]!r}; wanted text and image" + (f" (nearest: {close})" if close else "")
        )
    return _FIELDS[name]


_ANY: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


async def read_samples(request: Request, limits: Limits) -> list[Sample]:
    """The samples of a request's body.

    Raises:
        Problem: 400 no JSON or form, 413 more than the limits, 415 another media type, 422 not a valid sample.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            # Separate from the check of its form: what is not JSON is 400, not 422.
            body = await request.body()
            _require_few_values(body, limits)
            body.decode()
            content = _ANY.validate_json(body)
            json.loads(body, object_pairs_hook=without_repeated_keys)
        except UnicodeDecodeError as error:
            packed = request.headers.get("content-encoding", "identity").lower() != "identity"
            why = "a Content-Encoding is not read here" if packed else f"byte {error.start} is not UTF-8"
            raise Problem(415 if packed else 400, f"{why}; send JSON in UTF-8") from None
        except (ValidationError, RecursionError):
            raise Problem(400, "the body is not a JSON object") from None
        except ValueError as error:
            raise Problem(400, str(error)) from None
    elif kind == "multipart/form-data":
        content = await _from_form(request, limits)
    else:
        raise Problem(415, "send application/json, or multipart/form-data with fields text and image")
    try:
        # `{"samples": [...]}`, or the body of a single one.
        samples = (PredictIn if "samples" in content else Sample).model_validate(content)
    except ValidationError as error:
        raise Problem(422, describe(error.errors(include_input=False))) from None
    found = samples.samples if isinstance(samples, PredictIn) else [samples]
    check_limits(found, limits)
    return found


def check_limits(samples: list[Sample], limits: Limits) -> None:
    """Raises Problem: 413 beyond a limit, 422 a picture that is not one."""
    if len(samples) > limits.samples:
        raise Problem(413, f"{len(samples)} samples in one request; at most {limits.samples}")
    total = 0
    for number, sample in enumerate(samples):
        field = f"samples.{number}"
        if len(sample.images) > limits.pictures:
            raise Problem(413, f"{field}: {len(sample.images)} pictures; at most {limits.pictures}")
        if len(sample.texts) > limits.texts:
            raise Problem(413, f"{field}: {len(sample.texts)} texts; at most {limits.texts}")
        if sum(map(len, sample.texts)) > limits.text_chars:
            raise Problem(413, f"{field}: more than {limits.text_chars} characters of text")
        for picture, data in enumerate(sample.images):
            pixels = _pixels(data, f"{field}.images.{picture}")
            if pixels > limits.pixels:
                raise Problem(413, f"{field}.images.{picture}: {pixels} pixels; at most {limits.pixels}")
            sample._pixels += pixels
        total += sample.pixels
        if total > limits.request_pixels:
            raise Problem(
                413, f"the pictures have more than {limits.request_pixels} pixels together; send fewer at a time"
            )


def _require_few_values(body: bytes, limits: Limits) -> None:
    """Millions of empty strings fit into a body, and reading them would hold everybody up. Raises Problem: 413.

    What JSON puts around values may also stand in a text, so all of a request's texts may consist of it.
    """
    most = limits.samples * limits.text_chars + _MOST_VALUES
    if sum(body.count(mark) for mark in (b'"', b",", b"[", b"{")) > most:
        raise Problem(413, "the body has too many values; send fewer samples and texts")


async def _from_form(request: Request, limits: Limits) -> dict[str, Any]:
    # Starlette takes what came of a form that was cut off: a request without its picture would be answered.
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary")
    if boundary and b"--" + boundary + b"--" not in await request.body():
        raise Problem(400, "the form is cut off: its last boundary is missing")
    form = await request.form(max_files=limits.pictures + 1, max_fields=1000, max_part_size=limits.body_bytes)
    content: dict[str, list[Any]] = {"text": [], "images": []}
    for name, value in form.multi_items():
        try:
            field = field_of(name)
        except ValueError as error:
            raise Problem(422, str(error)) from None
        if isinstance(value, UploadFile) != (field == "images"):
            raise Problem(422, f"{name}: wanted " + ("a file" if field == "images" else "a text, not a file"))
        content[field].append(await value.read() if isinstance(value, UploadFile) else value)
    return content


def _pixels(data: bytes, field: str) -> int:
    try:
        width, height = open_picture(data).size
    except BadPicture as bad:
        status = 413 if bad.reason == "too large" else 422
        raise Problem(status, f"{field}: {bad.problem}") from None
    return width * height
