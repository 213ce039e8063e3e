"""Do the defaults learn from little data?  python -m benchmarks.small_data [--data NAME …] [--out FILE]

Five small generated data sets, two kinds of encoders, a recipe that names only data and encoders: the checkpoint that is
chosen without target labels, against logistic regression on the same encoders' features before training (standardised,
C = 1, fitted on the sources). The loop is the one that Ray Train's workers run. Features of frozen encoders are computed
once, of the weak view and some strong ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.cached import CachedFeatures, cached_loop, frozen_encoders, view_features
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.corpus import Part
from datasets_manifest.stream.local_stream import LocalStream
from trainers.loop.loop import Loop
from trainers.loop.observer import Observer
from trainers.m2can.collective import Collective
from trainers.preflight.preparation import prepare
from trainers.recipe import make_recipe
from trainers.validators import choose_candidate

VAL = 100  # validation records of each domain
SHAPES = ("circle", "square", "triangle", "cross")


def write_captions(folder: Path, train: int) -> list[Path]:
    """Postcards without their pictures."""
    manifests = list(write_postcards(folder, train=train, val=VAL).values())
    for file in folder.glob("*/*.jsonl"):
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        file.write_text("".join(json.dumps(record | {"image": []}) + "\n" for record in records), encoding="utf-8")
    return manifests


def write_shapes(folder: Path, train: int) -> list[Path]:
    """Drawings of four shapes, filled, outlined, and light on dark; the texts say nothing of them."""
    draw = np.random.default_rng(0)
    manifests = []
    for domain, (paper, ink, width) in {"filled": (230, 40, -1), "lines": (210, 60, 3), "night": (40, 200, -1)}.items():
        place = folder / domain
        (place / "images").mkdir(parents=True, exist_ok=True)
        for split, count in (("train", train), ("val", VAL)):
            lines = []
            for number in range(count):
                shape = SHAPES[number % len(SHAPES)]
                image = f"images/{split}-{number}.png"
                cv2.imwrite(str(place / image), _drawn(draw, shape, paper, ink, width))
                text = f"drawing {int(draw.integers(1000))} of the {domain} series"
                lines.append(json.dumps({"id": f"{split}{number}", "text": text, "image": [image], "label": shape}))
            (place / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        splits = {split: {"records": f"{split}.jsonl"} for split in ("train", "val")}
        manifest = {"schema_version": 1, "name": domain, "classes": list(SHAPES), "splits": splits}
        (place / "manifest.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
        manifests.append(place / "manifest.yaml")
    return manifests


def _drawn(draw: np.random.Generator, shape: str, paper: int, ink: int, width: int) -> np.ndarray:
    """One shape of any size, place and turn on a noisy 64 × 64 paper."""
    picture = np.full((64, 64, 3), paper, np.uint8)
    radius, (x, y) = int(draw.integers(12, 22)), draw.integers(24, 40, 2)
    colour = (ink + draw.integers(-30, 30, 3)).tolist()
    if shape == "circle":
        cv2.circle(picture, (int(x), int(y)), radius, colour, width)
    else:
        turn = draw.uniform(0, 2 * np.pi)
        corners = {"square": 4, "triangle": 3, "cross": 12}[shape]
        angles = turn + 2 * np.pi * (np.arange(corners) + 0.5) / corners
        reach = np.full(corners, float(radius))
        if shape == "cross":
            reach[2::3] *= 0.4
        points = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1).astype(np.int32)
        cv2.polylines(picture, [points], True, colour, width) if width > 0 else cv2.fillPoly(picture, [points], colour)
    noise = draw.normal(0, 8, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _postcards(folder: Path, train: int) -> list[Path]:
    return list(write_postcards(folder, train=train, val=VAL).values())


DATA: dict[str, tuple[Callable[[Path, int], list[Path]], int]] = {
    "postcards-60": (_postcards, 60),
    "postcards-200": (_postcards, 200),
    "postcards-600": (_postcards, 600),
    "captions-150": (write_captions, 150),
    "shapes-300": (write_shapes, 300),
}
ENCODERS = ("tiny", "frozen")


def recipe_tree(manifests: list[Path], encoders: str, folder: Path) -> dict[str, Any]:
    """Data, encoders and a size of pictures that a CPU can bear: nothing about how it trains."""
    tiny = {"text": {"name": "tiny"}, "picture": {"name": "tiny"}}
    return {
        "preset": "recommended",
        "data": {
            "sources": [str(path) for path in manifests[:-1]],
            "target": str(manifests[-1]),
            "pictures": {"resize": 54, "crop": 48},
            "texts": {"max_tokens": 64},
        },
        "encoders": tiny if encoders == "tiny" else frozen_encoders(folder),
        "run": {"storage": str(folder / "runs")},
    }


def run_one(data: str, encoders: str, folder: Path, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Accuracies in percent of the chosen epoch and of logistic regression, on sources (mean) and target."""
    from trainers.recipe.overrides import merge

    write, train = DATA[data]
    manifests = write(folder / data, train)
    prepared = prepare(make_recipe(merge(recipe_tree(manifests, encoders, folder), extra or {})))
    corpus, started = prepared.corpus, time.perf_counter()
    torch.manual_seed(prepared.recipe.train.seed)  # the encoders of the features are those that the loop starts with
    given = CachedFeatures(corpus, prepared.card, *view_features(prepared.card, corpus))
    loop: Loop
    if encoders == "frozen":
        loop = cached_loop(given, prepared.recipe)
    else:
        source, device = LocalStream(corpus.table), torch.device("cpu")
        loop = Loop(
            prepared.card,
            corpus,
            labels=corpus.labels,
            source=source,
            collective=Collective(),
            device=device,
            observer=Observer(),
        )
    evidence, metrics = [], []
    while not loop.is_over:
        found, scored = loop.run_epoch()
        evidence.append(scored.validator_inputs)
        metrics.append(found)
    selection = loop.recipe.selection
    chosen = metrics[choose_candidate(selection.validator, evidence, selection.gate)]
    regression = logistic_regression(
        torch.cat([given.text_VNK[0], given.picture_VNK[0]], 1).numpy(), corpus.labels, corpus.train, corpus.val
    )
    return {
        "data": data,
        "encoders": encoders,
        "steps": loop.step.number,
        "epochs": loop.epoch,
        "source": 100 * chosen["source/val/accuracy"],
        "target": 100 * chosen["target/val/accuracy"],
        "regression_source": regression[0],
        "regression_target": regression[1],
        "curve": [[round(100 * m[f"{part}/val/accuracy"], 1) for m in metrics] for part in ("source", "target")],
        "seconds": time.perf_counter() - started,
    }


def logistic_regression(
    features_RK: np.ndarray, labels: np.ndarray, train: list[Part], val: list[Part | None]
) -> tuple[float, float]:
    """Accuracy in percent on the sources' validation records (mean) and on the target's."""
    rows = np.concatenate([part.rows for part in train[:-1]])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features_RK[rows], labels[rows])
    accuracies = [100 * model.score(features_RK[part.rows], labels[part.rows]) for part in val if part is not None]
    return float(np.mean(accuracies[:-1])), float(accuracies[-1])


HEAD = (
    "| data | encoders | steps, epochs | sources | logistic regression | target | logistic regression |\n"
    "|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    return (
        f"| {row['data']} | {row['encoders']} | {row['steps']}, {row['epochs']} | {row['source']:.1f} "
        f"| {row['regression_source']:.1f} | {row['target']:.1f} | {row['regression_target']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=ENCODERS)
    parser.add_argument("--out", type=Path, help="rows of other data and encoders that stand there are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for data in arguments.data:
            for encoders in arguments.encoders:
                row = run_one(data, encoders, Path(folder))
                print(line(row), flush=True)
                if arguments.out:
                    _keep(arguments.out, row)


def _keep(file: Path, row: dict[str, Any]) -> None:
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows = [other for other in rows if (other["data"], other["encoders"]) != (row["data"], row["encoders"])] + [row]
    order = {(data, encoders): number for number, (data, encoders) in enumerate((d, e) for d in DATA for e in ENCODERS)}
    rows.sort(key=lambda each: order[each["data"], each["encoders"]])
    file.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
