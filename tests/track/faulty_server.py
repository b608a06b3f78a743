"""MLflow's own server in this process, behind a door that can be told to fail: slow, 500, before or after the work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from werkzeug.serving import BaseWSGIServer, make_server

Fault = Callable[[str, Callable[[], Iterable[bytes]], Any], Iterable[bytes]]


def fail_before(path: str, work: Callable[[], Iterable[bytes]], start: Any) -> Iterable[bytes]:
    """HTTP 500 instead of the work."""
    start("500 Internal Server Error", [("Content-Type", "text/plain")])
    return [b"out of order"]


def fail_after(path: str, work: Callable[[], Iterable[bytes]], start: Any) -> Iterable[bytes]:
    """HTTP 503 after the work is done: the client cannot know."""
    list(work())
    start("503 Service Unavailable", [("Content-Type", "text/plain")])
    return [b"who knows"]


def unavailable_json(path: str, work: Callable[[], Iterable[bytes]], start: Any) -> Iterable[bytes]:
    """MLflow's own way to say that its database does not answer."""
    start("503 Service Unavailable", [("Content-Type", "application/json")])
    return [b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "database"}']


def slow(seconds: float) -> Fault:
    """The work, later."""

    def fault(path: str, work: Callable[[], Iterable[bytes]], start: Any) -> Iterable[bytes]:
        time.sleep(seconds)
        return work()

    return fault


class FaultyServer:
    """A tracking server on a SQLite file.

    Attributes:
        folder: Where its store and artifacts lie.
        plan: Called with the path and the number of each request; gives the fault to inject, or None.
        requests: Paths that were asked for.
    """

    def __init__(self, app: Any, folder: Path):
        self.app, self.folder = app, folder
        self.plan: Callable[[str, int], Fault | None] = lambda path, number: None
        self.requests: list[str] = []
        self.headers: list[str | None] = []
        self._server: BaseWSGIServer | None = None
        self._port = 0
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the port that it had."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Be away: connections are refused."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def heal(self) -> None:
        self.plan = lambda path, number: None
        self.requests, self.headers = [], []

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"].removeprefix("/api/2.0/mlflow/")
        self.requests.append(path)
        self.headers.append(environ.get("HTTP_AUTHORIZATION"))
        fault = self.plan(path, len(self.requests))
        if fault is None:
            return self.app(environ, start)
        answer = (lambda *_: None) if fault is fail_after else start
        return fault(path, lambda: self.app(environ, answer), start)


def settings(folder: Path) -> dict[str, str]:
    """Variables that tell MLflow's application where its store and artifacts lie."""
    return {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/server.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": (folder / "artifacts").as_uri(),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
