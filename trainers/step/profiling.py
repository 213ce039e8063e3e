"""A profile of a few steps: where their time goes, as a trace for a browser and as a table."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WAIT, WARM_UP, STEPS = 2, 1, 5  # steps: left out, recorded but dropped, kept
_ROWS = 40


class StepProfile:
    """Profiles STEPS steps of this process once, and writes them to `folder`.

    `trace.json` is for chrome://tracing or Perfetto, `summary.txt` has the operations by their own time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        plan = schedule(wait=WAIT, warmup=WARM_UP, active=STEPS, repeat=1)
        self._profile = profile(activities=kinds, schedule=plan, on_trace_ready=self._write, record_shapes=True)
        self._profile.start()
        self._left = WAIT + WARM_UP + STEPS

    def step(self) -> None:
        """After each step, from the first one on."""
        if self._left == 0:
            return
        self._left -= 1
        self._profile.step()
        if self._left == 0:
            self._profile.stop()

    def _write(self, done: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        done.export_chrome_trace(str(self._folder / "trace.json"))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = done.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=60)
        (self._folder / "summary.txt").write_text(f"{STEPS} steps\n{table}\n", encoding="utf-8")
