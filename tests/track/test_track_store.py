from __future__ import annotations

import base64
import logging
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from relent.errors import RelentError
from relent.track import store
from relent.track.replay import replay_all
from relent.track.store import masked, opened, sqlite_path


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_away_is_named_without_its_password(
    run_folders: list[Path], tmp_path: Path, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    uri, began = f"http://ann:s3cr@t@127.0.0.1:{closed_port}/ml?token=t0k3n", time.monotonic()
    with caplog.at_level(logging.DEBUG), pytest.raises(RelentError) as raised:
        replay_all(run_folders, [], uri, None, tmp_path / "tracking.json")
    said = str(raised.value) + caplog.text
    assert f"tracking server http://***@127.0.0.1:{closed_port}/ml?*** does not answer" in said
    assert not [secret for secret in ("ann", "s3cr", "t0k3n") if secret in said]
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 10
    assert not (tmp_path / "tracking.json").exists()
    assert all((folder / "scores.json").is_file() for folder in run_folders)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(RelentError, match="does not answer"), opened(f"http://127.0.0.1:{port}"):
            pass


def test_a_server_that_refuses_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    credentials = []

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            credentials.append(self.headers.get("Authorization"))
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://bob:p%40w@127.0.0.1:{server.server_port}"
    with pytest.raises(RelentError) as raised, opened(address) as client:
        client.get_experiment_by_name("images")
    server.shutdown()
    server.server_close()
    assert str(raised.value).startswith(f"tracking store http://***@127.0.0.1:{server.server_port}: ")
    assert "403" in str(raised.value)
    assert "bob" not in str(raised.value) + "".join(capfd.readouterr())
    assert credentials[-1] == f"Basic {base64.b64encode(b'bob:p@w').decode()}"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "somebody"
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


@pytest.mark.parametrize("scheme", ["postgresql", "mysql+pymysql"])
def test_a_database_that_is_away_is_named_at_once(closed_port: int, scheme: str) -> None:
    with (
        pytest.raises(RelentError, match=r"\*\*\*@127\.0\.0\.1:\d+/runs does not answer"),
        opened(f"{scheme}://ann:pw@127.0.0.1:{closed_port}/runs"),
    ):
        pass


@pytest.mark.parametrize("uri", ["mlflow/mlflow.db", "ftp://host/x", "http://", "sqlite:/file.db"])
def test_an_address_that_is_none_says_what_would_be(uri: str) -> None:
    with pytest.raises(RelentError, match="use sqlite:///FILE"), opened(uri):
        pass


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"not a database, but long enough to be read as one" * 40)
    with pytest.raises(RelentError, match=r"mlflow\.db: cannot be used .*rebuilds it"), opened(f"sqlite:///{path}"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RelentError, match="choose a writable folder"), opened(f"sqlite:///{tmp_path}/file/mlflow.db"):
        pass


def test_a_second_writer_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, order = tmp_path / "mlflow.db", []

    def second() -> None:
        with store._alone(path):
            order.append("second")

    with caplog.at_level(logging.INFO), store._alone(path):
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for it" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_errors_that_are_not_mlflows_keep_their_traceback(uri: str) -> None:
    with pytest.raises(ZeroDivisionError), opened(uri):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:p%40w@db/runs", "postgresql://***@db/runs"),
        ("see https://tok3n@host:5000/a?key=1 and http://b", "see https://***@host:5000/a?*** and http://b"),
        ("http://u:p@ss@host", "http://***@host"),
        ("sqlite:///mlflow/mlflow.db", "sqlite:///mlflow/mlflow.db"),
        ("mail a@b.org", "mail a@b.org"),
    ],
)
def test_secrets_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_paths_of_sqlite_addresses() -> None:
    assert sqlite_path("sqlite:///mlflow/mlflow.db") == Path("mlflow/mlflow.db")
    assert sqlite_path("sqlite:////srv/my%20runs.db?timeout=5") == Path("/srv/my runs.db")
    assert sqlite_path("http://host") is None
