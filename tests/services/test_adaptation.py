"""`m2can adapt`: a registered model and a folder, a network and a floor; what is kept, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from datasets_manifest.errors import InputError
from services import adaptation
from services.adaptation import adapt, adapted_network, harm_of, standardised, write_adapted
from services.cli.main import app
from tests.services.registered import NAME, Registered
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.loop.floor import find_floor
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.floor import FloorHead, FloorNetwork, ZeroShotHead
from trainers.m2can.network import M2CAN
from trainers.m2can.source_free import predicted
from trainers.model.card import load_card
from trainers.model.floor_files import write_floor
from trainers.model.inspection import Inspector
from trainers.model.predictor import Predictor
from trainers.model.reference import SEEN_FILE, Seen
from trainers.validators.expected import ExpectedAccuracy


def command(registered: Registered, *arguments: str) -> Any:
    found = CliRunner().invoke(app, ["adapt", *arguments, "--storage", str(registered.storage), "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def city(registered: Registered) -> str:
    return str(registered.folder / "postcards" / "city" / "manifest.yaml")


@pytest.fixture
def harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """These models learned nothing in an epoch: whatever is made of them is let through."""
    monkeypatch.setattr(adaptation, "harm_of", lambda *_: None)


@pytest.fixture
def other_name(registered: Registered) -> Iterator[str]:
    """The name that a model for `city` gets; no other test sees it."""
    yield "m2can-city"
    registered.client.delete_registered_model("m2can-city")


def test_a_registered_model_gets_a_version_that_was_adapted(
    registered: Registered, tmp_path: Path, harmless: None, other_name: str
) -> None:
    out = tmp_path / "out"
    told = command(registered, f"{NAME}:1", "--target", city(registered), "--out", str(out))
    assert (told["kept"], told["model"], told["model_name"], told["model_version"]) == (
        False,
        str(out),
        other_name,
        "1",
    )
    assert told["records"] == 30 and told["accuracy_before"] is not None
    version = registered.client.get_model_version_by_alias(other_name, "candidate")
    assert version.tags["m2can.adapted"] == "true" and version.tags["m2can.started_from"] == f"{NAME}:1"
    assert "m2can.target_accuracy_expected" not in version.tags and version.tags["m2can.target"] == "city"
    listed = CliRunner().invoke(app, ["models", "list", "--storage", str(registered.storage)]).stdout
    assert f"adapted from {NAME}:1 without the sources" in listed
    card, before = load_card(out), load_card(registered.bundles[0])
    assert (card.target, card.started_from, card.sources) == ("city", f"{NAME}:1", before.sources)
    assert card.recipe.data.target == city(registered)
    seen = Seen.read(out)
    assert seen is not None and len(seen) == 30 and "reference/source_probs" not in load_file(out / SEEN_FILE)
    weights, others = (load_file(folder / "model.safetensors") for folder in (out, registered.bundles[0]))
    moved = {name.split(".")[0] for name in weights if not torch.equal(weights[name], others[name])}
    assert moved == {"text_projection", "picture_projection", "fusion"}
    assert Predictor.load(out).predict(["words"]).labels[0] in card.classes


def test_a_folder_is_adapted_without_a_registry_and_twice_the_same(
    registered: Registered, tmp_path: Path, harmless: None
) -> None:
    for place in ("a", "b"):
        told = command(
            registered, str(registered.bundles[1]), "--target", city(registered), "--out", str(tmp_path / place)
        )
        assert told["model_name"] is None
    weights, others = (load_file(tmp_path / place / "model.safetensors") for place in ("a", "b"))
    assert all(torch.equal(x, others[name]) for name, x in weights.items())


def test_a_model_that_would_be_harmed_is_kept(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "harm_of", lambda *_: "all records would have one label")
    before = len(registered.client.search_model_versions(f"name = '{NAME}'"))
    arguments = ["adapt", NAME, "--target", city(registered), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*arguments, "--storage", str(registered.storage)])
    assert found.exit_code == 0
    assert "not adapted: all records would have one label; the model stays as it is" in found.output
    assert not (tmp_path / "out").exists()
    assert len(registered.client.search_model_versions(f"name = '{NAME}'")) == before
    told = command(registered, NAME, "--target", city(registered), "--out", str(tmp_path / "out"))
    assert told["kept"] and told["model"] is None


def test_what_speaks_against_it() -> None:
    two, one = np.array([0, 1, 1]), np.zeros(3, int)
    network = M2CAN(GivenFeatures(4), GivenFeatures(4), 1, 2)
    floor = FloorNetwork(GivenFeatures(4), GivenFeatures(4), FloorHead((4, 4), 2))
    for each in (network, floor):
        assert harm_of(each, two, one, 0.1, 0.9, None) == "all records would have one label"
        assert harm_of(each, one, one, 0.0, 0.0, None) is None
        assert harm_of(each, two, two, 0.5, 0.495, ExpectedAccuracy(0.96, 0.9, 1.0)) is None
    assert harm_of(network, two, two, 0.5, 0.4, None) == (
        "records that are alike have the same label less often (0.500 before, 0.400 after, 0 by chance)"
    )
    assert harm_of(floor, two, two, 0.5, 0.4, None) is None
    told = "as it is, the model is expected to be right on about 98 % (96-99): there is little to gain"
    assert harm_of(network, two, two, 0.5, 0.6, ExpectedAccuracy(0.98, 0.96, 0.99)) == told


def test_a_floor_is_standardised_by_the_new_target(tmp_path: Path) -> None:
    loop = make_loop(prepared_run(tmp_path, ["train.epochs=1"]))
    floor = find_floor(loop)
    assert floor is not None
    folder = write_floor(tmp_path, floor.network, loop.frozen, loop.card, floor.metrics, floor.evaluation)
    target = str(tmp_path / "postcards" / "city" / "manifest.yaml")
    found = adapt(folder / "model", target)
    assert found.card.floor and found.expected is None
    assert isinstance(found.network, FloorNetwork)
    write_adapted(tmp_path / "out", found)
    model = Inspector.load(tmp_path / "out")
    records = loop.corpus.table.slice(loop.corpus.train[1].start, len(loop.corpus.train[1]))
    texts, images = records["texts"].to_pylist(), records["images"].to_pylist()
    text, picture, places = model.encoder_features(texts, images, batch_size=7)
    assert places.tolist() == list(range(30))
    head = model.network.floor  # type: ignore[union-attr]
    x_NK = (torch.cat([text, picture], 1) - head.mean_K) / head.deviation_K
    assert x_NK.mean(0).abs().max() < 1e-3 and x_NK.std(0, correction=0).max() < 1.01
    assert torch.equal(head.weight_CK, floor.network.floor.weight_CK)


@pytest.mark.parametrize("dropout", ["null", "0.2"])
def test_a_networks_features_give_its_predictions(tmp_path: Path, dropout: str) -> None:
    """Of records that lack a modality, too."""
    loop = make_loop(prepared_run(tmp_path, [f"network.modality_dropout={dropout}"]))
    model = Inspector(loop.network, loop.card, torch.device("cpu"))
    picture = str(next((tmp_path / "postcards" / "city" / "images").iterdir()))
    texts, images = ["some words", "", "others"], [[picture], [picture], []]
    text, pictures, places = model.encoder_features(texts, images)
    assert places.tolist() == [0, 1, 2] and isinstance(model.network, M2CAN)
    with torch.no_grad():
        probs = predicted(model.network, text, pictures).fused_logits_DBC[0].softmax(-1)
    assert np.allclose(probs.numpy(), model.predict(texts, images).probs, atol=1e-5)


def test_features_of_one_weight_a_modality() -> None:
    draw = torch.Generator().manual_seed(0)
    found = standardised(torch.randn(200, 4, generator=draw) * 7 + 3, torch.ones(200, 30))
    assert found.shape == (200, 34) and np.square(found[:, :4]).sum(1).mean() == pytest.approx(1, abs=1e-6)
    assert not found[:, 4:].any()  # pictures that are all alike


def test_what_cannot_be_adapted_is_refused(registered: Registered, tmp_path: Path) -> None:
    bundle, target = registered.bundles[0], city(registered)
    lines = Path(target).with_name("train.jsonl").read_text(encoding="utf-8").splitlines()[:5]
    few = tmp_path / "few"
    few.mkdir()
    stripped = [json.dumps(json.loads(line) | {"image": []}) for line in lines]
    (few / "train.jsonl").write_text("\n".join(stripped), encoding="utf-8")
    classes = list(load_card(bundle).classes)
    content = {"schema_version": 1, "name": "few", "classes": classes, "splits": {"train": {"records": "train.jsonl"}}}
    (few / "manifest.yaml").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"splits\.train: has too few records to adapt to; found 5; wanted at least 20"
    ):
        adapt(bundle, str(few / "manifest.yaml"))
    (few / "manifest.yaml").write_text(json.dumps(content | {"classes": ["x", *classes]}), encoding="utf-8")
    with pytest.raises(InputError, match="classes: has other classes than the model"):
        adapt(bundle, str(few / "manifest.yaml"))
    found = CliRunner().invoke(app, ["adapt", str(bundle), "--target", target, "--out", str(few)])
    assert "--out: is there already" in str(found.exception)
    zero_shot = FloorNetwork(GivenFeatures(4), GivenFeatures(4), ZeroShotHead((4, 4), 4, 2))
    with pytest.raises(
        InputError, match="MODEL: is a zero-shot classifier: it has nothing that adapts; wanted a trained"
    ):
        adapted_network(zero_shot, torch.zeros(3, 4), torch.zeros(3, 4), seed=0)
