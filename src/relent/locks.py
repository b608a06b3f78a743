"""Locks that end with the process that holds them: of a workflow's folder, and of a run that is being trained.

They are the kernel's (`flock`), on an open file: nothing that is left behind by a killed process is a lock.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from relent.errors import RelentError
from relent.files import refusal, remove


def take(handle: IO[str]) -> bool | None:
    """Hold an open file alone, if nobody else does: False where another process has it.

    None where the file system has no locks: then nothing can be known.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sign(handle: IO[str]) -> None:
    """Write into a lock's file, opened to append, who holds it: words for whoever waits, and no lock."""
    with suppress(OSError):
        os.truncate(handle.fileno(), 0)
        os.write(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())


def holder(path: Path) -> str:
    """Who holds the lock of a file, in words."""
    return path.read_text(errors="replace") or "another process"


def watch_over(folder: Path, say: Callable[[str], None]) -> IO[str] | None:
    """Tell a workflow's folder that a Snakemake is at work, and remove what a killed one has locked.

    Snakemake's own lock is a list of files that stays when Snakemake is killed. Every Snakemake of this project holds
    this lock, shared with others (a dry run beside the main job), as long as it lives. One that gets it alone knows
    that no other lives, so what is locked is left over.

    Args:
        folder: Snakemake's folder, `.snakemake`.
        say: Tells the user what was removed.

    Returns:
        The open file; it must be kept. None where the file system has no locks: `snakemake --unlock` is then the way.
    """
    try:
        folder.mkdir(exist_ok=True)
        handle = (folder / "relent.lock").open("a")
    except OSError:
        return None
    alone = take(handle)
    if alone is None:
        return None
    if alone and any((folder / "locks").glob("*.lock")):
        try:
            remove(folder / "locks")
        except OSError:
            return None
        say("an earlier Snakemake was killed in this folder; its lock is removed")
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


@contextmanager
def sole_trainer(output: str) -> Iterator[None]:
    """Hold a run while it is trained: two processes in one folder would write each other's checkpoints.

    A Snakemake that is killed leaves its jobs at work, and the next one starts the same jobs.

    Raises:
        RelentError: Another process trains this run.
    """
    path = Path(output, "checkpoints", "lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError as error:
        raise refusal(path, error) or RelentError(f"{output}: cannot be written ({error.strerror})") from None
    with handle:
        if take(handle) is False:
            raise RelentError(
                f"{output}: {holder(path)} is training this run already (a killed Snakemake leaves its jobs at work); "
                "wait for it or end it, then give the same command"
            )
        sign(handle)
        yield
