"""The published implementation's numbers come back, and the comparison would notice if they did not."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import replay_golden
from tests.replay_golden import Record, error_of, errors_of

FOLDER = Path(__file__).parents[2] / "golden"
HEADS: list[Record] = json.loads((FOLDER / "heads.json").read_text())
FULL: list[Record] = json.loads((FOLDER / "full.json").read_text())


def above(errors: dict[str, float], tolerance: float) -> dict[str, float]:
    return {field: error for field, error in errors.items() if not error <= tolerance}


@pytest.mark.parametrize("number", range(len(HEADS)))
def test_heads(number: int) -> None:
    errors = errors_of(HEADS[number])
    assert not above(errors, 1e-9)
    fields = [f"steps[{k}].{field}" for k, step in enumerate(HEADS[number]["steps"]) for field in step]
    assert sorted(errors) == sorted([*fields, "weights_after", "discriminators_after", "uacr"])


@pytest.mark.parametrize("number", range(len(FULL)))
def test_full(number: int) -> None:
    errors = errors_of(FULL[number])
    assert not above(errors, 1e-6)
    assert {"steps[0].first", "steps[0].second", "running", "weights_after", "eval_logits"} <= set(errors)


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all numbers."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [place for key, value in items for place in _places(value, (*path, key))]
    return [path]


def test_a_change_in_any_number_is_noticed() -> None:
    """A relative 1e-6 in any of a record's numbers shows; a check's sum is measured against its sum of absolutes."""
    for part in (HEADS[1]["steps"], HEADS[1]["weights_after"], HEADS[1]["uacr"], FULL[0]["running"]):
        assert error_of(part, part) == 0
        for *parents, last in _places(part):
            changed = copy.deepcopy(part)
            node = changed
            for key in parents:
                node = node[key]
            scale = node["abs"] if last == "sum" else node[last]
            node[last] += 1e-6 * scale or 1e-9
            assert error_of(changed, part) > 0.9e-6, (*parents, last)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_infinitely_wrong(wrong: float) -> None:
    assert error_of([1.0, wrong], [1.0, 2.0]) == float("inf")
    assert error_of([1.0], [1.0, 2.0]) == float("inf")


def test_a_changed_weight_of_a_term_is_noticed() -> None:
    changed = copy.deepcopy(HEADS[1])
    changed["weights"]["mcc"] *= 1.001
    errors = above(errors_of(changed), 1e-9)
    assert {"steps[0].first", "steps[0].grads", "steps[0].grad_norm_first"} <= set(errors)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(records: list[Record], *options: str) -> int:
        file = tmp_path / "golden.json"
        file.write_text(json.dumps(records))
        monkeypatch.setattr(sys, "argv", ["replay_golden", str(file), *options])
        return replay_golden.main()

    return run


def test_command(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(HEADS[:1], "--tolerance", "1e-9") == 0
    wrong = copy.deepcopy(HEADS[0])
    wrong["steps"][0]["first"]["task"] *= 1.001
    assert command([wrong], "--tolerance", "1e-9") == 1
    marked = [line for line in capsys.readouterr().out.splitlines() if "ABOVE" in line]
    assert len(marked) == 1
    assert "steps[0].first" in marked[0]


def _own_record(classes: int, batch: int, domains: int, heads: int, steps: int) -> Record:
    """A record of other sizes than the published ones, with the numbers as we compute them."""
    record = copy.deepcopy(HEADS[1]) | {"num_classes": classes, "batch": batch, "domains": domains, "seed": 7}
    record |= {"rho": 0.1, "temperature": 1.5, "discriminator_eps": 0.7}
    record["weights"] = {"cmcfa": 0.3, "cdcfa": 0.4, "cdafa": 0.2, "mcc": 0.6}
    record["weights_after"] = {f"classifiers.{i}.linear.bias": {} for i in range(heads)}
    record["steps"] = [{"first": {}, "second": {}, "lr_after": [], "ad_lr_after": []}] * steps
    found = replay_golden.Replay(record).run()
    record["steps"] = [
        {name: step[name] for name in ("first", "second", "lr_after", "ad_lr_after")} for step in found["steps"]
    ]
    record["weights_after"] = {name: replay_golden.check_of(x) for name, x in found["weights_after"].items()}
    record["discriminators_after"] = [
        {name: replay_golden.check_of(x) for name, x in each.items()} for each in found["discriminators_after"]
    ]
    record["uacr"] = found["uacr"]
    return record


@pytest.mark.parametrize(
    ("classes", "batch", "domains", "heads", "steps"), [(4, 3, 2, 1, 3), (2, 1, 1, 1, 1), (5, 2, 4, 3, 2)]
)
def test_other_sizes_replay(classes: int, batch: int, domains: int, heads: int, steps: int) -> None:
    torch.manual_seed(0)
    record = json.loads(json.dumps(_own_record(classes, batch, domains, heads, steps)))
    torch.manual_seed(1)  # nothing may come from torch's own generator
    assert not above(errors_of(record), 1e-12)
    assert len(record["discriminators_after"]) == (heads + 1) * heads // 2
