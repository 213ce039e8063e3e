"""Results of a sweep's trials, read from their folders."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_manifest.files import read_json
from trainers.journal.journal import EpochRecord, Journal
from trainers.journal.outcome import TARGET_ACCURACY, FloorResult
from tuning.sweep import Sweep

MEASURES = ("target_accuracy_chosen", "target_accuracy_last", "target_accuracy_oracle", "target_macro_f1")
TRIAL_FILE = "trial.json"
_RESULTS = ("score", "epochs", "chosen_epoch", "source_accuracy", *MEASURES, "regret", "seconds", "left_out", "error")


@dataclass(frozen=True)
class Trial:
    """status: `finished`, `stopped` (by the scheduler) or `failed`. content: of its trial.json, if there is one."""

    name: str
    status: str
    config: dict[str, Any]
    records: list[EpochRecord]
    content: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def score(self) -> float:
        return float(self.content.get("score", float("nan")))

    @property
    def overrides(self) -> list[str]:
        return list(self.content["overrides"])


def read_trials(folder: Path, sweep: Sweep) -> list[Trial]:
    """All trials that wrote a recipe or a result, ordered by start.

    Args:
        folder: of the sweep's trials.
    """
    found = []
    for place in folder.glob(f"{sweep.name}-*"):
        file, run = place / TRIAL_FILE, place / "recipe.json"
        if not file.is_file() and (not run.is_file() or _is_part(place.name)):
            continue
        content = read_json(file) if file.is_file() else {}
        records = Journal(str(place / "journal")).read()
        begun = records[0].time if records else (file if file.is_file() else run).stat().st_mtime
        config = content.get("config") or _config_of(run, sweep)
        found.append((begun, Trial(place.name, content.get("status", "stopped"), config, records, content)))
    return [trial for _, trial in sorted(found, key=lambda pair: (pair[0], pair[1].name))]


def _is_part(name: str) -> bool:
    """Whether this is a run within a trial, the last run with the best recipe, or the floor's."""
    return "-without-" in name or name.endswith(("-best", "-floor"))


def _config_of(run: Path, sweep: Sweep) -> dict[str, Any]:
    """A trial's values from its run's recipe."""
    tree = read_json(run)
    config = {}
    for key in sweep.space:
        node: Any = tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        config[key] = node
    return config


def result_tree(
    sweep: Sweep, trials: list[Trial], best: Trial | None, floor: FloorResult | None = None
) -> dict[str, Any]:
    """The sweep's result as plain values."""
    rows = []
    for trial in trials:
        results = {key: trial.content.get(key) for key in _RESULTS}
        rows.append({"name": trial.name, "status": trial.status, "config": trial.config, **results})
    tree: dict[str, Any] = {"objective": sweep.objective, "trials": rows, "best": best.name if best else None}
    tree["floor"] = None if floor is None else floor.numbers()
    if sweep.is_comparison:
        tree["variants"] = variant_rows(sweep, trials)
    elif best is not None:
        labelled = [t.content[MEASURES[0]] for t in trials if t.content.get(MEASURES[0]) is not None]
        if labelled:  # for the report only: no label of the target reached the choice
            tree["target_accuracy_best_trial"] = max(labelled)
            tree["regret"] = max(labelled) - best.content[MEASURES[0]]
    return tree


def floor_line(floor: FloorResult, best: Trial | None) -> str:
    """The floor beside the best trial, in a sentence; its accuracy by target labels is for the reader."""
    accuracy, score = floor.metrics.get(TARGET_ACCURACY), floor.metrics.get("selection/score")
    said = [f"score {score:.4g}"] if score is not None else []
    said += [f"target accuracy {100 * accuracy:.1f} %"] if accuracy is not None else []
    than = "no trial is better, it is the model" if floor.chosen else "the best trial is preferred"
    if not floor.chosen and score is not None and best is not None and score > best.score:
        than += ": the floor has other class shares, a lower source accuracy, or encoders that start at random"
    return f"the floor, without training: {', '.join([*said, than])}"


def variant_rows(sweep: Sweep, trials: list[Trial]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, a row a variant."""
    rows = []
    for variant in sweep.variants:
        runs = [t for t in trials if t.finished and t.config.get("variant") == variant]
        row: dict[str, Any] = {"variant": variant, "runs": len(runs)}
        for key in ("score", "source_accuracy", *MEASURES):
            values = [float(t.content[key]) for t in runs if t.content.get(key) is not None]
            row[key] = statistics.mean(values) if values else None
            row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows
