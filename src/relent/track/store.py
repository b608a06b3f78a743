"""Opens an MLflow tracking store: quiet, checked before use, patient, with secrets kept out of every message.

MLflow retries a broken SQLite file or an absent server for minutes, in silence; what can be found out at once is asked
first, and what may pass is tried again here, where the user is told.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from relent.errors import RelentError
from relent.track.address import Address, understand
from relent.track.locks import alone

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG = logging.getLogger("relent.track")
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_SECONDS = 8.0
"""For a sign of life."""
_PATIENCE = 120.0
"""Seconds after which a store that answers nothing but errors is given up."""
_PASSING = (
    "database is locked",
    "database table is locked",
    "must be in the 'active' state",
    "already exists",
    "pg_type_typname",
)


class StoreAway(RelentError):
    """The store does not answer, or says that it cannot just now."""


class Patience:
    """Waits between attempts, 1, 2, 4 … 20 s, and gives up two minutes after the first of failures in a row."""

    def __init__(self) -> None:
        self.progress()

    def progress(self) -> None:
        """Something worked: start afresh."""
        self._pause = 1.0
        self._deadline: float | None = None

    def wait(self, error: StoreAway) -> None:
        """Wait before the next attempt.

        Raises:
            StoreAway: `error`, if it is time to give up.
        """
        now = time.monotonic()
        self._deadline = self._deadline or now + _PATIENCE
        left = self._deadline - now
        if left <= 0:
            raise error
        LOG.info("%s; trying again in %.0f s", str(error).partition(";")[0], self._pause)
        self._sleep(min(self._pause, left))
        self._pause = min(2 * self._pause, 20.0)

    _sleep = staticmethod(time.sleep)


@contextmanager
def opened(uri: str) -> Iterator[MlflowClient]:
    """A client of the store at `uri`, alone on it while the block lasts if the store is a local file.

    Raises:
        RelentError: The address is unusable, the file is no SQLite store, or the server is away or refuses; the message
            names the address without its secrets.
    """
    address = understand(uri)
    lock: AbstractContextManager[None] = nullcontext()
    if address.kind == "file":
        lock = alone(address.path.with_name(f"{address.path.name}.lock"), f"tracking store {address.path}")
    with lock, address.environment():
        client = _awaited(address)
        with told(address):
            yield client


def _awaited(address: Address) -> MlflowClient:
    """The client, which makes the store's tables; another one may be making them just now."""
    patience = Patience()
    while True:
        try:
            with told(address):
                check(address)
                return client_of(address)
        except StoreAway as error:
            patience.wait(error)


def client_of(address: Address) -> MlflowClient:
    """MLflow's client, told to be quiet."""
    settle_mlflow()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=address.uri)


def settle_mlflow(timeout: int = 30, retries: int = 3) -> None:
    """Set MLflow's variables, where the user has not.

    Args:
        timeout: Seconds for one request.
        retries: Further attempts of one request.
    """
    limits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries)}
    for key, value in {**_ENVIRONMENT, **limits}.items():
        os.environ.setdefault(key, value)


@contextmanager
def told(address: Address) -> Iterator[None]:
    """Turn MLflow's errors into one line that names the store.

    Raises:
        StoreAway: It may pass.
        RelentError: It will not.
    """
    try:
        yield
    except RelentError:
        raise
    except Exception as error:
        kind = type(error).__module__.partition(".")[0]
        if kind not in ("mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3"):
            raise
        reason = address.clean(_plain(str(error)))
        passing = _may_pass(error, address)
        raise (StoreAway if passing else RelentError)(
            f"tracking store {address.shown}: {reason}; nothing is lost, run the tracking step again "
            + ("when it answers" if passing else "when that is mended")
        ) from None


def _plain(message: str) -> str:
    """MLflow's message of a failed request in words."""
    if "Read timed out" in message:
        return "it did not answer in time"
    if refused := re.search(
        r"Connection refused|Connection reset|Connection aborted|Name or service not known", message
    ):
        return refused.group().lower()
    if answer := re.search(r"too many (\d+) error responses", message):
        return f"it answers HTTP {answer.group(1)}"
    return message.partition("\n")[0][:300]


def _may_pass(error: Exception, address: Address) -> bool:
    text = str(error)
    if any(words in text for words in _PASSING):
        return True
    if address.kind == "file":
        return False
    if kind_of_http := getattr(getattr(error, "response", None), "status_code", None):
        return kind_of_http in (408, 429) or kind_of_http >= 500
    if hasattr(error, "get_http_status_code"):
        code = error.get_http_status_code()
        return code in (408, 409, 429) or code >= 500
    return True


# ------------------------------------------------------------------------------------------------- before use


def check(address: Address) -> None:
    """Ask a store for a sign of life.

    Raises:
        StoreAway: It gives none.
        RelentError: It cannot be used.
    """
    {"file": _check_file, "server": _check_server, "database": _check_database}[address.kind](address)


def _check_file(address: Address) -> None:
    try:
        connection = sqlite3.connect(address.path, timeout=_SECONDS)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("SELECT count(*) FROM sqlite_master")
            connection.rollback()
        finally:
            connection.close()
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise StoreAway(
                f"tracking store {address.path}: another program writes to it; run the tracking step again"
            ) from None
        raise RelentError(
            f"tracking store {address.path}: cannot be used ({error}); move it away and run the tracking step again, "
            "which rebuilds it from the results"
        ) from None


def _check_server(address: Address) -> None:
    """Any HTTP answer is a sign of life, for a proxy may refuse the health page; that it is just now away is none."""
    try:
        urllib.request.urlopen(f"{address.uri}/health", timeout=_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise _away(address, f"HTTP {error.code}") from None
    except (OSError, ValueError) as error:
        raise _away(address, str(getattr(error, "reason", error))) from None


def _check_database(address: Address) -> None:
    """Connect once: MLflow would try a wrong password for the better part of an hour."""
    import sqlalchemy

    try:
        socket.create_connection((address.host, address.port), timeout=_SECONDS).close()
    except OSError as error:
        raise _away(address, str(error)) from None
    try:
        engine = sqlalchemy.create_engine(address.uri, poolclass=sqlalchemy.pool.NullPool)
        engine.connect().close()
    except ImportError as error:
        raise RelentError(
            f"tracking store {address.shown}: its Python driver is not installed ({error.name}); for PostgreSQL: "
            "pip install psycopg2-binary"
        ) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = " ".join(address.clean(str(error)).split("\n(Background")[0].split())
        raise RelentError(f"tracking store {address.shown}: refuses ({reason[:300]})") from None


def _away(address: Address, reason: str) -> StoreAway:
    return StoreAway(
        f"tracking server {address.shown} does not answer ({address.clean(reason)}); the results are whole, "
        "run the tracking step again when it does"
    )
