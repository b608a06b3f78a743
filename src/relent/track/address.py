"""A tracking address: what kind of store it names, and its secrets kept apart from what may be shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from relent.errors import RelentError, masked

_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@dataclass(frozen=True)
class Address:
    """A tracking address, understood."""

    kind: Literal["file", "server", "database"]
    uri: str = field(repr=False)
    """What MLflow is given; a server's is free of secrets, a database's is not."""
    shown: str
    """What a message may say."""
    path: Path = Path()
    """The file of a SQLite store."""
    host: str = ""
    port: int = 0
    credentials: dict[str, str | None] = field(default_factory=dict, repr=False)
    """Variables that MLflow reads; None: to be unset, for another one is meant."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Texts that may stand in no message."""

    def clean(self, text: str) -> str:
        """A text without the secrets of this address or of the environment."""
        for secret in (*self.secrets, *filter(None, map(os.environ.get, _VARIABLES[1:]))):
            text = text.replace(secret, "***")
        return masked(text)

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Put the credentials where MLflow reads them from, while the block lasts.

        MLflow prints and raises the address as it was given; without them in it nothing can tell them.
        """
        before = {name: os.environ.get(name) for name in self.credentials}
        self.put_credentials()
        try:
            yield
        finally:
            _set(before)

    def put_credentials(self) -> None:
        """The same for good."""
        _set(self.credentials)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def sqlite_path(uri: str) -> Path | None:
    """File of a `sqlite:///` address; None for every other address."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def understand(uri: str) -> Address:
    """Read a tracking address.

    Raises:
        RelentError: It is none; the message names it without its secrets.
    """
    if path := sqlite_path(uri):
        return Address("file", uri, uri, path)
    parts, shown = _split(uri), masked(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in _PORTS or not parts.hostname:
        raise RelentError(
            f"tracking address {shown!r} is not understood; use sqlite:///FILE, http(s)://HOST:PORT "
            "or a database address such as postgresql://HOST/NAME"
        )
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    secrets = tuple({text for text in (password, parts.password, "" if password else user) if text and len(text) > 2})
    host, port = parts.hostname, parts.port or _PORTS[scheme]
    if scheme not in ("http", "https"):
        return Address("database", uri, shown, host=host, port=port, secrets=secrets)
    if parts.query or parts.fragment:
        raise RelentError(
            f"tracking address {shown!r}: a server's address ends before '?' and '#'; give a token by the variable "
            "MLFLOW_TRACKING_TOKEN, and write such characters in a password as %3F and %23"
        )
    given: dict[str, str | None] = {}
    if password:
        given = dict(zip(_VARIABLES, (user, password, None)))
    elif user:
        given = dict(zip(_VARIABLES, (None, None, user)))
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    return Address("server", plain, shown, Path(), host, port, given, secrets)


def _split(uri: str) -> SplitResult:
    """Parts of an address; the errors of `urlsplit` repeat pieces of a password, ours do not."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise RelentError(
            f"tracking address {masked(uri)!r} cannot be taken apart; write '/', '@', ':', '?' and '#' in a user or "
            "password as %2F, %40, %3A, %3F and %23, or give them by MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        ) from None
    return parts
