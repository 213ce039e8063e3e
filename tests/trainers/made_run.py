"""A finished run made up without training: small manifests, invented predictions, checkpoints of evidence alone."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import load_file, save_file

from datasets_manifest.records.corpus import Corpus, load_corpus
from datasets_manifest.stream.encode import Vocabulary
from trainers.journal.journal import EpochRecord
from trainers.journal.outcome import Outcome, choose_epoch_of
from trainers.loop.validator_inputs import validator_rows
from trainers.model.card import ModelCard
from trainers.recipe import make_recipe
from trainers.validators import ValidatorInputs
from trainers.validators.expected import ExpectedAccuracy

CLASSES = ["bad", "middling", "good"]
HOSTILE = '</script><script>alert(1)</script><img src="http://evil.example/x.png" onerror=alert(2)>'


def write_domain(
    folder: Path, name: str, classes: list[str], rows: int, *, labelled: bool = True, text: str = ""
) -> str:
    """A manifest with `rows` records a split; every third has a picture."""
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "grey.png"), np.full((40, 60, 3), 128, np.uint8))
    for split in ("train", "val"):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(rows):
                record = {"id": f"{name[:20]}-{split}-{i}", "text": f"a card number {i} {text}"}
                record |= {"image": ["grey.png"]} if i % 3 == 0 else {}
                record |= {"label": classes[i % len(classes)]} if labelled else {}
                print(json.dumps(record), file=file)
    splits = {split: {"records": f"{split}.jsonl"} for split in ("train", "val")}
    content = {"schema_version": 1, "name": name, "classes": classes, "splits": splits}
    (folder / "manifest.yaml").write_text(json.dumps(content), encoding="utf-8")
    return str(folder / "manifest.yaml")


def made_run(
    folder: Path,
    *,
    labelled: bool = True,
    classes: list[str] | None = None,
    text: str = "",
    overrides: dict[str, object] | None = None,
) -> Outcome:
    """Three epochs, of which the second was chosen and the third is best by labels (if `labelled`)."""
    classes = classes or CLASSES
    manifests = [
        write_domain(folder / name, name, classes, 12, labelled=labelled or name != "sea", text=text)
        for name in ("hill", "town", "sea")
    ]
    corpus = load_corpus(manifests[:2], manifests[2])
    tree = {"data": {"sources": manifests[:2], "target": manifests[2]}, "train": {"epochs": 3}, **(overrides or {})}
    recipe = make_recipe(tree)
    card = ModelCard(recipe, classes, ["hill", "town"], "sea", {}, Vocabulary("{}", "[CLS]", "[SEP]", "[PAD]", 0, 4))
    records = [_record(epoch, classes, labelled) for epoch in (1, 2, 3)]
    checkpoints = {epoch: _checkpoint(folder / f"checkpoint-{epoch}", corpus, epoch) for epoch in (1, 2, 3)}
    return Outcome(
        name="made",
        folder=folder / "made",
        card=card,
        corpus=corpus,
        records=records,
        chosen=records[1],
        last=records[2],
        oracle=records[2] if labelled else None,
        checkpoint=checkpoints[2],
        checkpoints=checkpoints,
    )


def _record(epoch: int, classes: list[str], labelled: bool) -> EpochRecord:
    metrics = {"loss/total": 3 / epoch, "loss/task": 2 / epoch, "loss/mcc": 0.1 / epoch, "selection/score": epoch / 4}
    metrics |= {
        "source/val/accuracy": 0.7 + epoch / 20,
        "source/hill/val/accuracy": 0.8,
        "source/town/val/accuracy": 0.75,
    }
    metrics |= {"uacr/kept_share": epoch / 10, "time/train_s": 2.0, "time/score_s": 1.0, "speed/samples_per_s": 50.0}
    metrics |= ExpectedAccuracy(0.5 + epoch / 20, 0.4, 0.75).metrics()
    metrics |= {f"uacr/class_share/{name}": 1 / len(classes) for name in classes}
    if labelled:
        accuracy = 0.4 + epoch / 10
        metrics |= {"target/val/accuracy": accuracy, "uacr/accuracy": accuracy, "uacr/precision": accuracy + 0.1}
    return EpochRecord(epoch, epoch * 10, 0.0, metrics)


def _checkpoint(folder: Path, corpus: Corpus, epoch: int) -> Path:
    draw = np.random.default_rng(epoch)
    classes = len(corpus.classes)
    targets, sources = validator_rows(corpus, corpus.labels)

    def probs(rows: int) -> np.ndarray:
        return draw.dirichlet(np.ones(classes), rows).astype(np.float32)

    def features(rows: int) -> np.ndarray:
        return draw.normal(size=(rows, 64)).astype(np.float32)

    seen = ValidatorInputs(
        probs(len(targets)),
        features(len(targets)),
        probs(len(sources)),
        features(len(sources)),
        corpus.labels[sources],
        probs(len(targets)),
        np.zeros(len(targets), np.int64),
        np.zeros(len(targets), np.int64),
    )
    tensors = seen.arrays()
    for part in (corpus.train[-1], corpus.val[-1]):
        assert part is not None
        found = probs(len(part))
        columns = {"label": found.argmax(1), "prob": found.max(1), "score": found.max(1)}
        columns["true"] = corpus.labels[part.start : part.stop]
        tensors |= {f"{part.domain}/{part.split}/{name}": column for name, column in columns.items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "evaluation.safetensors")
    return folder


def made_floor(outcome: Outcome, *, better: bool) -> Outcome:
    """The outcome of the same run that has a floor, in its folder; better: than each epoch, by the validator."""
    _checkpoint(outcome.folder / "floor", outcome.corpus, 0)
    tensors = load_file(outcome.folder / "floor" / "evaluation.safetensors")
    sure = np.eye(len(outcome.card.classes), dtype=np.float32)
    targets = len(tensors["evidence/target_probs_NC"])
    if (
        better
    ):  # surer of the target than of the sources, which it has right; the predicted classes are the chosen epoch's
        chosen = load_file(outcome.checkpoint / "evaluation.safetensors")["evidence/target_probs_NC"]
        tensors["evidence/target_probs_NC"] = sure[chosen.argmax(1)]
        tensors["evidence/source_probs_MC"] = 0.7 * sure[tensors["evidence/source_labels_M"]] + np.float32(
            0.3 / len(sure)
        )
    else:
        tensors["evidence/target_probs_NC"] = np.full((targets, len(sure)), 1 / len(sure), np.float32)
    save_file(tensors, outcome.folder / "floor" / "evaluation.safetensors")
    metrics = {"source/val/accuracy": 0.9, "selection/score": 1.0, "target/val/accuracy": 0.8, "time/floor_s": 1.0}
    metrics |= {"zero_shot/source/val/accuracy": 0.45, "zero_shot/target/val/accuracy": 0.35}
    (outcome.folder / "floor" / "floor.json").write_text(json.dumps(metrics))
    return choose_epoch_of(
        outcome.name, outcome.folder, outcome.card, outcome.corpus, outcome.records, outcome.checkpoints
    )
