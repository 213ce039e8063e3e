"""docs/results.md from the JSON files of benchmarks/results:  python -m benchmarks.tables [--check]"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.adaptation import table as adaptation_table
from benchmarks.choose_preset import table as choose_preset_table
from benchmarks.comparison_page import table as comparison_table
from benchmarks.expected import table as expected_table
from benchmarks.export import HEAD as EXPORT_HEAD
from benchmarks.export import line as export_line
from benchmarks.floor import HEAD as FLOOR_HEAD
from benchmarks.floor import line as floor_line
from benchmarks.gpu import ROWS as GPU_ROWS
from benchmarks.gpu import bound as gpu_bound
from benchmarks.gpu import machine_line as gpu_machine
from benchmarks.gpu import reached as gpu_reached
from benchmarks.gpu import shown as gpu_shown
from benchmarks.growth import HEAD as GROWTH_HEAD
from benchmarks.growth import line as growth_line
from benchmarks.labels import table as labels_table
from benchmarks.missing import HEAD as MISSING_HEAD
from benchmarks.missing import line as missing_line
from benchmarks.pipelines import HEAD as PIPELINES_HEAD
from benchmarks.pipelines import line as pipelines_line
from benchmarks.rows import HEAD as ROWS_HEAD
from benchmarks.rows import line as rows_line
from benchmarks.small_data import HEAD as SMALL_HEAD
from benchmarks.small_data import VAL as SMALL_VAL
from benchmarks.small_data import line as small_line
from benchmarks.source_free import table as source_free_table
from benchmarks.speed import HEAD as SPEED_HEAD
from benchmarks.speed import line as speed_line
from benchmarks.trained_encoders import table as trained_encoders_table

RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = "not measured yet; `python -m benchmarks.gpu` does it on a machine with a CUDA GPU."
PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def adaptation(content: dict[str, Any]) -> str:
    seeds = sorted({run["seed"] for run in content["runs"]})
    gains = [_chosen(content, "m2can", seed) - _chosen(content, "source_only", seed) for seed in seeds]
    each = ", ".join(f"{100 * gain:+.1f}" for gain in gains)
    return (
        f"Target accuracy in percent on the generated data set, mean ± standard deviation over {len(seeds)} seeds (data and "
        f"weights), recipe `trainers/recipe/recipes/demo.yaml`. `python -m benchmarks.adaptation --out {_name('adaptation')}`\n\n"
        f"{adaptation_table(content['runs'], ['source_only', 'm2can'])}\n\n"
        f"Gain of M2CAN over source-only training, both chosen without target labels: "
        f"{100 * sum(gains) / len(gains):+.1f} points (by seed: {each})."
    )


def small_data(content: dict[str, Any]) -> str:
    return "\n".join(
        [
            "A recipe that names data and encoders only, with the rates and epochs of the rule: accuracy in percent of the "
            "epoch that is chosen without target labels, against logistic regression on the same encoders' features before "
            f"training. The number in a name is the training records of a domain; one seed, {SMALL_VAL} validation records a "
            f"domain. `python -m benchmarks.small_data --out {_name('small_data')}`\n",
            SMALL_HEAD,
            *map(small_line, content["rows"]),
        ]
    )


def _chosen(content: dict[str, Any], arm: str, seed: int) -> float:
    return next(run["chosen"] for run in content["runs"] if (run["arm"], run["seed"]) == (arm, seed))


def faults(content: list[dict[str, Any]]) -> str:
    lines = ["| fault | when | steps computed twice | seconds without a new step | all losses equal |"]
    lines.append("|---|---|---|---|---|")
    for row in content:
        lost = row["steps_lost"] if row["steps_lost"] >= 0 else "not traced"
        equal = "yes" if row["equal"] else "no"
        lines.append(f"| {row['fault']} | {row['when']} | {lost} | {row['seconds']} | {equal} |")
    head = f"Two workers, a checkpoint every four steps. `python -m benchmarks.faults --out {_name('faults')}`"
    return head + "\n\n" + "\n".join(lines)


def streaming(content: dict[str, Any]) -> str:
    found, at_once = content["throughput"], ""
    if "bare_at_once" in found:
        at_once = (
            f"{found['ratio_at_once']:.2f} of what {found['cpus']} bare loops reach at once "
            f"({found['bare_at_once']:.0f}), "
        )
    lines = [
        f"One worker's pipeline, both views of JPEGs of 1024×768: {found['pipeline']:.0f} records/s on {found['cpus']} CPUs, "
        f"{at_once}"
        f"{found['ratio']:.2f} of one bare loop's rate ({found['bare']:.0f}) times the CPUs. "
        f"`python -m benchmarks.streaming --out {_name('streaming')}`\n",
        "| records | peak memory without shared pages, MB | object store, MB |",
        "|---|---|---|",
    ]
    for row in content["memory"]:
        lines.append(f"| {row['records']:,} | {row['peak_mb']:.0f} | {row['object_store_mb']:.0f} |")
    return "\n".join(lines)


def pipelines(content: dict[str, Any]) -> str:
    machine = content["machine"]
    return "\n".join(
        [
            f"Workers' pipelines at once on a simulated cluster: {machine['nodes']} nodes of {machine['node_cpus']} made-up CPUs "
            f"each, whose processes shared the {machine['cpus']} real ones of this machine with other work, more or "
            "less from row to row. Two epochs of "
            f"{machine['rows']:,} small pictures, all pipelines together; the first batch counts the start of all processes, "
            "rates and waits are of the second epoch, memory is private. The last row is what Ray does where it is not told "
            "otherwise: on a node with more processes than CPUs those that wait for a task end after a second (`--ends-idle`). "
            f"`python -m benchmarks.pipelines --out {_name('pipelines')}`\n",
            PIPELINES_HEAD,
            *map(pipelines_line, content["rows"]),
        ]
    )


def rows(content: dict[str, Any]) -> str:
    read, written = content["read"], content["write"]
    lines = [
        "Synthetic records of a text of 12 words and a picture's path, three domains; an epoch of 10⁶ samples a domain, looked "
        f"up 96 at a time in the plan's order by one process; shards take {written['bytes_a_row']:.0f} bytes a row on the disk. "
        f"`python -m benchmarks.rows --out {_name('rows')}`\n",
        ROWS_HEAD,
        *(rows_line(where, content[where]) for where in ("shards", "memory")),
        f"\nReading the Parquet files of manifests, {read['rows']:,} rows: into shards {read['shards']['seconds']:.0f} s and "
        f"{read['shards']['peak_mb']:.0f} MB at most, into a table {read['memory']['seconds']:.0f} s and "
        f"{read['memory']['peak_mb']:.0f} MB.",
    ]
    return "\n".join(lines)


def speed(content: dict[str, Any]) -> str:
    machine = content["machine"]
    rows = content["rows"]
    lines = [
        f"Ratios, both sides in one run and in turns, medians; {machine['cpus']} CPUs, {machine['device']}. The other side is "
        "`benchmarks/baseline.py`, the method with the published cost structure, except for Ray: there it is the same loop "
        "without Ray. `make bench`\n",
        SPEED_HEAD,
        *(speed_line(name, rows[name]) for name in rows),
    ]
    return "\n".join(lines)


def missing(content: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"Postcards, {content['train']} training records of each domain, MiniLM and EfficientNet-Lite0 frozen; accuracy in "
            f"percent on {content['val']} records of the target of which so many lose their pictures "
            f"({content['without_pictures']:.0%} have none of their own), mean and each of {len(content['seeds'])} seeds, of the "
            "checkpoint chosen without labels. 0 is what `null` is here: no training record lacks a modality, and learned "
            "features start as zeros. "
            f"`python -m benchmarks.missing --out {_name('missing')}`\n",
            MISSING_HEAD,
            *map(missing_line, content["rows"]),
        ]
    )


def sweep(content: dict[str, Any]) -> str:
    return (
        f"{content['trials']} trials of {content['epochs']} epochs on the shared features of {content['rows']:,} training "
        f"records, a worker each, on {content['cpus']} CPUs that had other work; encoders of `tiny` size. "
        f"`python -m benchmarks.sweep --out {_name('sweep')}`\n\n"
        "| | |\n|---|---|\n"
        f"| processor seconds before the first trial: inputs, Ray, features of three views | {content['features_cpu_s']} |\n"
        f"| processor seconds a trial | {content['trial_cpu_s']} |\n"
        f"| trials a minute, with that other work | {content['trials_per_minute']} |\n"
        f"| processor minutes of 100 trials | {content['hundred_trials_cpu_minutes']} |"
    )


def gpu_before(content: dict[str, Any]) -> str:
    """Bars, what the version before reached, and what this version reaches, as far as it was measured."""
    file = RESULTS / "gpu.json"
    now = json.loads(file.read_text()) if file.is_file() else {"machine": None, "rows": {}}
    lines = [
        "ResNet-50 at 224 pixels and BERT-base without dropout and with random weights, three domains, two views, log-normal "
        f"text lengths. The version before was measured on {content['machine']}, when `python -m benchmarks.gpu` did not "
        f"exist. This version: {gpu_machine(now['machine']) if now['machine'] else NOT_MEASURED}\n",
        "| what | wanted | aim | the version before | this version | reached |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in GPU_ROWS.items():
        before, found = content["rows"].get(name, "not measured"), now["rows"].get(name, {})
        cells = [row.what, gpu_bound(row, row.bar), gpu_bound(row, row.aim), before]
        cells += [gpu_shown(name, found) or found.get("error", "not measured yet"), gpu_reached(found)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def floor(content: dict[str, Any]) -> str:
    return "\n".join(
        [
            "A step of the table's first row against what this machine does at best: a large matrix product's operations a "
            f"second, a copy's bytes. `python -m benchmarks.floor --out {_name('floor')}`\n",
            FLOOR_HEAD,
            *map(floor_line, content["rows"]),
        ]
    )


def growth(content: dict[str, Any]) -> str:
    return "\n".join(
        [
            "The last column is the factor by which the method's own work grows there: rows of a step, pictures, scores. "
            f"`python -m benchmarks.growth --out {_name('growth')}`\n",
            GROWTH_HEAD,
            *map(growth_line, content["rows"]),
        ]
    )


def serving(content: dict[str, Any]) -> str:
    lines = [
        "`m2can serve`, small encoders, texts with pictures, a promotion in the middle of every level; CPU ms: processor time "
        "a request, of the command and all that it started; wrong: a probability that is not the version's own. "
        "`python -m benchmarks.serving`\n",
        "| served by | requests at a time | requests/s | CPU ms | p50 ms | p95 ms | p99 ms | errors | wrong |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ("side", "concurrency", "requests_per_s", "cpu_ms", "p50_ms", "p95_ms", "p99_ms", "errors", "wrong")
    lines += ["| " + " | ".join(str(level[key]) for key in keys) + " |" for level in content["levels"]]
    return "\n".join(lines)


def export(content: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"MiniLM and EfficientNet-Lite0 with trained heads, exported by `m2can models export` and compared on "
            f"{content['records']} records; one record of text and picture, read and all, on {content['cores']} cores. "
            f"`python -m benchmarks.export --out {_name('export')}`\n",
            EXPORT_HEAD,
            *map(export_line, content["rows"]),
        ]
    )


def refinement(content: dict[str, Any]) -> str:
    select, gather = content["select"], content["gather"]
    return (
        f"{content['rows']:,} synthetic scores, {content['classes']} classes, rate {content['rate']:g}. "
        f"`python -m benchmarks.refinement --out {_name('refinement')}`\n\n"
        "| part | seconds | memory beside its input, MB |\n|---|---|---|\n"
        f"| selection | {select['seconds']:.2f} | {select['mb']:.0f} |\n"
        f"| exchange of the scores between {content['workers']} workers | {gather['seconds']:.2f} | {gather['mb']:.0f} |\n\n"
        f"Of the exchanged scores a worker keeps {gather['bytes_a_row']:g} bytes a target sample."
    )


def stack(content: dict[str, Any]) -> str:
    auth = "with basic-auth" if content["basic_auth"] else "**without** basic-auth (Flask-WTF was not installed)"
    refused = ", ".join(f"{name} {status}" for name, status in content["without_token"].items())
    started = ", ".join(f"{name} {seconds} s" for name, seconds in content["started"].items())
    lines = [
        f"The compose stack's parts as processes of one machine: Ray head and worker node with a token, MLflow's server {auth} "
        f"on {content['store']}, an S3 server, control plane, inference. `python -m benchmarks.stack`\n",
        f"Answers without a token or password: {refused}. Start: {started}.\n",
        "| step | through | seconds |",
        "|---|---|---|",
    ]
    lines += [f"| {row['step']} | {row['through']} | {row['seconds']} |" for row in content["steps"]]
    return "\n".join([*lines, f"| whole, with start | | {content['whole_s']} |"])


SECTIONS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "adaptation": ("It adapts", adaptation),
    "small_data": ("Little data", small_data),
    "comparison": ("Baselines, ablations and options", comparison_table),
    "choose_preset": ("Presets on seven data sets", choose_preset_table),
    "trained_encoders": ("Trained encoders", trained_encoders_table),
    "expected": ("The expected accuracy", expected_table),
    "missing": ("Missing pictures", missing),
    "labels": ("A few labels", labels_table),
    "source_free": ("Without the sources", source_free_table),
    "faults": ("What a fault costs", faults),
    "refinement": ("Pseudo labels at scale", refinement),
    "streaming": ("Streaming", streaming),
    "pipelines": ("Many pipelines at once", pipelines),
    "rows": ("Rows in shards", rows),
    "sweep": ("Sweeps on shared features", sweep),
    "speed": ("Speed", speed),
    "gpu_before": ("On one GPU", gpu_before),
    "floor": ("How close to the machine", floor),
    "growth": ("How cost grows", growth),
    "serving": ("Serving", serving),
    "export": ("Exported models", export),
    "stack": ("The whole stack", stack),
}


def _name(section: str) -> str:
    return f"benchmarks/results/{section}.json"


def page() -> str:
    """The page: a section for every result that is there."""
    parts = [
        "# Results",
        "Measured on two CPU cores that had other work besides, so times are upper bounds, except where a GPU is named. "
        "Made by `python -m benchmarks.tables`.",
    ]
    for name, (title, write) in SECTIONS.items():
        file = RESULTS / f"{name}.json"
        if file.is_file():
            parts += [f"## {title}", write(json.loads(file.read_text()))]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    if parser.parse_args().check:
        sys.exit(
            0 if PAGE.read_text() == page() else f"{PAGE} is not what the results say: python -m benchmarks.tables"
        )
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
