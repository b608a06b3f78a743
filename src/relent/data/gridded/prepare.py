"""Lays gridded fields of any source out as tiles (see `relent.data.layout`), with statistics and a receipt.

Two passes: blocks of steps go from the source to shards; the shards of each tile are summed. Both are tasks of the
scheduler that the configuration names, and both go on where a stopped one ended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from relent.data.gridded.lay import (
    WORK,
    Block,
    Job,
    Summing,
    check_range,
    lay_block,
    sum_segment,
    tile_rows,
)
from relent.data.gridded.options import SPLITS
from relent.data.gridded.plan import Plan, make_plan, read_frames
from relent.data.gridded.stores import open_store
from relent.data.layout import TILES, create_tiles
from relent.data.options import GriddedOptions, checked
from relent.data.progress import Progress
from relent.data.receipt import write_receipt
from relent.data.statistics import Moments, finish
from relent.errors import ConfigError, DataError
from relent.files import read_json, remove, write_json
from relent.manifest.fingerprint import code_of
from relent.manifest.models import Dask
from relent.scheduler import Scheduler, scheduler

RESUMES = True
"""A folder that an earlier call left unfinished is gone on with."""
DECIDING = (
    "relent.data.gridded.axes",
    "relent.data.gridded.lay",
    "relent.data.gridded.plan",
    "relent.data.gridded.prepare",
    "relent.data.gridded.stores",
    "relent.data.gridded.variables",
    "relent.data.layout",
    "relent.data.statistics",
)
"""Modules that decide the bytes: where one of them has changed, everything is laid out again."""


def prepare(
    sources: dict[str, Path],
    out: Path,
    options: dict[str, Any],
    seed: int = 0,
    workers: Dask | None = None,
    earlier: Path | None = None,
) -> None:
    """Write `out/dataset.zarr` and `out/receipt.json`.

    Args:
        sources: Unused: the manifest names the store.
        out: Folder to write, or to go on with; the caller renames it when it is whole.
        options: `relent.data.options.GriddedOptions`.
        seed: Unused: nothing is drawn.
        workers: Where the work is done; default: one thread.
        earlier: A finished data set; it is moved to `out` and kept where nothing that decides its bytes has changed
            (but, say, how it is read).

    Raises:
        ConfigError: An option is wrong, or a worker has too little memory.
        DataError: The source is missing, unreadable, or not what it should be.
    """
    plan = make_plan(checked(GriddedOptions, options), code_of(DECIDING))
    with scheduler(workers or Dask()) as scheduler_:
        _check_memory(plan, scheduler_)
        _check_first_frame(plan)
        job = _begin(plan, out, earlier)
        print("\n".join(_words(plan)), flush=True)
        _lay(job, scheduler_)
        blocks = [Block.read(job.result("blocks", number)) for number in range(len(plan.blocks))]
        usable, known = _gaps(plan, blocks)
        _write_gaps(job, usable, known)
        _statistics(job, scheduler_, blocks, usable)
    _finish(job, blocks, usable)


def describe(options: dict[str, Any]) -> list[str]:
    """What would be laid out, in words; the source is opened, its first frame read and checked, nothing written.

    Raises:
        ConfigError: An option is wrong.
        DataError: The source is missing, unreadable, or not what it should be.
    """
    plan = make_plan(checked(GriddedOptions, options), "")
    _check_first_frame(plan)
    split = {name: int((plan.axis.split == code).sum()) for code, name in enumerate(SPLITS)}
    return [
        *_words(plan),
        f"steps: {', '.join(f'{name} {count}' for name, count in split.items())}",
        *(f"{c.name}: {c.attributes['long_name']}, {c.attributes['units']}, {c.role}" for c in plan.channels),
    ]


def _check_memory(plan: Plan, scheduler_: Scheduler) -> None:
    available = scheduler_.worker_mb
    if available is not None and plan.worker_mb > available:
        raise ConfigError(
            f"a block of {plan.shard_steps} steps needs about {plan.worker_mb:.0f} MB, a worker has {available:.0f} "
            "MB: lower `source.block_mb` of the task, or raise `memory`",
            key="dask.memory",
        )


def _check_first_frame(plan: Plan) -> None:
    """Refuse wrong units before anything is written: the first frame of each channel that is there."""
    store = open_store(plan.options)
    present = np.flatnonzero(plan.axis.last >= 0)
    for channel in plan.channels:
        step = int(present[0])
        if channel.role == "accumulated":
            sums = np.flatnonzero((plan.axis.first >= 0) & (plan.axis.last >= 0))
            if not sums.size:
                raise DataError(f"{plan.options.store}: {channel.name} cannot be summed over any step of the period")
            step = int(sums[0])
        values = read_frames(plan, store, [channel], step, step + 1)
        if np.isfinite(values).any():
            check_range(channel, float(np.nanmin(values)), float(np.nanmax(values)), plan, step)


def _begin(plan: Plan, out: Path, earlier: Path | None) -> Job:
    """The folder of a new lay-out, or that of an unfinished or finished one with the same plan."""
    job, mark = Job(plan, out), out / WORK / "plan.json"
    if earlier is not None and not _same(plan, out) and _same(plan, earlier):
        remove(out)
        earlier.rename(out)
    if _same(plan, out):
        done = len(list((out / WORK / "blocks").glob("*.npz")))
        print(f"goes on with {done} of {len(plan.blocks)} blocks that are there", flush=True)
        return job
    if out.exists():
        remove(out)
    (out / WORK).mkdir(parents=True)
    _write_axes(job)
    create_tiles(job.store, plan.tiles, plan.axis.time.size, len(plan.channels), plan.shard_steps)
    write_json(mark, {"digest": plan.digest})
    return job


def _same(plan: Plan, folder: Path) -> bool:
    """Whether a folder holds a lay-out of this plan, finished or not."""
    mark = folder / WORK / "plan.json"
    return mark.is_file() and read_json(mark).get("digest") == plan.digest


def _words(plan: Plan) -> list[str]:
    (rows, columns), side, n_steps = plan.tiles.counts, plan.tiles.side, plan.axis.time.size
    height, width = plan.tiles.shape
    return [
        f"{plan.options.store}: {n_steps} steps from {plan.axis.time[0]} to {plan.axis.time[-1]}, {len(plan.channels)} "
        f"channels, {height} × {width} points ({plan.tiles.topology}), {plan.frame_mb * n_steps:,.0f} MB",
        f"layout: {rows} × {columns} tiles of {side} × {side} points, {plan.shard_steps} steps a shard; a task needs "
        f"about {plan.worker_mb:.0f} MB",
        *(f"mended: {line}" for line in plan.mended),
    ]


def _write_axes(job: Job) -> None:
    """Coordinates, split and attributes; `usable` and `known` follow when they are known."""
    plan = job.plan
    names = [channel.name for channel in plan.channels]
    coordinates: dict[str, Any] = {
        "time": ("time", plan.axis.time.astype("datetime64[ns]"), {"standard_name": "time"}),
        "latitude": ("latitude", plan.latitude, {"standard_name": "latitude", "units": "degrees_north"}),
        "longitude": ("longitude", plan.longitude, {"standard_name": "longitude", "units": "degrees_east"}),
        "row": (("tile_row", "y"), plan.tiles.rows, {"long_name": "row of the grid"}),
        "column": (("tile_column", "x"), plan.tiles.columns, {"long_name": "column of the grid"}),
    }
    flags = {"flag_values": [0, 1, 2], "flag_meanings": " ".join(SPLITS)}
    dataset = xr.Dataset({"split": ("time", plan.axis.split, flags)}, coords=coordinates)
    dataset.attrs = {
        "Conventions": "CF-1.11",
        "title": f"Gridded fields of {plan.options.store}, as tiles",
        "source": plan.options.store,
        "licence": plan.options.licence or plan.about.get("license", plan.about.get("licence", "")),
        "variables": " ".join(names),
        "variable_attributes": json.dumps({c.name: c.attributes for c in plan.channels}, ensure_ascii=False),
        "step_hours": plan.options.step,
        "topology": plan.tiles.topology.value,
        "core": plan.tiles.core,
        "halo": plan.tiles.halo,
    }
    dataset.to_zarr(job.store, mode="w", zarr_format=3, consolidated=False)


def _lay(job: Job, scheduler_: Scheduler) -> None:
    """Lay out the blocks that are not there, or not whole."""
    waiting = [number for number in range(len(job.plan.blocks)) if not _is_laid(job, number)]
    mb = job.plan.frame_mb * job.plan.shard_steps
    with Progress("laid out", len(waiting), "blocks", mb) as progress:
        scheduler_.map(lay_block, waiting, job, progress.step)


def _is_laid(job: Job, number: int) -> bool:
    path = job.result("blocks", number)
    if not path.is_file():
        return False
    shards = ((job.store / TILES / name, int(size)) for name, size, _ in Block.read(path).files)
    return all(shard.is_file() and shard.stat().st_size == size for shard, size in shards)


def _gaps(plan: Plan, blocks: list[Block]) -> tuple[np.ndarray, np.ndarray]:
    """Which steps have all their variables, and where each variable is always known then.

    Raises:
        DataError: A channel is never there, or hardly any step is whole.
    """
    unknown = np.concatenate([block.unknown for block in blocks])
    never = np.logical_and.reduce([block.never for block in blocks])
    size = plan.latitude.size * plan.longitude.size
    moving = np.array([channel.moving_gaps for channel in plan.channels])
    allowed = np.where(moving, size - 1, never.sum(axis=(1, 2)))
    lacking = unknown > allowed
    for number, channel in enumerate(plan.channels):
        if (unknown[:, number] == size).all():
            raise DataError(f"{plan.options.store}: {channel.name} is missing at every step")
        if lacking[:, number].mean() > 0.5:
            raise DataError(
                f"{plan.options.store}: {channel.name} lacks other cells from step to step (at "
                f"{int(lacking[:, number].sum())} of {len(lacking)} steps); if it should, say `gaps: moving`, else "
                "leave it out"
            )
    usable = np.asarray(~lacking.any(axis=1))
    present = plan.axis.last >= 0
    if (~usable & present).any():
        worst = plan.channels[int(lacking[present].sum(axis=0).argmax())].name
        first = plan.axis.time[~usable & present][0]
        print(
            f"not used: {int((~usable & present).sum())} steps that lack values, first {first}, most often of {worst}"
        )
    always = ~(moving & (unknown[usable] > 0).any(axis=0))
    return usable, np.asarray(~never & always[:, None, None])


def _write_gaps(job: Job, usable: np.ndarray, known: np.ndarray) -> None:
    group = zarr.open_group(job.store, mode="a")
    values = {
        "usable": (usable, ("time",), "whether all variables are known"),
        "known": (
            known,
            ("variable", "latitude", "longitude"),
            "whether a variable is known at every step that is used",
        ),
    }
    for name, (array, dimensions, words) in values.items():
        group.create_array(
            name, data=array, dimension_names=dimensions, attributes={"long_name": words}, overwrite=True
        )


def _statistics(job: Job, scheduler_: Scheduler, blocks: list[Block], usable: np.ndarray) -> None:
    """Sum the tiles and write the group `statistics`."""
    plan = job.plan
    lowest = np.fmin.reduce([block.lowest for block in blocks]).astype(np.float64)
    highest = np.fmax.reduce([block.highest for block in blocks]).astype(np.float64)
    shift = (lowest + highest) / 2
    summing = Summing(job, shift, usable & (plan.axis.split == SPLITS.index("train")))
    total = Moments.empty(plan.options.leads, len(plan.channels), plan.latitude.size)
    with Progress("summed", len(summing.segments), "parts of tiles") as progress:
        parts = scheduler_.map(sum_segment, range(len(summing.segments)), summing, progress.step)
    for (i, _, _), part in zip(summing.segments, parts):
        total.into_rows(part, tile_rows(plan, i))
    try:
        found = finish(total, shift, plan.latitude)
    except ValueError as error:
        raise DataError(f"{plan.options.store}: {error}") from None
    _write_statistics(job, found)


def _write_statistics(job: Job, found: dict[str, np.ndarray]) -> None:
    words = {
        "base": ("mean over steps and longitudes", ("variable", "latitude")),
        "std": ("standard deviation from the base, weighted with cos(latitude)", ("variable",)),
        "damping": ("slope of an anomaly on the one `lead` steps before", ("lead", "variable")),
        "residual_std": ("size of what the slope leaves, in units of std", ("lead", "variable")),
    }
    arrays = {name: (words[name][1], values, {"long_name": words[name][0]}) for name, values in found.items()}
    leads = np.arange(1, job.plan.options.leads + 1)
    dataset = xr.Dataset(arrays, coords={"latitude": job.plan.latitude, "lead": ("lead", leads, {"units": "steps"})})
    dataset.attrs = {"training": "usable training steps alone"}
    dataset.to_zarr(job.store, group="statistics", mode="w", zarr_format=3, consolidated=False)


def _finish(job: Job, blocks: list[Block], usable: np.ndarray) -> None:
    """The receipt. What the tasks found stays: with it a data set that is asked for again is not laid out again."""
    plan = job.plan
    known = {
        f"dataset.zarr/tiles/{name}": {"bytes": int(size), "sha256": digest}
        for block in blocks
        for name, size, digest in block.files
    }
    steps = {name: int((plan.axis.split == code).sum()) for code, name in enumerate(SPLITS)}
    write_receipt(
        job.folder,
        known,
        source=plan.options.store,
        source_says=plan.about,
        layout=plan.digest,
        options=plan.options.model_dump(mode="json", exclude={"storage_options"}),
        steps=steps,
        steps_not_used=int((~usable).sum()),
        mended=list(plan.mended),
    )
