"""Records that people have in Python: pandas frames, `datasets.Dataset`, and what their cells hold as texts and pictures.

A frame is a pandas DataFrame, or anything with `to_pandas()`: `datasets.Dataset`, Arrow and Polars tables. None of these
packages but pandas is imported here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from datasets_manifest.errors import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

TEXT, IMAGE, LABEL, ID = "text", "image", "label", "id"
_PICTURES = "a path, the bytes of a file, a PIL image, {'bytes': …, 'path': …}, or a list of these"
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def is_frame(data: object) -> bool:
    """Whether `data` has named columns: a pandas DataFrame, a `datasets.Dataset`, an Arrow or Polars table."""
    return hasattr(data, "to_pandas") or (hasattr(data, "iloc") and hasattr(data, "columns"))


def to_pandas(data: Any) -> pd.DataFrame:
    """The frame as a pandas DataFrame; pictures of a `datasets.Dataset` stay the bytes or paths they are stored as."""
    return data.to_pandas() if hasattr(data, "to_pandas") else data


def slices(data: Any, rows: int) -> Iterator[pd.DataFrame]:
    """The frame in parts of at most `rows` rows, so that not all pictures of a `datasets.Dataset` are in memory at once."""
    if hasattr(data, "with_format"):
        stored = data.with_format("arrow")
        for start in range(0, len(data), rows):
            yield stored[start : start + rows].to_pandas()
        return
    frame = to_pandas(data)
    for start in range(0, len(frame), rows):
        yield frame.iloc[start : start + rows]


def class_names(data: Any) -> list[str] | None:
    """The names behind the numbers of a `datasets.Dataset`'s column `label`; None if it has none."""
    feature = getattr(data, "features", None) or {}
    names = getattr(feature.get(LABEL), "names", None) if isinstance(feature, Mapping) else None
    return list(names) if names is not None else None


def label_of(cell: Any, names: list[str] | None = None) -> str | None:
    """A label as a manifest's records hold it: a string, None for unlabelled.

    Args:
        names: of the classes, if the labels are their numbers; −1 is unlabelled then.
    """
    if _is_null(cell) or (isinstance(cell, str) and not cell.strip()):
        return None
    if isinstance(cell, float) and cell.is_integer():  # integers beside empty cells
        cell = int(cell)
    if names is not None and isinstance(cell, int | np.integer):
        return names[cell] if 0 <= cell < len(names) else None if cell == -1 else str(cell)
    return str(cell).strip()


def column(frame: pd.DataFrame, name: str, where: object = None) -> list[Any]:
    """The cells of a column; as many None if there is none of that name.

    Raises:
        InputError: the column is absent, and another has nearly its name, or it is there twice.
    """
    names = [str(each) for each in frame.columns]
    if names.count(name) > 1:
        raise InputError("two columns have this name", file=where, field=name)
    if name in names:
        return cast("list[Any]", frame.iloc[:, names.index(name)].tolist())
    close = nearest(name, [each for each in names if each not in (TEXT, IMAGE, LABEL, ID)])
    if close is not None:
        wanted = f"the column {close!r} renamed, or a column `{name}` of None"
        raise InputError(f"there is no column `{name}`; nearest: {close!r}", file=where, field=name, wanted=wanted)
    return [None] * len(frame)


def require_content(frame: pd.DataFrame, where: object = None) -> None:
    """Raises InputError: the frame has neither texts nor pictures."""
    if not {TEXT, IMAGE} & set(map(str, frame.columns)):
        found = ", ".join(map(str, frame.columns))
        wanted = "`text`, `image` or both"
        raise InputError("has neither a column of texts nor of pictures", file=where, value=found, wanted=wanted)


def texts_of(cell: Any, field: str = TEXT) -> list[str]:
    """A string or a list of them → a list, without nulls and blank ones. Raises InputError: anything else."""
    texts = []
    for item in items_of(cell):
        if not isinstance(item, str):
            raise InputError("is not a text", field=field, value=item, wanted="a string or a list of strings")
        texts.append(item)
    return [text for text in texts if text.strip()]


def pictures_of(cell: Any, field: str = IMAGE) -> list[str | bytes]:
    """One picture or a list of them → paths and contents of files, without nulls.

    A picture is a path, the bytes of a file, a PIL image (written as PNG), or a struct of bytes and path as `datasets` has it.

    Raises:
        InputError: anything else.
    """
    return [picture for item in items_of(cell) if (picture := _picture(item, field)) is not None]


def _picture(item: Any, field: str) -> str | bytes | None:
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, str | os.PathLike):
        return str(item) if str(item).strip() else None
    if isinstance(item, Mapping) and {"bytes", "path"} & set(item):
        content = item.get("bytes")
        return _picture(content if content is not None else item.get("path") or "", field)
    if hasattr(item, "getexif") and hasattr(item, "save"):
        return _png(item)
    raise InputError("is not a picture", field=field, value=type(item).__name__, wanted=_PICTURES)


def _png(image: Any) -> bytes:
    """A PIL image, upright, as the bytes of a PNG file: nothing is lost but what PNG cannot hold (CMYK becomes RGB)."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    file = io.BytesIO()
    upright.save(file, format="PNG", compress_level=1)
    return file.getvalue()


def items_of(cell: Any) -> list[Any]:
    """What a cell holds, as a list without nulls: None, NaN, one value, a list or an array of values."""
    if isinstance(cell, np.ndarray) and cell.ndim > 1:
        from PIL import Image

        cell = Image.fromarray(cell)
    if isinstance(cell, list | tuple | np.ndarray):
        return [item for item in cell if not _is_null(item)]
    return [] if _is_null(cell) else [cell]


def _is_null(value: Any) -> bool:
    """None, NaN, pandas' NA and NaT."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # NA has no truth
        return type(value).__name__ in ("NAType", "NaTType")
