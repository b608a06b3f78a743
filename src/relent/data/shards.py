"""Reads steps of one stored tile with one request: a byte range of one shard.

The shards are those that zarr writes (zarr v3, codec `sharding_indexed`: inner chunks one after the other, then an
index of offset and length of each, with a CRC-32C). Inner chunks of a shard differ in time alone and lie in its order,
so that consecutive steps are consecutive bytes. A zarr reader makes a request for each inner chunk, in an event loop
that a forked loader process cannot use; this one asks once and keeps no thread.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec

from relent.errors import DataError

EMPTY = np.uint64(2**64 - 1)
CRC_BYTES = 4
CACHED_INDEXES = 4096


class ShardReader:
    """Steps of an array (tile row, tile column, time, variable, y, x) whose shards hold several steps of one tile.

    Args:
        path: The array's folder.

    Raises:
        DataError: It is no such array.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            array = zarr.open_array(path, mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: cannot be opened ({error}); run the data rule again") from None
        self.shape = array.shape
        shards, chunks = array.shards, array.chunks
        self._compressed = _is_compressed(array)
        if array.ndim != 6 or shards is None or chunks != (1, 1, 1, *shards[3:]) or shards[3:] != array.shape[3:]:
            raise DataError(f"{path}: is not sharded by tile with one step a chunk; run the data rule again")
        self.steps = int(shards[2])
        self.frame = tuple(int(n) for n in chunks[3:])
        self._index = lru_cache(maxsize=CACHED_INDEXES)(self._read_index)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def read(self, row: int, column: int, start: int, length: int) -> NDArray[np.float32]:
        """Steps `start` to `start + length` of a tile: one request for each shard that they lie in, mostly one.

        Returns:
            (length, variable, y, x).

        Raises:
            DataError: A shard is missing or broken.
        """
        frames = np.empty((length, *self.frame), dtype=np.float32)
        done = 0
        while done < length:
            shard, first = divmod(start + done, self.steps)
            count = min(length - done, self.steps - first)
            self._read_shard(f"c/{row}/{column}/{shard}/0/0/0", first, frames[done : done + count])
            done += count
        return frames

    def _read_shard(self, name: str, first: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the steps from `first` on of one shard."""
        offsets, sizes = self._index(name)[first : first + len(out)].T
        known = np.flatnonzero(offsets != EMPTY)
        if known.size < len(out):
            out[:] = np.nan
        if not known.size:
            return
        begin = int(offsets[known].min())
        end = int((offsets[known] + sizes[known]).max())
        content = memoryview(self._request(name, begin, end - begin))
        for step in known:
            chunk = content[int(offsets[step]) - begin :][: int(sizes[step])]
            try:
                if self._compressed:
                    blosc.decompress(chunk, out[step])
                else:
                    out[step] = np.frombuffer(chunk, dtype="<f4").reshape(self.frame)
            except (RuntimeError, ValueError, TypeError) as error:
                raise self._broken(name, f"step {first + step} cannot be decoded: {error}") from None

    def _read_index(self, name: str) -> NDArray[np.uint64]:
        size = 16 * self.steps
        try:
            total = (self.path / name).stat().st_size
        except OSError:
            raise self._broken(name, "the shard is missing") from None
        if total < size + CRC_BYTES:
            raise self._broken(name, "it is truncated")
        content = self._request(name, total - size - CRC_BYTES, size)
        return np.frombuffer(content, dtype="<u8").reshape(self.steps, 2)

    def _request(self, name: str, offset: int, size: int) -> bytes:
        try:
            handle = os.open(self.path / name, os.O_RDONLY)
        except OSError:
            raise self._broken(name, "the shard is missing") from None
        try:
            content = os.pread(handle, size, offset)
        finally:
            os.close(handle)
        if len(content) != size:
            raise self._broken(name, "it is truncated")
        return content

    def _broken(self, name: str, reason: str) -> DataError:
        return DataError(f"{self.path / name}: {reason}; delete the data set and run the data rule again")


def _is_compressed(array: zarr.Array) -> bool:
    """Whether inner chunks are compressed with Blosc; other codecs are not read here."""
    codecs = [codec for codec in array.metadata.codecs if isinstance(codec, ShardingCodec)]  # type: ignore[union-attr]
    inner = codecs[0].codecs if codecs else ()
    kinds = tuple(type(codec) for codec in inner)
    if kinds not in ((BytesCodec,), (BytesCodec, BloscCodec)) or array.dtype != np.float32:
        raise DataError(f"{array.store_path}: has codecs that are not read here; run the data rule again")
    return len(kinds) == 2
