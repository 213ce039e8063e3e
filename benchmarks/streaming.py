"""How close the pipeline comes to bare decoding, and whether its memory stays flat as the data set grows.

    python -m benchmarks.streaming [--pictures 2000] [--records 10000 200000] [--out benchmarks/results/streaming.json]

Throughput: one worker's pipeline (stream.ray_stream) with all of the machine's CPUs against bare loops that read
and encode the same rows: one process, times the CPUs, and as many processes at once as there are CPUs, which is what the
machine really gives. Both views of JPEGs of 1024×768, in turns, median of three.
Memory: peak of the resident memory, without shared pages, of this process and Ray's, while an epoch of planned steps runs
past; rows of the larger sets repeat the same files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa
import ray

from datasets_manifest.records.readers import TABLE_SCHEMA
from datasets_manifest.stream.encode import Encoding, HostBatch
from datasets_manifest.stream.images import PictureViews
from datasets_manifest.stream.local_stream import LocalStream
from datasets_manifest.stream.plan import DomainPool, EpochPlan, StepSlice
from datasets_manifest.stream.ray_stream import CpuBudget, Stream, quiet
from trainers.cluster.local_cluster import start_ray
from trainers.compute.device_batches import make_encoding
from trainers.compute.vocabulary import word_vocabulary
from trainers.recipe import make_recipe

BATCH = 32


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """JPEGs of smooth noise with some detail, about as hard to decode as photographs."""

    def write(number: int) -> str:
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (size[1] // 32, size[0] // 32, 3), np.uint8)
        picture = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC).astype(np.int16)
        picture += random.integers(-12, 13, (size[1], size[0], 1), np.int16)
        path = str(folder / f"{number}.jpg")
        cv2.imwrite(path, picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])
        return path

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(write, range(count)))


def table_of(paths: list[str], records: int) -> pa.Table:
    """One picture and a text of 25 words a record."""
    words = [" ".join(f"word{(7 * n + k) % 997}" for k in range(25)) for n in range(997)]
    columns: list[list[Any]] = [
        [f"r{n}" for n in range(records)],
        ["made"] * records,
        [[words[n % 997]] for n in range(records)],
        [[paths[n % len(paths)]] for n in range(records)],
        [n % 3 for n in range(records)],
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, TABLE_SCHEMA, strict=True)], schema=TABLE_SCHEMA)


def encoding_of(views: PictureViews) -> Encoding:
    data = {
        "sources": ["a"],
        "target": "b",
        "pictures": views.model_dump(exclude={"transparency"}),
        "texts": {"max_tokens": 64},
    }
    recipe = make_recipe({"data": data, "encoders": {"text": {"name": "tiny"}}})
    vocabulary = word_vocabulary(recipe, [f"word{n}" for n in range(997)])
    return make_encoding(recipe, vocabulary, epoch=0, strong=True)


def slices_of(records: int, samples: int) -> list[StepSlice]:
    pool = DomainPool(np.arange(records), np.zeros(records, np.int64))
    plan = EpochPlan.build(seed=0, epoch=0, pools=[pool], samples_per_epoch=samples, batch_size=BATCH)
    return list(plan.worker_steps(0, 1))


def rate(batches: Iterable[HostBatch]) -> float:
    """Records a second, from the first batch on: starting is not counted."""
    started, records = 0.0, 0
    for batch in batches:
        if not started:
            started = time.perf_counter()
        else:
            records += len(batch.rows)
    return records / (time.perf_counter() - started)


def bare_rate(task: tuple[list[str], Encoding, int]) -> float:
    """Of a bare loop in this process."""
    paths, encoding, records = task
    return rate(LocalStream(table_of(paths, len(paths))).train(slices_of(len(paths), records), encoding))


def throughput(paths: list[str], encoding: Encoding, repeats: int) -> dict[str, Any]:
    records = 3 * len(paths)  # an epoch long enough that its end, when processes run dry, weighs little
    table = table_of(paths, records)
    slices, cpus = slices_of(records, records), os.cpu_count() or 1
    stream, bare = Stream(ray.put(table), CpuBudget(cpus=cpus)), LocalStream(table)
    list(stream.train(slices[:8], encoding))  # processes start and import
    rates: dict[str, list[float]] = {"pipeline": [], "bare": [], "bare_at_once": []}
    with multiprocessing.get_context("spawn").Pool(cpus) as pool:
        tasks = [(paths, encoding, len(paths))] * cpus
        pool.map(bare_rate, [(paths, encoding, 4 * BATCH)] * cpus, chunksize=1)  # processes start and import
        for _ in range(repeats):
            rates["bare"].append(rate(bare.train(slices[: max(4, len(slices) // 12)], encoding)))
            rates["bare_at_once"].append(sum(pool.map(bare_rate, tasks, chunksize=1)))
            rates["pipeline"].append(rate(stream.train(slices, encoding)))
    found = {name: statistics.median(values) for name, values in rates.items()}
    ratio, against = found["pipeline"] / (found["bare"] * cpus), found["pipeline"] / found["bare_at_once"]
    return found | {"cpus": cpus, "ratio": ratio, "ratio_at_once": against, "runs": rates}


class PeakMemory:
    """Peak, in MB, of this process's and its children's memory, shared pages not counted, and of the object store."""

    def __enter__(self) -> PeakMemory:
        self.peak = self.store = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.peak = max(self.peak, self._now())
            used = ray.cluster_resources().get("object_store_memory", 0.0)
            used -= ray.available_resources().get("object_store_memory", used)
            self.store = max(self.store, used / 1e6)

    def _now(self) -> float:
        me = psutil.Process()
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                info = process.memory_info()
            except psutil.Error:
                continue
            total += info.rss - info.shared
        return total / 1e6


def memory(paths: list[str], encoding: Encoding, records: int) -> dict[str, Any]:
    table = table_of(paths, records)
    stream = Stream(ray.put(table), CpuBudget(cpus=os.cpu_count() or 1))
    with PeakMemory() as peak:
        rows = sum(len(batch.rows) for batch in stream.train(slices_of(records, records), encoding))
    if rows != records:
        raise RuntimeError(f"{rows} of {records} records came")
    return {"records": records, "peak_mb": peak.peak, "object_store_mb": peak.store, "table_mb": table.nbytes / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--records", type=int, nargs="*", default=[10_000, 200_000])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    start_ray(None)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), arguments.pictures, (1024, 768))
        found = throughput(paths, encoding_of(PictureViews()), arguments.repeats)
        print("| records/s | bare loop, one process | CPUs | pipeline ÷ (bare × CPUs) |\n|---|---|---|---|")
        print(
            f"| {found['pipeline']:.0f} | {found['bare']:.0f} | {found['cpus']} | {found['ratio']:.2f} |\n", flush=True
        )
        small = Path(folder) / "small"
        small.mkdir()
        tiny = write_pictures(small, 500, (128, 96))
        rows = []
        print("| records | peak memory, MB | object store, MB | table, MB |\n|---|---|---|---|")
        for records in arguments.records:
            row = memory(tiny, encoding_of(PictureViews(resize=54, crop=48)), records)
            rows.append(row)
            print(
                f"| {records:,} | {row['peak_mb']:.0f} | {row['object_store_mb']:.0f} | {row['table_mb']:.0f} |",
                flush=True,
            )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"throughput": found, "memory": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
