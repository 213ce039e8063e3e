"""`m2can train` whole on one GPU, from generated JPEGs to a model, then batch prediction with that model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_step import Scale, Tell
from benchmarks.speed_run import VALIDATION, write_reviews
from benchmarks.step_parts import LENGTHS
from trainers.training_run import RunObserver, run

if TYPE_CHECKING:
    from trainers.journal.journal import EpochRecord
    from trainers.recipe import Recipe

EPOCHS = 2
_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def write_bert(folder: Path, scale: Scale) -> Path:
    """A folder with a BERT of random weights: its configuration without dropout, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertTokenizerFast

    words = [*_SPECIALS.values(), *(f"word{n}" for n in range(scale.words))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(tokenizer_object=tokenizer, **_SPECIALS).save_pretrained(folder)
    size = scale.size
    BertConfig(
        vocab_size=max(size.words, len(words)),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.hidden // 64),
        intermediate_size=4 * size.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ).save_pretrained(folder)
    return folder


def recipe_of_run(scale: Scale, manifests: list[Path], bert: Path, storage: Path) -> Recipe:
    """`recommended`; the target takes part from the second epoch on, so that its steps have three domains as ready ones."""
    from trainers.recipe import make_recipe

    size, tiny = scale.size, scale.size.picture == "tiny"
    data: dict[str, Any] = {
        "sources": [str(m) for m in manifests[:-1]],
        "target": str(manifests[-1]),
        "samples_per_epoch": 2 * scale.records,
        "texts": {"max_tokens": size.tokens},
    }
    picture = {"name": size.picture, "weights": "random"}
    if tiny:
        data["pictures"] = {"resize": size.pixels + 8, "crop": size.pixels}
        picture["head"] = "none"
    return make_recipe(
        {
            "preset": "recommended",
            "data": data,
            "encoders": {"text": {"name": str(bert), "weights": "random"}, "picture": picture},
            "uacr": {"warmup": 1, "threshold": 0.0},
            "train": {"epochs": EPOCHS, "batch_size": size.batch, "eval_batch_size": scale.eval_batch},
            "checkpoint": {"keep": 1},
            "tracking": {"enabled": False},
            "run": {"storage": str(storage), "name": "whole"},
        }
    )


class EpochRows(RunObserver):
    """Tells of every epoch as soon as it ends: a run that takes too long still has its first row."""

    def __init__(self, scored: int, tell: Tell) -> None:
        self.scored, self.tell = scored, tell

    def on_epoch(self, record: EpochRecord) -> None:
        found = record.metrics
        rate, waited = found["speed/samples_per_s"], found["speed/data_wait_fraction"]
        note = f"{rate:,.0f} rows/s; {100 * waited:.0f} % of the time without data"
        if "speed/gpu_busy_fraction" in found:
            note += f", the GPU busy for {100 * found['speed/gpu_busy_fraction']:.0f} %"
        self.tell(f"epoch_{record.epoch}", rate, note)
        if record.epoch == EPOCHS:
            self.tell(
                "scoring", self.scored / found["time/score_s"], f"{self.scored:,} rows in {found['time/score_s']:.2f} s"
            )


def whole_run(scale: Scale, tell: Tell, folder: Path) -> None:
    """Rows a second of `m2can train`'s epochs and of its second pseudo-label pass, then of `m2can predict --out FOLDER`."""
    os.environ["RAY_ADDRESS"] = "local"  # another Ray on this machine is not asked
    rows = scale.records
    manifests = write_reviews(folder / "data", rows, size=scale.jpeg, words=scale.words, spread=LENGTHS[1])
    recipe = recipe_of_run(scale, manifests, write_bert(folder / "bert", scale), folder / "runs")
    scored = rows + len(manifests) * len(range(0, rows, VALIDATION))
    result = run(recipe, observer=EpochRows(scored, tell))
    predict(result.checkpoint, manifests[-1], folder / "predictions", tell)


def predict(checkpoint: Path, manifest: Path, out: Path, tell: Tell) -> None:
    """Rows a second of one actor, without its start where there are several shards."""
    from services.batch_prediction import predict_manifest

    seen: list[tuple[float, int]] = []
    predict_manifest(
        checkpoint, manifest, out, split="train", on_rows=lambda done, _: seen.append((time.perf_counter(), done))
    )
    start = seen[min(1, len(seen) - 2)]
    rows, seconds = seen[-1][1] - start[1], seen[-1][0] - start[0]
    tell("prediction", rows / seconds, f"{rows:,} rows in {seconds:.2f} s, one actor")
