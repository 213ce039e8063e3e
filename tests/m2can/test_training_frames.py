"""`m2can.train` with frames: they become manifests in the run's folder, and go with the run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import m2can
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.corpus import load_corpus
from datasets_manifest.records.readers import read_split
from m2can.frames import written_frames
from m2can.training import _data_of
from tests.trainers.tiny_run import small_recipe

TEXTS = {"pos": "good and lovely", "neg": "bad and sad"}


def reviews(rows: int = 40) -> pd.DataFrame:
    labels = ["pos", "neg"] * (rows // 2)
    pictures = [Image.new("RGB", (40, 40), "red" if label == "pos" else "blue") for label in labels]
    return pd.DataFrame({"text": [TEXTS[label] for label in labels], "image": pictures, "label": labels})


def recipe_in(folder: Path, name: str | None = None) -> m2can.Recipe:
    return m2can.load_recipe(small_recipe(folder), overrides={"run.storage": str(folder / "runs"), "run.name": name})


def test_frames_become_the_recipe_s_manifests(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    with _data_of(
        recipe, {}, {"forum": reviews(), "mail": reviews()}, {"shop": reviews().drop(columns="label")}, None
    ) as keys:
        named = m2can.load_recipe(recipe, overrides=keys)
        assert named.data.target == str(tmp_path / "runs" / str(named.run.name) / "data" / "shop" / "manifest.yaml")
        corpus = load_corpus(named.data.sources, named.data.target)
        assert (corpus.classes, corpus.target, corpus.num_sources) == (["neg", "pos"], "shop", 2)
        assert [len(part) for part in corpus.train] == [34] * 3 and [len(part or []) for part in corpus.val] == [6] * 3
        assert not (corpus.labels[corpus.train[-1].rows] >= 0).any()
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())  # no run came of it


def test_a_run_goes_on_with_the_same_data_alone(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "mine")
    run = tmp_path / "runs" / "mine"
    sources, target = {"forum": reviews()}, {"shop": reviews()}
    with written_frames(recipe, sources, target, None) as keys:
        (run / "recipe.json").write_text("{}")  # as the run's start does
    assert (run / "data" / "forum" / "manifest.yaml").is_file()
    with written_frames(recipe, {"forum": reviews()}, {"shop": reviews()}, None) as again:
        assert again == keys
    with (
        pytest.raises(m2can.InputError, match=r"run\.name: is the name of a run whose data for shop differ"),
        written_frames(recipe, sources, {"shop": reviews(42)}, None),
    ):
        pass
    assert read_split(load_manifest(run / "data" / "shop" / "manifest.yaml"), "train").table.num_rows == 34


@pytest.mark.parametrize(
    ("sources", "target", "classes", "words"),
    [
        ({"forum": reviews()}, None, None, "sources, target: go together"),
        ([reviews()], {"shop": reviews()}, None, "wanted a mapping of names to frames"),
        ({"shop": reviews()}, {"shop": reviews()}, None, "target: is a source, too; found 'shop'"),
        ({"forum": reviews()}, {"shop": reviews(), "mail": reviews()}, None, "target: is one domain"),
        ({"forum": reviews().drop(columns="label")}, {"shop": reviews()}, None, "label: fewer than two classes"),
        ({"forum": reviews()}, {"shop": reviews()}, ["pos", "none"], "forum, train, row 2, label: no such class"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, sources: object, target: object, classes: list[str] | None, words: str
) -> None:
    with pytest.raises(m2can.InputError, match=words):
        m2can.train(recipe_in(tmp_path), sources=sources, target=target, classes=classes)  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
