"""Opens an MLflow tracking store: quiet, checked before use, with secrets kept out of every message.

MLflow retries a broken SQLite file or an absent server for minutes; what can be found out at once is asked first.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from relent.errors import RelentError

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG = logging.getLogger("relent.track")
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SECONDS = 8.0


def masked(text: str) -> str:
    """Replace user, password and query of every address in a text by `***`."""
    text = re.sub(r"(?<=://)[^/\s'\"]*@", "***@", text)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\"]*", r"\1?***", text)


def sqlite_path(uri: str) -> Path | None:
    """File of a `sqlite:///` address; None for every other address."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


@contextmanager
def opened(uri: str) -> Iterator[MlflowClient]:
    """A client of the store at `uri`, alone on it while the block lasts if the store is a local file.

    Raises:
        RelentError: The address is unusable, the file is no SQLite store, or the server is away or refuses; the message
            names the address without its secrets.
    """
    path = sqlite_path(uri)
    if path is None:
        _check_server(uri)
        with _told(uri), _credentials(uri) as address:
            yield _client(address)
        return
    with _alone(path):
        _check_sqlite(path)
        with _told(uri):
            yield _client(uri)


@contextmanager
def _credentials(uri: str) -> Iterator[str]:
    """Move user and password of an HTTP address into the variables that MLflow reads them from.

    MLflow prints and raises the address as it was given; without them in it nothing can tell them.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        yield uri
        return
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(zip(names, (unquote(parts.username), unquote(parts.password or ""))))
    try:
        yield urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _client(uri: str) -> MlflowClient:
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into one line that names the store."""
    try:
        yield
    except RelentError:
        raise
    except Exception as error:
        kind = type(error).__module__.partition(".")[0]
        if kind not in ("mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3"):
            raise
        reason = masked(str(error).partition("\n")[0])[:300]
        raise RelentError(
            f"tracking store {masked(uri)}: {reason}; nothing is lost, run the tracking step again when it answers"
        ) from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock file beside a local store; a second writer waits."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise RelentError(
            f"tracking store {path}: cannot be written ({error.strerror}); choose a writable folder"
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.info("another process writes to %s; waiting for it", path)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _check_sqlite(path: Path) -> None:
    try:
        connection = sqlite3.connect(path, timeout=_SECONDS)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("SELECT count(*) FROM sqlite_master")
            connection.rollback()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise RelentError(
            f"tracking store {path}: cannot be used ({error}); move it away and run the tracking step again, "
            "which rebuilds it from the results"
        ) from None


def _check_server(uri: str) -> None:
    """Ask a server for a sign of life; any HTTP answer is one, for a proxy may refuse the health page."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in _PORTS or not parts.hostname:
        raise RelentError(
            f"tracking address {masked(uri)!r} is not understood; use sqlite:///FILE, http(s)://HOST:PORT "
            "or a database address such as postgresql://HOST/NAME"
        )
    try:
        port = parts.port or _PORTS[scheme]
        if scheme in ("http", "https"):
            address = f"{scheme}://{_host(parts.hostname)}:{port}{parts.path.rstrip('/')}/health"
            urllib.request.urlopen(address, timeout=_SECONDS).close()
        else:
            socket.create_connection((parts.hostname, port), timeout=_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise RelentError(
            f"tracking server {masked(uri)} does not answer ({reason}); the results are whole, "
            "run the tracking step again when it does"
        ) from None


def _host(name: str) -> str:
    return f"[{name}]" if ":" in name else name
