"""`python -m benchmarks.gpu`: every row's code runs, at tiny sizes on a CPU; what fails says why and ends nothing else."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import gpu
from benchmarks.gpu import AGAINST_READY, MEASUREMENTS, ROWS, Measurement, judged, line, measure
from benchmarks.gpu_step import TINY, ReadySteps, small_steps, work_of

FAILING = "tests.test_gpu"


def test_each_row_has_one_measurement() -> None:
    told = [row for measurement in MEASUREMENTS.values() for row in measurement.rows]
    assert sorted(told) == sorted(ROWS)
    assert sum(ROWS[row].bar is not None for row in ROWS) == 13


def test_ready_steps_have_texts_that_differ_and_train() -> None:
    ready = ReadySteps(TINY, TINY.few, "recommended")
    assert len({host.mask.sum() for host in ready.hosts}) > 1
    assert ready.hosts[0].pictures is ready.hosts[1].pictures
    before = torch.cat([p.detach().flatten().clone() for p in ready.step.parameters])
    assert len(ready.seconds(2)) == 2 and ready.step.number == 2
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in ready.step.parameters]))


def test_a_measurement_tells_its_rows() -> None:
    told: dict[str, Any] = {}
    small_steps(TINY, lambda row, value, note="", **more: told.update({row: (value, note, more)}))
    value, note, more = told["step_8"]
    rows = (TINY.size.sources + 1) * TINY.few
    assert value == pytest.approx(1e3 * rows / more["rows_per_s"])
    assert "launches" in note and more["top"]


def kernel(key: str, microseconds: float, count: int, *, device: DeviceType = DeviceType.CUDA, **more: Any) -> Any:
    return SimpleNamespace(
        key=key, count=count, device_type=device, self_device_time_total=microseconds, self_cpu_time_total=0.0, **more
    )


def test_work_of_a_gpu_counts_launches_and_copies_without_transfers() -> None:
    cpu = DeviceType.CPU
    events = [
        kernel("cudaLaunchKernel", 0, 100, device=cpu),
        kernel("cuLaunchKernelEx", 0, 20, device=cpu),
        kernel("cudaMemcpyAsync", 0, 7, device=cpu),
        kernel("sm90_xmma_gemm_bf16", 6000, 20),
        kernel("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda()>", 1000, 10),
        kernel("void cudnn::ops::nchwToNhwcKernel<float>", 1000, 4),
        kernel("Memcpy HtoD (Pinned -> Device)", 500, 2),
        kernel("Optimizer.step#Adam.step", 9000, 2, is_user_annotation=True),
    ]
    found = work_of(events, 2, on_gpu=True)
    assert found["launches"] == 60
    assert found["busy_ms"] == 4 and found["copies"] == 0.25 and found["transfers_ms"] == 0.25
    assert found["top"][0] == ("sm90_xmma_gemm_bf16", 3.0, 10)


def test_bars_and_aims_are_compared_in_their_own_direction() -> None:
    rows = judged({"step_64": {"value": 100.0, "note": "", "rows_per_s": 2000.0}, "copies": {"value": 6.0, "note": ""}})
    assert rows["step_64"]["reached"] and not rows["step_64"]["aim_reached"]
    assert not rows["copies"]["reached"] and not rows["memory"]["reached"]
    assert "| 100.0 ms | ≤ 120 ms | ≤ 90 ms | yes |" in line("step_64", rows["step_64"])
    assert "| no | not measured |" in line("memory", rows["memory"])
    assert list(rows) == list(ROWS)


def test_rates_are_compared_with_the_ready_step() -> None:
    epoch = {"value": 1500.0, "note": "1,500 rows/s"}
    ready = judged({"step_64": {"value": 96.0, "note": "", "rows_per_s": 2000.0}, "epoch_2": epoch})
    assert ready["epoch_2"]["value"] == 0.75 and not ready["epoch_2"]["reached"]
    alone = judged({"epoch_2": epoch})["epoch_2"]
    assert "value" not in alone and alone["rows_per_s"] == 1500.0 and not alone["reached"]
    assert "1,500 rows/s; there is no ready step" in line("epoch_2", alone)


def tells_and_fails(scale: Any, tell: Any) -> None:
    tell("floor", 1.0)
    raise ValueError("out of something\nlong")


def tells_and_waits(scale: Any, tell: Any) -> None:
    import time

    tell("floor", 1.0)
    time.sleep(600)


def dies(scale: Any, tell: Any) -> None:
    import os

    os._exit(3)


@pytest.mark.parametrize(
    ("function", "seconds", "told", "why"),
    [
        ("tells_and_fails", 60, {"floor"}, "ValueError: out of something …"),
        ("tells_and_waits", 30, {"floor"}, "took longer than 30 s"),
        ("dies", 60, set(), "its process ended with code 3; see failing.log"),
    ],
)
@pytest.mark.slow
def test_a_measurement_that_fails_says_why_and_keeps_what_it_told(
    function: str, seconds: float, told: set[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEASUREMENTS, "failing", Measurement(f"{FAILING}:{function}", seconds, ("floor",)))
    rows, error = measure("failing", seconds, True, tmp_path)
    assert rows.keys() == told and error == why
    if function == "tells_and_fails":
        assert "ValueError: out of something\nlong" in (tmp_path / "failing.log").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_lacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "CUDA" in error and torch.__version__ in error
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu126")
    assert gpu.lacking() == ["torch 2.11 or later; here is 2.10.1+cu126"]


@pytest.mark.slow
def test_every_row_is_measured_at_tiny_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    """In this process; that a measurement has one of its own is the test above."""

    def here(name: str, seconds: float, tiny: bool, logs: Path) -> tuple[dict[str, Any], str]:
        found: dict[str, Any] = {}
        module, function = MEASUREMENTS[name].place.split(":")
        folder = [tmp_path / name] if MEASUREMENTS[name].writes else []

        def tell(row: str, value: float, note: str = "", **more: Any) -> None:
            found[row] = {"value": value, "note": note, **more}

        getattr(import_module(module), function)(TINY, tell, *folder)
        return found, ""

    monkeypatch.setenv("RAY_ADDRESS", "local")  # as the measurement of a whole run sets it
    monkeypatch.setattr(gpu, "measure", here)
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--out", str(tmp_path)])
    gpu.main()
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert not {name: row["error"] for name, row in content["rows"].items() if "error" in row}
    assert content["rows"].keys() == ROWS.keys() and content["tiny"]
    assert all(row["value"] > 0 for row in content["rows"].values())
    assert all(content["rows"][name]["rows_per_s"] > 0 for name in AGAINST_READY)
    assert capsys.readouterr().out.strip().endswith((tmp_path / "gpu.md").read_text().strip())
