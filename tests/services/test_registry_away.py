"""MLflow that is away, wrong or hangs: exit code 1, what is away, and nowhere the password of its address."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from datasets_manifest.errors import InputError, without_password
from services.cli.main import main
from services.errors import in_words
from services.web.problems import install_problems
from tests.small_disk import small_disk
from tests.trainers.made_run import made_run
from trainers.model.card import card_files

PASSWORD = "Tr0ub4dor&3"  # pragma: allowlist secret
COMMANDS = {
    "list": ["models", "list"],
    "search": ["models", "search"],
    "show": ["models", "show", "m2can-sea"],
    "show an alias": ["models", "show", "m2can-sea@champion"],
    "promote": ["models", "promote", "m2can-sea@candidate"],
    "rollback": ["models", "rollback", "m2can-sea"],
    "compare": ["models", "compare", "m2can-sea:1", "m2can-sea:2"],
    "delete": ["models", "delete", "m2can-sea:1"],
    "fetch": ["models", "fetch", "m2can-sea:1", "--to", "fetched"],
    "predict": ["predict", "models:/m2can-sea@champion", "--text", "a"],
}


class Answers(BaseHTTPRequestHandler):
    """A web server that is not MLflow. Its path's first part says how it answers."""

    def answer(self) -> None:
        how = self.path.split("/")[1]
        if how == "hangs":
            time.sleep(3)
            return
        body = (
            json.dumps({"error_code": "INTERNAL_ERROR", "message": "broken"}) if how == "500" else "<html>hello</html>"
        )
        self.send_response(int(how))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def wrong_server() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run(arguments: list[str], uri: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["m2can", *arguments, "--tracking-uri", uri])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_away(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        code = run(command, f"http://user:{PASSWORD}@127.0.0.1:{taken.getsockname()[1]}", monkeypatch)
    told = capfd.readouterr()
    assert code == 1 and told.out == ""
    assert "m2can: MLflow does not answer, or refuses: " in told.err and "Traceback" not in told.err
    assert PASSWORD not in told.err and "not in the registry" not in told.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["200", "404", "500", "401", "302", "hangs"])
@pytest.mark.parametrize("command", ["list", "show an alias"])
def test_wrong_or_hanging(
    wrong_server: int, how: str, command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    code = run(COMMANDS[command], f"http://user:{PASSWORD}@127.0.0.1:{wrong_server}/{how}", monkeypatch)
    told = capfd.readouterr().err
    assert code == 1 and "m2can: MLflow does not answer, or refuses: " in told and PASSWORD not in told
    assert "Traceback" not in told and time.monotonic() - began < 30


def test_a_database_whose_driver_is_missing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for driver in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, driver, None)
    assert run(COMMANDS["list"], f"postgresql://user:{PASSWORD}@127.0.0.1:1/db?password=se0cret", monkeypatch) == 2
    told = capfd.readouterr().err
    assert "needs the package psycopg" in told and PASSWORD not in told and "se0cret" not in told


def test_over_http_it_is_a_503_without_addresses() -> None:
    app = FastAPI()
    install_problems(app)

    @app.get("/")
    def read() -> None:
        raise MlflowException(f"API request to http://user:{PASSWORD}@inner.example failed")

    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "5"
    assert "MLflow does not answer" in answer.text and "inner.example" not in answer.text


def test_other_errors_are_not_put_into_words() -> None:
    assert in_words(ValueError("x")) is None and in_words(OSError("x")) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:s3cret@host:5000/x failed", "at http://***@host:5000/x failed"),  # pragma: allowlist secret
        (
            "postgresql://host/db?user=me&password=s3cret&sslmode=on",
            "postgresql://host/db?user=me&password=***&sslmode=on",
        ),
        ("s3://bucket/key", "s3://bucket/key"),
        ("me@example.org", "me@example.org"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown
    assert str(InputError("is wrong", value=text)) == f"is wrong; found {shown!r}"


def test_no_password_goes_into_a_model(tmp_path: Path) -> None:
    uri = f"http://user:{PASSWORD}@host:5000"
    card = made_run(tmp_path, overrides={"tracking": {"uri": uri}}).card
    assert card.recipe.tracking.uri == uri
    content = card_files(card)["model.json"]
    assert json.loads(content)["recipe"]["tracking"]["uri"] == "http://***@host:5000" and PASSWORD not in content


def test_a_store_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 2**22):
        store = tmp_path / "disk" / "mlflow.db"
        client = MlflowClient(f"sqlite:///{store}", f"sqlite:///{store}")
        client.create_registered_model("m2can-sea")
        client.create_model_version("m2can-sea", str(tmp_path))
        with (tmp_path / "disk" / "filling").open("wb", buffering=0) as filling, contextlib.suppress(OSError):
            while filling.write(bytes(4096)):
                pass
        capfd.readouterr()
        assert run(["models", "promote", "m2can-sea:1"], f"sqlite:///{store}", monkeypatch) == 1
    told = capfd.readouterr().err.strip()
    assert told.count("\n") == 0 and "MLflow's store cannot be written" in told and "make room" in told
