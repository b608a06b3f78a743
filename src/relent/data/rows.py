"""Rows of a zarr array that is larger than memory, read one by one where they are asked for, in any order.

The arrays are zarr v3, sharded, one row an inner chunk, not compressed: a row is one byte range of one shard, so that a
shuffled batch reads what it needs and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from relent.data.shard_files import CRC_BYTES, EMPTY, ShardFiles
from relent.errors import DataError
from relent.files import whole

SHARD_MB = 128


def shard_rows(row_bytes: int) -> int:
    """Rows a shard: a power of two, up to 128 MB of them, at most 4,096."""
    fitting = max(1, SHARD_MB * 2**20 // row_bytes)
    return int(min(4096, 2 ** (fitting.bit_length() - 1)))


def create_rows(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, lead: int = 0) -> zarr.Array:
    """Make an array of rows.

    Args:
        group: Where.
        name: Its name.
        shape: (*lead, N, *row).
        dtype: Of the values.
        lead: Number of axes before that of the rows.

    Returns:
        The array; `StoredRows.write` fills it.
    """
    row = shape[lead + 1 :]
    count = shard_rows(int(np.prod(row)) * np.dtype(dtype).itemsize)
    ones = (1,) * lead
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(*ones, 1, *row),
        shards=(*ones, count, *row),
        compressors=None,
        filters=None,
        fill_value=0,
    )


class StoredRows(ShardFiles):
    """A sharded array of shape (N, *row) or (V, N, *row), read by row and written by shard.

    `rows[index]` with an index (B,) gives (B, *row); with two indices, `rows[first, index]`, those of the two leading
    axes.

    Args:
        path: The array's folder.

    Raises:
        DataError: It is no such array.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        array = self._array()
        shards, chunks = array.shards, array.chunks
        self._lead = next((axis for axis, side in enumerate(shards or ()) if side != 1), 0)
        if shards is None or self._lead > 1 or chunks[: self._lead + 1] != (1,) * (self._lead + 1):
            raise DataError(f"{path}: is not sharded with one row a chunk; make it again")
        if array.compressors:
            raise DataError(f"{path}: its rows are compressed and cannot be read one by one; make it again")
        self.shape = array.shape
        self.dtype = array.dtype
        self._count = self.chunks_a_shard = int(shards[self._lead])
        self._row = tuple(int(side) for side in chunks[self._lead + 1 :])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, key: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) != self._lead + 1:
            raise IndexError(f"{self.path}: has {self._lead + 1} axes before a row, got {len(parts)} indices")
        found = self.read(*(part.numpy() for part in parts))
        return torch.from_numpy(found)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """All rows, in memory: (N, *row), for methods that need them at once; arguments as of a tensor's `to`."""
        return self[torch.arange(len(self))].to(*args, **kwargs)

    def read(self, *indices: NDArray[np.int64]) -> NDArray[Any]:
        """Rows at indices of the leading axes, (B,) each: (B, *row).

        Raises:
            IndexError: An index is out of range.
            DataError: A shard is missing or truncated.
        """
        for axis, part in enumerate(indices):
            if part.size and (part.min() < 0 or part.max() >= self.shape[axis]):
                raise IndexError(
                    f"{self.path}: rows go from 0 to {self.shape[axis] - 1}, got {part.min()} to {part.max()}"
                )
        *lead, rows = indices
        found = np.zeros((len(rows), *self._row), dtype=self.dtype)
        shard, inner = np.divmod(rows, self._count)
        places = np.stack([*lead, shard], axis=1)
        for place in np.unique(places, axis=0):
            own = np.flatnonzero((places == place).all(axis=1))
            self._read_shard(self._name(place), inner[own], own, found)
        return found

    def write(self, first: int, values: NDArray[Any], view: int | None = None) -> list[str]:
        """Write rows from the beginning of a shard on, to the end of one or of the array; each file by rename.

        zarr itself takes 0.2 ms a row, most of the time of storing a teacher's outputs on millions of images.

        Args:
            first: First row.
            values: (B, *row).
            view: Index of the leading axis, where there is one.

        Returns:
            Names of the files, below the array's folder.

        Raises:
            ValueError: The rows do not fill whole shards, or have another shape.
        """
        end, lead = first + len(values), [] if view is None else [view]
        if first % self._count or (end % self._count and end != self.shape[self._lead]) or len(lead) != self._lead:
            raise ValueError(f"{self.path}: rows {first} to {end} do not fill shards of {self._count}")
        if values.shape[1:] != self._row:
            raise ValueError(f"{self.path}: a row has the shape {self._row}, got {values.shape[1:]}")
        names = []
        for start in range(0, len(values), self._count):
            part = np.ascontiguousarray(values[start : start + self._count], dtype=self.dtype)
            names.append(self._name([*lead, (first + start) // self._count]))
            with whole(self.path / names[-1]) as temporary:
                temporary.write_bytes(part.tobytes() + self._index_of(part))
        return names

    def _name(self, place: Iterable[int]) -> str:
        """File of the shard at a place of the leading axes."""
        return "/".join(map(str, ["c", *place, *(0 for _ in self._row)]))

    def _index_of(self, rows: NDArray[Any]) -> bytes:
        """Offset and size of each row, and the checksum: what ends a shard; rows beyond the array are EMPTY."""
        index = np.full((self._count, 2), EMPTY, dtype="<u8")
        size = rows[0].nbytes
        index[: len(rows), 0] = size * np.arange(len(rows))
        index[: len(rows), 1] = size
        content = index.tobytes()
        return content + int(google_crc32c.value(content)).to_bytes(CRC_BYTES, "little")

    def _read_shard(self, name: str, inner: NDArray[np.int64], own: NDArray[np.int64], found: NDArray[Any]) -> None:
        offsets, sizes = self._index(name)[inner].T
        handle = self._open(name)
        try:
            for offset, size, position in zip(offsets, sizes, own):
                if offset == EMPTY:
                    continue
                if int(size) != found[position].nbytes:
                    raise self._broken(name, "it is truncated")
                content = self._bytes(handle, name, int(offset), int(size))
                found[position] = np.frombuffer(content, dtype=self.dtype).reshape(self._row)
        finally:
            os.close(handle)
