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
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if any((folder / "locks").glob("*.lock")):
            remove(folder / "locks")
            say("an earlier Snakemake was killed in this folder; its lock is removed")
    except BlockingIOError:
        pass
    except OSError:
        return None
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
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text(errors="replace") or "another process"
            raise RelentError(
                f"{output}: {holder} is training this run already (a killed Snakemake leaves its jobs at work); "
                "wait for it or end it, then give the same command"
            ) from None
        except OSError:
            pass  # A file system without locks: nothing can be known.
        with suppress(OSError):
            os.truncate(handle.fileno(), 0)
            os.write(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
