"""A run's MLflow side: its sender is made beside training, and its model is published at the end."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.journal.outcome import Outcome
    from trainers.preflight.preparation import Prepared
    from trainers.tracking.sender import Sender, TrackedRun


class RunTracking:
    """The run's sender to MLflow. It is made with the first step: training must not wait for MLflow's imports."""

    def __init__(self, prepared: Prepared, tags: Mapping[str, str], candidate: str) -> None:
        self._prepared, self._tags, self._candidate = prepared, tags, candidate
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._made: Future[Sender] | None = None
        self._publishes = False

    @property
    def has_begun(self) -> bool:
        return self._made is not None

    def begin(self, precision: str | None = None) -> Future[Sender]:
        """Make and start the sender in the background, once.

        Args:
            precision: what the workers compute in; None: no step was made.
        """
        if self._made is None:
            self._made = self._pool.submit(self._make, precision)
        return self._made

    def sender(self) -> Sender:
        return self.begin().result()

    def close(self, status: str) -> None:
        """End the MLflow run of a training that did not come to its end."""
        from trainers.tracking.sender import CLOSED_WITHIN_S

        sender = self.sender()
        if self._publishes and sender.run_id is not None:
            sender = self._make(None)  # the other one still uploads what an interrupted call asked for
        sender.finish(status, deadline_s=CLOSED_WITHIN_S)

    def publish(self, outcome: Outcome, report: Path, register: bool) -> TrackedRun:
        """Log the report and the model, register the model, close the MLflow run."""
        from trainers.tracking.run_sender import model_to_log

        sender, model = self.sender(), None
        names = [finding.name for finding in outcome.findings]
        more_tags = {"m2can.warnings": ", ".join(names)} if names else {}
        if outcome.floor is not None:
            more_tags["m2can.floor"] = "chosen" if outcome.floor.chosen else "not chosen"
            numbers = outcome.floor.numbers()
            for name, found in (("floor", numbers), ("zero_shot", numbers["zero_shot"] or {})):
                accuracies = {key: found.get(key) for key in ("source_accuracy", "target_accuracy")}
                more_tags |= {f"m2can.{name}_{key}": f"{x:.4f}" for key, x in accuracies.items() if x is not None}
        if register:
            model = model_to_log(
                outcome.checkpoint,
                outcome.chosen.epoch,
                outcome.accuracies(),
                outcome.name,
                sender.tags | more_tags,
                metrics=outcome.chosen.metrics,
                candidate=self._candidate,
            )
        self._publishes = True
        return sender.finish("FINISHED", artifacts=report, model=model)

    def _make(self, precision: str | None) -> Sender:
        from trainers.tracking.run_sender import make_sender

        prepared = self._prepared
        sender = make_sender(
            prepared.name, prepared.folder, prepared.card, prepared.corpus, self._tags, precision=precision
        )
        sender.start()
        return sender
