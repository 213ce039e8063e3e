"""A loss term that is named once is picked up everywhere."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from torch import Tensor

from services.cli.output import RunProgress
from tests.trainers.m2can import made
from trainers.journal.journal import EpochRecord
from trainers.m2can import losses
from trainers.m2can.collective import Collective
from trainers.m2can.losses import TERMS, Term, weighted_terms
from trainers.m2can.losses.inputs import TermInputs
from trainers.m2can.objective import Objective
from trainers.recipe import Recipe, make_recipe
from trainers.recipe.base import NotNegative
from trainers.recipe.method_sections import ObjectiveSection
from trainers.reports import figures


def test_the_recipe_has_a_key_for_the_weight_of_every_term() -> None:
    keys = set(ObjectiveSection.model_fields) - {"temperature", "smoothing", "discriminators"}
    assert keys == {term.name for term in weighted_terms()}
    for term in weighted_terms():
        field = ObjectiveSection.model_fields[term.name]
        assert (field.default, field.description) == (term.weight, term.meaning)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Term:
    """One entry and one module more."""

    def term(inputs: TermInputs) -> Tensor:
        return inputs.outputs.fused_DBK.square().sum()

    module = ModuleType("trainers.m2can.losses.toy")
    module.term = term  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = Term("toy", "toy: length of the features", "toy", 0.5, "Weight of the toy.", "target")
    for place in (losses, figures, sys.modules[RunProgress.__module__]):
        monkeypatch.setattr(place, "TERMS", (*TERMS, entry))
    return entry


class WithToy(ObjectiveSection):
    toy: NotNegative = 0.0


def recipe_with(toy: float) -> Recipe:
    recipe = make_recipe({"data": {"sources": ["a"], "target": "b"}, "uacr": {"enabled": False}})
    off = {term.name: 0.0 for term in TERMS if term.weight is not None}
    return recipe.model_copy(update={"objective": WithToy(**off, toy=toy)})


def test_a_new_term_is_computed_where_it_takes_part(toy: Term) -> None:
    objective, one = Objective(num_sources=2, weights={"toy": 2.0}), Collective()
    o = made.outputs(3)
    terms = objective(o, made.batch(made.labels(3)), one)
    assert list(terms) == ["task", "toy"]
    assert terms["toy"].item() == pytest.approx(2 * float(o.fused_DBK.square().sum()))
    assert list(objective(made.outputs(2), made.batch(made.labels(2)), one)) == ["task"]  # no target yet


def test_a_new_term_lets_the_target_take_part(toy: Term) -> None:
    assert recipe_with(0.1).target_takes_part and not recipe_with(0.0).target_takes_part
    assert recipe_with(0.1).objective.weights()["toy"] == 0.1


def test_a_new_term_has_its_curve_and_its_place_in_progress(toy: Term) -> None:
    record = EpochRecord(1, 10, 0.0, {"loss/toy": 3.0, "loss/task": 1.0, "loss/total": 4.0})
    assert [panel.title for panel in figures.loss_panels([record])][-1] == toy.label
    content = {"step": 1, "steps": 2, "passes": {"second": {"toy": 3.0, "task": 1.0, "total": 4.0}}}
    progress = RunProgress(as_json=False)
    assert "task 1.000  toy 3.000  total 4.000" in progress._detail(content)
