"""What is laid out: values, statistics, gaps, roles; what is mended and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import xarray as xr
import zarr
from synthetic_era5 import N_STEPS, SPLITS, era5, options, write_anemoi, write_era5

from relent.data.gridded import lay
from relent.data.gridded.prepare import describe, prepare
from relent.data.progress import Progress
from relent.data.receipt import check_receipt
from relent.data.tiles import Fields, TileDataset, Windows, read_fields
from relent.errors import ConfigError, DataError
from relent.grid import Topology
from relent.manifest.models import Dask

LAZY = 1e-6


def laid(tmp_path: Path, dataset: xr.Dataset, **changes: Any) -> Fields:
    """A data set laid out from a changed store."""
    coarsen = changes.pop("coarsen", 1)
    prepare({}, tmp_path / "data", options(write_era5(tmp_path / "era5.zarr", dataset), coarsen, **changes))
    return read_fields(tmp_path / "data")


def refused(tmp_path: Path, dataset: xr.Dataset, message: str, **changes: Any) -> None:
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        laid(tmp_path, dataset, **changes)
    assert "\n" not in str(caught.value)


def values(fields: Fields, variable: str) -> np.ndarray:
    """A variable in its own units, south to north."""
    frames = fields.physical(fields.frames(0, len(fields.time)))
    return frames[:, fields.variables.index(variable)].numpy()


@pytest.mark.parametrize("memory_mb", [1000, LAZY])
def test_fields_equal_the_source(prepared: Path, memory_mb: float) -> None:
    fields = read_fields(prepared, memory_mb)
    truth = era5().sortby("latitude")
    assert fields.variables == ("2m_temperature", "10m_u_component_of_wind", "geopotential_500", "geopotential_850")
    assert fields.topology is Topology.globe
    assert fields.attributes["geopotential_850"]["units"] == "m2 s-2"
    assert fields.attributes["10m_u_component_of_wind"]["standard_name"] == "eastward_wind"
    assert (len(fields.splits["train"]), fields.splits["test"][0]) == (24, 28)
    np.testing.assert_array_equal(fields.latitude, truth["latitude"].values)
    np.testing.assert_allclose(values(fields, "2m_temperature"), truth["2m_temperature"].values, rtol=1e-6)
    expected = truth["geopotential"].sel(level=850).values
    np.testing.assert_allclose(values(fields, "geopotential_850"), expected, rtol=1e-6)


def test_lazy_and_in_memory_are_equal_at_every_window(prepared: Path) -> None:
    memory, disk = read_fields(prepared), read_fields(prepared, LAZY)
    generator = np.random.default_rng(1)
    for _ in range(60):
        start, length = int(generator.integers(0, 30)), int(generator.integers(1, 11))
        rows = torch.arange(int(generator.integers(0, 8)), 8 + int(generator.integers(0, 12)))
        columns = (torch.arange(int(generator.integers(1, 37))) + int(generator.integers(0, 36))) % 36
        first = memory.frames(start, length, rows, columns)
        assert torch.equal(first, disk.frames(start, length, rows, columns))
    scattered = torch.tensor([7, 2, 2, 18])
    assert torch.equal(memory.frames(3, 2, scattered, scattered), disk.frames(3, 2, scattered, scattered))


def test_a_shifted_window_is_one_request(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = read_fields(prepared, LAZY)
    requests: list[str] = []
    reader = fields.source.reader  # type: ignore[attr-defined]
    own = type(reader)._request
    monkeypatch.setattr(type(reader), "_request", lambda self, name, *a: requests.append(name) or own(self, name, *a))
    for row in (0, 6, 7, 8, 9, 10):
        for column in (30, 31, 32, 33, 34, 7, 8, 9):  # 32 to 40 is a tile that goes around; 2 is the halo
            fields.frames(0, 3, row + torch.arange(8), (column + torch.arange(8)) % 36)  # its indexes are kept
            requests.clear()
            fields.frames(0, 3, row + torch.arange(8), (column + torch.arange(8)) % 36)
            assert len(requests) == 1, (row, column)
    fields.frames(8, 3, torch.arange(8), torch.arange(8))
    requests.clear()
    fields.frames(8, 3, torch.arange(8), torch.arange(8))
    assert requests == [f"c/0/0/{shard}/0/0/0" for shard in (0, 1)]  # nine steps a shard


def test_statistics_equal_the_formula_in_float64(prepared: Path) -> None:
    truth = era5().sortby("latitude").isel(time=slice(0, 24))
    weights = np.cos(np.deg2rad(truth["latitude"].values))[:, None]
    with xr.open_zarr(prepared / "dataset.zarr", group="statistics", consolidated=False) as statistics:
        found = statistics.load()
    fields = [truth["2m_temperature"], truth["10m_u_component_of_wind"], *truth["geopotential"].transpose("level", ...)]
    for channel, field in enumerate(fields):
        exact = field.values.astype(np.float64)
        base = exact.mean(axis=(0, 2))
        anomaly = exact - base[:, None]

        def mean(array: np.ndarray) -> float:
            return float(np.average(array, weights=np.broadcast_to(weights, array.shape)))

        std = np.sqrt(mean(anomaly**2))
        np.testing.assert_allclose(found["base"][channel], base, rtol=1e-13)
        np.testing.assert_allclose(found["std"][channel], std, rtol=1e-11)
        for lead in range(1, 5):
            before, after = anomaly[:-lead], anomaly[lead:]
            damping = mean(before * after) / mean(before**2)
            residual = np.sqrt(mean((after - damping * before) ** 2)) / std
            np.testing.assert_allclose(found["damping"][lead - 1, channel], damping, rtol=1e-10)
            np.testing.assert_allclose(found["residual_std"][lead - 1, channel], residual, rtol=1e-10)


def test_masks_are_kept_and_count_in_no_statistic(tmp_path: Path) -> None:
    dataset = era5()
    dataset["sea_surface_temperature"][7, 4, 20] = np.nan
    fields = laid(tmp_path, dataset, variables=["sea_surface_temperature", "2m_temperature"])
    assert fields.usable.sum() == N_STEPS - 1
    assert not fields.usable[7]
    frames = fields.frames(0, N_STEPS)
    land = torch.zeros(36, dtype=torch.bool)
    land[10:16] = True
    assert torch.equal(frames[0, 0].isnan(), land.expand(19, 36))
    assert not frames[:, 1].isnan().any()
    truth = dataset["sea_surface_temperature"].sortby("latitude").values.astype(float)[:24]
    used = np.delete(truth, 7, axis=0)
    base = np.nanmean(used, axis=(0, 2))
    weights = np.broadcast_to(np.cos(np.deg2rad(fields.latitude))[:, None], used.shape)
    anomaly = used - base[:, None]
    known = ~np.isnan(anomaly)
    std = np.sqrt(np.average(anomaly[known] ** 2, weights=weights[known]))
    assert float(fields.std[0]) == pytest.approx(std, rel=1e-6)
    assert not fields.unbroken(6, 3)
    assert all(not start <= 7 < start + 3 for start in Windows.over(fields, "train", 3, 8, 8).starts)


def test_moving_gaps_are_said_in_the_manifest(tmp_path: Path) -> None:
    dataset = era5()
    generator = np.random.default_rng(2)
    holes = generator.uniform(size=dataset["2m_temperature"].shape) < 0.1
    dataset["2m_temperature"] = dataset["2m_temperature"].where(~holes)
    refused(tmp_path, dataset, "2m_temperature lacks other cells from step to step .*gaps: moving")
    variables = [{"name": "2m_temperature", "gaps": "moving"}, "10m_u_component_of_wind"]
    fields = laid(tmp_path, dataset, variables=variables)
    assert fields.usable.all()
    exact = dataset["2m_temperature"].sortby("latitude").values.astype(float)[:24]
    anomaly = exact - np.nanmean(exact, axis=(0, 2))[:, None]
    both = ~np.isnan(anomaly[:-2] * anomaly[2:])
    weights = np.broadcast_to(np.cos(np.deg2rad(fields.latitude))[:, None], both.shape)[both]
    first, second = anomaly[:-2][both], anomaly[2:][both]
    damping = np.average(first * second, weights=weights) / np.average(first**2, weights=weights)
    assert float(fields.lead_damping[1, 0]) == pytest.approx(damping, rel=1e-6)


def test_missing_times_stand_as_steps_that_are_not_used(tmp_path: Path) -> None:
    dataset = era5().isel(time=[n for n in range(N_STEPS) if n not in (5, 30)])
    fields = laid(tmp_path, dataset)
    assert len(fields.time) == N_STEPS
    assert np.flatnonzero(~fields.usable).tolist() == [5, 30]
    assert fields.frames(5, 1).isnan().all()
    receipt = check_receipt(tmp_path / "data", contents=True)
    assert receipt["steps_not_used"] == 2
    assert any("2 of 40 times are missing, first 2020-01-02T06" in line for line in receipt["mended"])


def test_dates_that_anemoi_declares_missing(tmp_path: Path) -> None:
    path = write_anemoi(tmp_path / "an.zarr", missing=["2020-01-02T06:00:00"])
    variables = ["2t", "10u", {"name": "z", "levels": [500]}]
    prepare({}, tmp_path / "data", options(path, variables=variables))
    fields = read_fields(tmp_path / "data")
    assert np.flatnonzero(~fields.usable).tolist() == [5]
    assert fields.attributes["z_500"]["units"] == "m2 s-2"
    np.testing.assert_allclose(
        values(fields, "2t")[8], era5()["2m_temperature"].sortby("latitude").values[8], rtol=1e-6
    )


@pytest.mark.parametrize("equal", [True, False])
def test_a_time_that_stands_twice(tmp_path: Path, equal: bool) -> None:
    dataset = era5()
    again = dataset.isel(time=[12]) if equal else dataset.isel(time=[13]).assign_coords(time=dataset["time"][[12]])
    again["land_sea_mask"] = dataset["land_sea_mask"]
    doubled = xr.concat([dataset, again], dim="time", data_vars="minimal")
    if not equal:
        refused(tmp_path, doubled, "2020-01-04T00.* stands twice with different values")
        return
    fields = laid(tmp_path, doubled)
    assert len(fields.time) == N_STEPS
    truth = dataset["2m_temperature"].sortby("latitude").values
    np.testing.assert_allclose(values(fields, "2m_temperature"), truth, rtol=1e-6)


def test_longitudes_from_minus_180(tmp_path: Path) -> None:
    dataset = era5().roll(longitude=18, roll_coords=True)
    dataset = dataset.assign_coords(
        longitude=np.where(dataset.longitude < 180, dataset.longitude, dataset.longitude - 360)
    )
    fields = laid(tmp_path, dataset)
    assert fields.longitude[0] == -180
    expected = era5().sortby("latitude")["2m_temperature"].roll(longitude=18).values
    np.testing.assert_allclose(values(fields, "2m_temperature"), expected, rtol=1e-6)


def test_a_region_across_the_date_line(tmp_path: Path) -> None:
    region = {"south": -60, "north": 45, "west": 140, "east": -130}
    fields = laid(tmp_path, era5(), region=region, core=None, halo=2)
    assert fields.topology is Topology.regional
    np.testing.assert_array_equal(fields.longitude, np.arange(140, 231, 10))
    np.testing.assert_array_equal(fields.latitude, np.arange(-60, 41, 10))
    expected = era5()["2m_temperature"].sortby("latitude").sel(latitude=slice(-60, 45), longitude=slice(140, 230))
    np.testing.assert_allclose(values(fields, "2m_temperature"), expected.values, rtol=1e-6)
    disk = read_fields(tmp_path / "data", LAZY)
    assert torch.equal(disk.frames(2, 3), fields.frames(2, 3))


def test_a_region_across_greenwich(tmp_path: Path) -> None:
    fields = laid(tmp_path, era5(), region={"west": -50, "east": 40, "south": 0, "north": 90}, tile=8)
    np.testing.assert_array_equal(fields.longitude, np.arange(-50, 41, 10))
    expected = era5()["2m_temperature"].sortby("latitude").roll(longitude=5)[:, 9:, :10]
    np.testing.assert_allclose(values(fields, "2m_temperature"), expected.values, rtol=1e-6)


def test_a_region_that_the_store_does_not_hold(tmp_path: Path) -> None:
    dataset = era5().isel(longitude=slice(0, 20))
    refused(tmp_path, dataset, "the region holds 0 longitudes", region={"west": 220, "east": 330})
    refused(tmp_path, dataset, "the region holds 3 longitudes", region={"west": 170, "east": 330})


@pytest.mark.parametrize(
    ("variable", "factor", "offset", "units"),
    [("2m_temperature", 1, -273.15, "degC"), ("geopotential", 1 / 9.80665, 0, "gpm"), ("2m_temperature", 1, 0, None)],
)
def test_units_that_can_be_converted(
    tmp_path: Path, variable: str, factor: float, offset: float, units: str | None
) -> None:
    dataset = era5()
    dataset[variable] = (dataset[variable] * factor + offset).astype(np.float32)
    dataset[variable].attrs = {} if units is None else {"units": units}
    fields = laid(tmp_path, dataset)
    name = variable if variable != "geopotential" else "geopotential_500"
    truth = era5()[variable].sortby("latitude")
    truth = truth.sel(level=500) if variable == "geopotential" else truth
    np.testing.assert_allclose(values(fields, name), truth.values, rtol=3e-6)
    assert any(variable in line for line in check_receipt(tmp_path / "data")["mended"])


def test_units_that_do_not_fit(tmp_path: Path) -> None:
    dataset = era5()
    dataset["2m_temperature"].attrs["units"] = "m s-1"
    refused(tmp_path, dataset, "2m_temperature is in 'm s-1', which is no unit of temperature at 2 m")
    dataset = era5()
    dataset["2m_temperature"] = dataset["2m_temperature"] - 273.15
    refused(tmp_path, dataset, r"2m_temperature goes from .* cannot be in K \(from 150 to 350\)")
    dataset = era5()
    dataset["2m_temperature"][33, 3, 3] = 1e30
    refused(tmp_path, dataset, "goes from .* to 1e")


def test_units_stated_in_the_manifest(tmp_path: Path) -> None:
    dataset = era5()
    dataset["2m_temperature"] = (dataset["2m_temperature"] - 273.15).astype(np.float32)
    fields = laid(tmp_path, dataset, variables=[{"name": "2m_temperature", "units": "degC"}])
    truth = era5()["2m_temperature"].sortby("latitude").values
    np.testing.assert_allclose(values(fields, "2m_temperature"), truth, rtol=3e-6)


def test_roles_static_fields_and_accumulations(tmp_path: Path) -> None:
    hourly = era5(n_steps=6 * N_STEPS, hours=1)
    variables = [
        {"name": "total_precipitation", "role": "accumulated"},
        {"name": "land_sea_mask", "role": "forced"},
        {"name": "2m_temperature", "role": "diagnostic"},
    ]
    fields = laid(tmp_path, hourly, variables=variables, leads=2)
    assert [fields.attributes[name]["role"] for name in fields.variables] == ["accumulated", "forced", "diagnostic"]
    assert not fields.usable[0]  # no hour before the first
    assert fields.usable[1:].all()
    rain = hourly["total_precipitation"].sortby("latitude").values.astype(float)
    np.testing.assert_allclose(values(fields, "total_precipitation")[1], rain[1:7].sum(axis=0), rtol=1e-5, atol=1e-8)
    mask = hourly["land_sea_mask"].sortby("latitude").values
    np.testing.assert_allclose(values(fields, "land_sea_mask"), np.broadcast_to(mask, (N_STEPS, 19, 36)), atol=1e-6)
    assert fields.damping[1] == pytest.approx(1)


def test_coarse_means_leave_missing_cells_out(tmp_path: Path) -> None:
    fields = laid(tmp_path, era5(), coarsen=2, variables=["sea_surface_temperature", "2m_temperature"])
    assert fields.shape == (9, 18)
    fine = era5().sortby("latitude")
    weights = np.cos(np.deg2rad(fine["latitude"].values))[:18].reshape(9, 2)
    blocks = fine["2m_temperature"].values[:, :18].reshape(N_STEPS, 9, 2, 18, 2).astype(float)
    means = np.einsum("trsck,rs->trc", blocks, weights) / (2 * weights.sum(1)[:, None])
    np.testing.assert_allclose(values(fields, "2m_temperature"), means, rtol=1e-6)
    assert fields.frames(0, 1)[0, 0].isnan()[0].tolist() == [5 <= n < 8 for n in range(18)]
    refused(tmp_path, era5(), "5 does not divide the 36 longitudes", coarsen=5)


def test_too_few_times(tmp_path: Path) -> None:
    refused(tmp_path, era5(n_steps=9), r"validation .* has 0 consecutive times of 6 h, 2 are needed")
    refused(tmp_path, era5(), "train .* has 24 consecutive times of 6 h, 32 are needed for leads of up to 30", leads=30)
    early = {name: [text.replace("2020", "1990") for text in period] for name, period in SPLITS.items()}
    refused(tmp_path, era5(), "has no times from 1990.*it has 2020-01-01", splits=early)
    refused(tmp_path, era5(hours=6), "the source's step is 6 h: change `step`", step=1)


def test_a_chunk_that_the_store_lacks(tmp_path: Path) -> None:
    """Missing chunks read as NaN: the steps are not used, and it is said."""
    path = write_era5(tmp_path / "era5.zarr")
    next(Path(path, "2m_temperature").glob("1.*")).unlink()
    prepare({}, tmp_path / "data", options(path))
    fields = read_fields(tmp_path / "data")
    assert np.flatnonzero(~fields.usable).tolist() == list(range(8, 16))


def test_a_chunk_that_would_read_as_zeros(tmp_path: Path) -> None:
    path = write_era5(tmp_path / "era5.zarr", era5(), encoding={"10m_u_component_of_wind": {"_FillValue": None}})
    array = Path(path, "10m_u_component_of_wind")
    assert json.loads((array / ".zarray").read_text())["fill_value"] in (0.0, None)
    next(array.glob("3.*")).unlink()
    with pytest.raises(DataError, match=r"10m_u_component_of_wind: 1 of 5 chunks .* would read as 0"):
        prepare({}, tmp_path / "data", options(path))


# ------------------------------------------------------------------------------------------------ resume, repeat


def test_a_lay_out_that_was_killed_goes_on(store: str, prepared: Path, tmp_path: Path, monkeypatch: Any) -> None:
    write = lay._write_tiles
    calls: list[int] = []

    def dies(job: Any, frames: Any, number: int, begin: int) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(number)
        return write(job, frames, number, begin)

    monkeypatch.setattr(lay, "_write_tiles", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare({}, tmp_path / "data", options(store))
    done = set(calls)
    assert len(done) == 3
    assert not (tmp_path / "data" / "receipt.json").exists()
    shards = {p: p.stat().st_mtime_ns for p in (tmp_path / "data/dataset.zarr/tiles/c").rglob("*") if p.is_file()}
    calls.clear()
    monkeypatch.setattr(lay, "_write_tiles", lambda *a: calls.append(a[2]) or write(*a))
    prepare({}, tmp_path / "data", options(store))
    assert sorted(calls) == sorted({0, 1, 2, 3, 4} - done)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in shards.items())
    assert check_receipt(tmp_path / "data", contents=True)["checksum"] == check_receipt(prepared)["checksum"]


def test_another_plan_begins_anew(store: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(lay, "sha256", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare({}, tmp_path / "data", options(store))
    monkeypatch.undo()
    prepare({}, tmp_path / "data", options(store, variables=["2m_temperature"]))
    assert read_fields(tmp_path / "data").variables == ("2m_temperature",)


def test_a_finished_data_set_is_kept_where_only_its_reading_changes(
    store: str, tmp_path: Path, monkeypatch: Any
) -> None:
    prepare({}, tmp_path / "data", options(store))
    before = check_receipt(tmp_path / "data", contents=True)
    (tmp_path / "data" / "receipt.json").unlink()  # as Snakemake does before it makes an output again
    monkeypatch.setattr(lay, "_write_tiles", lambda *a: pytest.fail("a shard was written again"))
    other = options(store) | {"tile_stride": 4, "memory_mb": 1}
    prepare({}, tmp_path / ".data.part", other, earlier=tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert check_receipt(tmp_path / ".data.part", contents=True)["checksum"] == before["checksum"]


def test_the_bytes_do_not_depend_on_the_workers(store: str, prepared: Path, tmp_path: Path) -> None:
    prepare({}, tmp_path / "data", options(store), workers=Dask(scheduler="threads", workers=3))
    assert check_receipt(tmp_path / "data")["checksum"] == check_receipt(prepared)["checksum"]


def is_worker(process: psutil.Process) -> bool:
    """Whether a process works for dask; one that is ending has no command line any more."""
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_a_worker_that_is_killed_in_the_middle(store: str, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("distributed")
    small = options(store, block_mb=0.1, core=16)
    prepare({}, tmp_path / "whole", small)
    killed: list[int] = []
    own = Progress.step

    def step(self: Progress) -> None:
        own(self)
        workers = [p for p in psutil.Process().children(recursive=True) if is_worker(p)]
        if not killed and workers:
            killed.append(workers[0].pid)
            workers[0].kill()

    monkeypatch.setattr(Progress, "step", step)
    prepare({}, tmp_path / "data", small, workers=Dask(scheduler="distributed", workers=2))
    assert killed
    whole, data = (check_receipt(tmp_path / name, contents=True)["checksum"] for name in ("whole", "data"))
    assert data == whole


def test_a_missing_or_broken_shard_is_told(store: str, tmp_path: Path) -> None:
    prepare({}, tmp_path / "data", options(store))
    shard = tmp_path / "data/dataset.zarr/tiles/c/1/2/3/0/0/0"
    fields = read_fields(tmp_path / "data", LAZY)
    content = shard.read_bytes()
    shard.write_bytes(content[:40] + bytes(len(content) - 240) + content[-200:])
    with pytest.raises(DataError, match=r"c/1/2/3/0/0/0: step \d cannot be decoded"):
        fields.frames(29, 1)
    shard.write_bytes(content[:100])
    with pytest.raises(DataError, match="truncated"):
        read_fields(tmp_path / "data", LAZY).frames(29, 1)
    shard.unlink()
    with pytest.raises(DataError, match=r"a chunk is missing"):
        read_fields(tmp_path / "data")


def test_what_would_be_laid_out_is_said(store: str, tmp_path: Path) -> None:
    words = "\n".join(describe(options(store)))
    assert "40 steps from 2020-01-01T00:00:00" in words
    assert "3 × 5 tiles of 12 × 12 points, 9 steps a shard" in words
    assert "mended: rows went from north to south: turned" in words
    assert "geopotential_850: geopotential at level 850, m2 s-2, prognostic" in words


def test_a_worker_with_too_little_memory_is_refused(store: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dask\.memory: a block of 9 steps needs about \d+ MB, a worker has 100 MB"):
        prepare({}, tmp_path / "data", options(store), workers=Dask(memory="100MB"))


# ------------------------------------------------------------------------------------------------ tiles


def test_a_halo_is_input_alone(prepared: Path) -> None:
    for fields in (read_fields(prepared), read_fields(prepared, LAZY)):
        windows = Windows.over(fields, "train", 4, 8, 1, halo=2)
        tiles = TileDataset(fields, windows, 4, 8, torch.arange(19.0), halo=2)
        index = next(i for i in range(len(windows)) if windows[i] == (3, 5, 35))
        frames = tiles[index]["frames"]
        assert frames.shape == (4, 4, 12, 12)
        rows, columns = torch.arange(3, 15), (torch.arange(33, 45)) % 36
        assert torch.equal(frames[:2], fields.frames(3, 2, rows, columns))
        assert torch.equal(frames[2:, :, 2:10, 2:10], fields.frames(5, 2, rows[2:10], columns[2:10]))
        assert int(frames[2:].isnan().sum()) == 2 * 4 * (144 - 64)
        assert tiles[index]["weights"].tolist() == list(range(3, 15))


def test_tiles_of_the_disk_are_pickled_to_loader_processes(prepared: Path) -> None:
    fields = read_fields(prepared, LAZY)
    tiles = TileDataset(fields, Windows.over(fields, "train", 3, 8, 4), 3, 8, torch.ones(19))
    loader = torch.utils.data.DataLoader(tiles, batch_size=16, num_workers=1)
    first = next(iter(loader))["frames"]
    assert torch.equal(first[5], tiles[5]["frames"])


def test_xarray_opens_the_tiles(prepared: Path) -> None:
    with xr.open_zarr(prepared / "dataset.zarr", consolidated=False) as dataset:
        assert dataset["tiles"].dims == ("tile_row", "tile_column", "time", "variable", "y", "x")
        tile = dataset["tiles"][1, 0, 4, 0].load()
        assert dataset["row"].values[1].tolist() == list(range(6, 18))
        assert dataset["column"].values[0].tolist() == list(range(-2, 10))
    truth = era5().sortby("latitude")["2m_temperature"].values[4]
    np.testing.assert_array_equal(tile.values, np.roll(truth, 2, axis=1)[6:18, :12])
    assert zarr.open_array(prepared / "dataset.zarr" / "tiles").nbytes_stored() > 0
