"""Choice, tables and pictures of made-up trials."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from datasets_manifest.files import read_json
from tests.browser import ask
from tests.tuning.sweeps import finished, plan_of
from trainers.journal.outcome import FloorResult
from tuning.packing import Packing, pack
from tuning.report import draw_report, importances, table
from tuning.search import planned_trials, search_space
from tuning.trial_results import Trial, floor_line

SPACE = {"uacr.start": {"low": 0.1, "high": 0.6}, "sam.rho": {"choices": [0, 0.05]}}


def searched(count=12):
    """The score follows uacr.start alone."""
    draw = random.Random(0)
    configs = [{"uacr.start": draw.uniform(0.1, 0.6), "sam.rho": draw.choice([0, 0.05])} for _ in range(count)]
    accuracy = [0.5 + i / 100 for i in range(count)]
    return [
        finished(f"trial-{i}", config, config["uacr.start"] ** 2, target_accuracy_chosen=a, target_accuracy_oracle=a)
        for i, (config, a) in enumerate(zip(configs, accuracy, strict=True))
    ]


def test_importance_finds_the_key_that_matters(tmp_path):
    plan = plan_of(tmp_path, {"space": SPACE})
    shares = importances(plan.sweep, searched())
    assert shares["uacr.start"] > 0.8 and shares["sam.rho"] < 0.2
    assert importances(plan.sweep, searched(9)) == {}


def test_report_of_a_search(tmp_path):
    plan = plan_of(tmp_path, {"space": SPACE})
    trials = searched()
    draw_report(plan, trials, trials[4], tmp_path / "report")
    tree = read_json(tmp_path / "report" / "sweep.json")
    assert tree["best"] == "trial-4" and tree["regret"] == pytest.approx(0.11 - 0.04)
    for name in ("parallel_coordinates", "importance", "score_over_epochs"):
        pixels = np.asarray(Image.open(tmp_path / "report" / f"{name}.png").convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    rows, idle = (tmp_path / "report" / "table.md").read_text().split("\n\n")
    lines = rows.splitlines()
    assert idle == "uacr.start cannot have acted: no trial used a pseudo label\n"
    assert len(lines) == 2 + 12 and "best" in lines[2 + 4]


def test_the_table_has_the_floor_that_the_best_trial_was_compared_with(tmp_path):
    plan = plan_of(tmp_path, {"space": SPACE})
    trials = searched()
    floor = FloorResult(False, tmp_path, {"selection/score": 0.001, "target/val/accuracy": 0.5})
    draw_report(plan, trials, trials[4], tmp_path / "report", floor=floor)
    rows, below, _ = (tmp_path / "report" / "table.md").read_text().split("\n\n")
    assert len(rows.splitlines()) == 2 + 12
    said = "the floor, without training: score 0.001, target accuracy 50.0 %, the best trial is preferred"
    assert below == said
    assert said[1:] in (tmp_path / "report" / "report.html").read_text()
    surer = FloorResult(False, tmp_path, {"selection/score": trials[4].score + 1})
    assert "preferred: the floor has other class shares" in floor_line(surer, trials[4])


def test_a_space_in_words(tmp_path):
    space = {
        **SPACE,
        "objective.mcc": {"low": 0.01, "high": 2, "log": True},
        "uacr.warmup": {"low": 1, "high": 4, "integer": True, "step": 1},
    }
    found = {key: part.described() for key, part in plan_of(tmp_path, {"space": space}).sweep.space.items()}
    assert found == {
        "uacr.start": "0.1 to 0.6",
        "sam.rho": "one of 0, 0.05",
        "objective.mcc": "0.01 to 2, logarithmic",
        "uacr.warmup": "1 to 4, whole numbers, every 1",
    }


def test_comparison_means_over_seeds(tmp_path):
    plan = plan_of(tmp_path, {"variants": {"all": [], "plain": ["objective.mcc=0"]}, "seeds": [0, 1]})
    values = {("all", 0): 0.7, ("all", 1): 0.8, ("plain", 0): 0.6, ("plain", 1): 0.6}
    trials = [
        finished(f"trial-{variant}-{seed}", {"variant": variant, "seed": seed}, 0.1, target_accuracy_chosen=value)
        for (variant, seed), value in values.items()
    ]
    text = table(plan.sweep, trials, None)
    assert "75.0 % ± 7.1 %" in text and "60.0 % ± 0.0 %" in text
    assert planned_trials(plan) == 4
    draw_report(plan, trials, None, tmp_path / "report")
    assert (tmp_path / "report" / "comparison.png").stat().st_size > 5000


def test_page_of_a_search(tmp_path):
    plan = plan_of(tmp_path, {"space": SPACE, "set": ["run.storage=<script>alert(1)</script>"]})
    trials = [*searched(), Trial("lost", "failed", {}, [], {"error": "<b>no</b> at sqlite://ann:secret@host/db"})]
    draw_report(plan, trials, trials[4], tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in text and "<b>no" not in text and "secret" not in text and "http://" not in text
    for said in (
        "12 finished, 1 failed",
        "trial-4 is the best: target accuracy 54.0 %",
        "torch 2.",
        "trial-4 has the best score",
        "regret 7.0 %",
        "&lt;script&gt;",
    ):
        assert said in text, said
    assert text.count("<title>trial-") == 2 * 12 + 8 * 2, "a point a trial and key, and eight curves of two epochs"
    assert text.count('role="img"') == 4
    draw_report(plan, [], None, tmp_path / "report")
    assert "No trial finished" in (tmp_path / "report" / "report.html").read_text()


def test_page_of_a_comparison(tmp_path):
    plan = plan_of(tmp_path, {"variants": {"all <i>": [], "plain": ["objective.mcc=0"]}, "seeds": [0, 1]})
    told = {("all <i>", 0): 0.7, ("all <i>", 1): 0.8, ("plain", 0): 0.6, ("plain", 1): 0.6}
    trials = [
        finished(f"t-{seed}", {"variant": variant, "seed": seed}, 0.1, target_accuracy_chosen=value)
        for (variant, seed), value in told.items()
    ]
    draw_report(plan, trials, None, tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert "<title>Comparison trial</title>" in text
    assert "Best of 2 variants: all &lt;i&gt;, target accuracy 75.0 % ± 7.1 %." in text
    assert "75.0 % ± 7.1 %" in text and "all &lt;i&gt;" in text and "<i>" not in text and text.count('role="img"') == 2
    unlabelled = [finished("t", {"variant": v, "seed": 0}, 0.2) for v in ("all <i>", "plain")]
    draw_report(plan, unlabelled, None, tmp_path / "report")
    assert "accuracy and the regret are not known" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.stack
@pytest.mark.parametrize("width", [360, 1100])
def test_a_browser_shows_the_page(tmp_path, width):
    plan = plan_of(tmp_path, {"space": SPACE})
    trials = searched()
    draw_report(plan, trials, trials[4], tmp_path / "report")
    script = "(page) => ({rows: page.querySelectorAll('#trials tbody tr').length})"
    told = ask(tmp_path / "report" / "report.html", width, script, tmp_path)
    assert told["overflow"] == 0 and told["loaded"] == [] and told["rows"] == 12


def test_grid_has_every_point(tmp_path):
    space = {"uacr.start": {"low": 0.1, "high": 0.5, "step": 0.2}, "sam.rho": {"choices": [0, 0.05]}}
    plan = plan_of(tmp_path, {"space": space, "algorithm": "grid"})
    points, _ = search_space(plan, 1)
    assert points["uacr.start"] == {"grid_search": [0.1, 0.3, 0.5]} and planned_trials(plan) == 6


@pytest.mark.parametrize(
    ("resources", "workers", "count"),
    [({"CPU": 2}, 1, 1), ({"CPU": 16}, 2, 4), ({"CPU": 64, "GPU": 8}, 2, 4), ({"CPU": 1}, 4, 1)],
)
def test_trials_side_by_side(tmp_path, resources, workers, count):
    plan = plan_of(tmp_path, {"space": SPACE})
    packing = pack(plan.recipe([f"cluster.workers={workers}"]), resources)
    assert packing == Packing(count) and packing.device is None


@pytest.mark.parametrize(
    ("resources", "overrides", "most", "wanted"),
    [
        ({"CPU": 16}, [], None, Packing(16, 1.0, 0.0, "cpu")),
        ({"CPU": 2}, [], 8, Packing(8, 0.25, 0.0, "cpu")),
        ({"CPU": 16}, ["cluster.cpus_per_worker=4"], None, Packing(4, 4.0, 0.0, "cpu")),
        ({"CPU": 16}, ["cluster.workers=2"], None, Packing(8)),  # several workers are Ray Train's
        ({"CPU": 16, "GPU": 2}, [], None, Packing(8, 1.0, 0.25, "cuda")),
        ({"CPU": 3, "GPU": 2}, [], None, Packing(2, 1.0, 1.0, "cuda")),
        ({"CPU": 16, "GPU": 2}, [], 2, Packing(2, 1.0, 1.0, "cuda")),
        ({"CPU": 16, "GPU": 2}, ["cluster.device=cpu"], None, Packing(16, 1.0, 0.0, "cpu")),
    ],
)
def test_trials_on_features_train_in_tune_s_own_processes(tmp_path, resources, overrides, most, wanted):
    on_features = ["encoders.features=features", "encoders.text.freeze=all", "encoders.picture.freeze=all"]
    recipe = plan_of(tmp_path, {"space": SPACE}).recipe([*on_features, *overrides])
    assert pack(recipe, resources, most) == wanted
