"""A run that starts from a registered model."""

from __future__ import annotations

import pytest

from datasets_manifest.errors import InputError
from tests.services.registered import NAME, Registered
from tests.trainers.tiny_run import prepared_run
from trainers.encoders.weight_files import read_weights


def test_a_registered_model_gives_its_weights(registered: Registered) -> None:
    """By all the names that `models list` prints; an alias is noted as the version that has it."""

    def started(name: str) -> tuple[str | None, bool]:
        settings = ["train.epochs=2", f"train.start_from={name}", f"tracking.uri={registered.uri}"]
        run = prepared_run(registered.folder, settings)
        assert run.start is not None and len(run.taken) == len(read_weights(run.start.model))
        weights = read_weights(registered.bundles[1])
        return run.card.started_from, bool(
            (run.start.weights(run.taken)["fusion.U.bias"] == weights["fusion.U.bias"]).all()
        )

    assert started(f"{NAME}:1") == (f"{NAME}:1, weights", False)
    assert started(f"{NAME}@candidate") == (f"{NAME}:2, weights", True)
    assert started(f"models:/{NAME}@candidate") == (f"{NAME}:2, weights", True)
    with pytest.raises(InputError, match=r"train\.start_from: there is no such run .* no such model in the registry"):
        started(f"{NAME}:9")
