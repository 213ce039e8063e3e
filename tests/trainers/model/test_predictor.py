"""Predictions: frames and lists give the same, whatever form texts and pictures have; what is wrong is said."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import read_split
from tests.datasets_manifest.hub_dataset import Dataset
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.model.predictor import Predictor

CARDS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predictor")


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    loop = make_loop(prepared_run(folder))
    return Predictor(loop.network, loop.card, loop.device)


@pytest.fixture(scope="module")
def cards(folder: Path, predictor: Predictor) -> pd.DataFrame:
    """Postcards with a text and one picture each; the index is not a range."""
    table = read_split(load_manifest(folder / "postcards" / "mountain" / "manifest.yaml"), "train").table
    full = [row for row in table.to_pylist() if row["texts"] and row["images"]][:CARDS]
    columns = {"text": [row["texts"] for row in full], "image": [row["images"][0] for row in full]}
    return pd.DataFrame(columns, index=[f"card {n}" for n in range(CARDS)])


def test_frames_give_what_lists_give(predictor: Predictor, cards: pd.DataFrame) -> None:
    wanted = predictor.predict(cards["text"].tolist(), [[path] for path in cards["image"]], batch_size=3)
    found = predictor.predict(cards)
    names = [f"prob_{name}" for name in predictor.classes]
    assert list(found.columns) == [
        "label",
        "confidence",
        *names,
        "disagreement",
        "head_labels",
        "bad_pictures",
        "problem",
    ]
    assert found.index.tolist() == cards.index.tolist()
    np.testing.assert_allclose(found[names].to_numpy(), wanted.probs, atol=1e-6)
    assert found["label"].tolist() == wanted.labels
    np.testing.assert_allclose(found["confidence"], wanted.probs.max(1), atol=1e-6)
    assert wanted.problems == found["problem"].tolist() == [None] * CARDS


def test_a_picture_is_the_same_in_all_its_forms(predictor: Predictor, cards: pd.DataFrame) -> None:
    paths = cards["image"].tolist()
    content = [Path(path).read_bytes() for path in paths]
    structs = [{"bytes": data, "path": "gone.jpg"} for data in content]
    wanted = predictor.predict(cards["text"].tolist(), content).probs
    dataset = Dataset({"text": [texts[0] for texts in cards["text"]], "image": structs})
    texts_alone = predictor.predict([texts[0] for texts in cards["text"]], content).probs
    probs = [f"prob_{name}" for name in predictor.classes]
    np.testing.assert_allclose(predictor.predict(dataset)[probs].to_numpy(), texts_alone, atol=1e-6)
    for images in (paths, [Path(path) for path in paths], [[data] for data in content], structs):
        np.testing.assert_allclose(predictor.predict(cards.assign(image=images))[probs], wanted, atol=1e-6)
    decoded = [Image.open(path).convert("RGB") for path in paths]
    by_pixels = predictor.predict(cards.assign(image=decoded))[probs].to_numpy()
    np.testing.assert_allclose(by_pixels, wanted, atol=0.02)  # libjpeg decodes a file at a smaller scale


def test_a_string_is_one_text_and_not_its_letters(predictor: Predictor) -> None:
    wanted = predictor.predict([["a lovely day"], ["rain"]]).probs
    assert np.array_equal(predictor.predict(["a lovely day", "rain"]).probs, wanted)
    assert np.array_equal(predictor.predict(pd.Series(["a lovely day", "rain"], index=[5, 3])).probs, wanted)
    assert predictor.predict(["a day"], ["gone.jpg"]).bad == [["gone.jpg: missing"]]
    with pytest.raises(InputError, match="texts: is not a list of samples; found 'a lovely day'"):
        predictor.predict("a lovely day")
    with pytest.raises(InputError, match=r"images: is not a list of samples; found 'day\.jpg'"):
        predictor.predict(["a lovely day"], "day.jpg")


def test_what_is_wrong_with_a_row_is_said(predictor: Predictor, cards: pd.DataFrame) -> None:
    there = cards["image"].iloc[0]
    frame = pd.DataFrame(
        {"text": [None, "a day", None, "a day"], "image": [[there, "gone.jpg"], "gone.jpg", "gone.jpg", None]}
    )
    frame.loc[4] = [" ", []]
    found = predictor.predict(frame, batch_size=2)
    assert found["problem"].tolist() == [
        "1 of 2 pictures left out: gone.jpg: missing",
        "1 of 1 picture left out: gone.jpg: missing",
        "no picture can be read: gone.jpg: missing",
        None,
        "has neither text nor picture",
    ]
    assert found["bad_pictures"].map(len).tolist() == [1, 1, 1, 0, 0]
    known = [True, True, False, True, False]
    for name in ("label", "confidence", *(f"prob_{each}" for each in predictor.classes), "disagreement"):
        assert found[name].notna().tolist() == known, name
    assert found["head_labels"].map(bool).tolist() == known
    alone = predictor.predict(["a day"])
    assert found["confidence"].iloc[3] == pytest.approx(alone.confidence[0], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((pd.DataFrame({"text": ["a"], "images": ["a.jpg"]}),), "no column `image`; nearest: 'images'"),
        ((pd.DataFrame({"words": ["a"]}),), "neither a column of texts nor of pictures; found 'words'"),
        ((pd.DataFrame({"text": ["a", 7]}),), "sample 2, text: is not a text; found 7"),
        ((pd.DataFrame({"text": ["a"]}), ["a.jpg"]), "images: does not go with a frame"),
        ((["a"], [["a.jpg"], []]), "differ in number"),
        ((["a", ""],), "sample 2: has neither text nor picture"),
    ],
)
def test_what_cannot_be_meant_is_refused(predictor: Predictor, arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        predictor.predict(*arguments)


def test_embeddings_are_what_the_heads_see(predictor: Predictor, cards: pd.DataFrame) -> None:
    features = predictor.embed(cards, batch_size=3)
    assert features.shape == (CARDS, 64)
    logits = [
        features @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
        for head in predictor.network.heads
    ]
    shown = np.exp(np.mean(logits, axis=0))
    probs = predictor.predict(cards)[[f"prob_{name}" for name in predictor.classes]]
    np.testing.assert_allclose(shown / shown.sum(1, keepdims=True), probs, atol=1e-5)
    np.testing.assert_allclose(predictor.embed(cards["text"].tolist(), cards["image"].tolist()), features, atol=1e-5)
    assert np.isnan(predictor.embed(pd.DataFrame({"text": ["a", None]}))).all(axis=1).tolist() == [False, True]
    assert predictor.embed(cards[:0]).shape == (0, 64) and len(predictor.predict(cards[:0])) == 0


def test_the_next_batch_is_read_meanwhile(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread of its own, for more than one batch; what is wrong with a later one is said in its place."""
    read, readers, before = predictor._batch, list[str](), set(threading.enumerate())

    def noted(texts: list[list[str]], pictures: list[list[str | bytes]]) -> Any:
        readers.append(threading.current_thread().name)
        return read(texts, pictures)

    monkeypatch.setattr(predictor, "_batch", noted)
    texts = ["a lovely day", "rain", "snow"]
    whole, parts = (predictor.predict(texts, batch_size=rows).probs for rows in (3, 1))
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert readers == ["MainThread"] + 3 * ["m2can-feed"]
    with pytest.raises(InputError, match="sample 3"):
        predictor.predict([*texts[:2], []], batch_size=1)
    assert not any(thread.name == "m2can-feed" for thread in set(threading.enumerate()) - before)
