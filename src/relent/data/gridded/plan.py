"""What a data set is going to be, decided before anything is written: channels, axes, tiles, blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relent.data.gridded.axes import ABSENT, GridAxes, TimeAxis, grid_axes, time_axis
from relent.data.gridded.options import GriddedSource, Role, VariableOptions
from relent.data.gridded.stores import Field, Store, Values, open_store
from relent.data.gridded.variables import CONVERSIONS, known, normal_units
from relent.data.layout import TileGrid
from relent.data.options import GriddedOptions
from relent.errors import ConfigError, DataError
from relent.manifest.fingerprint import canonical

MB = 1e6
READ_MB = 128
"""Most that is read of the source at once, if a step is not larger."""


@dataclass(frozen=True)
class Channel:
    """One channel of the data set and where it comes from; values are `factor` · source + `offset`."""

    name: str
    variable: str
    level: float | None
    role: Role
    moving_gaps: bool
    factor: float
    offset: float
    lowest: float
    highest: float
    attributes: dict[str, str]

    @property
    def field(self) -> Field:
        """Variable and level in the source."""
        return self.variable, self.level


@dataclass(frozen=True)
class Plan:
    """A data set to be laid out."""

    options: GriddedSource
    coarsen: int
    channels: tuple[Channel, ...]
    axis: TimeAxis
    grid: GridAxes
    """Of the source."""
    latitude: np.ndarray
    longitude: np.ndarray
    tiles: TileGrid
    shard_steps: int
    digest: str
    """What decides the bytes, with the source's identity: a lay-out that was stopped goes on only where it is equal."""
    mended: tuple[str, ...]
    about: dict[str, str]

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First step and end of each block; a block is one shard of every tile."""
        n_steps = self.axis.time.size
        return [(n, min(n + self.shard_steps, n_steps)) for n in range(0, n_steps, self.shard_steps)]

    @property
    def frame_mb(self) -> float:
        """Size of a frame of the laid-out grid."""
        return 4 * len(self.channels) * self.latitude.size * self.longitude.size / MB

    @property
    def worker_mb(self) -> float:
        """Memory that a worker's task needs, with what the interpreter and the libraries take.

        The block, a tile of it before and after compression, and what is read of the source at once.
        """
        return 300 + 3 * self.shard_steps * self.frame_mb + 2 * READ_MB


def make_plan(options: GriddedOptions, code: str) -> Plan:
    """Open the source and decide everything.

    Args:
        options: What the manifest says.
        code: Fingerprint of the code that writes the data set.

    Raises:
        ConfigError: Options do not fit the source.
        DataError: The source lacks something, or is not what it should be.
    """
    source = options.source
    store = open_store(source, again=True)
    mended: list[str] = []
    channels = tuple(channel for variable in source.variables for channel in _channels(store, variable, mended))
    grid = grid_axes(store, source.region, mended)
    axis = time_axis(store, source, mended)
    latitude, longitude = coarse_axes(grid, options.coarsen)
    core = source.core or options.tile
    if core > max(latitude.size, longitude.size):
        core = max(latitude.size, longitude.size)
    halo = core // 4 if source.halo is None else source.halo
    tiles = TileGrid((latitude.size, longitude.size), core, halo, grid.topology)
    frame_mb = 4 * len(channels) * latitude.size * longitude.size / MB
    steps = int(min(max(1, source.block_mb // frame_mb), axis.time.size))
    identity = {
        "options": options.model_dump(mode="json", exclude={"tile_stride", "halo", "memory_mb"}),
        "code": code,
        "times": hashlib.sha256(axis.last.tobytes() + axis.time.tobytes()).hexdigest(),
        "grid": [latitude.tolist(), longitude.tolist()],
        "attributes": [channel.attributes for channel in channels],
    }
    return Plan(
        options=source,
        coarsen=options.coarsen,
        channels=channels,
        axis=axis,
        grid=grid,
        latitude=latitude,
        longitude=longitude,
        tiles=tiles,
        shard_steps=steps,
        digest=hashlib.sha256(canonical(identity).encode()).hexdigest(),
        mended=tuple(dict.fromkeys(mended)),
        about=store.about,
    )


def _channels(store: Store, options: VariableOptions, mended: list[str]) -> list[Channel]:
    """Channels of one variable, with units as they should be."""
    for _, level in options.channels:
        store.has(options.name, level)
    store.check_chunks(options.name)
    attributes = store.attributes(options.name if options.name in store.variables else options.channels[0][0])
    quantity = known(options.name)
    units, factor, offset = _units(store.name, options, attributes, mended)
    found = []
    for name, level in options.channels:
        about = {
            "long_name": quantity.long_name if quantity else str(attributes.get("long_name", options.name)),
            "standard_name": quantity.standard_name if quantity else str(attributes.get("standard_name", "")),
            "units": units,
            "role": options.role,
        }
        if level is not None:
            about |= {"level": f"{level:g}", "long_name": f"{about['long_name']} at level {level:g}"}
        bounds = (quantity.lowest, quantity.highest) if quantity else (-np.inf, np.inf)
        found.append(
            Channel(name, options.name, level, options.role, options.gaps == "moving", factor, offset, *bounds, about)
        )
    return found


def _units(
    store: str, options: VariableOptions, attributes: dict[str, Any], mended: list[str]
) -> tuple[str, float, float]:
    """Units of the data set, and factor and offset that lead to them from the source's."""
    quantity = known(options.name)
    stated = str(options.units or attributes.get("units") or "")
    units = normal_units(stated)
    if quantity is None:
        return units or "1", 1.0, 0.0
    if not units:
        mended.append(f"{options.name} has no units: taken as {quantity.units}, and its values checked")
    elif units != quantity.units:
        if (units, quantity.units) not in CONVERSIONS:
            raise DataError(
                f"{store}: {options.name} is in {stated!r}, which is no unit of {quantity.long_name} "
                f"({quantity.units}); if the store is wrong, say `units` in the manifest"
            )
        mended.append(f"{options.name}: from {stated} to {quantity.units}")
        return quantity.units, *CONVERSIONS[units, quantity.units]
    return quantity.units, 1.0, 0.0


def coarse_axes(grid: GridAxes, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of the blocks; rows, and columns of a region, that fill no block are dropped.

    Raises:
        ConfigError: The blocks do not fill the circle of longitudes.
    """
    n_rows, n_columns = grid.latitude.size // side, grid.longitude.size // side
    if grid.topology.wraps_columns and n_columns * side != grid.longitude.size:
        raise ConfigError(f"{side} does not divide the {grid.longitude.size} longitudes", key="data.coarsen")
    latitude = grid.latitude[: n_rows * side].reshape(n_rows, side).mean(axis=1)
    longitude = grid.longitude[: n_columns * side].reshape(n_columns, side).mean(axis=1)
    if min(latitude.size, longitude.size) < 8:
        raise ConfigError(f"leaves {latitude.size} × {longitude.size} points; eight are needed", key="data.coarsen")
    return latitude, longitude


def read_frames(plan: Plan, store: Store, channels: Sequence[Channel], begin: int, end: int) -> Values:
    """Frames `begin` to `end` of some channels on the data set's grid and in its units; NaN where missing.

    What lies in the same chunks of the store is read at once.

    Raises:
        DataError: The source cannot be read.
    """
    frames = np.full((end - begin, len(channels), *plan.tiles.shape), np.nan, dtype=np.float32)
    summed = not np.array_equal(plan.axis.first, plan.axis.last)
    together: list[int] = []
    for position, channel in enumerate(channels):
        if store.is_static(channel.variable):
            frames[:, position] = _converted(plan, [channel], store.read([channel.field], slice(0, 1)))[:, 0]
        elif channel.role == "accumulated" and summed:
            _read_sums(plan, store, channel, begin, frames[:, position])
        else:
            together.append(position)
    for group in store.together([channels[n].field for n in together]):
        positions = [together[n] for n in group]
        chosen = [channels[n] for n in positions]
        most = max(1, int(READ_MB * MB / (4 * len(group) * store.latitude.size * store.longitude.size)))
        for first, steps in _runs(plan.axis.last[begin:end], most):
            values = _converted(plan, chosen, store.read([c.field for c in chosen], steps))
            frames[first : first + len(values), positions] = values
    return frames


def _read_sums(plan: Plan, store: Store, channel: Channel, begin: int, frames: Values) -> None:
    """Sums of the source's steps over each of ours."""
    axis = plan.axis
    for number, step in enumerate(range(begin, begin + len(frames))):
        if axis.first[step] != ABSENT and axis.last[step] != ABSENT:
            parts = store.read([channel.field], slice(axis.first[step], axis.last[step] + 1))
            total = parts.sum(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
            frames[number] = _converted(plan, [channel], total)[0, 0]


def _converted(plan: Plan, channels: Sequence[Channel], values: Values) -> Values:
    """Source values (step, channel, latitude, longitude) on the data set's grid and in its units."""
    grid = plan.grid
    values = values[:, :, as_slice(grid.rows)][..., as_slice(grid.columns)]
    factors, offsets = (
        np.array([getattr(c, name) for c in channels], dtype=np.float32)[:, None, None] for name in ("factor", "offset")
    )
    if (factors != 1).any() or (offsets != 0).any():
        values = values * factors + offsets
    return values if plan.coarsen == 1 else _block_mean(values, grid.latitude, plan.coarsen)


def as_slice(positions: np.ndarray) -> slice | np.ndarray:
    """Neighbouring positions, forwards or backwards, as a slice: it costs no copy."""
    steps = np.diff(positions)
    if positions.size and (np.abs(steps) == 1).all() and (steps == steps[:1]).all():
        step = int(steps[0]) if steps.size else 1
        stop = int(positions[-1]) + step
        return slice(int(positions[0]), None if stop < 0 else stop, step)
    return positions


def _runs(positions: np.ndarray, most: int) -> list[tuple[int, slice]]:
    """Frames that one read gives: the first frame, and up to `most` steps of the source at equal distances."""
    found: list[tuple[int, slice]] = []
    present = np.flatnonzero(positions != ABSENT)
    while present.size:
        frame, start = int(present[0]), int(positions[present[0]])
        stride = int(positions[present[1]]) - start if present.size > 1 else 0
        count = 1
        if stride > 0:
            places = np.arange(present.size)
            even = (present - frame == places) & (positions[present] == start + stride * places)
            count = min(most, present.size if even.all() else max(1, int(np.argmin(even))))
        found.append((frame, slice(start, start + max(stride, 1) * (count - 1) + 1, max(stride, 1))))
        present = present[count:]
    return found


def _block_mean(frames: Values, latitude: np.ndarray, side: int) -> Values:
    """Means over blocks of the cells that are known, weighted with cos(latitude); NaN where none is."""
    n_steps, n_channels, height, width = frames.shape
    n_rows, n_columns = height // side, width // side
    cells = frames[..., : n_rows * side, : n_columns * side].reshape(-1, n_rows, side, n_columns, side)
    weights = np.cos(np.deg2rad(latitude[: n_rows * side])).reshape(n_rows, side)
    known = np.isfinite(cells)
    total = np.einsum("trsck,rs->trc", np.where(known, cells, 0), weights)
    weight = np.einsum("trsck,rs->trc", known, weights)
    means = np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan).astype(np.float32)
    return means.reshape(n_steps, n_channels, n_rows, n_columns)
