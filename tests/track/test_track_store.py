from __future__ import annotations

import base64
import errno
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from relent.errors import RelentError, masked
from relent.track import locks, store
from relent.track.address import sqlite_path, understand
from relent.track.locks import alone, tree_id
from relent.track.replay import replay_all
from relent.track.store import opened


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_stays_away_is_named_without_its_password(
    run_folders: list[Path], tmp_path: Path, closed_port: int, caplog: pytest.LogCaptureFixture, hasty: None
) -> None:
    uri, began = f"http://ann:s3cr@t@127.0.0.1:{closed_port}/ml", time.monotonic()
    with caplog.at_level(logging.DEBUG), pytest.raises(RelentError) as raised:
        replay_all(run_folders, [], uri, None, tmp_path / "tracking.json")
    said = str(raised.value) + caplog.text
    assert f"tracking server http://***@127.0.0.1:{closed_port}/ml does not answer" in said
    assert "trying again in 1 s" in said
    assert not [secret for secret in ("ann", "s3cr") if secret in said]
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 10
    assert not (tmp_path / "tracking.json").exists()
    assert all((folder / "scores.json").is_file() for folder in run_folders)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, hasty: None) -> None:
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
def test_a_database_that_is_away_is_named(closed_port: int, scheme: str, hasty: None) -> None:
    with (
        pytest.raises(RelentError, match=r"\*\*\*@127\.0\.0\.1:\d+/runs does not answer"),
        opened(f"{scheme}://ann:pw@127.0.0.1:{closed_port}/runs"),
    ):
        pass


@pytest.mark.parametrize(
    ("uri", "given"),
    [
        ("https://ann:p%40w@host/ml/", {"USERNAME": "ann", "PASSWORD": "p@w", "TOKEN": None}),
        ("https://t0k3n@host/ml", {"USERNAME": None, "PASSWORD": None, "TOKEN": "t0k3n"}),
        ("https://host/ml", {}),
    ],
)
def test_credentials_of_a_server_go_into_mlflows_variables(uri: str, given: dict[str, str | None]) -> None:
    address = understand(uri)
    assert address.uri == "https://host/ml"
    assert address.credentials == {f"MLFLOW_TRACKING_{name}": value for name, value in given.items()}
    assert not [secret for secret in ("ann", "p@w", "p%40w", "t0k3n") if secret in f"{address!r}{address.shown}"]


@pytest.mark.parametrize(
    "uri",
    [
        *("http://bob7:s3c/ret@host", "http://bob7:s3c?ret@host", "http://bob7:s3c#ret@host"),
        *(
            "http://bob7:s3cret@host:x1",
            "http://host/?token=s3cret",
            "https://[s3cret@host",
            "http://bob7:s3c]ret@host",
        ),
    ],
)
def test_a_password_with_a_sign_of_its_own_is_refused_and_not_told(uri: str) -> None:
    with pytest.raises(RelentError) as raised:
        understand(uri)
    assert not [piece for piece in ("s3c", "ret", "bob7") if piece in str(raised.value)]


def test_secrets_of_the_environment_are_cleaned_from_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0k3n")
    assert understand("http://ann:s3cret@host").clean("no s3cret, no t0k3n") == "no ***, no ***"


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


def test_a_store_that_another_program_writes_to_is_waited_for(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A page of MLflow's that writes: it knows nothing of our lock."""
    other = sqlite3.connect(tmp_path / "mlflow" / "mlflow.db", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(store, "_SECONDS", 0.2)
    threading.Timer(0.5, other.rollback).start()
    with caplog.at_level(logging.INFO), opened(uri) as client:
        client.search_experiments()
    assert "another program writes to it; trying again" in caplog.text


HOLD = """
import sys, time
from pathlib import Path
from relent.track.locks import alone
with alone(Path(sys.argv[1]), "store"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_waits_and_is_told_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with caplog.at_level(logging.INFO):
        threading.Timer(0.5, holder.kill).start()
        with alone(path, "store"):
            assert holder.wait(10) == -signal.SIGKILL  # the lock of a killed process is free
    assert f"process {holder.pid} on" in caplog.text
    holder.stdout.close()


def test_a_lock_file_that_was_left_behind_is_no_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lock").write_text("process 1 on elsewhere")
    with caplog.at_level(logging.INFO), alone(tmp_path / "lock", "store"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
    assert not caplog.text


def test_a_writer_that_hangs_is_named_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_WAIT", 0.2)
    path = tmp_path / "lock"
    with (
        alone(path, "store"),
        pytest.raises(RelentError, match=rf"process {os.getpid()} on .* run the tracking step again"),
        alone(path, "store"),
    ):
        pass


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refused)
    with alone(tmp_path / "lock", "store"):
        assert "has no locks (No locks available); let only one workflow write" in caplog.text


def test_many_jobs_agree_on_the_name_of_their_tree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        names = set(pool.map(lambda _: tree_id(tmp_path / "results"), range(64)))
    assert len(names) == 1
    assert re.fullmatch("[0-9a-f]{12}", names.pop())
    assert os.listdir(tmp_path / "results") == [".tracking_id"]


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
