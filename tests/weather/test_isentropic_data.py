"""The data rule: what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_atmosphere import N_LATITUDE, N_LONGITUDE, atmosphere, prepared, write_source

from relent.data.isentropic import FILE, block_mean, check, prepare
from relent.data.tiles import TileDataset, Windows, read_fields
from relent.errors import ConfigError, DataError


def refused(tmp_path: Path, dataset: xr.Dataset, message: str) -> None:
    sources = write_source(tmp_path / "source", dataset)
    with pytest.raises(DataError, match=message) as caught:
        prepare(sources, tmp_path / "out", {})
    assert str(tmp_path / "source" / FILE) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_written_fields_equal_the_source(data: Path) -> None:
    source = atmosphere()
    with xr.open_zarr(data / "dataset.zarr", consolidated=False) as dataset:
        assert dataset["PV"].dims == ("time", "latitude", "longitude")
        assert dataset["U"].attrs["units"] == "m s-1"
        assert dataset["V"].attrs["standard_name"] == "northward_wind"
        assert "Copernicus" in dataset.attrs["notice"]
        assert "very probably ERA5" in dataset.attrs["reanalysis"]
        np.testing.assert_array_equal(dataset["PV"].values, source["PV"].values)
        np.testing.assert_array_equal(dataset["time"].values, source["time"].values)


def test_standardised_fields_have_unit_variance_and_no_zonal_mean(data: Path) -> None:
    fields = read_fields(data)
    train = fields.anomalies[fields.splits["train"]].double()
    weights = torch.cos(torch.deg2rad(torch.from_numpy(fields.latitude)))[:, None]
    variance = (train.square() * weights).mean((0, 2, 3)) / weights.mean()
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-4, rtol=0)
    assert train.mean((0, 3)).abs().max() < 1e-5
    residual = train[1:] - fields.damping[:, None, None] * train[:-1]
    size = ((residual.square() * weights).mean((0, 2, 3)) / weights.mean()).sqrt()
    torch.testing.assert_close(size.float(), fields.residual_std, atol=1e-4, rtol=0)
    physical = fields.physical(fields.anomalies[7])
    np.testing.assert_allclose(physical[1], atmosphere()["U"].values[7], atol=1e-4)


def test_statistics_come_from_training_steps_alone(data: Path, tmp_path: Path) -> None:
    changed = atmosphere()
    changed["U"][6:] = 3 * changed["U"][6:]
    other = read_fields(prepared(tmp_path, changed))
    fields = read_fields(data)
    for name in ("base", "std", "damping", "residual_std"):
        assert torch.equal(getattr(fields, name), getattr(other, name))
    assert fields.checksum != other.checksum


def test_split_is_by_time_and_tests_start_at_the_last_training_step(data: Path) -> None:
    fields = read_fields(data)
    assert fields.splits == {"train": [0, 1, 2, 3, 4, 5], "validation": [6], "test": [7, 8, 9]}
    assert fields.cases("test", 4) == [(5, [2, 3, 4]), (6, [1, 2, 3]), (7, [1, 2]), (8, [1])]
    assert fields.cases("validation", 4) == [(5, [1])]


def test_rows_from_north_to_south_are_turned(data: Path, tmp_path: Path) -> None:
    other = read_fields(prepared(tmp_path, atmosphere().isel(lat=slice(None, None, -1))))
    assert torch.equal(other.anomalies, read_fields(data).anomalies)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        prepare({"wavebreaking": tmp_path}, tmp_path / "out", {})


def test_truncated_file(tmp_path: Path) -> None:
    sources = write_source(tmp_path / "source", atmosphere())
    path = tmp_path / "source" / FILE
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="cannot be read as netCDF"):
        prepare(sources, tmp_path / "out", {})


def test_missing_variable(tmp_path: Path) -> None:
    refused(tmp_path, atmosphere().drop_vars("V"), "has no variable 'V'; it has PV, U")


def test_missing_coordinate(tmp_path: Path) -> None:
    refused(tmp_path, atmosphere().drop_vars("time"), "has no coordinate 'time'")


def test_other_dimensions(tmp_path: Path) -> None:
    dataset = atmosphere()
    dataset["U"] = dataset["U"].isel(time=0, drop=True)
    refused(tmp_path, dataset, "U has dimensions")


def test_gap_in_time(tmp_path: Path) -> None:
    dataset = atmosphere()
    time = dataset["time"].values.copy()
    time[4:] += np.timedelta64(6, "h")
    refused(
        tmp_path, dataset.assign_coords(time=time), "1959-06-04T18:00.* follows 1959-06-04T06:00.*exactly six hours"
    )


def test_too_few_steps(tmp_path: Path) -> None:
    refused(tmp_path, atmosphere().isel(time=slice(0, 9)), "has 9 time steps, not 10")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    dataset = atmosphere()
    dataset["V"][3, 5, 7] = bad
    refused(tmp_path, dataset, "V holds 1 values that are not finite, first at 1959-06-04T06")


def test_other_units(tmp_path: Path) -> None:
    dataset = atmosphere()
    dataset["U"].attrs["units"] = "knots"
    refused(tmp_path, dataset, "U is in 'knots', not in 'm s-1'")


def test_values_of_another_unit(tmp_path: Path) -> None:
    dataset = atmosphere()
    dataset["PV"] = dataset["PV"] * 1e-6
    refused(tmp_path, dataset, "PV reaches .* which cannot be in 1e-6 K m2 kg-1 s-1")


def test_other_level(tmp_path: Path) -> None:
    refused(tmp_path, atmosphere().assign_coords(lev=320.0), "level is 320 K, not 340 K")


def test_regional_longitudes(tmp_path: Path) -> None:
    refused(tmp_path, atmosphere().isel(lon=slice(0, 16)), "once around the globe")


def test_unknown_option(tmp_path: Path) -> None:
    sources = write_source(tmp_path, atmosphere())
    with pytest.raises(ConfigError, match="unknown data option 'coarse' \\(did you mean 'coarsen'"):
        prepare(sources, tmp_path / "out", {"coarse": 2})
    with pytest.raises(ConfigError, match="whole number from 1 to 20, got 0"):
        prepare(sources, tmp_path / "out", {"coarsen": 0})
    with pytest.raises(ConfigError, match="3 does not divide the 32 longitudes"):
        prepare(sources, tmp_path / "out", {"coarsen": 3})


def test_block_mean_keeps_the_weighted_mean(tmp_path: Path) -> None:
    fields = check(atmosphere().rename({"lat": "latitude", "lon": "longitude"}), tmp_path)
    coarse = block_mean(fields, 2)
    assert coarse.sizes == {"time": 10, "latitude": 11, "longitude": 16}
    weights = np.cos(np.deg2rad(fields["latitude"].values))
    blocks = weights.reshape(-1, 2).sum(1)
    fine_mean = np.average(fields["PV"].values.mean(2), axis=1, weights=weights)
    coarse_mean = np.average(coarse["PV"].values.mean(2), axis=1, weights=blocks)
    np.testing.assert_allclose(coarse_mean, fine_mean, rtol=1e-5)


def test_missing_chunk_is_found(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    next(path for path in (folder / "dataset.zarr" / "PV" / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(DataError, match="a chunk is missing"):
        read_fields(folder)


def test_tiles_wrap_the_longitude(data: Path) -> None:
    fields = read_fields(data)
    windows = Windows.over(fields, "train", 3, 16, 1)
    assert len(windows) == 4 * (N_LATITUDE - 15) * N_LONGITUDE
    tiles = TileDataset(fields, windows, 3, 16, torch.arange(float(N_LATITUDE)))
    index = next(i for i in range(len(windows)) if windows[i] == (2, 3, 25))
    tile = tiles[index]
    expected = fields.anomalies.roll(-25, dims=-1)[2:5, :, 3:19, :16]
    assert torch.equal(tile["frames"], expected)
    assert tile["weights"].tolist() == list(range(3, 19))


def test_validation_tiles_end_at_the_validation_step(data: Path) -> None:
    windows = Windows.over(read_fields(data), "validation", 3, 16, 16)
    assert {windows[i][0] for i in range(len(windows))} == {4}


def test_no_training_window_touches_later_steps(data: Path) -> None:
    fields = read_fields(data)
    for length in (3, 4, 6):
        windows = Windows.over(fields, "train", length, 16, 4)
        assert max(windows[i][0] for i in range(len(windows))) + length - 1 <= 5
    with pytest.raises(ValueError, match="has no 7 consecutive steps"):
        Windows.over(fields, "train", 7, 16, 4)
    with pytest.raises(ValueError, match="does not fit the grid of 22 × 32"):
        Windows.over(fields, "train", 3, 24, 4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 9))
def test_window_numbers_are_a_bijection(starts: int, rows: int, columns: int) -> None:
    windows = Windows(range(starts), range(0, 2 * rows, 2), range(columns))
    seen = {windows[i] for i in range(len(windows))}
    assert seen == {(s, 2 * r, c) for s in range(starts) for r in range(rows) for c in range(columns)}


def test_preparing_twice_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    assert read_fields(prepared(tmp_path)).checksum == read_fields(data).checksum
