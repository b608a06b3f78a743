"""Tasks of a lay-out: blocks of steps are read from the source and written as tiles; tiles are summed for statistics.

A task writes its shards, then a small file of what it found, by rename: a lay-out that was stopped goes on with the
tasks whose file is not there, and writes no finished shard again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from relent.data.gridded.plan import Channel, Plan, read_frames
from relent.data.gridded.stores import Values, open_store
from relent.data.layout import TILES
from relent.data.receipt import sha256
from relent.data.shards import ShardReader
from relent.data.statistics import Moments, moments
from relent.errors import DataError
from relent.files import whole

WORK = "layout"
SEGMENT_SHARDS = 8
"""Shards of a tile that one task sums: the last steps before a segment are read twice."""


@dataclass(frozen=True)
class Job:
    """What all tasks of a lay-out need."""

    plan: Plan
    folder: Path

    @property
    def store(self) -> Path:
        """The data set."""
        return self.folder / "dataset.zarr"

    def result(self, kind: str, number: int) -> Path:
        """Where a task writes what it found."""
        return self.folder / WORK / kind / f"{number:06d}.npz"


@dataclass(frozen=True)
class Block:
    """What is known of a block of steps after it was laid out.

    `unknown` (step, C) counts missing cells, `never` (C, H, W) is true where a cell was missing at every step that had
    the channel at all; `lowest`, `highest` (C); `files`: name, size and SHA-256 of its shards.
    """

    unknown: NDArray[np.int64]
    never: NDArray[np.bool_]
    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    files: NDArray[Any]

    @classmethod
    def read(cls, path: Path) -> Block:
        """A block's file."""
        with np.load(path, allow_pickle=False) as content:
            never = np.unpackbits(content["never"], axis=-1, count=int(content["width"])).astype(bool)
            return cls(content["unknown"], never, content["lowest"], content["highest"], content["files"])

    def write(self, path: Path) -> None:
        """Write by rename."""
        with whole(path) as temporary, temporary.open("wb") as handle:
            np.savez_compressed(
                handle,
                unknown=self.unknown,
                never=np.packbits(self.never, axis=-1),
                width=self.never.shape[-1],
                lowest=self.lowest,
                highest=self.highest,
                files=self.files,
            )


def lay_block(number: int, job: Job) -> int:
    """Read one block of steps and write its shard of every tile; returns the bytes that were laid out.

    Raises:
        DataError: The source cannot be read, or values cannot be in the unit that they should be in.
    """
    plan, path = job.plan, job.result("blocks", number)
    begin, end = plan.blocks[number]
    frames = read_frames(plan, open_store(plan.options), plan.channels, begin, end)
    unknown, never = _unknown(frames)
    low, high = _bounds(frames)
    for channel, least, most in zip(plan.channels, low, high):
        check_range(channel, float(least), float(most), plan, begin)
    files = _write_tiles(job, frames, number, begin)
    Block(unknown, never, low, high, files).write(path)
    return frames.nbytes


def _unknown(frames: Values) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Missing cells by step and channel, and those that are missing at every step that has the channel at all."""
    n_steps, channels = frames.shape[:2]
    unknown = np.zeros((n_steps, channels), dtype=np.int64)
    never = np.zeros((channels, *frames.shape[2:]), dtype=bool)
    for channel in range(channels):
        missing = ~np.isfinite(frames[:, channel])
        unknown[:, channel] = missing.sum(axis=(1, 2))
        whole_steps = unknown[:, channel] < missing[0].size
        never[channel] = missing[whole_steps].all(axis=0)
    return unknown, never


def _bounds(frames: Values) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and greatest known value by channel; NaN where none is known."""
    low, high = np.full((2, frames.shape[1]), np.nan, dtype=np.float32)
    for channel in range(frames.shape[1]):
        values = frames[:, channel]
        low[channel], high[channel] = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    return low, high


def check_range(channel: Channel, low: float, high: float, plan: Plan, step: int) -> None:
    """Refuse values that the channel's unit cannot have.

    Raises:
        DataError: They lie outside; names channel, values and unit.
    """
    if low < channel.lowest or high > channel.highest:
        raise DataError(
            f"{plan.options.store}: {channel.name} goes from {low:g} to {high:g} near {plan.axis.time[step]}, which "
            f"cannot be in {channel.attributes['units']} (from {channel.lowest:g} to {channel.highest:g}): say the "
            "`units` of the store in the manifest, or mend the store"
        )


def _write_tiles(job: Job, frames: Values, number: int, begin: int) -> NDArray[Any]:
    """Write the shard of each tile; name, size and SHA-256 of each."""
    plan = job.plan
    array = zarr.open_array(job.store / TILES, mode="r+", config={"write_empty_chunks": True})
    files = []
    for i, j in plan.tiles:
        tile = cut(frames, plan, i, j)
        array[i : i + 1, j : j + 1, begin : begin + len(frames)] = tile[None, None]
        name = f"c/{i}/{j}/{number}/0/0/0"
        shard = job.store / TILES / name
        _to_disk(shard)
        files.append((name, str(shard.stat().st_size), sha256(shard)))
    return np.array(files)


def _to_disk(path: Path) -> None:
    """Bring a file's bytes to the disk: after a crash of the machine a finished block must be there."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def cut(frames: Values, plan: Plan, i: int, j: int) -> Values:
    """A tile with its halo; NaN beyond the border of the grid."""
    tiles = plan.tiles
    rows = _places(tiles.rows[i], tiles.shape[0], tiles.topology.wraps_rows)
    columns = _places(tiles.columns[j], tiles.shape[1], tiles.topology.wraps_columns)
    tile = np.full((*frames.shape[:2], tiles.side, tiles.side), np.nan, dtype=np.float32)
    for into_rows, from_rows in rows:
        for into_columns, from_columns in columns:
            tile[:, :, into_rows, into_columns] = frames[:, :, from_rows, from_columns]
    return tile


def _places(positions: NDArray[np.int64], size: int, wraps: bool) -> list[tuple[slice, slice]]:
    """Where runs of neighbouring positions of the grid lie in a tile, and in the grid."""
    inside = np.flatnonzero((positions >= 0) & (positions < size)) if not wraps else np.arange(positions.size)
    breaks = np.flatnonzero(np.diff(positions[inside] % size) != 1) + 1
    runs = [run for run in np.split(inside, breaks) if run.size]
    return [
        (slice(int(run[0]), int(run[-1]) + 1), slice(int(positions[run[0]] % size), int(positions[run[-1]] % size) + 1))
        for run in runs
    ]


# ------------------------------------------------------------------------------------------------ statistics


@dataclass(frozen=True)
class Summing:
    """What the tasks of the statistics need: shift by channel, and which steps are counted."""

    job: Job
    shift: NDArray[np.float64]
    counted: NDArray[np.bool_]

    @property
    def segments(self) -> list[tuple[int, int, int]]:
        """(tile row, tile column, first shard) of each task."""
        shards = range(0, len(self.job.plan.blocks), SEGMENT_SHARDS)
        return [(i, j, n) for i, j in self.job.plan.tiles for n in shards if self._any(n)]

    def _any(self, shard: int) -> bool:
        begin = shard * self.job.plan.shard_steps
        return bool(self.counted[begin : begin + SEGMENT_SHARDS * self.job.plan.shard_steps].any())


def sum_segment(number: int, summing: Summing) -> Moments:
    """Sums of one tile (without its halo) over some shards, of the tile's own rows."""
    job = summing.job
    plan, path = job.plan, job.result("sums", number)
    if path.is_file():
        with np.load(path, allow_pickle=False) as content:
            return Moments(content["single"], content["pairs"])
    i, j, shard = summing.segments[number]
    leads, first = plan.options.leads, shard * plan.shard_steps
    end = min(first + SEGMENT_SHARDS * plan.shard_steps, summing.counted.size)
    reader, total = ShardReader(job.store / TILES), None
    earlier = max(0, first - leads)
    held = _core(reader, plan, i, j, earlier, first - earlier)
    for begin in range(first, end, plan.shard_steps):
        count = min(plan.shard_steps, end - begin)
        held = np.concatenate([held[-leads:], _core(reader, plan, i, j, begin, count)])
        before = len(held) - count
        part = moments(held, summing.shift, summing.counted[begin - before : begin + count], before, leads)
        total = part if total is None else total + part
    assert total is not None
    with whole(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, single=total.single, pairs=total.pairs)
    return total


def _core(reader: ShardReader, plan: Plan, i: int, j: int, begin: int, count: int) -> Values:
    """Steps of the part of a tile that belongs to it alone and lies on the grid."""
    tiles = plan.tiles
    rows, columns = (min(tiles.core, n - k * tiles.core) for n, k in zip(tiles.shape, (i, j)))
    halo = tiles.halo
    return reader.read(i, j, begin, count)[:, :, halo : halo + rows, halo : halo + columns]


def tile_rows(plan: Plan, i: int) -> NDArray[np.int64]:
    """Rows of the grid that belong to a tile."""
    first = i * plan.tiles.core
    return np.arange(first, min(first + plan.tiles.core, plan.tiles.shape[0]))
