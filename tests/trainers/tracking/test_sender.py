"""The sender against a real SQLite store; what needs a server or clean processes: test_tracking_processes.py."""

from __future__ import annotations

import logging
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from datasets_manifest.errors import InputError
from tests.trainers.tracking.tracked import PATIENCE_S, client, model_for, record, rows, sender, wait_for
from trainers.failures import TrackingUnavailable
from trainers.journal.journal import EpochRecord, Journal
from trainers.tracking import mlflow_run
from trainers.tracking.address import resolve_tracking_uri
from trainers.tracking.mlflow_run import open_experiment
from trainers.tracking.registration import ALIAS
from trainers.tracking.sender import Sender

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_the_address_is_the_recipes_then_the_environments_then_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_tracking_uri(None, Path("runs")) == f"sqlite:///{Path.cwd()}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve_tracking_uri(None, tmp_path) == "http://tracking:5000"
    assert resolve_tracking_uri("postgresql+psycopg2://db/mlflow", tmp_path) == "postgresql+psycopg2://db/mlflow"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "ftp://host/x"])
def test_an_address_mlflow_cannot_track_to_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri: is no address.*sqlite"):
        resolve_tracking_uri(uri, tmp_path)


def test_an_experiment_is_made_once_with_artifacts_in_the_storage(store: Path) -> None:
    uri = resolve_tracking_uri(None, store)
    first = open_experiment(uri, "one", store)
    assert open_experiment(uri, "one", store) == first
    assert client(store).get_experiment(first).artifact_location == (store / "mlartifacts").as_uri()


def test_a_deleted_experiment_is_named(store: Path, journal: Journal) -> None:
    uri = resolve_tracking_uri(None, store)
    client(store).delete_experiment(open_experiment(uri, "deleted", store))
    with pytest.raises(InputError, match=r"tracking\.experiment: was deleted.*'deleted'"):
        Sender(uri, "deleted", "any", journal, {}, {}, store, interval_s=0.05).finish("FAILED", deadline_s=PATIENCE_S)


def test_records_are_sent_while_training_goes_on_and_everything_at_the_end(
    store: Path, journal: Journal, tmp_path: Path
) -> None:
    (tmp_path / "report" / "pictures").mkdir(parents=True)
    (tmp_path / "report" / "pictures" / "loss.png").write_bytes(b"png")
    params = {"train.epochs": 3, "long": "x" * 10_000, "odd=name": [1, 2]}
    sending = sender(store, journal, "whole", params=params)
    sending.start()
    journal.append(record(1))
    wait_for(lambda: sending.run_id)
    assert sending.run_id is not None
    wait_for(lambda: rows(client(store), str(sending.run_id), "epoch"))
    assert client(store).get_run(sending.run_id).info.status == "RUNNING"
    journal.append(record(2, **{"source/Café №1/val/accuracy": 0.5}))
    tracked = sending.finish("FINISHED", artifacts=tmp_path / "report", model=model_for(tmp_path, "m2can-whole"))

    assert (tracked.run_id, tracked.model_name, tracked.model_version) == (sending.run_id, "m2can-whole", "1")
    run = client(store).get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "whole"
    assert run.data.tags["m2can.target"] == "c"
    assert rows(client(store), tracked.run_id, "epoch") == [(10, 1.0), (20, 2.0)]
    assert rows(client(store), tracked.run_id, "loss/total") == [(10, 1.0), (20, 0.5)]
    assert run.data.metrics["source/Café _1/val/accuracy"] == 0.5
    assert run.data.params["train.epochs"] == "3"
    assert run.data.params["odd_name"] == "[1, 2]"
    assert len(run.data.params["long"]) == 6000
    assert [each.path for each in client(store).list_artifacts(tracked.run_id, "report/pictures")] == [
        "report/pictures/loss.png"
    ]
    version = client(store).get_model_version_by_alias("m2can-whole", ALIAS)
    assert (int(version.version), version.run_id) == (1, tracked.run_id)
    assert version.tags.keys() == {"m2can.target", "m2can.files_sha256"}
    assert all(value for value in run.outputs.model_outputs)


def test_ending_a_run_twice_changes_nothing(store: Path, journal: Journal, tmp_path: Path) -> None:
    for epoch in (1, 2):
        journal.append(record(epoch))
    model = model_for(tmp_path, "m2can-twice")
    first = sender(store, journal, "twice").finish("FINISHED", model=model)
    ended = client(store).get_run(first.run_id).info.end_time
    second = sender(store, journal, "twice").finish("FINISHED", model=model)
    assert second == first
    assert len(client(store).search_model_versions("name = 'm2can-twice'")) == 1
    assert rows(client(store), first.run_id, "epoch") == [(10, 1.0), (20, 2.0)]
    run = client(store).get_run(first.run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", ended)
    assert len(run.outputs.model_outputs) == 1


@pytest.mark.parametrize("left_as", ["RUNNING", "FAILED"])
def test_a_resumed_run_goes_on_in_the_same_mlflow_run(
    store: Path, journal: Journal, caplog: pytest.LogCaptureFixture, left_as: str
) -> None:
    name = f"resumed-{left_as}"
    first = sender(store, journal, name)
    journal.append(record(1))
    first.start()
    wait_for(lambda: first.run_id)
    if left_as == "FAILED":
        first.finish("FAILED")
    else:
        first.stop()  # as a driver that was killed leaves it
    journal.append(record(1, **{"loss/mcc": 9.0}))  # told again by the resumed workers
    journal.append(record(2))
    second = sender(store, journal, name, params={"train.epochs": 4, "new": 1})
    second.start()
    wait_for(lambda: second.run_id)
    wait_for(lambda: len(rows(client(store), str(second.run_id), "epoch")) == 2)
    assert client(store).get_run(str(second.run_id)).info.status == "RUNNING"
    tracked = second.finish("FINISHED")
    assert tracked.run_id == first.run_id == second.run_id
    assert (tracked.model_name, tracked.model_version) == (None, None)
    run = client(store).get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.epochs": "3", "new": "1"}
    assert "keeps the first values of train.epochs" in caplog.text
    assert rows(client(store), tracked.run_id, "loss/total") == [(10, 1.0), (20, 0.5)]


def test_a_batch_that_arrived_although_its_answer_was_lost_is_not_sent_again(
    store: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[int] = []
    send = mlflow_run.RunLink.send

    def lose_first_answer(link: mlflow_run.RunLink, record: EpochRecord) -> None:
        send(link, record)
        sent.append(record.epoch)
        if len(sent) == 1:
            raise MlflowException("the connection was reset")

    monkeypatch.setattr(mlflow_run.RunLink, "send", lose_first_answer)
    for epoch in (1, 2):
        journal.append(record(epoch))
    with caplog.at_level(logging.INFO):
        tracked = sender(store, journal, "lost answer").finish("FINISHED")
    assert sent == [1, 2]
    assert rows(client(store), tracked.run_id, "loss/total") == [(10, 1.0), (20, 0.5)]
    assert caplog.text.count("training goes on") == 1
    assert caplog.text.count("is back") == 1


def test_many_metrics_arrive_once_and_the_mark_with_the_last(store: Path, journal: Journal) -> None:
    journal.append(record(1, **{f"m/{n}": float(n) for n in range(2500)}))
    tracked = sender(store, journal, "many").finish("FINISHED")
    run = client(store).get_run(tracked.run_id)
    assert len(run.data.metrics) == 2502


def test_mlflow_away_until_the_deadline_says_where_everything_is(
    store: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        journal.append(record(1))
        sending = sender(store, journal, "away", uri=uri)
        began = time.monotonic()
        with pytest.raises(TrackingUnavailable, match=r"Nothing is lost: the journal .*journal.*named away is started"):
            sending.finish("FINISHED", deadline_s=0.5)
        assert time.monotonic() - began < 10
    assert journal.read() == [record(1)]
    assert caplog.text.count("training goes on") <= 1
    tracked = sender(store, journal, "away").finish("FINISHED")
    assert rows(client(store), tracked.run_id, "epoch") == [(10, 1.0)]


def test_a_registration_that_keeps_failing_ends_at_the_deadline(
    store: Path, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise MlflowException("the registry is broken")

    monkeypatch.setattr(MlflowClient, "create_registered_model", fail)
    with pytest.raises(TrackingUnavailable, match=r"away for 1 s \(the registry is broken\)"):
        sender(store, journal, "broken").finish("FINISHED", model=model_for(tmp_path, "m2can-broken"), deadline_s=1)


def test_an_upload_may_take_longer_than_the_deadline(
    store: Path, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()
    upload = MlflowClient.log_model_artifacts

    def slowly(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        began.wait(2.0)  # nobody sets it: this is the slowness itself, not a synchronisation
        upload(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", slowly)
    tracked = sender(store, journal, "slow").finish("FINISHED", model=model_for(tmp_path, "m2can-slow"), deadline_s=1.5)
    assert tracked.model_version == "1"


def test_no_password_is_shown(journal: Journal, tmp_path: Path) -> None:
    sending = Sender("http://user:secret@127.0.0.1:9", "m2can", "x", journal, {}, {}, tmp_path, interval_s=0.05)
    with pytest.raises(TrackingUnavailable) as caught:
        sending.finish("FINISHED", deadline_s=0.2)
    assert "secret" not in str(caught.value)


def test_a_refusal_is_told_at_once(store: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise MlflowException("you may not", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    journal.append(record(1))
    with pytest.raises(TrackingUnavailable, match=r"refused \(you may not\)"):
        sender(store, journal, "refused").finish("FINISHED", deadline_s=PATIENCE_S)


def test_a_locked_database_is_waited_for(store: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append(record(1))
    sending = sender(store, journal, "locked")
    holder = sqlite3.connect(store / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        sending.start()
        wait_for(lambda: sending._last_error is not None or sending._thread is not None)
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert rows(client(store), sending.finish("FINISHED").run_id, "epoch") == [(10, 1.0)]


def test_a_second_sender_closes_a_run_that_the_first_still_uploads(
    store: Path, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploading, goes_on = threading.Event(), threading.Event()

    def upload(*_: Any, **__: Any) -> None:
        uploading.set()
        goes_on.wait(PATIENCE_S)

    monkeypatch.setattr(MlflowClient, "log_artifacts", upload)
    (tmp_path / "report").mkdir()
    first = sender(store, journal, "interrupted")
    upload_thread = threading.Thread(target=lambda: first.finish("FINISHED", artifacts=tmp_path / "report"))
    upload_thread.start()
    try:
        assert uploading.wait(PATIENCE_S)
        tracked = sender(store, journal, "interrupted").finish("KILLED", deadline_s=PATIENCE_S)
        assert tracked.run_id == first.run_id
        assert client(store).get_run(tracked.run_id).info.status == "KILLED"
    finally:
        goes_on.set()
        upload_thread.join(PATIENCE_S)
    assert client(store).get_run(tracked.run_id).info.status == "FINISHED"  # the upload came to its end after all
