"""Receipts: what a prepared data set consists of, so that a missing chunk or a truncated file is found before use.

A zarr reader takes a missing chunk for fill values and says nothing; the receipt lists every file with its size and
SHA-256. Written last, it also marks the data set as whole.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relent.errors import DataError
from relent.files import read_json, write_json

if TYPE_CHECKING:
    import zarr

NAME = "receipt.json"


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.rglob("*") if p.is_file() and p.name != NAME and not p.name.startswith(".snakemake")
    )


def write_receipt(folder: Path | str, known: Mapping[str, dict[str, Any]] | None = None, /, **metadata: Any) -> str:
    """List the files of a data set; returns the checksum of the whole.

    Args:
        folder: The data set's folder.
        known: `bytes` and `sha256` of files that were measured when they were written; they are not read again.
        **metadata: What else a user wants to know: sources, licences, options, counts.

    Raises:
        DataError: A known file has another size than when it was written.
    """
    folder, known = Path(folder), known or {}
    files = {}
    for path in _files(folder):
        name, size = str(path.relative_to(folder)), path.stat().st_size
        if name in known and known[name]["bytes"] != size:
            raise DataError(
                f"{path}: holds {size} bytes, not the {known[name]['bytes']} that were written; run it again"
            )
        files[name] = known.get(name) or {"bytes": size, "sha256": sha256(path)}
    for name in known.keys() - files.keys():
        raise DataError(f"{folder / name}: is gone since it was written; run the data rule again")
    checksum = hashlib.sha256("".join(f"{k}{v['sha256']}" for k, v in files.items()).encode()).hexdigest()
    write_json(folder / NAME, metadata | {"checksum": checksum, "files": files})
    return checksum


def check_receipt(folder: Path | str, *, contents: bool = False) -> dict[str, Any]:
    """Compare a data set with its receipt.

    Args:
        folder: The data set's folder.
        contents: Read every byte and compare checksums, not only names and sizes.

    Returns:
        The receipt.

    Raises:
        DataError: A file is missing, has another size, or (with `contents`) other bytes.
    """
    folder = Path(folder)
    receipt = read_json(folder / NAME)
    for name, expected in receipt["files"].items():
        path = folder / name
        if not path.is_file():
            what = "a chunk is missing" if "/c/" in name or name.startswith("c/") else "the file is missing"
            raise DataError(f"{path}: {what}; delete {folder} and run the data rule again")
        if path.stat().st_size != expected["bytes"]:
            raise DataError(
                f"{path}: holds {path.stat().st_size} bytes, not {expected['bytes']}: it is truncated or changed; "
                f"delete {folder} and run the data rule again"
            )
        if contents and sha256(path) != expected["sha256"]:
            raise DataError(
                f"{path}: its bytes are not those of the receipt; delete {folder} and run the data rule again"
            )
    return receipt


def refresh_receipt(folder: Path, pinned: dict[str, str] | None = None) -> None:
    """Bring a receipt up to date with a data set that was changed on purpose; refuse one that is broken.

    Nothing is read unless a file is younger than the receipt or has another size. A changed data set whose arrays all
    decode and miss no chunk gets a new receipt, whose time stamp makes the workflow run what depends on it.

    Args:
        folder: The data set's folder; without a receipt nothing is done.
        pinned: SHA-256 by file name, where the bytes may not change at all.

    Raises:
        DataError: A file or chunk is missing, cannot be decoded, or has other bytes than the pinned ones.
    """
    path = folder / NAME
    if not path.is_file():
        return
    receipt = read_json(path)
    stamp = path.stat().st_mtime_ns
    changed = []
    for name, expected in receipt["files"].items():
        file = folder / name
        if not file.is_file():
            check_receipt(folder)
        status = file.stat()
        if status.st_size != expected["bytes"] or status.st_mtime_ns > stamp:
            if sha256(file) != expected["sha256"]:
                changed.append(name)
            else:
                # A copied data set is younger than it says: read it once, not at every start.
                with suppress(OSError):
                    os.utime(file, ns=(stamp, stamp))
    if not changed:
        return
    for name in changed:
        if pinned and name in pinned:
            raise DataError(
                f"{folder / name}: its bytes are not the pinned ones (truncated or replaced); "
                f"delete {folder} and run `snakemake data`"
            )
    _decode(folder, changed)
    metadata = {key: value for key, value in receipt.items() if key not in ("checksum", "files")}
    write_receipt(folder, **metadata)


def _decode(folder: Path, changed: list[str]) -> None:
    """Read every array whose files changed, so that a truncated chunk is found before a job starts."""
    import zarr

    for store in sorted({name.partition("/")[0] for name in changed if ".zarr/" in name}):
        arrays = sorted(
            {n.rsplit("/c/", 1)[0].removesuffix("/zarr.json") for n in changed if n.startswith(f"{store}/")}
        )
        for name in arrays:
            try:
                node = zarr.open(store=folder / name, mode="r")
                if isinstance(node, zarr.Array):
                    _decode_blocks(node)
            except Exception as error:
                raise DataError(
                    f"{folder / name}: cannot be decoded ({type(error).__name__}: {error}); "
                    f"delete {folder} and run `snakemake data`"
                ) from None


def _decode_blocks(array: zarr.Array) -> None:
    """Read an array block by block: it may be larger than memory."""
    sides = array.shards or array.chunks
    counts = [-(-size // side) for size, side in zip(array.shape, sides)]
    for position in itertools.product(*map(range, counts)):
        array[tuple(slice(n * side, (n + 1) * side) for n, side in zip(position, sides))]
