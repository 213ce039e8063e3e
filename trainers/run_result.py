"""What a training run came to: the command's last line, and what `m2can.train` returns. Imports neither torch, Ray nor MLflow."""

from __future__ import annotations

import base64
import html
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.journal.findings import Finding
    from trainers.journal.journal import EpochRecord
    from trainers.journal.outcome import FloorResult

_PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Result:
    """What a training run came to.

    checkpoint: folder of the chosen epoch, which `Predictor.load` reads. oracle_epoch: the epoch best by target labels.
    Accuracies are those of the target's validation records, 0 to 1, and None without labels; regret is oracle less chosen.
    target_accuracy_expected, …_low, …_high: what is expected of the chosen epoch's without a label of the target, and its
    interval (trainers.validators.expected); None without labelled validation records of the sources.
    target_accuracy_checked, …_low, …_high: what it is on the target's labels that were given and held out.
    report: folder with the pictures. report_page: report.html in it. records: every epoch with its metrics.
    run_id, tracking_uri: of the MLflow run, None if `tracking.enabled` is false. model_name, model_version: in the registry,
    None if no model was registered. experiment_id: of the MLflow run. not_candidate: why the alias `candidate` did not move
    to the version, None if it did. findings: what went wrong, with what to change. stopped_early: where and why the run ended
    before its last epoch, None if it did not. started_from: the run or model that it began with. floor: what a linear classifier
    on the untrained encoders' features gives, None if the run has none; if it was chosen, chosen_epoch is 0. tags: of the MLflow
    run. stored: where the run lies in an object store; `folder` is then this machine's copy; None: it lies in the folder.
    """

    run_name: str
    folder: Path
    sources: list[str]
    target: str
    checkpoint: Path
    validator: str
    chosen_epoch: int
    last_epoch: int
    oracle_epoch: int | None
    target_accuracy_chosen: float | None
    target_accuracy_last: float | None
    target_accuracy_oracle: float | None
    regret: float | None
    report: Path
    report_page: Path
    records: list[EpochRecord] = field(repr=False)
    run_id: str | None = None
    tracking_uri: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    experiment_id: str | None = None
    not_candidate: str | None = None
    findings: list[Finding] = field(default_factory=list)
    stopped_early: str | None = None
    started_from: str | None = None
    floor: FloorResult | None = None
    stored: str | None = None
    target_accuracy_expected: float | None = None
    target_accuracy_expected_low: float | None = None
    target_accuracy_expected_high: float | None = None
    target_accuracy_checked: float | None = None
    target_accuracy_checked_low: float | None = None
    target_accuracy_checked_high: float | None = None
    tags: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def chosen_metrics(self) -> dict[str, float]:
        """Metrics of the chosen epoch, or of the floor."""
        if self.floor is not None and self.floor.chosen:
            return self.floor.metrics
        return next(record.metrics for record in self.records if record.epoch == self.chosen_epoch)

    @property
    def chosen(self) -> str:
        """`epoch 7`, or `the floor`."""
        return f"epoch {self.chosen_epoch}" if self.chosen_epoch else "the floor"

    def accuracies(self) -> dict[str, float | None]:
        """The accuracies and the regret by name."""
        names = ["target_accuracy_chosen", "target_accuracy_last", "target_accuracy_oracle", "regret"]
        for kind in ("expected", "checked"):
            names += [f"target_accuracy_{kind}{end}" for end in ("", "_low", "_high")]
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """The `end` event that `m2can train --json` prints last."""
        return {
            "event": "end",
            "run_name": self.run_name,
            "stored": self.stored,
            "run_id": self.run_id,
            "tracking_uri": self.tracking_uri,
            "started_from": self.started_from,
            "checkpoint": str(self.checkpoint),
            "model_name": self.model_name,
            "model_version": self.model_version,
            "not_candidate": self.not_candidate,
            "validator": self.validator,
            "chosen_epoch": self.chosen_epoch,
            "last_epoch": self.last_epoch,
            "oracle_epoch": self.oracle_epoch,
            "stopped_early": self.stopped_early,
            "floor": None if self.floor is None else self.floor.numbers(),
            **self.accuracies(),
            "warnings": [asdict(finding) for finding in self.findings],
            "report": str(self.report),
            "report_page": str(self.report_page),
        }

    def _repr_html_(self) -> str:
        """Accuracies and the report's pictures, as a notebook shows them."""
        rows = {name.replace("_", " "): value for name, value in self.accuracies().items() if value is not None}
        cells = "".join(f"<tr><th>{name}</th><td>{100 * value:.1f} %</td></tr>" for name, value in rows.items())
        files = [file for file in sorted(self.report.iterdir()) if file.suffix in _PICTURES]
        pictures = "".join(
            f'<img alt="{file.stem.replace("_", " ")}" style="max-width:100%" '
            f'src="data:{_PICTURES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}">'
            for file in files
        )
        where = html.escape(f"{' + '.join(self.sources)} → {self.target}: {self.run_name}, {self.chosen}")
        return f"<p><strong>{where}</strong></p><table>{cells}</table>{pictures}"
