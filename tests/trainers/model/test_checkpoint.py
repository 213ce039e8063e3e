"""Checkpoints: whole or not at all, read back exactly, nothing in them is executed."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets_manifest.errors import InputError
from datasets_manifest.files import digests
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.loop.loop import Loop
from trainers.model import checkpoint
from trainers.model.card import load_card
from trainers.model.predictor import Predictor
from trainers.preflight.preparation import Prepared


def save(loop: Loop, folder: Path) -> Path:
    loop.save(folder, {"kept_rows": torch.from_numpy(loop.pseudo_labels.rows)})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_run(tmp_path_factory.mktemp("cards"), ["train.epochs=3"])


@pytest.fixture(scope="module")
def trained(run: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Loop, Path]:
    loop = make_loop(run)
    loop.run_epoch()
    return loop, save(loop, tmp_path_factory.mktemp("out") / "checkpoint")


def test_a_resumed_run_gives_the_same_numbers_to_the_last_bit(run: Prepared, trained: tuple[Loop, Path]) -> None:
    straight, resumed = make_loop(run), make_loop(run)
    straight.run_epoch()
    resumed.load(trained[1])
    assert (resumed.epoch, resumed.step.number) == (straight.epoch, straight.step.number)
    for _ in range(2):
        wanted, _ = straight.run_epoch()
        found, _ = resumed.run_epoch()
        same = {name for name in wanted if not name.startswith(("time/", "speed/"))}
        assert {name: found[name] for name in same} == {name: wanted[name] for name in same}
    for name, tensor in straight.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    assert straight.parts.discriminators[0].calls == resumed.parts.discriminators[0].calls > 0


def test_a_snapshot_is_of_its_moment(run: Prepared, tmp_path: Path) -> None:
    """What is written after further steps is what would have been written before them."""
    loop = make_loop(run)
    loop.run_epoch()
    now = save(loop, tmp_path / "now")
    snapshot = loop.snapshot({"kept_rows": torch.from_numpy(loop.pseudo_labels.rows)})
    loop.run_epoch()
    snapshot.write(tmp_path / "later")
    assert digests(tmp_path / "later") == digests(now)
    assert digests(save(loop, tmp_path / "other")) != digests(now)


@pytest.mark.parametrize("name", ["model/model.safetensors", "state/training.safetensors", "model/tokenizer.json"])
def test_truncated_or_altered_files_are_named(
    run: Prepared, trained: tuple[Loop, Path], tmp_path: Path, name: str
) -> None:
    folder = save(trained[0], tmp_path / "checkpoint")
    file = folder / name
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError, match="truncated or altered") as caught:
        make_loop(run).load(folder)
    assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(InputError, match="is missing"):
        make_loop(run).load(folder)


def test_a_failed_write_leaves_nothing(
    trained: tuple[Loop, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_json", full)
    with pytest.raises(OSError, match="No space left"):
        save(trained[0], tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(trained: tuple[Loop, Path], tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(trained[0], tmp_path / "checkpoint")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def as_version_1(folder: Path) -> None:
    """The form before checkpoints within an epoch: no place in the epoch, no list of bad pictures."""
    state = folder / "state"
    content = json.loads((state / "training.json").read_text())
    del content["values"]["steps_done"]
    (state / "training.json").write_text(json.dumps(content | {"schema_version": 1}))
    tensors = load_file(state / "training.safetensors")
    del tensors["arrays.bad_rows"]
    save_file(tensors, state / "training.safetensors")
    card = json.loads((folder / "model" / "model.json").read_text())
    (folder / "model" / "model.json").write_text(json.dumps(card | {"schema_version": 1}))
    (folder / "files.json").write_text(json.dumps(digests(folder)))


def test_a_checkpoint_of_version_1_goes_on(run: Prepared, trained: tuple[Loop, Path], tmp_path: Path) -> None:
    as_version_1(save(trained[0], tmp_path / "checkpoint"))
    old, new = make_loop(run), make_loop(run)
    old.load(tmp_path / "checkpoint")
    new.load(trained[1])
    assert (old.epoch, old.steps_done) == (1, 0)
    assert old.run_epoch()[0]["loss/total"] == new.run_epoch()[0]["loss/total"]
    assert load_card(tmp_path / "checkpoint" / "model").classes == run.card.classes


def test_a_later_schema_is_refused(trained: tuple[Loop, Path], tmp_path: Path) -> None:
    folder = save(trained[0], tmp_path / "checkpoint")
    card = json.loads((folder / "model" / "model.json").read_text())
    (folder / "model" / "model.json").write_text(json.dumps(card | {"schema_version": 99}))
    with pytest.raises(InputError, match="newer version") as caught:
        Predictor.load(folder)
    assert "99" in str(caught.value)


def test_predictor_repeats_the_scores_of_training(run: Prepared, trained: tuple[Loop, Path]) -> None:
    folder = trained[1]
    part = run.corpus.val[-1]
    assert part is not None
    table = run.corpus.table.slice(part.start, len(part))
    predictions = Predictor.load(folder).predict(table["texts"].to_pylist(), table["images"].to_pylist(), batch_size=7)
    scored = make_loop(run)
    scored.load(folder)
    columns = scored.score().of(part)
    assert np.array_equal(predictions.probs.argmax(1), columns["label"])
    np.testing.assert_allclose(predictions.probs.max(1), columns["prob"], atol=1e-5)
    np.testing.assert_allclose(predictions.disagreement, columns["variance"], atol=1e-5)


def test_predictor_with_missing_modalities(trained: tuple[Loop, Path], run: Prepared) -> None:
    predictor = Predictor.load(trained[1])
    image = run.corpus.table["images"][0].as_py()
    data = Path(image[0]).read_bytes()
    by_path = predictor.predict([["fine day"], [], ["fine day"]], [image, image, []])
    assert by_path.probs.shape == (3, 3)
    np.testing.assert_allclose(by_path.probs.sum(1), 1, atol=1e-6)
    assert not np.allclose(by_path.probs[0], by_path.probs[2])
    by_bytes = predictor.predict([["fine day"]], [[data]])
    np.testing.assert_allclose(by_bytes.probs[0], by_path.probs[0] if len(image) == 1 else by_bytes.probs[0], atol=1e-6)
    broken = predictor.predict([["fine day"]], [["/nowhere.jpg", b"no picture"]])
    assert [message.split(": ")[1] for message in broken.bad[0]] == ["missing", "not an image"]
    np.testing.assert_allclose(broken.probs[0], by_path.probs[2], atol=1e-6)
    with pytest.raises(InputError, match="neither text nor picture"):
        predictor.predict([[]], [[]])
