"""The registry: find, compare, promote behind a gate, roll back, fetch checked, delete."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from datasets_manifest.errors import InputError
from services import promotion, registry
from services.model_files import model_files
from services.promotion import Gate, PromotionRefused
from tests.services.registered import NAME, Registered
from trainers.tracking import registered_models
from trainers.tracking.mlflow_run import open_client


def holder(registered: Registered, alias: str) -> str:
    return registered_models.find_model(registered.client, f"{NAME}@{alias}").version


def test_promotions_are_recorded_and_rolled_back_in_order(registered: Registered) -> None:
    client = registered.client
    for version in ("1", "2", "1"):
        promotion.promote(client, f"{NAME}:{version}", "ringed", by="someone")
    assert holder(registered, "ringed") == "1"
    assert promotion.rollback(client, NAME, "ringed").after == "2"
    assert promotion.rollback(client, NAME, "ringed").after == "1"
    with pytest.raises(InputError, match="no version had @ringed before"):
        promotion.rollback(client, NAME, "ringed")
    records = [record for record in promotion.history(client, NAME) if record.alias == "ringed"]
    assert [(r.action, r.before, r.after) for r in records] == [
        ("promote", None, "1"), ("promote", "1", "2"), ("promote", "2", "1"),
        ("rollback", "1", "2"), ("rollback", "2", "1"),
    ]  # fmt: skip
    assert records[0].by == "someone"


def test_the_gate_opens_for_the_better_version_alone(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of two tiny models is better is chance; so each is measured, and the gate asked both ways."""
    client = registered.client
    gate = Gate("gated", registered.manifest, metric="accuracy")
    first = promotion.promote(client, f"{NAME}:1", "gated", gate)
    assert first.evidence["records"] == 12  # nobody to beat yet
    measured = promotion.compare(client, f"{NAME}:1", f"{NAME}:2", registered.manifest)["metrics"]
    better = measured[1]["accuracy"] > measured[0]["accuracy"]
    if better:
        moved = promotion.promote(client, f"{NAME}:2", "gated", gate)
        assert moved.evidence["value"] > moved.evidence["than_value"]
    else:
        with pytest.raises(PromotionRefused, match="is not promoted"):
            promotion.promote(client, f"{NAME}:2", "gated", gate)
    assert holder(registered, "gated") == ("2" if better else "1")
    with pytest.raises(PromotionRefused, match="is not higher"):  # nobody is better than itself
        promotion.promote(client, f"{NAME}@gated", "gated", gate)


def test_compare_names_what_differs(registered: Registered) -> None:
    result = promotion.compare(registered.client, f"{NAME}:1", f"{NAME}:2")
    assert result["recipe"] == {"train.epochs": ["1", "2"]}
    assert result["tags"]["m2can.target_accuracy_chosen"] == ["0.1", "0.2"]
    assert "m2can.target" not in result["tags"]


def test_search_filters(registered: Registered) -> None:
    def found(**criteria: object) -> list[str]:
        return [v.version for v in registry.search_models(registered.client, **criteria)]  # type: ignore[arg-type]

    assert found(target="mountain") == ["2", "1"]
    assert found(min_accuracy=0.15) == ["2"]
    assert found(source="city", text="MOUNT", alias="candidate") == ["2"]
    assert found(target="city") == []


@pytest.mark.slow
def test_more_models_than_a_page_of_mlflow_are_listed(tmp_path: Path) -> None:
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db")
    for number in range(103):
        client.create_registered_model(f"m{number:03}")
        client.create_model_version(f"m{number:03}", str(tmp_path))
    assert [version.name for version in registry.list_models(client)] == [f"m{number:03}" for number in range(103)]


def test_fetch_gives_verified_files_and_leaves_nothing_when_they_were_altered(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.fetch(registered.client, f"{NAME}:1", tmp_path / "model")
    registered_models.check_files(tmp_path / "model", version)
    weights = registered_models.bundle_of(tmp_path / "model") / "model.safetensors"
    assert weights.read_bytes() == (registered.bundles[0] / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        registry.fetch(registered.client, f"{NAME}:1", tmp_path / "model")

    def altered(change: str) -> str:
        copy = tmp_path / f"copy-{change}"
        shutil.copytree(tmp_path / "model", copy)
        if change == "weights":
            file = registered_models.bundle_of(copy) / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
        elif change == "code":
            (copy / "code" / "sitecustomize.py").write_text("raise SystemExit")
        else:  # the list is made to fit the altered file
            listing = copy / "files.json"
            listing.write_text(listing.read_text() + " ")
        monkeypatch.setattr(registry, "download", lambda client, version: copy)
        with pytest.raises(InputError) as caught:
            registry.fetch(registered.client, f"{NAME}:1", tmp_path / "out")
        monkeypatch.setattr(registered_models, "download", lambda client, version: copy)
        with pytest.raises(InputError) as named:  # by predict, too: not that there is no such model
            model_files(f"{NAME}:1", registered.uri)
        assert named.value.problem == caught.value.problem
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
        return str(caught.value)

    assert "model.safetensors: is truncated or altered" in altered("weights")
    assert "sitecustomize.py: was put in after registration" in altered("code")
    assert "files.json: was altered after registration" in altered("list")


def test_only_a_numbered_version_without_alias_is_deleted(registered: Registered) -> None:
    with pytest.raises(InputError, match="names no version"):
        promotion.delete(registered.client, NAME)
    with pytest.raises(InputError, match="is in use; found '@candidate"):
        promotion.delete(registered.client, f"{NAME}:2")


@pytest.mark.parametrize("reference", ["../m", "a/b/c", "name@", "n' OR '1'='1", "http://there/x"])
def test_a_reference_that_is_none_is_refused(registered: Registered, reference: str) -> None:
    with pytest.raises(InputError):
        registered_models.find_model(registered.client, reference)
