"""Pictures that are missing at test time, with and without modality dropout.  python -m benchmarks.missing [--out FILE]

Postcards on cached features of two frozen encoders; the recipe names data, encoders and `network.modality_dropout`. So many
of the target's validation records lose their pictures; the model is the epoch that is chosen without target labels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cached import CachedFeatures, CachedLoop, cached_loop, view_features, without_pictures
from benchmarks.small_data import recipe_tree
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.stream.source import FeatureBatch
from trainers.compute.device_batches import to_batch
from trainers.preflight.preparation import prepare
from trainers.recipe import make_recipe
from trainers.recipe.overrides import merge
from trainers.validators import choose_candidate

TRAIN, VAL = 300, 400  # records of each domain
DROPOUT: tuple[float | None, ...] = (None, 0.0, 0.1, 0.2, 0.3)
SHARES = (0.0, 0.3, 0.6)  # of the target's validation records, without pictures
SEEDS = (0, 1, 2)
DRAWS = 5  # of the records that lose their pictures


def measure(tree: dict[str, Any], given: CachedFeatures, dropout: float | None, seed: int) -> list[float]:
    """Accuracy on the target in percent for each of SHARES."""
    changed = {"network": {"modality_dropout": dropout}, "train": {"seed": seed}}
    loop = cached_loop(given, make_recipe(merge(tree, changed)))
    evidence, weights = [], []
    while not loop.is_over:
        evidence.append(loop.run_epoch()[1].validator_inputs)
        weights.append({name: x.clone() for name, x in loop.network.state_dict().items()})
    selection = loop.recipe.selection
    loop.network.load_state_dict(weights[choose_candidate(selection.validator, evidence, selection.gate)])
    return [accuracy(loop, given, share) for share in SHARES]


@torch.inference_mode()
def accuracy(loop: CachedLoop, given: CachedFeatures, share: float) -> float:
    """In percent, mean over DRAWS of the records that lose their pictures."""
    part = loop.corpus.val[-1]
    assert part is not None
    network, found = loop.network.eval(), []
    for draw in range(DRAWS):
        picture = given.picture_VNK[0, part.rows].numpy().copy()
        picture[np.random.default_rng(draw).permutation(len(part))[: round(share * len(part))]] = 0
        host = FeatureBatch(given.text_VNK[0, part.rows].numpy(), picture, part.rows, [], without_pictures(picture))
        batch = to_batch(host, np.full((1, len(part)), -1), device=loop.device, dtype=loop.dtype)
        label = network(batch).fused_logits_DBC[0].argmax(-1).numpy()
        found.append(100 * float((label == loop.corpus.labels[part.rows]).mean()))
    network.train()
    return float(np.mean(found))


HEAD = (
    "| `network.modality_dropout` | " + " | ".join(f"{share:.0%} missing" for share in SHARES) + " |\n"
    "|---|" + "---|" * len(SHARES)
)


def line(row: dict[str, Any]) -> str:
    cells = [
        f"{np.mean(one):.1f} ({', '.join(f'{x:.1f}' for x in one)})" for one in zip(*row["accuracies"], strict=True)
    ]
    return f"| {'`null`' if row['dropout'] is None else row['dropout']} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        manifests = list(write_postcards(Path(place) / "cards", train=TRAIN, val=VAL).values())
        tree = recipe_tree(manifests, "frozen", Path(place))
        prepared = prepare(make_recipe(tree))
        given = CachedFeatures(prepared.corpus, prepared.card, *view_features(prepared.card, prepared.corpus))
        rows: list[dict[str, Any]] = []
        print(HEAD)
        for dropout in DROPOUT:
            rows.append({"dropout": dropout, "accuracies": [measure(tree, given, dropout, seed) for seed in SEEDS]})
            print(line(rows[-1]), flush=True)
        part = prepared.corpus.val[-1]
        assert part is not None
        lacking = float((given.picture_VNK[0, part.rows] == 0).all(-1).double().mean())
    content = {"train": TRAIN, "val": VAL, "seeds": list(SEEDS), "without_pictures": lacking, "rows": rows}
    if arguments.out:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
