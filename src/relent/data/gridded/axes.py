"""Times, latitudes and longitudes of a source against what is asked for: what is wrong is mended or refused.

Each function returns what to read and adds a line to `mended` for whatever it had to put right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relent.data.gridded.options import SPLITS, GriddedSource, Region
from relent.data.gridded.stores import Floats, Index, Store
from relent.errors import DataError
from relent.grid import Topology

Times = NDArray[np.datetime64]
HOUR = np.timedelta64(3600, "s")
ABSENT = -1
EVEN = 1e-3
"""Relative deviation from even steps that rounding may cause."""


@dataclass(frozen=True)
class TimeAxis:
    """The times of the data set, and where the source has them.

    `first` and `last` (time) are the source's steps that a frame is made of: one step, or those that an accumulation is
    summed over; `ABSENT` where there is none.
    """

    time: Times
    last: Index
    first: Index
    split: NDArray[np.int8]


def time_axis(store: Store, options: GriddedSource, mended: list[str]) -> TimeAxis:
    """The regular axis that is asked for.

    Raises:
        DataError: The source's times are not in order, or hardly any of the times asked for are there.
    """
    source = _increasing(store, mended)
    begin, end = (np.datetime64(moment, "s") for moment in options.span)
    known = source[(source >= begin) & (source <= end)]
    if not known.size:
        raise DataError(
            f"{store.name}: has no times from {begin} to {end}; it has {source[0]} to {source[-1]} ({source.size})"
        )
    step = options.step * HOUR
    # Whole steps from the beginning that is asked for (00, 06, … UTC), unless the source is between them.
    aligned = known[(known - begin) % step == np.timedelta64(0, "s")]
    time = np.arange((aligned if aligned.size else known)[0], known[-1] + np.timedelta64(1, "s"), step)
    order = np.argsort(store.time, kind="stable")
    at = np.searchsorted(source, time)
    found = source[np.minimum(at, source.size - 1)] == time
    positions = _first_of_equal(store.time, order)
    last = np.where(found, positions[np.minimum(at, source.size - 1)], ABSENT)
    present = np.array([n not in store.missing for n in last]) & found
    if present.sum() < max(3, 0.5 * time.size):
        gap = np.median(np.diff(source)) / HOUR if source.size > 1 else 0
        raise DataError(
            f"{store.name}: {int(present.sum())} of the {time.size} times from {time[0]} on, every {options.step} h, "
            f"are there; the source's step is {gap:g} h: change `step` or `period`"
        )
    if not present.all():
        mended.append(
            f"{int((~present).sum())} of {time.size} times are missing, first {time[~present][0]}: they stand as steps "
            "that are not used"
        )
    first = _begin_of_sums(store, source, positions, time, last, step)
    return TimeAxis(time, np.where(present, last, ABSENT), first, _splits(store.name, time, present, options))


def _increasing(store: Store, mended: list[str]) -> Times:
    """Distinct times of the source in order; a time that stands twice must hold the same values."""
    source = np.unique(store.time)
    if source.size < store.time.size:
        _check_duplicates(store)
        mended.append(
            f"{store.time.size - source.size} times stand twice with equal values: the first of each is taken"
        )
    elif not np.array_equal(source, store.time):
        mended.append("times were not in order: sorted")
    return source


def _check_duplicates(store: Store) -> None:
    values, counts = np.unique(store.time, return_counts=True)
    variable = next(name for name in store.variables if not store.is_static(name))
    levels = store.levels(variable)
    level = None if levels is None else float(levels[0])
    for moment in values[counts > 1][:20]:
        copies = [store.read([(variable, level)], slice(n, n + 1)) for n in np.flatnonzero(store.time == moment)]
        if any(not np.array_equal(copies[0], other, equal_nan=True) for other in copies[1:]):
            raise DataError(f"{store.name}: {moment} stands twice with different values; drop one of them")


def _first_of_equal(time: Times, order: Index) -> Index:
    """Position in the source of each distinct time, in order of time."""
    ordered = time[order]
    distinct = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    return order[distinct]


def _begin_of_sums(
    store: Store, source: Times, positions: Index, time: Times, last: Index, step: np.timedelta64
) -> Index:
    """First of the source's steps within (time − step, time]; `ABSENT` where one of them lacks."""
    spacing = np.diff(source).min() if source.size > 1 else step
    count = max(1, int(step / spacing))
    if count == 1:
        return last
    first = last - (count - 1)
    whole = (last >= 0) & (first >= 0)
    if np.array_equal(positions, np.arange(source.size)):
        begins = store.time[np.maximum(first, 0)]
        whole &= begins == time - (count - 1) * spacing
    else:
        whole &= False
    return np.where(whole, first, ABSENT)


def _splits(name: str, time: Times, present: NDArray[np.bool_], options: GriddedSource) -> NDArray[np.int8]:
    """Code of each step's split; −1 for steps in none."""
    split = np.full(time.size, -1, dtype=np.int8)
    for code, part in enumerate(SPLITS):
        begin, end = (np.datetime64(moment, "s") for moment in getattr(options.splits, part))
        inside = (time >= begin) & (time <= end)
        split[inside] = code
        needed = options.leads + 2 if part == "train" else 2
        if longest_run(inside & present) < needed:
            why = f" for leads of up to {options.leads} steps" if part == "train" else ""
            raise DataError(
                f"{name}: {part} ({begin} to {end}) has {longest_run(inside & present)} consecutive times of "
                f"{options.step} h, {needed} are needed{why}"
            )
    return split


def longest_run(flags: NDArray[np.bool_]) -> int:
    """Length of the longest run of true values."""
    edges = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return int((ends - begins).max()) if begins.size else 0


@dataclass(frozen=True)
class GridAxes:
    """The rows and columns that are taken, from south to north and from west to east, and how they lie."""

    rows: Index
    columns: Index
    latitude: Floats
    longitude: Floats
    topology: Topology


def grid_axes(store: Store, region: Region | None, mended: list[str]) -> GridAxes:
    """Rows and columns of a region.

    Raises:
        DataError: Latitudes or longitudes are not in order or not even, or the region holds fewer than eight of either.
    """
    rows = _rows(store, region, mended)
    columns, longitude, around = _columns(store, region, mended)
    latitude = store.latitude[rows]
    for what, found in (("latitudes", rows), ("longitudes", columns)):
        if found.size < 8:
            raise DataError(
                f"{store.name}: the region holds {found.size} {what}; the store's grid goes from "
                f"{store.latitude.min():g} to {store.latitude.max():g} north, {store.longitude.min():g} to "
                f"{store.longitude.max():g} east"
            )
    return GridAxes(rows, columns, latitude, longitude, Topology.globe if around else Topology.regional)


def _rows(store: Store, region: Region | None, mended: list[str]) -> Index:
    latitude = store.latitude
    steps = np.diff(latitude)
    if not ((steps > 0).all() or (steps < 0).all()) or np.abs(latitude).max() > 90 + EVEN:
        raise DataError(f"{store.name}: latitudes are not in order within ±90 degrees")
    if np.ptp(steps) > EVEN * np.abs(steps).max():
        mended.append("latitudes are not in even steps (a Gaussian grid): kept; there are no rows beyond the poles")
    if steps[0] < 0:
        mended.append("rows went from north to south: turned")
    rows = np.argsort(latitude)
    if region is not None:
        inside = (latitude >= region.south - 1e-6) & (latitude <= region.north + 1e-6)
        rows = rows[inside[rows]]
    return rows


def _columns(store: Store, region: Region | None, mended: list[str]) -> tuple[Index, Floats, bool]:
    """Columns from west to east, longitudes that increase, and whether they go around the globe."""
    longitude = store.longitude
    first = longitude[0] if (np.diff(longitude) > 0).all() else longitude.min()
    west = first if region is None else region.west
    offset = np.mod(longitude - west + 1e-6, 360) - 1e-6
    if np.unique(np.round(offset, 4)).size < offset.size:
        raise DataError(f"{store.name}: a longitude stands twice (0 and 360?); drop one of them")
    columns = np.argsort(offset)
    spacing = np.diff(offset[columns])
    step = float(np.median(spacing))
    around = bool(np.isclose(step * offset.size, 360, rtol=1e-4) and np.ptp(spacing) <= 2e-3 * step)
    if region is not None:
        width = np.mod(region.east - region.west, 360)
        width = 360.0 if np.isclose(width, 0) else width
        columns = columns[offset[columns] <= width + 1e-6]
        around = around and columns.size == offset.size
    spacing = np.diff(offset[columns])
    if columns.size > 1 and np.ptp(spacing) > 2e-3 * step:
        raise DataError(
            f"{store.name}: longitudes are not in even steps, or the region reaches beyond the store's "
            f"({longitude.min():g} to {longitude.max():g} east)"
        )
    if not np.array_equal(columns, np.sort(columns)):
        mended.append("longitudes begin elsewhere in the store (0..360, −180..180 or the date line): joined in order")
    return columns, np.round(west + offset[columns], 9), around
