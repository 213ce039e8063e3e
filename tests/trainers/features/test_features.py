"""Features of frozen encoders: what is computed, what is refused, and that training on them is training on the encoders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from datasets_manifest.errors import InputError
from datasets_manifest.features import feature_files
from datasets_manifest.features.feature_files import FeatureFolder, records_of
from datasets_manifest.features.feature_stream import FeatureStream
from datasets_manifest.features.feature_views import encode_views
from datasets_manifest.stream.encode import index_table
from datasets_manifest.stream.local_stream import LocalStream
from tests.trainers.encoders.test_damaged_models import write_bert
from tests.trainers.tiny_run import make_loop, small_recipe
from trainers.compute.device_batches import make_encoding
from trainers.features import compute
from trainers.features.compute import compute_features
from trainers.loop.loop import Loop
from trainers.m2can.network import features_of
from trainers.model.features import FIELD, FrozenEncoders, encoder_digests
from trainers.model.predictor import Predictor
from trainers.preflight.features import read_features, seeded_network
from trainers.preflight.preparation import Prepared, prepare
from trainers.recipe import Recipe

FROZEN = ["encoders.text.freeze=all", "encoders.picture.freeze=all"]
# Views of square pictures without randomness: what is drawn for a step is what was drawn for the features.
PLAIN = ["data.pictures.strong.area=[1.0,1.0]", "data.pictures.strong.flip=0", "data.pictures.strong.jitter_p=0",
         "data.pictures.strong.greyscale=0", "data.texts.word_dropout=0"]  # fmt: skip
# Features are rounded to float32. Adam would make a whole step of the rounding of a gradient that is zero.
RATES = ["optimizer.type=sgd", *(f"optimizer.lr.{part}=1e-2" for part in ("projections", "fusion", "heads"))]
EXACT = ["train.precision=fp64", "train.epochs=2", *FROZEN, *PLAIN, *RATES]


def square_recipe(folder: Path, *overrides: str) -> Recipe:
    """`small_recipe`, on pictures that are square: of others a crop of the whole area may leave a row of pixels out."""
    recipe = small_recipe(folder, [*EXACT, *overrides])
    for file in folder.rglob("postcards/*/*/*.*"):
        Image.open(file).resize((96, 96)).save(file)
    return recipe


def computed_here(job: compute.FeatureJob, weights: Any, table: pa.Table, rows: np.ndarray) -> Iterator[pa.Table]:
    """In the place of computed_on_ray."""
    encoders = FrozenEncoders(job.card, weights, torch.device("cpu"))
    for some in np.array_split(rows, -(-len(rows) // 20)):
        index = index_table(np.zeros_like(some), some, np.zeros_like(some))
        yield encoders(encode_views(index, table, job.encoding, job.strong), job.encoding, job.strong)


@dataclass(frozen=True)
class Computed:
    """A folder with a data set, `recipe` on it, and features of its encoders in `out`."""

    folder: Path
    recipe: Recipe
    out: Path

    def recipe_with(self, *overrides: str, features: Path | None = None) -> Recipe:
        """The recipe, trained on the features."""
        return small_recipe(self.folder, [*EXACT, f"encoders.features={features or self.out}", *overrides])


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Computed:
    folder = tmp_path_factory.mktemp("features")
    recipe = square_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "computed_on_ray", computed_here)
        patch.setattr(feature_files, "SHARD_ROWS", 50)
        compute_features(recipe, folder / "out")
    return Computed(folder, recipe, folder / "out")


def feature_loop(prepared: Prepared) -> Loop:
    """The training loop without Ray, on features."""
    loop = make_loop(prepared)
    loop.batches.source = FeatureStream(read_features(prepared.recipe, prepared.corpus, prepared.card.vocabulary))
    return loop


def test_a_shard_has_a_row_for_each_record_of_all_that_training_reads(computed: Computed) -> None:
    corpus = prepare(computed.recipe).corpus
    files = sorted(computed.out.glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    assert [pq.read_metadata(file).num_rows for file in files] == [50, 50, 26]
    assert table.num_rows == corpus.table.num_rows == 3 * (30 + 12)
    assert table.select(["domain", "split", "id", "content", "label"]).equals(records_of(corpus))
    assert set(table["split"].to_pylist()) == {"train", "val"}
    assert table.schema.field("text_weak").type == pa.list_(pa.float32(), 32)
    assert table.schema.field("picture_strong_1").type == pa.list_(pa.float32(), 32)
    content = json.loads((computed.out / "features.json").read_text())
    assert set(content["shards"]) == {file.name for file in files}
    assert content["preprocessing"]["data.pictures.crop"] == 64
    assert content["views"]["strong"] == 2


def test_features_are_what_the_encoders_give_in_the_loop(computed: Computed) -> None:
    prepared = prepare(computed.recipe)
    loop = make_loop(prepared)
    loop.network.eval()
    features = read_features(computed.recipe_with(), prepared.corpus, prepared.card.vocabulary)
    rows = np.array([3, 40, 100])
    host = next(
        LocalStream(prepared.corpus.table).evaluate([rows], make_encoding(prepared.recipe, prepared.card.vocabulary))
    )
    with loop.batches.evaluate([rows]) as feed:
        _, batch = next(feed)
    with torch.no_grad():
        text_NK, picture_NK = features_of(loop.network, batch)
    assert list(host.rows) == list(rows)
    np.testing.assert_allclose(features.text_VNK[0, rows], text_NK.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(features.picture_VNK[0, rows], picture_NK.numpy(), rtol=1e-4, atol=1e-6)


def test_training_on_features_is_training_on_the_frozen_encoders(computed: Computed) -> None:
    loops = make_loop(prepare(computed.recipe)), feature_loop(prepare(computed.recipe_with()))
    for _ in range(2):
        (wanted, _), (found, _) = (loop.run_epoch() for loop in loops)
        names = [name for name in wanted if not name.startswith(("time/", "speed/"))]
        assert {"loss/total", "loss/cmcfa", "target/val/accuracy", "selection/score"} < set(names)
        for name in names:
            assert found[name] == pytest.approx(wanted[name], rel=1e-6, abs=1e-9), name
    weights = [loop.network.state_dict() for loop in loops]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-5, atol=1e-7)


def with_features(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str, **how: Any) -> Path:
    """Features of the small recipe, with random views, in a folder of their own."""
    monkeypatch.setattr(compute, "computed_on_ray", computed_here)
    compute_features(small_recipe(folder, [*FROZEN, *overrides]), folder / "out", **how)
    return folder / "out"


def test_strong_views_are_those_of_the_first_epochs_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = with_features(monkeypatch, tmp_path, strong=3)
    run = prepare(small_recipe(tmp_path, [*FROZEN, f"encoders.features={out}"]))
    features, loop = read_features(run.recipe, run.corpus, run.card.vocabulary), make_loop(run)
    assert features.text_VNK.shape == features.picture_VNK.shape == (4, 126, 32)
    slice_ = loop.plan().worker_step(0, 0, 1)
    slice_ = replace(slice_, positions_DB=np.zeros_like(slice_.positions_DB))
    rows = slice_.rows_DB.ravel()
    for epoch in range(5):
        with torch.no_grad(), loop.batches.train([slice_], epoch) as feed:
            wanted = [x.numpy() for x in features_of(loop.network.eval(), next(feed)[1])]
        batch = next(
            FeatureStream(features).train([slice_], make_encoding(run.recipe, run.card.vocabulary, epoch=epoch))
        )
        assert list(batch.rows) == list(rows)
        agrees = [
            np.allclose(found, one, rtol=1e-3, atol=1e-4)
            for found, one in zip((batch.text, batch.picture), wanted, strict=True)
        ]
        assert agrees == [epoch < 3] * 2, (
            epoch
        )  # later epochs take the first views again, an encoder would see new ones
        np.testing.assert_array_equal(batch.picture[len(rows) :], features.picture_VNK[1 + epoch % 3, rows])
    assert np.abs(features.picture_VNK[1] - features.picture_VNK[2]).max() > 0.01


def test_computing_goes_on_with_the_shards_that_are_missing(
    computed: Computed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int] = []
    started: list[str] = []

    def dies(job: compute.FeatureJob, weights: Any, table: pa.Table, rows: np.ndarray) -> Iterator[pa.Table]:
        asked.append(len(rows))
        for number, block in enumerate(computed_here(job, weights, table, rows)):
            if len(asked) == 1 and number == 4:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(feature_files, "SHARD_ROWS", 50)
    monkeypatch.setattr(compute, "computed_on_ray", dies)

    def start(out: str = "out", **how: Any) -> compute.FeatureSummary:
        return compute_features(computed.recipe, tmp_path / out, start_ray=lambda: started.append(out), **how)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert [file.name for file in sorted(tmp_path.glob("out/*"))] == ["features-00000.parquet", "features.json"]
    with pytest.raises(InputError, match="is not complete"):
        FeatureFolder(tmp_path / "out", FIELD)
    summary = start()
    assert asked == [126, 76]
    assert (summary.records, summary.resumed, summary.strong_views) == (126, 50, 2)
    assert summary.bytes == sum(file.stat().st_size for file in tmp_path.glob("out/*.parquet"))
    whole = json.loads((computed.out / "features.json").read_text())
    assert json.loads((tmp_path / "out" / "features.json").read_text())["records"] == whole["records"]
    for file in tmp_path.glob("out/*.parquet"):
        found, wanted = pq.read_table(file), pq.read_table(computed.out / file.name)
        for name in ("id", "label"):
            assert found[name].equals(wanted[name])
        for name in ("text_weak", "picture_strong_1"):
            np.testing.assert_allclose(*(np.stack(table[name].to_pylist()) for table in (found, wanted)), atol=1e-5)
    started.clear()
    assert start().resumed == 126 and asked == [126, 76] and started == []
    with pytest.raises(InputError, match=r"OUT: holds features of something else: views\.strong differ"):
        start(strong=3)
    with pytest.raises(InputError, match="OUT: is not empty"):
        compute_features(computed.recipe, computed.folder / "postcards")
    assert started == []


@pytest.mark.parametrize("tower", ["text", "picture"])
def test_an_encoder_that_is_trained_has_no_features(computed: Computed, tower: str, tmp_path: Path) -> None:
    recipe = small_recipe(computed.folder, [*EXACT, f"encoders.{tower}.freeze=1"])
    with pytest.raises(InputError, match=rf"encoders\.{tower}\.freeze: .*found 1; wanted `all`"):
        compute_features(recipe, tmp_path / "out", start_ray=lambda: pytest.fail("Ray was started"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=rf"features: .*encoders\.{tower}\.freeze: none, wanted `all`"):
        computed.recipe_with(f"encoders.{tower}.freeze=none")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.pictures.crop=56", r"data\.pictures\.crop: is not what .*; found 56; wanted data\.pictures\.crop=64"),
        ("data.texts.word_dropout=0.5", r"data\.texts\.word_dropout: .*found 0\.5; wanted .*=0"),
        ("encoders.text.pooling=cls", r"encoders\.text\.pooling: .*found 'cls'"),
        ("encoders.picture.name=tiny:8", r"encoders\.picture\.name: gives another picture encoder .*wanted .*=tiny:4"),
        ("train.seed=5", r"train\.seed: gives another text encoder .*found 5; wanted train\.seed=1"),
    ],
)
def test_features_of_something_else_are_refused_with_the_key(computed: Computed, override: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        prepare(computed.recipe_with(override))


def test_dropout_is_no_other_encoder(tmp_path: Path) -> None:
    """Features have none."""
    folder = write_bert(tmp_path / "bert")
    keys = [*FROZEN, f"encoders.text.name={folder}", "data.texts.max_tokens=12"]
    found = []
    for more in ([], ["encoders.text.dropout=0"]):
        card = prepare(small_recipe(tmp_path, [*keys, *more])).card
        assert (card.text_config["hidden_dropout_prob"] == 0) == bool(more)
        found.append(encoder_digests(card, seeded_network(card)))
    assert found[0] == found[1]


def test_features_of_other_records_are_refused(computed: Computed, tmp_path: Path) -> None:
    """A text that was changed, a record that is new; the other order of the sources, and fewer records, are none."""
    other = replace(computed, folder=tmp_path)
    shutil.copytree(computed.folder / "postcards", tmp_path / "postcards")
    prepare(other.recipe_with())
    cards = tmp_path / "postcards"
    turned = prepare(other.recipe_with(f"data.sources=['{cards}/city/manifest.yaml','{cards}/seaside/manifest.yaml']"))
    features = read_features(turned.recipe, turned.corpus, turned.card.vocabulary)
    wanted = read_features(computed.recipe_with(), prepare(computed.recipe).corpus, turned.card.vocabulary)
    np.testing.assert_array_equal(features.text_VNK[:, :30], wanted.text_VNK[:, 30:60])
    np.testing.assert_array_equal(features.picture_VNK[:, 60:90], wanted.picture_VNK[:, 60:90])
    file = cards / "city" / "train.jsonl"
    first, *others = file.read_text().splitlines()
    changed = json.loads(first) | {"text": ["Something else."]}
    file.write_text("\n".join([json.dumps(changed), *others]) + "\n")
    with pytest.raises(InputError, match="has features of another record city-train-00000 of city, train: its texts"):
        prepare(other.recipe_with())
    file.write_text("\n".join([first, *others, json.dumps(json.loads(first) | {"id": "new"})]) + "\n")
    with pytest.raises(InputError, match=r"encoders\.features: has no features of record new of city, train"):
        prepare(other.recipe_with())


def test_a_folder_that_is_no_features_or_was_altered_is_refused(computed: Computed, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"encoders\.features: holds no features"):
        prepare(computed.recipe_with(features=tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(computed.out, copy)
    pq.write_table(pq.read_table(copy / "features-00001.parquet"), copy / "features-00001.parquet", compression="none")
    with pytest.raises(InputError, match=r"features-00001\.parquet: encoders\.features: is truncated or altered"):
        prepare(computed.recipe_with(features=copy))
    content = json.loads((copy / "features.json").read_text())
    file = copy / "features-00000.parquet"
    whole = file.read_bytes()
    for part in (whole[:1000], b""):
        file.write_bytes(part)
        with pytest.raises(InputError, match=r"features-00000\.parquet: encoders\.features: is truncated or altered"):
            prepare(computed.recipe_with(features=copy))
    file.unlink()
    with pytest.raises(
        InputError, match=r"features-00000\.parquet: encoders\.features: is missing; wanted the command"
    ):
        prepare(computed.recipe_with(features=copy))
    (copy / "features.json").write_text(json.dumps(content | {"shards": {"../elsewhere.parquet": {}}}))
    with pytest.raises(InputError, match="is missing"):
        prepare(computed.recipe_with(features=copy))
    (copy / "features.json").write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(InputError, match=r"features\.json: schema_version: is of another version; found 99; wanted 1"):
        prepare(computed.recipe_with(features=copy))


def test_a_damaged_shard_is_made_anew(computed: Computed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compute, "computed_on_ray", computed_here)
    monkeypatch.setattr(feature_files, "SHARD_ROWS", 50)
    copy = tmp_path / "copy"
    for is_complete in (True, False):
        shutil.copytree(computed.out, copy, dirs_exist_ok=True)
        content = json.loads((copy / "features.json").read_text())
        (copy / "features.json").write_text(json.dumps(content | ({} if is_complete else {"shards": None})))
        file = copy / "features-00001.parquet"
        file.write_bytes(file.read_bytes()[:1000])
        assert compute_features(computed.recipe, copy).resumed == 126 - 50
        prepare(computed.recipe_with(features=copy))


def test_bad_pictures_are_counted_as_they_are_without_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, FROZEN)
    lines = (tmp_path / "postcards" / "seaside" / "train.jsonl").read_text().splitlines()
    for image in json.loads(lines[0])["image"]:
        (tmp_path / "postcards" / "seaside" / image).write_bytes(b"this is not a picture")
    monkeypatch.setattr(compute, "computed_on_ray", computed_here)
    assert compute_features(recipe, tmp_path / "out").with_bad_pictures == 1
    loop = feature_loop(prepare(small_recipe(tmp_path, [*FROZEN, f"encoders.features={tmp_path / 'out'}"])))
    assert loop.run_epoch()[0]["data/bad_records"] == 1


def test_the_model_has_its_encoders(computed: Computed, tmp_path: Path) -> None:
    """It is saved by a run on features, and predicts raw texts and pictures as the network of that run predicts features."""
    loop = feature_loop(prepare(computed.recipe_with()))
    _, scored = loop.run_epoch()
    loop.save(tmp_path / "run" / "checkpoint_1", {})
    assert (tmp_path / "run" / "frozen.safetensors").is_file()
    target = loop.corpus.val[-1]
    assert target is not None
    raw = prepare(computed.recipe).corpus.table.slice(target.start, len(target))
    found = Predictor.load(tmp_path / "run" / "checkpoint_1").predict(
        raw["texts"].to_pylist(), raw["images"].to_pylist()
    )
    np.testing.assert_allclose(found.confidence, scored.of(target)["prob"], rtol=1e-4, atol=1e-6)
    again = feature_loop(prepare(computed.recipe_with()))
    again.load(tmp_path / "run" / "checkpoint_1")
    assert again.run_epoch()[0]["loss/total"] == loop.run_epoch()[0]["loss/total"]
    started = computed.recipe_with("train.seed=5", f"train.start_from={tmp_path / 'run' / 'checkpoint_1'}")
    assert prepare(started).taken  # its encoders begin as those of the features, whatever its seed draws
