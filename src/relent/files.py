"""Files that are whole or not there: written under a temporary name and renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relent.errors import DataError, RelentError


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends without an error.

    Works for files and folders. What stood at `path` before stays until the new one is whole.

    Raises:
        RelentError: The folder cannot be made, or the disk takes no more (full, over quota, read-only).
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(path.parent, error) or RelentError(
            f"{path.parent}: cannot be made ({error.strerror}); choose a folder that is writable"
        ) from None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    remove(temporary)
    try:
        with full_disk_told(path):
            yield temporary
            _sync(temporary)
            if path.is_dir():
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                remove(old)
                path.rename(old)
                temporary.rename(path)
                remove(old)
            else:
                os.replace(temporary, path)
    finally:
        remove(temporary)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Tell in one line that the disk took no more of what is written in the block.

    Raises:
        RelentError: The disk is full, over quota or read-only; other errors pass as they are.
    """
    try:
        yield
    except Exception as error:
        refused = refusal(path, error)
        if refused is None:
            raise
        raise refused from error


def refusal(path: Path, error: Exception) -> RelentError | None:
    """The error to show where the disk took no more; None where `error` is about something else."""
    named = re.search(r"\(os error (\d+)\)", str(error))  # how safetensors tells it
    number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
    if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return None
    place = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free / 2**20
    return RelentError(
        f"{path}: cannot be written ({os.strerror(number)}; {free:.1f} MB are free); nothing half-written was left; "
        "make space and give the same command"
    )


def _sync(path: Path) -> None:
    """Bring a file's bytes to the disk before its name appears."""
    if path.is_file():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON by rename; numbers that are not finite are refused, for they are no JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    with whole(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def mark_digest(path: Path | str) -> str:
    """What identifies the content of a folder by the file that marks it as whole.

    That is the checksum in a data set's receipt, which a rewritten receipt of the same data keeps, and else the SHA-256
    of the mark's own bytes: a `config.json` holds measured times, so that no two trainings share one. Empty where there
    is no such file.
    """
    try:
        content = Path(path).read_bytes()
        checksum = json.loads(content).get("checksum")
    except (OSError, ValueError, AttributeError):
        return ""
    return str(checksum or hashlib.sha256(content).hexdigest())


def read_json(path: Path | str) -> Any:
    """Read JSON.

    Raises:
        DataError: The file is missing or truncated.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: does not exist; run the stage that makes it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not whole ({error}); delete it and run the stage that makes it again") from None
