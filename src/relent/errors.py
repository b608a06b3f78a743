"""Errors that are shown to the user as one line: what was wrong, where, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path


class RelentError(Exception):
    """Base of all errors that are the user's to mend; the command line prints the message without a traceback."""


class ConfigError(RelentError):
    """A configuration, manifest or command-line value is wrong.

    Args:
        message: What was wrong and what would be right.
        file: The file that holds the value.
        key: Dotted key inside the file.
        line: Line of that key, counted from one.
    """

    def __init__(self, message: str, *, file: Path | str | None = None, key: str = "", line: int | None = None):
        place = f"{file}" if file is not None else ""
        if place and line:
            place += f":{line}"
        parts = [part for part in (place, key) if part]
        super().__init__(": ".join([*parts, message]))


class DataError(RelentError):
    """A data file is missing, truncated, of another content than promised, or holds values that may not be there."""


class PlanError(RelentError):
    """A job was started with another code or configuration than the one it was planned with."""


class CheckpointError(RelentError):
    """A checkpoint is unreadable or belongs to another configuration."""


def masked(text: str) -> str:
    """Replace user, password and query of every address in a text by `***`, before it is shown."""
    text = re.sub(r"(?<=://)[^\s'\"]*@", "***@", text)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\"]*", r"\1?***", text)


class DivergedError(RelentError):
    """Training has gone to NaN or infinity."""


class StoppedError(RelentError):
    """A signal asked the run to stop.

    Args:
        message: The run, how far it is, and how it goes on.
        status: Exit status that a process ended by this signal has (128 + its number).
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known name, or a list of the known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(names)})" if names else ""
