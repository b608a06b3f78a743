"""Reads steps of one stored tile with one request: a byte range of one shard.

The shards are those that zarr writes (zarr v3, codec `sharding_indexed`: inner chunks one after the other, then an
index of offset and length of each, with a CRC-32C). Inner chunks of a shard differ in time alone and lie in its order,
so that consecutive steps are consecutive bytes. A zarr reader makes a request for each inner chunk, in an event loop
that a forked loader process cannot use; this one asks once and keeps no thread.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec

from relent.data.shard_files import EMPTY, ShardFiles
from relent.errors import DataError


class ShardReader(ShardFiles):
    """Steps of an array (tile row, tile column, time, variable, y, x) whose shards hold several steps of one tile.

    Args:
        path: The array's folder.

    Raises:
        DataError: It is no such array.
    """

    remedy = "run the data rule again"

    def __init__(self, path: Path):
        super().__init__(path)
        array = self._array()
        self.shape = array.shape
        shards, chunks = array.shards, array.chunks
        self._compressed = _is_compressed(array)
        if array.ndim != 6 or shards is None or chunks != (1, 1, 1, *shards[3:]) or shards[3:] != array.shape[3:]:
            raise DataError(f"{path}: is not sharded by tile with one step a chunk; run the data rule again")
        self.steps = self.chunks_a_shard = int(shards[2])
        self.frame = tuple(int(n) for n in chunks[3:])

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

    def _request(self, name: str, offset: int, size: int) -> bytes:
        handle = self._open(name)
        try:
            return self._bytes(handle, name, offset, size)
        finally:
            os.close(handle)


def _is_compressed(array: zarr.Array) -> bool:
    """Whether inner chunks are compressed with Blosc; other codecs are not read here."""
    codecs = [codec for codec in array.metadata.codecs if isinstance(codec, ShardingCodec)]  # type: ignore[union-attr]
    inner = codecs[0].codecs if codecs else ()
    kinds = tuple(type(codec) for codec in inner)
    if kinds not in ((BytesCodec,), (BytesCodec, BloscCodec)) or array.dtype != np.float32:
        raise DataError(f"{array.store_path}: has codecs that are not read here; run the data rule again")
    return len(kinds) == 2
