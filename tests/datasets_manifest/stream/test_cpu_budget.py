"""CPUs are divided so that the workers and a task of their data always fit, however the nodes are made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_manifest.stream.cpu_budget import CpuBudget, fitting_cpus, half_of, share_of


def _cpus(*each: float) -> list[dict[str, float]]:
    return [{"CPU": own} for own in each]


@pytest.mark.parametrize(
    ("nodes", "workers", "worker", "task"),
    [
        (_cpus(4), 1, 1.0, 1.0),
        (_cpus(2), 2, 0.5, 0.5),
        (_cpus(1, 1, 1), 2, 0.75, 0.5),  # a task fits beside each worker or on the third node
        (_cpus(1, 1), 2, 0.5, 0.5),
        (_cpus(1), 2, 0.25, 0.25),
        (_cpus(16, 16), 4, 1.0, 1.0),
    ],
)
def test_half_for_workers_half_for_data(
    nodes: list[dict[str, float]], workers: int, worker: float, task: float
) -> None:
    each = fitting_cpus(nodes, workers, 1.0, 0.0)
    assert each == pytest.approx(worker)
    assert share_of(nodes, each, workers).task_cpus == pytest.approx(task)


def test_few_cpus_beside_the_gpus() -> None:
    nodes = [{"CPU": 2.0, "GPU": 4.0}, {"CPU": 64.0}]
    each = fitting_cpus(nodes, 4, 1.0, 1.0)
    assert each == 0.5  # four on the two CPUs of the node that has the GPUs
    assert share_of(nodes, each, 4).cpus == (66 - 2) / 4


def test_a_worker_that_was_started_beside_more_nodes() -> None:
    after = share_of(_cpus(1, 1), 0.75, 2)  # three nodes were there when workers took three quarters
    assert after.cpus == after.task_cpus == 0.25
    nothing = share_of(_cpus(1, 1), 1.0, 2)
    assert nothing.task_cpus == 0 and nothing.unreserved_tasks == 1


def test_a_part_of_the_cluster() -> None:
    nodes = [{"CPU": 8.0, "object_store_memory": 1000.0}]
    assert half_of(0.5 * 8, 2) == 1.0
    assert share_of(nodes, 1.0, 2, part=0.5) == CpuBudget(cpus=1.0, object_store=125.0, most_task_cpus=1.0)
    assert CpuBudget(15.5).without_reservation().unreserved_tasks == 15


@given(nodes=st.lists(st.integers(1, 16), min_size=1, max_size=6), workers=st.integers(1, 12), data=st.data())
def test_a_task_fits_wherever_the_workers_are(nodes: list[int], workers: int, data: st.DataObject) -> None:
    each = fitting_cpus(_cpus(*map(float, nodes)), workers, 1.0, 0.0)
    free = [float(own) for own in nodes]
    for _ in range(workers):
        places = [number for number, left in enumerate(free) if left >= each - 1e-9]
        free[data.draw(st.sampled_from(places))] -= each
    budget = share_of(_cpus(*map(float, nodes)), each, workers)
    assert 0 < budget.task_cpus <= max(free) + 1e-9
    assert budget.task_cpus <= budget.cpus
