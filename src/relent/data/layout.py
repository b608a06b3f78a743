"""How gridded fields lie on disk: `dataset.zarr`, as maps or as tiles.

*Maps*, for what fits in memory: one array (time, latitude, longitude) a variable, by its name.

*Tiles*, for any size: one array `tiles` (tile_row, tile_column, time, variable, y, x), float32. A tile holds `core` ×
`core` grid points and `halo` more on each side, so that a window of a training sample that is shifted by up to `halo`
lies in one tile; a shard (a file) holds some steps of one tile with all variables, an inner chunk one step. A sample of
consecutive steps is then one range of bytes. `row` (tile_row, y) and `column` (tile_column, x) say where a stored point
lies on the grid. Halos go around where the grid does, and are NaN beyond a border or a pole.

Both have `time`, `latitude`, `longitude`, `split` by time, and may have `usable` and `trajectory` by time and `known`
(variable, latitude, longitude): false where a variable is not always known (sea-surface temperature over land) and may
be NaN. Attributes: `variables` (names in order), `step_hours`, `topology`, and for tiles `core`, `halo` and
`variable_attributes`. A group `statistics` holds `base` (variable, latitude) or (variable, latitude, longitude), `std`
(variable), `damping` and `residual_std` (variable) or (lead, variable); for maps each variable has its own,
`<variable>_base` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from relent.grid import Topology

TILES = "tiles"
DIMENSIONS = ("tile_row", "tile_column", "time", "variable", "y", "x")
Index = NDArray[np.int64]


@dataclass(frozen=True)
class TileGrid:
    """Which tiles a grid is cut into.

    Args:
        shape: Rows and columns of the grid.
        core: Side of the part that belongs to a tile alone.
        halo: Points around it that its neighbours hold too.
        topology: How the borders of the grid meet.

    Raises:
        ValueError: The core is empty or the halo is negative.
    """

    shape: tuple[int, int]
    core: int
    halo: int
    topology: Topology

    def __post_init__(self) -> None:
        if self.core < 1 or self.halo < 0:
            raise ValueError(f"a tile has a core of 1 or more and a halo of 0 or more, got {self.core} and {self.halo}")

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and columns of tiles; the last ones reach beyond the grid where `core` does not divide it."""
        return -(-self.shape[0] // self.core), -(-self.shape[1] // self.core)

    @property
    def side(self) -> int:
        """Side of a stored tile."""
        return self.core + 2 * self.halo

    @cached_property
    def rows(self) -> Index:
        """Grid row of each stored row, (tile rows, side): below 0 or beyond the last where it lies outside the grid."""
        return self._positions(self.counts[0])

    @cached_property
    def columns(self) -> Index:
        """Grid column of each stored column, (tile columns, side)."""
        return self._positions(self.counts[1])

    def _positions(self, count: int) -> Index:
        return np.arange(count)[:, None] * self.core - self.halo + np.arange(self.side)[None]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rows, columns = self.counts
        return iter([(row, column) for row in range(rows) for column in range(columns)])

    def holding(self, first: int, length: int, axis: int) -> tuple[int, int] | None:
        """A tile row (`axis` 0) or column (1) that holds `length` positions from `first` on, and where they begin.

        None where no tile holds them all.
        """
        count, n_points = self.counts[axis], self.shape[axis]
        wraps = self.topology.wraps_columns if axis else self.topology.wraps_rows
        middle = first + length // 2
        nearest = (middle % n_points if wraps else min(max(middle, 0), n_points - 1)) // self.core
        for tile in (nearest, nearest - 1, nearest + 1):
            tile = tile % count if wraps else tile
            offset = first - (tile * self.core - self.halo)
            offset = offset % n_points if wraps else offset
            if 0 <= tile < count and 0 <= offset <= self.side - length:
                return tile, offset
        return None


def over_poles(latitude: NDArray[np.float64], rows: Index) -> tuple[Index, NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows of a globe where some may lie beyond a pole.

    A row beyond a pole, at latitude ±180° − φ, is the row at φ, half a circle of longitude further, where east and
    north are west and south.

    Args:
        latitude: Latitudes of the grid in even steps, degrees.
        rows: Positions, below 0 or beyond the last for rows outside the grid.

    Returns:
        The grid row of each (0 where there is none), whether it was reached over a pole, whether there is one.
    """
    n_rows, step = latitude.size, latitude[1] - latitude[0]
    crossed = (rows < 0) | (rows >= n_rows)
    pole = 180 * np.where(rows < 0, np.sign(latitude[0]), np.sign(latitude[-1]))
    mirrored = (pole - 2 * latitude[0]) / step - rows
    index = np.where(crossed, np.round(mirrored).astype(np.int64), rows)
    on_grid = (index >= 0) & (index < n_rows) & (~crossed | (np.abs(mirrored - np.round(mirrored)) < 1e-3))
    return np.where(on_grid, index, 0), crossed, on_grid


def create_tiles(store: Path, grid: TileGrid, n_steps: int, n_variables: int, shard_steps: int) -> zarr.Array:
    """Make the array `tiles`; no shard is written.

    Args:
        store: `dataset.zarr`, whose group exists.
        grid: The tiles.
        n_steps: Steps of the time axis.
        n_variables: Variables.
        shard_steps: Steps in a shard.
    """
    side = grid.side
    group = zarr.open_group(store, mode="a")
    return group.create_array(
        TILES,
        shape=(*grid.counts, n_steps, n_variables, side, side),
        chunks=(1, 1, 1, n_variables, side, side),
        shards=(1, 1, shard_steps, n_variables, side, side),
        dtype="float32",
        fill_value=float("nan"),
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
        dimension_names=DIMENSIONS,
        overwrite=True,
        # A shard that is not there is an error, never "all missing".
        config={"write_empty_chunks": True},
    )
