"""Tiles of gridded fields: laying out a large store, and reading training samples, against zarr and xbatcher.

    python benchmarks/bench_tiles.py [--small] [--gigabytes 10]

A store is generated (16 channels, 192 × 384 points, six-hourly, one step a chunk, as ERA5 lies in public buckets), laid
out as tiles of 64 × 64 points with a halo of 8 by one and two workers, and read: samples of three steps of a tile with
its halo, in random order, by one process. Cold reads begin after the files were dropped from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from common import Row, environment, print_rows, timed, write_rows

LEVELS, ROWS, COLUMNS = 16, 192, 384
CORE, HALO, STEPS = 64, 8, 3
SCHEDULERS = (
    ("1 thread", {"scheduler": "threads"}),
    ("dask.distributed, 1 worker", {"scheduler": "distributed", "memory": "4GB"}),
    ("dask.distributed, 2 workers", {"scheduler": "distributed", "workers": 2, "memory": "4GB"}),
)
PREPARE = """
import json, sys, pathlib
from relent.data.gridded.prepare import prepare
from relent.manifest.models import Dask
if __name__ == "__main__":
    options, workers = map(json.loads, sys.argv[2:])
    prepare({}, pathlib.Path(sys.argv[1]), options, workers=Dask(**workers))
"""


def generate(path: Path, n_steps: int) -> None:
    """Write the source: waves that move, with noise, rounded as ERA5 is."""
    import xarray as xr
    import zarr

    generator = np.random.default_rng(0)
    latitude = -90 + 180 * (np.arange(ROWS) + 0.5) / ROWS
    longitude = 360 * np.arange(COLUMNS) / COLUMNS
    time_ = np.datetime64("2000-01-01", "ns") + np.arange(n_steps) * np.timedelta64(6, "h")
    levels = np.arange(LEVELS)
    axes = {"time": time_, "level": levels, "latitude": latitude, "longitude": longitude}
    xr.Dataset(coords=axes).to_zarr(path, mode="w", zarr_format=2, consolidated=False)
    array = zarr.open_group(path, mode="a").create_array(
        "field",
        shape=(n_steps, LEVELS, ROWS, COLUMNS),
        chunks=(1, LEVELS, ROWS, COLUMNS),
        dtype="f4",
        fill_value=np.nan,
        attributes={"units": "1", "_ARRAY_DIMENSIONS": list(axes)},
    )
    numbers = np.arange(1, LEVELS + 1)[:, None, None]
    waves = np.cos(np.deg2rad(latitude))[:, None] * np.cos(np.deg2rad(longitude) * numbers)
    frames = waves + 0.3 * generator.normal(size=(8, *waves.shape))
    frames = (np.round(frames * 2**10) / 2**10).astype(np.float32)
    for step in range(n_steps):
        array[step] = np.roll(frames[step % 8], step, axis=-1)


def options(store: Path, n_steps: int) -> dict[str, Any]:
    last = n_steps // 4 - 1
    ends = [int(0.8 * last), int(0.8 * last) + 1, int(0.9 * last), int(0.9 * last) + 1, last]
    days = [str(np.datetime64("2000-01-01") + np.timedelta64(day, "D")) for day in ends]
    return {
        "tile": CORE,
        "halo": HALO,
        "source": {
            "store": str(store),
            "variables": [{"name": "field", "levels": list(range(LEVELS))}],
            "splits": {"train": ["2000-01-01", days[0]], "validation": days[1:3], "test": days[3:]},
            "period": ["2000-01-01", "2100-01-01"],
            "core": CORE,
            "halo": HALO,
            "block_mb": 150,
        },
    }


def lay_out(folder: Path, source: Path, n_steps: int) -> list[Row]:
    """Lay the store out with each scheduler; the last one's tiles stay."""
    megabytes = 4e-6 * n_steps * LEVELS * ROWS * COLUMNS
    script = folder / "prepare.py"
    script.write_text(PREPARE)
    rows = []
    for contender, workers in SCHEDULERS:
        shutil.rmtree(folder / "data", ignore_errors=True)
        drop(source)
        arguments = [json.dumps(options(source, n_steps)), json.dumps(workers)]
        timing = timed([sys.executable, script, folder / "data", *arguments], env=environment())
        rows.append(
            {
                "name": "layout",
                "contender": contender,
                "size_mb": megabytes,
                "seconds": timing.seconds,
                "cpu_seconds": timing.cpu_seconds,
                "mb_per_second": megabytes / timing.seconds,
                "peak_mb": timing.peak_mb,
            }
        )
        print(f"{contender}: {timing.seconds:.0f} s", flush=True)
    return rows


def drop(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def samples(folder: Path, count: int) -> list[tuple[int, int, int]]:
    """Tile row, tile column and first step of random samples of the interior, where no shard ends within one."""
    from relent.data.shards import ShardReader

    reader = ShardReader(folder / "dataset.zarr" / "tiles")
    generator = np.random.default_rng(1)
    found: list[tuple[int, int, int]] = []
    while len(found) < count:
        start = int(generator.integers(0, reader.shape[2] - STEPS))
        if start % reader.steps + STEPS <= reader.steps:
            # Inner rows of tiles alone: the others' halos lie beyond a pole.
            found.append((1, int(generator.integers(0, reader.shape[1])), start))
    return found


Reader = Callable[[tuple[int, int, int]], np.ndarray]


def readers(folder: Path) -> Iterator[tuple[str, str, Reader]]:
    """Contenders: what each calls a sample, and how it reads one."""
    import torch
    import xarray as xr
    import xbatcher
    import zarr

    from relent.data.shards import ShardReader
    from relent.data.tiles import TileDataset, Windows, read_fields

    torch.set_num_threads(1)
    store = folder / "dataset.zarr"
    fields = read_fields(folder, memory_mb=1)
    windows = Windows(range(len(fields.time)), range(0, ROWS, CORE), range(0, COLUMNS, CORE))
    tiles = TileDataset(fields, windows, STEPS, CORE, torch.ones(ROWS), HALO)
    columns = len(windows.columns)

    def ours(sample: tuple[int, int, int]) -> np.ndarray:
        row, column, start = sample
        return tiles[(start * len(windows.rows) + row) * columns + column]["frames"].numpy()

    yield "relent", "standardised, targets in the halo left out", ours
    reader = ShardReader(store / "tiles")
    yield "relent, shards alone", "decoded bytes", lambda s: reader.read(s[0], s[1], s[2], STEPS)
    yield "raw read", "the same bytes of the same files, not decoded", raw(reader)
    array = zarr.open_array(store / "tiles", mode="r")
    yield "zarr", "decoded bytes", lambda s: np.asarray(array[s[0], s[1], s[2] : s[2] + STEPS])
    dataset = xr.open_zarr(store, consolidated=False, chunks=None)[["tiles"]].drop_vars(["row", "column"])
    sizes = {
        "tile_row": 1,
        "tile_column": 1,
        "time": STEPS,
        "variable": LEVELS,
        "y": reader.frame[1],
        "x": reader.frame[2],
    }
    most = min(200, len(fields.time))
    short = dataset.isel(time=slice(0, most))
    batches = xbatcher.BatchGenerator(short, input_dims=sizes, input_overlap={"time": STEPS - 1})

    def theirs(sample: tuple[int, int, int]) -> np.ndarray:
        number = (sample[0] * reader.shape[1] + sample[1]) * (most - STEPS + 1) + sample[2] % (most - STEPS + 1)
        return batches[number]["tiles"].values

    yield "xbatcher", f"decoded bytes, of the first {most} steps", theirs


def raw(reader: Any) -> Reader:
    """One read of the bytes that a sample is made of, its place known beforehand."""

    def read(sample: tuple[int, int, int]) -> np.ndarray:
        shard, first = divmod(sample[2], reader.steps)
        name = f"c/{sample[0]}/{sample[1]}/{shard}/0/0/0"
        places = reader._index(name)[first : first + STEPS]
        begin, end = int(places[:, 0].min()), int(places.sum(axis=1).max())
        return np.frombuffer(reader._request(name, begin, end - begin), dtype=np.uint8)

    return read


def read_samples(folder: Path, count: int) -> list[Row]:
    """Samples a second of each reader, cold and warm; rounds are interleaved."""
    chosen = samples(folder, count)
    megabytes = 4e-6 * STEPS * LEVELS * (CORE + 2 * HALO) ** 2
    contenders = list(readers(folder))
    for _, _, read in contenders:
        read(chosen[0])
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(3):
        for contender, _, read in contenders:
            drop(folder / "dataset.zarr" / "tiles")
            for state in ("cold", "warm"):
                began, cpu = time.perf_counter(), time.process_time()
                for sample in chosen:
                    read(sample)
                spent = (time.perf_counter() - began, time.process_time() - cpu)
                taken.setdefault((state, contender), []).append(spent)
    notes = {contender: note for contender, note, _ in contenders}
    rows = []
    for (state, contender), rounds in sorted(taken.items(), key=lambda item: item[0][0]):
        seconds, cpu_seconds = (float(np.median(values)) for values in zip(*rounds))
        rows.append(
            {
                "name": f"reading, {state}",
                "contender": contender,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "samples_per_second": count / seconds,
                "mb_per_second": megabytes * count / seconds,
                "note": notes[contender],
            }
        )
    for row in rows:
        own = next(r for r in rows if r["name"] == row["name"] and r["contender"] == "relent")
        row["seconds_ratio"] = row["seconds"] / own["seconds"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="quick sizes")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="size of the generated store")
    parser.add_argument("--folder", type=Path, help="where to work; it needs three times the size")
    arguments = parser.parse_args()
    if find_spec("xbatcher") is None:
        parser.error("the peer xbatcher is missing; `make bench` installs it")
    gigabytes = 0.3 if arguments.small else arguments.gigabytes
    n_steps = int(gigabytes * 1e9 / (4 * LEVELS * ROWS * COLUMNS))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        began = time.perf_counter()
        generate(folder / "source.zarr", n_steps)
        print(f"generated {gigabytes} GB in {time.perf_counter() - began:.0f} s", flush=True)
        rows = lay_out(folder, folder / "source.zarr", n_steps)
        write_rows("tiles", rows, arguments.small)
        shutil.rmtree(folder / "source.zarr")
        rows += read_samples(folder / "data", 40 if arguments.small else 400)
    columns = ["name", "contender", "seconds", "cpu_seconds", "mb_per_second", "samples_per_second", "peak_mb"]
    print_rows(rows, columns)
    write_rows("tiles", rows, arguments.small)


if __name__ == "__main__":
    main()
