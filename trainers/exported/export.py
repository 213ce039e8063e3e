"""A model → a folder for another runtime, once its predictions on real records are those of the model."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_manifest.errors import InputError
from datasets_manifest.files import json_text, whole_folder
from datasets_manifest.stream.encode import blank_tokens
from trainers.exported.graph import FILES, INPUTS, OUTPUTS, Form, require_packages, trace, write_graph
from trainers.exported.predictor import ExportedPredictor
from trainers.model.card import card_files
from trainers.model.predictor import Predictor
from trainers.model.reference import SEEN_FILE

MOST_OFF = 1e-4  # of a probability
LEAST_EQUAL = 0.99  # part of the labels, with int8 weights
_TIMED = 20  # records


@dataclass(frozen=True)
class Export:
    """What was written and how near it comes to the model.

    records: that both predicted. most_off: the largest difference of a probability. equal_labels: part of the records.
    bytes_before, bytes_after: of the weights. ms_before, ms_after: of one record, pictures read and all; the median.
    """

    folder: str
    form: Form
    int8: bool
    records: int
    most_off: float
    equal_labels: float
    bytes_before: int
    bytes_after: int
    ms_before: float
    ms_after: float


def export_model(
    predictor: Predictor,
    out: Path,
    form: Form,
    texts: Sequence[Any],
    images: Sequence[Any],
    *,
    int8: bool = False,
    made_of: Path | None = None,
) -> Export:
    """Write `out`: the graph, model.json, tokenizer.json, and export.json with the inputs' form and what was compared.

    Args:
        predictor: on the CPU.
        texts, images: records to compare on, as Predictor.predict takes them; at least two that have texts.
        made_of: the model's folder; what it keeps for a comparison with later records is copied.

    Raises:
        InputError: `out` is there, a package is missing, the network cannot be exported, there are too few records, or the
            export predicts otherwise. Nothing is left behind.
    """
    require_packages(form)
    if out.exists():
        raise InputError("is there already", file=out, field="OUT", wanted="a new folder")
    if int8 and form != "onnx":
        raise InputError("goes with --onnx", field="--int8", value=True)
    if predictor.dtype != torch.float32:
        raise InputError("is not exported in another precision than float32", field="MODEL", value=str(predictor.dtype))
    program = trace(predictor.network, predictor.example_batch(), blank_tokens(predictor.encoding))
    with whole_folder(out) as draft:
        write_graph(program, draft, form, int8=int8)
        for name, content in card_files(predictor.card).items():
            (draft / name).write_text(content, encoding="utf-8")
        if made_of is not None and (made_of / SEEN_FILE).is_file():
            shutil.copy(made_of / SEEN_FILE, draft)
        exported = ExportedPredictor(draft)
        records, most_off, equal = _compare(predictor, exported, texts, images, int8=int8)
        ms = [_milliseconds(p, texts, images) for p in (predictor, exported)]
        weights = sum(x.numel() * x.element_size() for x in predictor.network.state_dict().values())
        written = sum(file.stat().st_size for file in draft.glob(f"{FILES[form]}*"))
        found = Export(str(out), form, int8, records, most_off, equal, weights, written, *ms)
        (draft / "export.json").write_text(json_text(_description(predictor, found)), encoding="utf-8")
    return found


def _compare(
    predictor: Predictor, exported: Predictor, texts: Sequence[Any], images: Sequence[Any], *, int8: bool
) -> tuple[int, float, float]:
    """How many records both predict, the largest difference of a probability, and the part of the labels that are equal.

    Raises:
        InputError: no record can be predicted, or they differ by more than is allowed.
    """
    before, after = (p.predict_usable(texts, images) for p in (predictor, exported))
    known = ~np.isnan(before.probs).any(axis=1)
    if not known.any():
        raise InputError(
            "none of them can be predicted", field="records", value=len(known), wanted="records to compare on"
        )
    most_off = float(np.abs(before.probs - after.probs)[known].max())
    equal = float(np.mean([a == b for a, b, k in zip(before.labels, after.labels, known, strict=True) if k]))
    if (equal < LEAST_EQUAL) if int8 else (most_off > MOST_OFF):
        problem = f"predicts otherwise than the model: a probability by {most_off:.2g}, {equal:.1%} of the labels equal"
        wanted = f"{LEAST_EQUAL:.0%} of the labels equal; export without --int8" if int8 else f"at most {MOST_OFF:g}"
        raise InputError(problem, field="--int8" if int8 else "MODEL", wanted=wanted)
    return int(known.sum()), most_off, equal


def _milliseconds(predictor: Predictor, texts: Sequence[Any], images: Sequence[Any]) -> float:
    taken = []
    for text, image in list(zip(texts, images, strict=True))[:_TIMED]:
        started = time.perf_counter()
        predictor.predict_usable([text], [image])
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken)


def _description(predictor: Predictor, found: Export) -> dict[str, Any]:
    """What somebody needs who runs the graph without this program."""
    encoding = predictor.encoding
    views = encoding.pictures
    return {
        "graph": FILES[found.form],
        "inputs": {
            INPUTS[0]: "int64 [samples, tokens], of tokenizer.json, padded on the right",
            INPUTS[1]: "int64 [samples, tokens], 1 where a token is",
            INPUTS[2]: f"float32 [pictures, 3, {views.crop}, {views.crop}], normalised; at least one",
            INPUTS[3]: "int64 [pictures], the sample of each picture; the number of samples: of none",
        },
        "outputs": {
            OUTPUTS[0]: "float32 [heads, samples, classes]; the prediction is softmax of the heads' mean",
            OUTPUTS[1]: "float32 [samples, 64], what the heads see",
        },
        "classes": predictor.classes,
        "pictures": views.model_dump(mode="json", exclude={"strong"}),
        "texts": {
            "max_tokens": encoding.max_tokens,
            "cleaning": encoding.cleaning,
            "form": encoding.form,
            "pad_id": encoding.vocabulary.pad_id,
        },
        "compared": {name: value for name, value in asdict(found).items() if name != "folder"},
        "versions": {"torch": torch.__version__},
    }
