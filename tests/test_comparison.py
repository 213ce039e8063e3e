"""The comparison's variants are recipes, and its data have no name on both sides."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import cached
from benchmarks.cached import STRONG_VIEWS, cache_features, cached_loop, view_features
from benchmarks.comparison import area_under_curve, summary
from benchmarks.comparison_page import GROUPS, MARK, README, RESULTS, TRIED_GROUPS, experiments_section, table
from benchmarks.icons import Icon, draw, write_icons
from benchmarks.variants import COMMON, EXPERIMENTS_OF, PRESET_OF, VARIANTS
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.stream.local_stream import LocalStream
from experiments.catalog import NAMES
from trainers.compute.device_batches import make_encoding, to_batch
from trainers.model.build import build_network
from trainers.preflight.preparation import prepare
from trainers.recipe import apply_override, make_recipe


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_recipe_of_its_own(name: str) -> None:
    preset = PRESET_OF.get(name, "published")
    trees = []
    for overrides in (VARIANTS[name], []):
        tree = {"preset": preset, "data": {"sources": ["a", "b"], "target": "c"}}
        for override in [*COMMON, *overrides]:
            apply_override(tree, override)
        trees.append(make_recipe(tree))
    experiments = EXPERIMENTS_OF.get(name, [])
    assert set(experiments) <= set(NAMES)
    assert experiments or (trees[0] == trees[1]) == (name in ("published", "recommended"))
    groups = TRIED_GROUPS if experiments else GROUPS
    assert name in {variant for group in groups.values() for variant in group}


def test_the_readme_of_the_experiments_has_their_rows() -> None:
    _, _, rest = README.read_text().partition(MARK)
    assert rest.strip() == experiments_section(json.loads(RESULTS.read_text())).strip()


def package(cache: Path, domain: str, members: dict[str, str]) -> None:
    folder = cache / domain
    folder.mkdir(parents=True)
    with tarfile.open(folder / "package.tgz", "w:gz") as archive:
        for name, content in members.items():
            file = folder / "member"
            file.write_text(content)
            archive.add(file, f"package/{name}")


def test_icons_of_three_packages(tmp_path: Path) -> None:
    names = [f"{word}-{form}" for word in ("car", "boat", "bus", "bike", "train", "plane") for form in ("a", "b")]
    square = "M2 2H20V20H2Z"
    cache = tmp_path / "cache"
    facts = {name: {"category": "Vehicles", "tags": [name, "ride"]} for name in names}
    nodes = {name: [["path", {"d": square}]] for name in names}
    package(cache, "tabler", {"icons.json": json.dumps(facts), "tabler-nodes-outline.json": json.dumps(nodes)})
    drawing = {"classic": {"solid": {"path": square, "viewBox": [0, 0, 24, 24]}}}
    families = {name: {"svgs": drawing, "search": {"terms": ["ride"]}} for name in names}
    categories = json.dumps({"transportation": {"icons": names}})
    package(
        cache,
        "fontawesome",
        {"metadata/icon-families.json": json.dumps(families), "metadata/categories.yml": categories},
    )
    meta = [{"name": name, "tags": ["Transportation + Road", "Shape"], "aliases": []} for name in names]
    svgs = {f"svg/{name}.svg": f'<svg><path d="{square}"/></svg>' for name in names}
    package(cache, "mdi", {"meta.json": json.dumps(meta), **svgs})

    manifests = write_icons(tmp_path / "out", cache, seed=0)
    assert [manifest.parent.name for manifest in manifests] == ["tabler", "fontawesome", "mdi"]
    seen: dict[str, set[str]] = {}
    for manifest in manifests:
        words: dict[str, set[str]] = {}
        for split in ("train", "val"):
            for line in (manifest.parent / f"{split}.jsonl").read_text().splitlines():
                record = json.loads(line)
                assert record["label"] == "vehicles" and (manifest.parent / record["image"]).is_file()
                assert record["text"].startswith(record["id"].replace("-", " "))
                seen.setdefault(manifest.parent.name, set()).add(record["id"])
                words.setdefault(split, set()).add(record["id"].split("-")[0])
        assert not words.get("train", set()) & words.get("val", set())
    every = [name for owned in seen.values() for name in owned]
    assert sorted(every) == sorted(names)  # each name once, in one domain


def test_lines_and_filled_shapes() -> None:
    square, hole = "M0 0H24V24H0Z", "M8 8H16V16H8Z"
    filled = draw(Icon("x", [], [], [square + hole], 24, lines=False))
    assert filled[48, 48] == 255 and filled[20, 20] == 0 and filled[1, 1] == 255
    lines = draw(Icon("x", [], [], [square], 24, lines=True))
    assert lines[48, 48] == 255 and lines[48, 6] < 128


def test_area_under_curve() -> None:
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    assert area_under_curve(np.array([0, 0, 1, 1]), probs) == pytest.approx(0.75)  # one of four pairs is the wrong way


def test_table_of_runs() -> None:
    runs = [
        {"data": "postcards", "seed": seed, "variant": "published", "cpu_s": 4.0, "chosen": 0.8 + 0.02 * seed}
        | {"oracle": 0.9, "last": 0.8, "macro_f1": 0.7, "auc": 0.95}
        for seed in range(2)
    ]
    assert summary(runs)["postcards", "published"]["chosen"] == pytest.approx((0.81, 0.0141421), abs=1e-6)
    assert "| published (2) | 81.0 ± 1.4 | 90.0 ± 0.0 | 70.0 | 95.0 |" in table(runs)


def test_cached_features_are_what_the_encoders_make_of_each_view(tmp_path: Path) -> None:
    manifests = [str(path) for path in write_postcards(tmp_path, train=14, val=3).values()]
    data = {"sources": manifests[:-1], "target": manifests[-1], "pictures": {"resize": 36, "crop": 32}}
    encoders = {"text": {"name": "tiny"}, "picture": {"name": "tiny"}}
    prepared = prepare(make_recipe({"data": data, "encoders": encoders}))
    card, corpus = prepared.card, prepared.corpus
    torch.manual_seed(3)
    text_VNK, picture_VNK = view_features(card, corpus)
    assert text_VNK.shape[:2] == picture_VNK.shape[:2] == (1 + STRONG_VIEWS, corpus.table.num_rows)
    torch.manual_seed(3)
    network = build_network(card.recipe, card.text_config, len(corpus.classes), load_weights=True).eval()
    rows = np.arange(corpus.table.num_rows)
    encoding = make_encoding(card.recipe, card.vocabulary, epoch=0, strong=False)
    host = next(LocalStream(corpus.table).evaluate([rows], encoding))
    batch = to_batch(host, np.full((1, len(rows)), -1), device=torch.device("cpu"), dtype=torch.float32)
    with torch.inference_mode():
        text_NK = network.text_encoder(batch.text, batch.text_mask, batch.text_lengths)
        picture_NK = network.picture_encoder(batch.pictures, batch)
    torch.testing.assert_close(text_VNK[0], text_NK, rtol=1e-4, atol=1e-5)
    # The scale at which a picture is decoded depends on its strong view: the weak one is the same but for some grey levels.
    likeness_VN = torch.cosine_similarity(picture_VNK, picture_NK, dim=-1)
    assert likeness_VN[0].min() > 0.99 > likeness_VN[1:].min()
    assert not torch.equal(picture_VNK[1], picture_VNK[2])


def test_features_of_records_without_pictures_are_zero() -> None:
    features_VNK = cached._principal(torch.zeros(1 + STRONG_VIEWS, 4, 8))
    assert torch.equal(features_VNK, torch.zeros_like(features_VNK))


def test_an_empty_cache_is_filled_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "frozen_encoders", lambda _: {"text": {"name": "tiny"}, "picture": {"name": "tiny"}})
    manifests = list(write_postcards(tmp_path / "data", train=10, val=3).values())
    records = manifests[0].parent / "train.jsonl"
    long = [json.loads(line) | {"text": ["wide " * 200]} for line in records.read_text().splitlines()]
    records.write_text("".join(json.dumps(record) + "\n" for record in long))
    torch.manual_seed(0)
    filled = cache_features(manifests, tmp_path / "cache", 32)
    assert filled.card.recipe.data.texts.max_tokens == 256
    assert filled.text_VNK.shape[:2] == filled.picture_VNK.shape[:2] == (1 + STRONG_VIEWS, 39)
    assert filled.text_VNK[0].norm(dim=-1).mean() == pytest.approx(1, abs=1e-5)
    monkeypatch.setattr(cached, "view_features", None)  # nothing is computed again
    again = cache_features(manifests, tmp_path / "cache", 32)
    assert torch.equal(again.text_VNK, filled.text_VNK) and torch.equal(again.picture_VNK, filled.picture_VNK)
    tree = {"data": again.card.recipe.data.model_dump(mode="json"), "train": {"epochs": 1, "batch_size": 4}}
    metrics, _ = cached_loop(again, make_recipe(tree)).run_epoch()
    assert 0 <= metrics["target/val/accuracy"] <= 1
