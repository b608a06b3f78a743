"""Locks between processes, and the name of a results tree, both as files beside what they belong to."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relent.errors import RelentError

LOG = logging.getLogger("relent.track")
_WAIT = 900.0
"""Seconds that a writer waits for another one: a replay of thousands of runs into a slow store takes minutes."""


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block lasts; a second process waits.

    The lock is the kernel's, on an open file: it ends with the process that holds it, however that ends. A lock file
    that is left behind is no lock; its text only tells a waiting user who holds it.

    Args:
        path: The lock file.
        what: What is locked, for messages.

    Raises:
        RelentError: The file cannot be written, or another process holds the lock for a quarter of an hour.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    except OSError as error:
        raise RelentError(f"{what}: cannot be written ({error.strerror}); choose a writable folder") from None
    with handle:
        _take(handle.fileno(), path, what)
        os.truncate(handle.fileno(), 0)
        os.pwrite(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield


def _take(descriptor: int, path: Path, what: str) -> None:
    deadline, told = time.monotonic() + _WAIT, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError as error:
            LOG.warning(
                "%s: this file system has no locks (%s); let only one workflow write to it", what, error.strerror
            )
            return
        holder = path.read_text(errors="replace") or "another process"
        if time.monotonic() > deadline:
            raise RelentError(
                f"{what}: {holder} has been writing for {_WAIT / 60:.0f} minutes; nothing is lost, see whether it "
                "hangs, and run the tracking step again"
            )
        if not told:
            LOG.info("%s: %s writes to it; waiting for it", what, holder)
        told = True
        time.sleep(0.1)


def tree_id(results: Path) -> str:
    """What tells this results tree from another one in the same store: 12 hexadecimal digits, made once.

    They lie in the tree, so that a tree that is moved or copied stays the one it was. Many jobs may ask first at once.

    Raises:
        RelentError: The file is not there and cannot be written.
    """
    path = results / ".tracking_id"
    if not path.is_file():
        mine = results / f".tracking_id.{uuid.uuid4().hex}.part"
        try:
            results.mkdir(parents=True, exist_ok=True)
            mine.write_text(uuid.uuid4().hex[:12])
            try:
                os.link(mine, path)
            except FileExistsError:
                pass
            finally:
                mine.unlink()
        except OSError as error:
            raise RelentError(f"{path}: cannot be written ({error.strerror}); choose a writable folder") from None
    return path.read_text().strip()
