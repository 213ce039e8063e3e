"""Tracking over real processes: an MLflow server that goes away, stores opened together, a model loaded elsewhere."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import cv2
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch

from datasets_manifest.stream.encode import Vocabulary
from datasets_manifest.stream.text import build_tokenizer, tokenizer_from_json
from tests.trainers.tracking.tracked import PATIENCE_S, client, model_for, record, rows, sender, wait_for
from trainers.encoders.encoders import text_config
from trainers.journal.journal import Journal
from trainers.model.build import build_network
from trainers.model.card import ModelCard
from trainers.model.checkpoint import save_model
from trainers.recipe import make_recipe
from trainers.tracking.address import resolve_tracking_uri
from trainers.tracking.mlflow_run import open_client
from trainers.tracking.registration import ALIAS, ModelToLog, signature_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("elsewhere")]


class Server:
    """`mlflow server` on loopback, which can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,  # its own process group: the server has children
            )
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            return urlopen(f"{self.uri}/health", timeout=5).status == 200
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE_S)
            self.process = None


def test_records_of_an_outage_are_sent_once_when_the_server_is_back(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(tmp_path)
    try:
        server.start()
        sending = sender(tmp_path, journal, "outage", uri=server.uri)
        journal.append(record(1))
        sending.start()
        wait_for(lambda: sending.run_id)
        run_id = str(sending.run_id)
        there = open_client(server.uri)
        wait_for(lambda: rows(there, run_id, "epoch"))

        server.kill()
        for epoch in (2, 3):
            journal.append(record(epoch))
        wait_for(lambda: "training goes on" in caplog.text)
        server.start()
        wait_for(lambda: len(rows(there, run_id, "epoch")) == 3)
        wait_for(lambda: "is back" in caplog.text)
        journal.append(record(4))

        model = model_for(tmp_path, "m2can-outage")
        tracked = sending.finish("FINISHED", model=model, deadline_s=PATIENCE_S)
        again = sender(tmp_path, journal, "outage", uri=server.uri).finish("FINISHED", model=model)
        assert tracked == again
        assert (tracked.run_id, tracked.model_version) == (run_id, "1")
        assert rows(there, run_id, "epoch") == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]
        assert [step for step, _ in rows(there, run_id, "loss/total")] == [10, 20, 30, 40]
        assert there.get_run(run_id).info.status == "FINISHED"
        assert len(there.search_model_versions("name = 'm2can-outage'")) == 1
        assert there.get_model_version_by_alias("m2can-outage", ALIAS).run_id == run_id
        assert caplog.text.count("training goes on") == 1
        assert caplog.text.count("is back") == 1
        assert not (tmp_path / "mlartifacts").exists(), "a server keeps its artifacts itself"
    finally:
        server.kill()


OPEN_TOGETHER = """
import sys, time
from pathlib import Path
from trainers.tracking.address import resolve_tracking_uri
from trainers.tracking.mlflow_run import open_experiment
folder, name = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready-{name}").touch()
deadline = time.monotonic() + 120
while not (folder / "go").exists() and time.monotonic() < deadline:
    time.sleep(0.001)
print(open_experiment(resolve_tracking_uri(None, folder / "storage"), "m2can", folder / "storage"))
"""


def test_processes_that_open_a_new_store_together_agree(tmp_path: Path) -> None:
    count = 3
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_TOGETHER, str(tmp_path), str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for n in range(count)
    ]
    try:
        wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == count)
        (tmp_path / "go").touch()
        answers = [process.communicate(timeout=PATIENCE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * count, answers
    assert len({out for out, _ in answers}) == 1


def tiny_model(folder: Path) -> Path:
    """A real model folder with random weights."""
    recipe = make_recipe(
        {
            "data": {
                "sources": ["a", "b"],
                "target": "c",
                "texts": {"max_tokens": 32},
                "pictures": {"resize": 40, "crop": 32},
            },
            "encoders": {"text": {"name": "tiny:32"}, "picture": {"name": "tiny:8"}},
        }
    )
    specials = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer = build_tokenizer(["a fine day by the sea", "rain on the hills", "what a dull town"])
    made = tokenizer_from_json(tokenizer, 32, **specials)
    vocabulary = Vocabulary(json=tokenizer, pad_id=made.pad_id, size=made.vocab_size, **specials)
    config = text_config(recipe.encoders.text, vocabulary.size, vocabulary.pad_id, 32)
    classes = ["negative", "neutral", "positive"]
    torch.manual_seed(0)
    network = build_network(recipe, config, len(classes), load_weights=True)
    save_model(folder, network, ModelCard(recipe, classes, ["a", "b"], "c", config, vocabulary))
    return folder


LOAD_ELSEWHERE = """
import json, sys
# As if ours were not installed: the model must bring its code.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(pd.DataFrame(json.load(sys.stdin)))
import trainers
ours = sorted({m.split(".")[0] for m in sys.modules} & {"ray", "services", "tests"})
print("ANSWER" + json.dumps({"file": trainers.__path__[0], "rows": answer.to_dict("records"), "ours": ours}))
"""


def without_lists(row: dict[str, Any]) -> dict[str, Any]:
    """What pytest.approx compares."""
    return {name: value for name, value in row.items() if not isinstance(value, list)}


def test_the_registered_model_predicts_in_a_process_that_does_not_know_us(
    store: Path, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "picture.jpg"
    assert cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    coded = base64.b64encode(picture.read_bytes()).decode()
    classes = ["negative", "neutral", "positive"]
    table: dict[str, list[Any]] = {
        "text": ["a fine day", ["rain", "on the hills"], None, "a fine day"],
        "image": [str(picture), None, [coded], coded],
    }
    example = pd.DataFrame(table).head(1)
    model = ModelToLog(tiny_model(tmp_path / "model"), "m2can-real", {}, example, signature_for(classes))
    journal.append(record(1))
    tracked = sender(store, journal, "real").finish("FINISHED", model=model)
    uri = resolve_tracking_uri(None, store)
    address = f"models:/m2can-real@{ALIAS}"

    done = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, address],
        input=json.dumps(table),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=tmp_path / "model",
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.partition("ANSWER")[2])
    assert Path(answer["file"]).is_relative_to(store), "the code that was saved, not what is installed"
    assert answer["ours"] == []
    columns = {"label", "confidence", "disagreement", "head_labels", "bad_pictures", "problem"}
    assert [set(row) for row in answer["rows"]] == [columns | {f"prob_{c}" for c in classes}] * 4
    for row in answer["rows"]:
        assert sum(row[f"prob_{c}"] for c in classes) == pytest.approx(1.0, abs=1e-5)
        assert row["confidence"] == row[f"prob_{row['label']}"]
    there = [without_lists(row) for row in answer["rows"]]
    assert there[0] == pytest.approx(there[3]), "a path and its content are the same picture"

    # Here our packages are imported already: those go on being used, and answer the same.
    monkeypatch.setattr(sys, "path", list(sys.path))
    version = client(store).get_model_version("m2can-real", str(tracked.model_version))
    here = mlflow.pyfunc.load_model(str(version.source)).predict(pd.DataFrame(table))
    assert without_lists(here.to_dict("records")[1]) == pytest.approx(there[1])
