"""Batch prediction of a manifest's records with Ray Data actors, each around one Predictor.

    records ──shards of 512──▶ actors ──▶ <out>/parts/part-00000.parquet … ──▶ <out>/predictions.parquet

A part appears whole or not at all and is not predicted again: an interrupted run is resumed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_manifest.disk import CannotWrite
from datasets_manifest.errors import InputError
from datasets_manifest.files import digests, read_json, require_folder, write_atomically
from datasets_manifest.records.readers import ALL, read_for_prediction
from services.prediction_output import count_withheld, withhold, write_predictions
from services.records_to_predict import manifest_to_predict
from trainers.exported.predictor import load_predictor
from trainers.model.card import model_folder
from trainers.model.predictor import Predictions, Predictor

SHARD_ROWS = 512
PREDICTIONS, PLAN, SUMMARY = "predictions.parquet", "plan.json", "summary.json"


@dataclass(frozen=True)
class BatchSummary:
    """Counts of rows.

    records: one for each record. bad: without prediction. with_bad_pictures: some of the pictures could not be read.
    resumed: written by an earlier, interrupted call. abstained: have no label because the model was not sure enough;
    None if that was not asked.
    """

    records: int
    bad: int
    with_bad_pictures: int
    resumed: int
    out: str
    abstained: int | None = None


def predict_manifest(
    model: Path,
    data: str | Path,
    out: Path,
    *,
    split: str = ALL,
    workers: int = 1,
    abstain_below: float | None = None,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    start_ray: Callable[[], object] = lambda: None,
    on_guess: Callable[[str | None], None] = lambda guessed: None,
) -> BatchSummary:
    """Predict all records of a split, or of all splits, into the folder `out`, which is on storage that all nodes share.

    Args:
        data: a manifest, or a records file.
        model: a checkpoint folder; its files travel to the actors.
        abstain_below: confidence, 0 to 1, that a label needs; None: every row that can be predicted has a label.
        on_rows: called with rows done and rows in all.
        on_guess: called with what was guessed of a records file, or None.
        start_ray: called once model, data and folder were found good; afterwards Ray must be running.

    Raises:
        InputError: no such manifest or model, `out` holds another prediction, or too few CPUs for the workers.
        CannotWrite: disk full or not writable; what was written stays, and another call goes on from there.
    """
    bundle = model_folder(model)
    classes = list(load_predictor(bundle, device="cpu").classes)
    manifest, guessed = manifest_to_predict(data, classes)
    on_guess(guessed)
    table = read_for_prediction(manifest, split)
    plan = {
        "model": hashlib.sha256(json.dumps(digests(bundle), sort_keys=True).encode()).hexdigest(),
        "data": hashlib.sha256(_content(table)).hexdigest(),
        "split": split,
        "rows": table.num_rows,
        "shard_rows": SHARD_ROWS,
    }
    if abstain_below is not None:
        plan["abstain_below"] = abstain_below
    require_folder(out, "--out")
    _require_same_prediction(out, plan)
    shards = range(-(-table.num_rows // SHARD_ROWS))
    finished = (out / PREDICTIONS).is_file()
    missing = [shard for shard in shards if not finished and not _part(out, shard).is_file()]
    if missing:
        start_ray()
        workers = min(workers, len(missing))
        _require_cpus(workers)
    if not (out / PLAN).is_file():
        write_atomically(out / PLAN, json.dumps(plan, indent=1))
    done = table.num_rows - sum(_rows_of(shard, table.num_rows) for shard in missing)
    resumed = done
    on_rows(done, table.num_rows)
    if missing:
        for rows in _run_actors(bundle, table, out, missing, workers):
            done += rows
            on_rows(done, table.num_rows)
    return _join(out, table, classes, resumed, abstain_below)


def predict_rows(
    predictor: Predictor, table: pa.Table, on_predictions: Callable[[Predictions], None] = lambda predictions: None
) -> pa.Table:
    """Predictions of a table of readers.TABLE_SCHEMA, one row for each row, in order: `id` and the columns of
    Predictions.to_frame. A row without any text or readable picture has nulls, and the reason in `problem`."""
    found = predictor.predict_usable(table["texts"].to_pylist(), table["images"].to_pylist())
    on_predictions(found)
    rows = pa.Table.from_pandas(found.to_frame(), pa.schema(_columns(predictor.classes)), preserve_index=False)
    return rows.add_column(0, "id", table["id"].combine_chunks())


def predict_samples(
    predictor: Predictor,
    texts: list[list[str]],
    images: Sequence[Sequence[str | bytes]],
    on_predictions: Callable[[Predictions], None] = lambda predictions: None,
) -> list[dict[str, Any]]:
    """One mapping a sample: label, confidence, probs by class, disagreement, head_labels and bad_pictures; of a sample
    without text none of whose pictures can be read, only bad_pictures and problem."""
    result = predictor.predict(texts, images)
    on_predictions(result)
    rows: list[dict[str, Any]] = []
    for number, (label, bad) in enumerate(zip(result.labels, result.bad, strict=True)):
        if label is None:
            rows.append({"bad_pictures": bad, "problem": result.problems[number]})
            continue
        probs = dict(zip(predictor.classes, map(float, result.probs[number]), strict=True))
        row = {"label": label, "confidence": max(probs.values()), "probs": probs}
        row |= {"disagreement": float(result.disagreement[number]), "head_labels": result.head_labels[number]}
        rows.append(row | {"bad_pictures": bad})
    return rows


def _columns(classes: list[str]) -> list[tuple[str, pa.DataType]]:
    probs = [(f"prob_{name}", pa.float64()) for name in classes]
    strings = pa.list_(pa.string())
    return [
        ("label", pa.string()), ("confidence", pa.float64()), *probs, ("disagreement", pa.float64()),
        ("head_labels", strings), ("bad_pictures", strings), ("problem", pa.string()),
    ]  # fmt: skip


class _Worker:
    """A Ray Data actor: one Predictor, one shard a call."""

    def __init__(self, files: Any, table: Any, out: str) -> None:
        import ray

        from datasets_manifest.stream.ray_stream import quiet

        quiet()
        with tempfile.TemporaryDirectory(prefix="m2can-bundle-") as folder:
            for name, content in ray.get(files).items():
                (Path(folder) / name).write_bytes(content)
            self._predictor = load_predictor(Path(folder))
        self._table, self._out = ray.get(table), Path(out)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Rows by shard. A part that cannot be written is an answer, too: of an error Ray Data would keep a traceback only."""
        rows, refusals = [], []
        for shard in batch["shard"].tolist():
            part = predict_rows(self._predictor, self._table.slice(shard * SHARD_ROWS, SHARD_ROWS))
            refusal = ""
            try:
                write_predictions(part, _part(self._out, shard))
            except CannotWrite as error:
                refusal = str(error)
            rows.append(part.num_rows)
            refusals.append(refusal)
        return {"rows": rows, "refusal": refusals}


def _run_actors(bundle: Path, table: pa.Table, out: Path, shards: list[int], workers: int) -> Iterator[int]:
    import ray.data

    from datasets_manifest.stream.ray_stream import quiet

    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    files = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
    arguments = (ray.put(files), ray.put(table), str(out.resolve()))
    quiet()
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map_batches(
        _Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        # Below one CPU, so that reading the shards' numbers has some left where actors take all.
        num_cpus=0.75 if workers >= cpus else 1,
        num_gpus=1 if gpus >= workers else 0,
        fn_constructor_args=arguments,
    )
    for row in dataset.iter_rows():
        if row["refusal"]:
            raise CannotWrite(errno.EIO, row["refusal"])
        yield int(row["rows"])


def _require_cpus(workers: int) -> None:
    import ray

    cpus = ray.cluster_resources().get("CPU", 0.0)
    if workers > cpus:
        raise InputError("the cluster has fewer CPUs", field="--workers", value=workers, wanted=f"at most {cpus:g}")


def _require_same_prediction(out: Path, plan: dict[str, Any]) -> None:
    """Raises InputError: it holds something else than a part of this prediction."""
    if (out / PLAN).is_file():
        found = read_json(out / PLAN)
        if found != plan:
            differing = ", ".join(key for key in {**plan, **found} if found.get(key) != plan.get(key))
            raise InputError(
                f"holds a prediction with another {differing}", file=out, field="--out", wanted="a new folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is not empty", file=out, field="--out", wanted="a new folder")


def _join(out: Path, table: pa.Table, classes: list[str], resumed: int, abstain_below: float | None) -> BatchSummary:
    """One file of all parts, in the order of the records. The ids are compared: a row too many or too few is an error."""
    final = out / PREDICTIONS
    if not final.is_file():
        schema = pa.schema([("id", pa.string()), *_columns(classes)])
        parts = []
        for shard in range(-(-table.num_rows // SHARD_ROWS)):
            parts.append(pq.read_table(_part(out, shard), schema=schema))
            if not parts[-1]["id"].equals(table["id"].slice(shard * SHARD_ROWS, SHARD_ROWS)):
                raise RuntimeError(
                    f"{_part(out, shard)} does not hold the rows of its shard; delete it and start again"
                )
        joined = pa.concat_tables(parts)
        write_predictions(joined if abstain_below is None else withhold(joined, abstain_below), final)
    summary = summary_of(pq.read_table(final), final, resumed)
    write_atomically(out / SUMMARY, json.dumps(asdict(summary), indent=1) + "\n")
    shutil.rmtree(out / "parts", ignore_errors=True)
    return summary


def summary_of(predictions: pa.Table, out: Path, resumed: int = 0) -> BatchSummary:
    """Counts of the rows that `predict_rows` made."""
    skipped = sum(bool(messages) for messages in predictions["bad_pictures"].to_pylist())
    bad, abstained = predictions["confidence"].null_count, count_withheld(predictions)
    return BatchSummary(predictions.num_rows, bad, skipped, resumed, str(out), abstained)


def _content(table: pa.Table) -> bytes:
    rows = table.select(["id", "texts", "images"]).to_pydict()
    return json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()


def _rows_of(shard: int, rows: int) -> int:
    return min(SHARD_ROWS, rows - shard * SHARD_ROWS)


def _part(out: Path, shard: int) -> Path:
    return out / "parts" / f"part-{shard:05d}.parquet"
