"""Records with a picture that cannot be read: counted over all workers, and too many of them end the run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.errors import InputError
from datasets_manifest.records.corpus import Corpus
from trainers.m2can.collective import Collective


class BadPictures:
    """Rows with a picture that this worker could not read.

    Args:
        rows: of the whole table.
        max_fraction: of a domain's training records that may be bad.
        device: for the exchange with the other workers.
    """

    def __init__(
        self, corpus: Corpus, rows: int, max_fraction: float, collective: Collective, device: torch.device
    ) -> None:
        self.corpus, self.max_fraction, self.collective, self.device = corpus, max_fraction, collective, device
        self.bad_N = np.zeros(rows, bool)

    def add(self, bad: list[tuple[int, str]]) -> None:
        """Note pictures that could not be read: (row number, reason) each."""
        self.bad_N[[row for row, _ in bad]] = True

    def require_few(self) -> float:
        """Number of records with such a picture. All workers call it together.

        Raises:
            InputError: a domain has too many.
        """
        bad = self._anywhere()
        for part in self.corpus.train:
            count = int(bad[part.start : part.stop].sum())
            if count > self.max_fraction * len(part):
                first = int(bad[part.start : part.stop].argmax())
                raise InputError(
                    f"{count} of {len(part)} records have a picture that cannot be read, "
                    f"the first is record {first + 1}; all are in bad_pictures.jsonl of the run",
                    file=part.domain,
                    field=f"splits.{part.split}",
                    wanted=f"at most a part of {self.max_fraction:g} (data.max_bad_fraction)",
                )
        return float(bad.sum())

    def state_dict(self) -> dict[str, Tensor]:
        """All workers call it together."""
        return {"bad_rows": torch.from_numpy(np.flatnonzero(self._anywhere()))}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Checkpoints of schema version 1 have none."""
        self.bad_N[:] = False
        if "bad_rows" in state:
            self.bad_N[state["bad_rows"].numpy()] = True

    def _anywhere(self) -> np.ndarray:
        """Of each row, whether any worker found a picture of it bad."""
        return self.collective.sum_(torch.from_numpy(self.bad_N.astype(np.int32)).to(self.device)).cpu().numpy() > 0
