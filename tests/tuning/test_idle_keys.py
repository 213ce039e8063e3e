"""Searched keys that cannot have acted are named."""

from __future__ import annotations

import pytest

from tests.tuning.sweeps import finished, plan_of
from trainers.journal.journal import EpochRecord
from tuning.idle_keys import idle_keys
from tuning.report import draw_report
from tuning.trial_results import Trial

HALF = {"low": 0.1, "high": 0.6}


def trials_of(key, values, kept=0.0):
    trials = []
    for number, value in enumerate(values):
        trial = finished(f"trial-{number}", {key: value}, 0.1 * number)
        records = [EpochRecord(r.epoch, r.step, 0.0, {**r.metrics, "uacr/kept": kept}) for r in trial.records]
        trials.append(Trial(trial.name, trial.status, trial.config, records, trial.content))
    return trials


@pytest.mark.parametrize(
    ("key", "part", "overrides", "why"),
    [
        ("uacr.start", HALF, ["uacr.enabled=false"], "uacr.enabled is false"),
        ("uacr.start", HALF, [], "no trial used a pseudo label"),
        ("objective.temperature", HALF, ["objective.mcc=0"], "objective.mcc is 0"),
        ("optimizer.lr.discriminators_target", HALF, ["objective.cdafa=0"], "objective.cdafa is 0"),
        ("schedule.power", HALF, ["schedule.mode=constant"], "schedule.mode is not poly"),
        ("schedule.power", HALF, [], None),
        ("objective.mcc", HALF, [], None),
        ("uacr.enabled", {"choices": [True, False]}, [], None),
    ],
)
def test_a_key_is_idle_where_the_recipe_leaves_it_aside(tmp_path, key, part, overrides, why):
    plan = plan_of(tmp_path, {"space": {key: part}, "set": overrides})
    values = part.get("choices") or [0.2, 0.5]
    assert idle_keys(plan, trials_of(key, values)) == ({} if why is None else {key: why})


def test_pseudo_labels_make_their_keys_act_and_one_value_does_nothing(tmp_path):
    plan = plan_of(tmp_path, {"space": {"uacr.start": HALF}})
    assert idle_keys(plan, trials_of("uacr.start", [0.2, 0.5], kept=9.0)) == {}
    same = {"uacr.start": "all trials had the value 0.2"}
    assert idle_keys(plan, trials_of("uacr.start", [0.2, 0.2], kept=9.0)) == same
    assert idle_keys(plan, []) == {}


def test_a_key_that_one_trial_leaves_aside_acts_in_the_others(tmp_path):
    plan = plan_of(tmp_path, {"space": {"schedule.mode": {"choices": ["poly", "constant"]}, "schedule.power": HALF}})
    trials = [
        finished(f"trial-{mode}-{power}", {"schedule.mode": mode, "schedule.power": power}, power)
        for mode in ("poly", "constant")
        for power in (0.2, 0.5)
    ]
    assert idle_keys(plan, trials) == {}
    assert idle_keys(plan, trials[2:])["schedule.power"] == "schedule.mode is not poly"


def test_the_page_names_them_and_gives_them_no_importance(tmp_path):
    plan = plan_of(tmp_path, {"space": {"uacr.start": HALF, "objective.mcc": HALF}, "set": ["uacr.enabled=false"]})
    trials = [
        finished(f"t-{n}", {"uacr.start": 0.1 + n / 30, "objective.mcc": 0.6 - n / 30}, n / 10) for n in range(12)
    ]
    draw_report(plan, trials, trials[-1], tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "uacr.start cannot have acted: uacr.enabled is false." in page
    importance = page[page.index('<section id="importance">') :]
    assert "objective.mcc" in importance and "<td>uacr.start" not in importance[: importance.index("</section>")]
