"""Files that are whole or not there: written under a temporary name and renamed."""

from __future__ import annotations

import json
import os
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
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RelentError(
            f"{path.parent}: cannot be made ({error.strerror}); choose a folder that is writable"
        ) from None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    remove(temporary)
    try:
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
