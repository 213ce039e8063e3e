"""The one operator of the data's way: row numbers in, both views of texts and pictures out.

It runs in Ray Data tasks, and in plain loops where there is no Ray; so it knows neither Ray nor torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from datasets_manifest.manifest.storage import is_uri
from datasets_manifest.records.sharded_table import ShardedTable
from datasets_manifest.stream.images import PictureViews, decode_views, read_picture_bytes
from datasets_manifest.stream.picture_files import BadPicture
from datasets_manifest.stream.plan import view_rng
from datasets_manifest.stream.text import (
    Cleaning,
    Joining,
    TextTokenizer,
    clean,
    drop_words,
    join_sentences,
    tokenizer_from_json,
)

_FETCHES = 8  # at a time, of one task

Allocate = Callable[[tuple[int, ...], type[np.uint8]], np.ndarray]  # an array that is not filled, as np.empty makes it

INDEX_SCHEMA = pa.schema([("step", pa.int64()), ("row", pa.int64()), ("position", pa.int64())])


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as it travels: its JSON and its special tokens; one that it does not have is empty."""

    json: str
    cls_token: str
    sep_token: str
    pad_token: str
    pad_id: int
    size: int


@dataclass(frozen=True)
class Encoding:
    """How rows become views.

    Args:
        seed, epoch: with row and position they name a view's randomness.
        strong: whether the strong view is made too.
        tells_missing: whether batches say which texts and pictures a row lacks.
    """

    pictures: PictureViews
    cleaning: Cleaning
    form: Joining
    max_tokens: int
    word_dropout: float
    vocabulary: Vocabulary
    seed: int = 0
    epoch: int = 0
    strong: bool = False
    tells_missing: bool = False


@dataclass
class HostBatch:
    """The encoded rows of one step, in host memory; R = rows, V = views (weak, then strong), P = pictures.

    tokens: int64 [V·R, L], padded to the longest. mask: int64 [V·R, L].
    pictures: uint8 [P, crop, crop, 3], no empty slots. owner: int64 [P], place of the picture's sample in 0 … V·R − 1.
    rows: int64 [R], row numbers in the table.
    bad: (row, what was wrong) of every picture that was skipped.
    views: what the pictures were made by, which says how they are normalised.
    missing: bool [V·R, 2], whether a row lacks texts, and whether it lacks pictures; None: nobody asked.
    """

    tokens: np.ndarray
    mask: np.ndarray
    pictures: np.ndarray
    owner: np.ndarray
    rows: np.ndarray
    bad: list[tuple[int, str]]
    views: PictureViews = field(default_factory=PictureViews)
    missing: np.ndarray | None = None


def index_table(step: Sequence[int] | np.ndarray, row: np.ndarray, position: np.ndarray) -> pa.Table:
    """Of INDEX_SCHEMA."""
    return pa.table([np.asarray(column, dtype=np.int64) for column in (step, row, position)], schema=INDEX_SCHEMA)


def encode_rows(index: pa.Table, table: pa.Table | ShardedTable, encoding: Encoding) -> pa.Table:
    """Look `index`'s rows up in `table`, read and encode them.

    Args:
        index: of INDEX_SCHEMA.
        table: of readers.TABLE_SCHEMA, shared by all tasks of a node; of shards the row groups are read that hold the rows.

    Returns:
        index with the columns of `encode_samples`.
    """
    records = table.select(["texts", "images"]).take(index["row"].combine_chunks())
    encoded = encode_samples(records["texts"].to_pylist(), records["images"].to_pylist(), index, encoding)
    return pa.table({name: index[name].combine_chunks() for name in INDEX_SCHEMA.names} | encoded)


def encode_samples(
    texts: list[list[str]], images: list[list[str | bytes]], index: pa.Table, encoding: Encoding
) -> dict[str, pa.Array]:
    """Encode samples given as they are; a picture is a path or the bytes of its file.

    Returns:
        `tokens_<view>` (list of int32), `pictures_<view>` (a sample's uint8 [n, crop, crop, 3] as bytes),
        `num_pictures` and `bad` (a message for each picture that was skipped; the others stay).
    """
    rngs = [
        view_rng(encoding.seed, encoding.epoch, row, position)
        for row, position in zip(index["row"].to_pylist(), index["position"].to_pylist(), strict=True)
    ]
    views = ["weak", "strong"] if encoding.strong else ["weak"]
    columns = {
        f"tokens_{view}": _list_array(ids) for view, ids in zip(views, _tokens(texts, encoding, rngs), strict=True)
    }
    fetched = _fetch_remote(images, encoding.pictures.max_pictures)
    most = sum(min(len(sample), encoding.pictures.max_pictures) for sample in images)
    crop = encoding.pictures.crop
    room_VNHWC = np.empty((len(views), most, crop, crop, 3), np.uint8)  # what bad pictures leave free is never touched
    counts, bad = _fill(room_VNHWC, images, fetched, encoding, rngs)
    for view, pictures_NHWC in zip(views, room_VNHWC, strict=True):
        columns[f"pictures_{view}"] = _binary_array(pictures_NHWC, counts)
    columns["num_pictures"] = pa.array(counts, pa.int32())
    columns["bad"] = pa.array(bad, pa.list_(pa.string()))
    return columns


def _tokens(texts: list[list[str]], encoding: Encoding, rngs: list[np.random.Generator]) -> list[list[np.ndarray]]:
    """Token ids of the weak view and, if wanted, the strong one, of all samples in one call of the tokenizer."""
    weak = _cleaned(texts, encoding)
    views = [_joined(weak, encoding)]
    if encoding.strong:
        p = encoding.word_dropout
        strong = [[drop_words(s, p, rng) for s in sample] for sample, rng in zip(weak, rngs, strict=True)]
        views.append(_joined(strong, encoding))
    encoded = _tokenizer(encoding).encode([text for view in views for text in view])
    return [encoded[i * len(texts) : (i + 1) * len(texts)] for i in range(len(views))]


def count_cut(texts: list[list[str]], encoding: Encoding) -> int:
    """How many of these samples' texts have more than `max_tokens` tokens."""
    return _tokenizer(encoding).count_cut(_joined(_cleaned(texts, encoding), encoding))


def _cleaned(texts: list[list[str]], encoding: Encoding) -> list[list[str]]:
    return [[clean(sentence, encoding.cleaning) for sentence in sample] for sample in texts]


def _joined(texts: list[list[str]], encoding: Encoding) -> list[str]:
    words = encoding.vocabulary
    return [join_sentences(sample, encoding.form, words.sep_token, words.cls_token) for sample in texts]


def _tokenizer(encoding: Encoding) -> TextTokenizer:
    words = encoding.vocabulary
    return tokenizer_from_json(words.json, encoding.max_tokens, words.cls_token, words.sep_token, words.pad_token)


def _fetch_remote(images: list[list[str | bytes]], most: int) -> dict[str, bytes | BadPicture]:
    """The contents of URIs, fetched side by side: one at a time, most of the time would be waiting."""
    wanted = list(dict.fromkeys(i for sample in images for i in sample[:most] if isinstance(i, str) and is_uri(i)))
    if not wanted:
        return {}
    with ThreadPoolExecutor(_FETCHES) as pool:
        return dict(zip(wanted, pool.map(_fetch, wanted), strict=True))


def _fetch(uri: str) -> bytes | BadPicture:
    try:
        return read_picture_bytes(uri)
    except BadPicture as error:
        return error


def _read(image: str | bytes, fetched: dict[str, bytes | BadPicture]) -> bytes:
    found = fetched.get(image) if isinstance(image, str) else image
    if isinstance(found, BadPicture):
        raise found
    return read_picture_bytes(str(image)) if found is None else found


def _fill(
    room_VNHWC: np.ndarray,
    images: list[list[str | bytes]],
    fetched: dict[str, bytes | BadPicture],
    encoding: Encoding,
    rngs: list[np.random.Generator],
) -> tuple[list[int], list[list[str]]]:
    """Write the views, one sample's pictures after another's; how many each sample has, and what was skipped of it."""
    counts: list[int] = []
    skipped: list[list[str]] = []
    end = 0
    for sample, rng in zip(images, rngs, strict=True):
        start, bad = end, []
        for number, image in enumerate(sample[: encoding.pictures.max_pictures]):
            try:
                views = decode_views(_read(image, fetched), encoding.pictures, rng if encoding.strong else None)
            except BadPicture as error:
                bad.append(f"{image if isinstance(image, str) else f'picture {number + 1}'}: {error.problem}")
                continue
            for room_NHWC, view in zip(room_VNHWC, views[: len(room_VNHWC)], strict=True):
                room_NHWC[end] = view
            end += 1
        counts.append(end - start)
        skipped.append(bad)
    return counts, skipped


def _binary_array(pictures_NHWC: np.ndarray, counts: list[int]) -> pa.Array:
    """A sample's pictures as bytes each, without copying."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    flat = pictures_NHWC[: offsets[-1]].reshape(-1)
    offsets *= math.prod(pictures_NHWC.shape[1:])
    return pa.Array.from_buffers(pa.large_binary(), len(counts), [None, pa.py_buffer(offsets), pa.py_buffer(flat)])


def _list_array(tokens: list[np.ndarray]) -> pa.Array:
    offsets = np.zeros(len(tokens) + 1, dtype=np.int32)
    np.cumsum([len(ids) for ids in tokens], out=offsets[1:])
    values = np.concatenate(tokens) if tokens else np.empty(0, np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values, pa.int32()))


def collate(encoded: pa.Table, encoding: Encoding, allocate: Allocate = np.empty) -> HostBatch:
    """One step's encoded rows as arrays; tokens are padded to the longest text of the batch.

    Args:
        allocate: makes the array for the pictures, which are copied once, from wherever they lie.
    """
    views = ["weak", "strong"] if "tokens_strong" in encoded.column_names else ["weak"]
    rows = encoded["row"].to_numpy()
    counts = encoded["num_pictures"].to_numpy()
    owner = np.repeat(np.arange(len(rows)), counts)
    tokens, mask = _pad([encoded[f"tokens_{view}"] for view in views], encoding.vocabulary.pad_id)
    crop = encoding.pictures.crop
    messages = encoded["bad"].to_pylist()
    pieces = [_pixels(chunk, crop) for view in views for chunk in encoded[f"pictures_{view}"].chunks]
    pictures = allocate((len(owner) * len(views), crop, crop, 3), np.uint8)
    if pieces:
        np.concatenate(pieces, out=pictures)
    missing = None
    if encoding.tells_missing:
        lengths = mask.sum(1)
        missing = np.stack([lengths <= blank_tokens(encoding), np.tile(counts == 0, len(views))], 1)
    return HostBatch(
        tokens=tokens,
        mask=mask,
        pictures=pictures,
        owner=np.concatenate([owner + v * len(rows) for v in range(len(views))]),
        rows=rows,
        bad=[(int(row), message) for row, list_ in zip(rows, messages, strict=True) for message in list_],
        views=encoding.pictures,
        missing=missing,
    )


@functools.lru_cache(maxsize=4)
def blank_tokens(encoding: Encoding) -> int:
    """How many tokens the text of a record without text has: special ones."""
    return len(_tokenizer(encoding).encode(_joined([[]], encoding))[0])


def blank_texts(texts: list[list[str]], encoding: Encoding) -> np.ndarray:
    """Whether each sample has no text, bool [N]."""
    return np.array([not any(sentences) for sentences in _cleaned(texts, encoding)], bool)


def _pad(columns: list[pa.ChunkedArray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.concatenate([column.combine_chunks().value_lengths().to_numpy() for column in columns])
    values = np.concatenate([column.combine_chunks().flatten().to_numpy() for column in columns])
    mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
    tokens = np.full(mask.shape, pad_id, dtype=np.int64)
    tokens[mask] = values
    return tokens, mask.astype(np.int64)


def _pixels(array: pa.LargeBinaryArray, crop: int) -> np.ndarray:
    """The pictures of all samples, one after another, without copying: an Arrow binary array is one stretch of bytes."""
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    flat = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data is not None else np.empty(0, np.uint8)
    return flat.reshape(-1, crop, crop, 3)
