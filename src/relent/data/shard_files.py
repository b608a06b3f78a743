"""The files of a sharded zarr v3 array, read by byte range: what the readers of tiles and of rows share.

A zarr reader makes a task of its event loop for each chunk, which a forked loader process cannot use; these ask the
files and keep no thread.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from relent.errors import DataError

EMPTY = np.uint64(2**64 - 1)
CRC_BYTES = 4
CACHED_INDEXES = 4096


class ShardFiles:
    """Index and bytes of an array's shards; opens nothing that a pickle or a fork would have to carry.

    A subclass sets `chunks_a_shard` in its constructor, after it has looked at the array.

    Args:
        path: The array's folder.

    Raises:
        DataError: It is no array.
    """

    remedy = "make it again"
    chunks_a_shard: int

    def __init__(self, path: Path):
        self.path = path
        self._index = lru_cache(maxsize=CACHED_INDEXES)(self._read_index)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def _array(self) -> zarr.Array:
        try:
            return zarr.open_array(self.path, mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{self.path}: cannot be opened ({error}); {self.remedy}") from None

    def _read_index(self, name: str) -> NDArray[np.uint64]:
        """Offset and size of each chunk of a shard (the index at its end: zarr codec `sharding_indexed`)."""
        size, handle = 16 * self.chunks_a_shard, self._open(name)
        try:
            total = os.fstat(handle).st_size
            if total < size + CRC_BYTES:
                raise self._broken(name, "it is truncated")
            content = self._bytes(handle, name, total - size - CRC_BYTES, size)
        finally:
            os.close(handle)
        return np.frombuffer(content, dtype="<u8").reshape(self.chunks_a_shard, 2)

    def _open(self, name: str) -> int:
        try:
            return os.open(self.path / name, os.O_RDONLY)
        except OSError:
            raise self._broken(name, "the shard is missing") from None

    def _bytes(self, handle: int, name: str, offset: int, size: int) -> bytes:
        content = os.pread(handle, size, offset)
        if len(content) != size:
            raise self._broken(name, "it is truncated")
        return content

    def _broken(self, name: str, reason: str) -> DataError:
        return DataError(f"{self.path / name}: {reason}; delete the data set and {self.remedy}")
