"""What a model weighs and how long one record takes, exported and not.

    python -m benchmarks.export --out benchmarks/results/export.json

MiniLM and EfficientNet-Lite0 with heads trained on generated postcards, one epoch. Each form is what `m2can models export`
writes and compares; the time is that of one record of text and picture, read and all, on this machine's CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.cached import frozen_encoders
from benchmarks.loops import one_worker
from datasets_manifest.files import write_atomically
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.readers import read_split
from trainers.exported.export import Export, export_model
from trainers.exported.graph import Form
from trainers.model.predictor import Predictor
from trainers.preflight.preparation import prepare
from trainers.recipe import make_recipe

FORMS: dict[str, tuple[Form, bool]] = {
    "ONNX": ("onnx", False),
    "ONNX, int8": ("onnx", True),
    "torch.export": ("torch", False),
}
HEAD = (
    "| form | weights MB | one record ms | of the model's weights | of the model's time | probabilities within | labels equal |\n"
    "|---|---|---|---|---|---|---|"
)


def benchmark(folder: Path) -> dict[str, Any]:
    manifests = [str(path) for path in write_postcards(folder / "postcards", seed=1, train=120, val=100).values()]
    prepared = prepare(
        make_recipe(
            {
                "data": {"sources": manifests[:-1], "target": manifests[-1]},
                "encoders": frozen_encoders(folder),
                "train": {"epochs": 1},
                "tracking": {"enabled": False},
                "run": {"storage": str(folder / "runs")},
            }
        )
    )
    loop = one_worker(prepared)
    loop.run_epoch()
    predictor = Predictor(loop.network, loop.card, torch.device("cpu"))
    table = read_split(load_manifest(manifests[-1]), "val").table
    texts, images = (table[name].to_pylist() for name in ("texts", "images"))
    rows = [
        {"form": name} | row(export_model(predictor, folder / f"{form}-{int8}", form, texts, images, int8=int8))
        for name, (form, int8) in FORMS.items()
    ]
    return {"cores": os.cpu_count(), "torch": torch.__version__, "records": table.num_rows, "rows": rows}


def row(found: Export) -> dict[str, Any]:
    return {
        "bytes_before": found.bytes_before,
        "bytes_after": found.bytes_after,
        "ms_before": round(found.ms_before, 2),
        "ms_after": round(found.ms_after, 2),
        "most_off": float(f"{found.most_off:.1g}"),
        "equal_labels": found.equal_labels,
    }


def line(row: dict[str, Any]) -> str:
    cells = [
        row["form"],
        f"{row['bytes_before'] / 1e6:.0f} → {row['bytes_after'] / 1e6:.0f}",
        f"{row['ms_before']:.1f} → {row['ms_after']:.1f}",
        f"{row['bytes_after'] / row['bytes_before']:.2f}",
        f"{row['ms_after'] / row['ms_before']:.2f}",
        f"{row['most_off']:.1g}",
        f"{row['equal_labels']:.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="m2can-export-") as place:
        found = benchmark(Path(place))
    write_atomically(arguments.out, json.dumps(found, indent=1) + "\n")
    print("\n".join([HEAD, *map(line, found["rows"])]))


if __name__ == "__main__":
    main()
