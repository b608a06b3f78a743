"""Where frames are read from: memory, or tiles on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relent.data.layout import TILES, Index, TileGrid, over_poles
from relent.data.shards import ShardReader


class FrameSource(Protocol):
    """Standardised anomalies of consecutive steps."""

    def read(self, start: int, length: int, rows: Index | None, columns: Index | None) -> Tensor:
        """(length, C, h, w), float32; `rows` and `columns` lie on the grid, None means all."""


class MemoryFrames:
    """Frames of a data set that is in memory.

    Args:
        anomalies: (time, C, latitude, longitude).
    """

    def __init__(self, anomalies: Tensor):
        self.anomalies = anomalies

    def read(self, start: int, length: int, rows: Index | None, columns: Index | None) -> Tensor:
        """See `FrameSource`."""
        frames = self.anomalies[start : start + length]
        frames = frames if rows is None else frames[:, :, torch.from_numpy(rows)]
        return frames if columns is None else frames[..., torch.from_numpy(columns)]


class TileFrames:
    """Frames that stay on disk, in tiles.

    Args:
        store: `dataset.zarr`.
        grid: Its tiles.
        base: (C, latitude, longitude or 1).
        std: (C).
    """

    def __init__(self, store: Path, grid: TileGrid, base: Tensor, std: Tensor):
        self.grid, self.base, self.std = grid, base, std
        self.reader = ShardReader(store / TILES)

    def read(self, start: int, length: int, rows: Index | None, columns: Index | None) -> Tensor:
        """See `FrameSource`. A window that lies in one stored tile is one request."""
        height, width = self.grid.shape
        rows = np.arange(height) if rows is None else rows
        columns = np.arange(width) if columns is None else columns
        values = torch.from_numpy(self.physical(start, length, rows, columns))
        base = self.base[:, torch.from_numpy(rows)]
        base = base[..., torch.from_numpy(columns)] if base.shape[-1] > 1 else base
        return values.sub_(base).div_(self.std[:, None, None])

    def physical(self, start: int, length: int, rows: Index, columns: Index) -> NDArray[np.float32]:
        """Values in the variables' own units, (length, C, h, w)."""
        row = self._one_tile(rows, 0)
        column = self._one_tile(columns, 1)
        if row is not None and column is not None:
            (i, y), (j, x) = row, column
            tile = self.reader.read(i, j, start, length)
            return np.ascontiguousarray(tile[..., y : y + rows.size, x : x + columns.size])
        return self._assembled(start, length, rows, columns)

    def _one_tile(self, positions: Index, axis: int) -> tuple[int, int] | None:
        """The tile that holds these positions, if they are neighbours and one does."""
        n_points = self.grid.shape[axis]
        following = (positions[0] + np.arange(positions.size)) % n_points
        if not np.array_equal(positions, following):
            return None
        return self.grid.holding(int(positions[0]), positions.size, axis)

    def _assembled(self, start: int, length: int, rows: Index, columns: Index) -> NDArray[np.float32]:
        """Values that lie in several tiles, each read once."""
        core, halo = self.grid.core, self.grid.halo
        values = np.empty((length, self.reader.frame[0], rows.size, columns.size), dtype=np.float32)
        for i in np.unique(rows // core):
            into_rows = np.flatnonzero(rows // core == i)
            for j in np.unique(columns // core):
                into_columns = np.flatnonzero(columns // core == j)
                tile = self.reader.read(int(i), int(j), start, length)
                y = rows[into_rows] - i * core + halo
                x = columns[into_columns] - j * core + halo
                values[:, :, into_rows[:, None], into_columns] = tile[:, :, y[:, None], x]
        return values


def read_over_poles(
    source: FrameSource,
    latitude: NDArray[np.float64],
    width: int,
    vectors: Tensor,
    window: tuple[int, int, Index, Index],
) -> Tensor:
    """Frames of a globe, some of whose rows lie beyond a pole; NaN where even there is no row.

    Args:
        source: The frames.
        latitude: Latitudes of the grid.
        width: Columns of the grid; even, because half a circle is a whole number of columns.
        vectors: (C); true for components of vectors, which change sign over a pole.
        window: Start, length, rows (they may lie beyond the grid), columns.

    Raises:
        ValueError: The grid has an odd number of columns.
    """
    start, length, rows, columns = window
    if width % 2:
        raise ValueError(f"rows beyond a pole need an even number of longitudes, the grid has {width}")
    index, crossed, on_grid = over_poles(latitude, rows)
    frames = source.read(start, length, index[~crossed], columns)
    values = torch.full((length, frames.shape[1], rows.size, columns.size), torch.nan)
    values[:, :, torch.from_numpy(np.flatnonzero(~crossed))] = frames
    beyond = np.flatnonzero(crossed & on_grid)
    if beyond.size:
        other_side = source.read(start, length, index[beyond], (columns + width // 2) % width)
        sign = torch.where(vectors, -1.0, 1.0)[:, None, None]
        values[:, :, torch.from_numpy(beyond)] = sign * other_side
    return values
