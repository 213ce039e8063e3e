"""Cells of frames: texts, pictures and labels in all the forms that people have."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datasets_manifest.errors import InputError
from datasets_manifest.records import frames
from tests.datasets_manifest.hub_dataset import Dataset


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("one text", ["one text"]),
        (["two", None, "texts"], ["two", "texts"]),
        (np.array(["an", "array"], dtype=object), ["an", "array"]),
        (("a", "tuple"), ["a", "tuple"]),
        *((nothing, []) for nothing in (None, float("nan"), pd.NA, pd.NaT, "", "  ", [], [None])),
    ],
)
def test_texts(cell: object, texts: list[str]) -> None:
    assert frames.texts_of(cell) == texts


def test_a_cell_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="row 3, text: is not a text; found 7; wanted a string or a list of strings"):
        frames.texts_of(7, "row 3, text")


def picture(mode: str = "RGB", size: tuple[int, int] = (4, 2)) -> Image.Image:
    return Image.effect_noise(size, 90).convert(mode)


def test_pictures() -> None:
    content = b"\xff\xd8picture"
    assert frames.pictures_of("a.jpg") == ["a.jpg"]
    assert frames.pictures_of(Path("a.jpg")) == ["a.jpg"]
    assert frames.pictures_of([bytearray(content), memoryview(content), None]) == [content] * 2
    assert frames.pictures_of({"bytes": content, "path": "a.jpg"}) == [content]
    assert frames.pictures_of([{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}]) == ["a.jpg"]
    assert [frames.pictures_of(nothing) for nothing in (None, float("nan"), pd.NA, "", [])] == [[]] * 5
    with pytest.raises(
        InputError, match="is not a picture; found 'int'; wanted a path, the bytes of a file, a PIL image"
    ):
        frames.pictures_of([3])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "HSV"])
def test_pil_images_become_png_files_of_the_same_pixels(mode: str) -> None:
    image = picture(mode)
    (data,) = frames.pictures_of(image)
    read = Image.open(io.BytesIO(data))  # type: ignore[arg-type]
    assert read.format == "PNG"
    np.testing.assert_array_equal(np.array(read.convert("RGB")), np.array(image.convert("RGB")))


def test_pil_images_are_turned_upright_and_arrays_are_pictures() -> None:
    file = io.BytesIO()
    image, exif = picture(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(file, format="PNG", exif=exif)
    (data,) = frames.pictures_of(Image.open(file))
    assert Image.open(io.BytesIO(data)).size == (2, 4)  # type: ignore[arg-type]
    (data,) = frames.pictures_of(np.array(image))
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))), np.array(image))  # type: ignore[arg-type]


def test_labels() -> None:
    assert [frames.label_of(cell) for cell in (" pos ", 3, 2.0, True, None, float("nan"), pd.NA, "")] == [
        "pos", "3", "2", "True", None, None, None, None,
    ]  # fmt: skip
    assert [frames.label_of(np.int64(cell), ["neg", "pos"]) for cell in (0, 1, -1, 2)] == ["neg", "pos", None, "2"]


def test_a_column_with_nearly_the_name_is_told() -> None:
    frame = pd.DataFrame({"text": ["a"], "images": ["a.jpg"]})
    with pytest.raises(InputError, match="there is no column `image`; nearest: 'images'"):
        frames.column(frame, "image")
    assert frames.column(frame, "label") == [None]
    frame.columns = pd.Index(["text", "text"])
    with pytest.raises(InputError, match="two columns have this name"):
        frames.column(frame, "text")


def test_what_counts_as_a_frame() -> None:
    dataset = Dataset({"text": ["a", "b", "c"]}, names=None)
    assert frames.is_frame(dataset) and frames.is_frame(pd.DataFrame()) and frames.is_frame(dataset._table)
    assert not any(frames.is_frame(other) for other in (["a"], {"text": ["a"]}, "a", np.zeros(3), pd.Series(["a"])))
    assert [len(part) for part in frames.slices(dataset, 2)] == [2, 1] and dataset.longest_slice == 2
