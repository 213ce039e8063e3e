"""A service that keeps a sample of what it predicts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from datasets_manifest.errors import InputError
from services import promotion
from services.cli.main import app
from services.drift.check import check_drift
from services.drift.sample import read_sample
from services.serving.service import ServeConfig, Service
from services.web.auth import Tokens
from tests.services.registered import NAME, Registered
from tests.services.serving.test_serving import PREDICT, as_json, probs_of, records
from trainers.model.reference import fingerprint


def test_what_is_answered_is_sampled_by_version(registered: Registered, tmp_path: Path) -> None:
    file = tmp_path / "sample.parquet"
    promotion.promote(registered.client, f"{NAME}:1", "sampled")
    config = ServeConfig([f"{NAME}@sampled"], registered.uri, Tokens([]), alias_ttl_s=0.0, sample=file)
    service, rows = Service(config), records(registered)

    async def ask() -> np.ndarray:
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://serving", timeout=60) as client:
            answer = await client.post(PREDICT, json={"samples": [as_json(row) for row in rows]})
            promotion.promote(registered.client, f"{NAME}:2", "sampled")
            while (await client.post(PREDICT, json=as_json(rows[0]))).json()["model"]["version"] != "2":
                pass
            return probs_of(answer)

    probs = asyncio.run(ask())
    assert not file.exists()
    service.close()
    first, second = (read_sample(file, fingerprint(bundle)) for bundle in registered.bundles)
    np.testing.assert_allclose(first.seen.probs_NC[: len(rows)], probs, atol=1e-5)
    assert len(second.seen) == second.predicted == 1
    assert set(pq.read_table(file)["model"].to_pylist()) == {f"{NAME}:1", f"{NAME}:2"}
    assert not check_drift(registered.bundles[0], str(file), "all").drift.moved


def test_a_sample_goes_with_one_replica(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--sample: goes with one replica"):
        arguments = ["serve", NAME, "--replicas", "2", "--sample", str(tmp_path / "sample.parquet")]
        CliRunner().invoke(app, arguments, catch_exceptions=False)
