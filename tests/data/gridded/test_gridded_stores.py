"""One reader for every source: the same fields come out of each store and file."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from synthetic_era5 import N_LATITUDE, N_LONGITUDE, era5, source, write_anemoi, write_era5

from relent.data.gridded.options import GriddedSource
from relent.data.gridded.stores import AnemoiStore, Store, open_store
from relent.errors import ConfigError, DataError


def opened(store: str, **changes: object) -> Store:
    return open_store(GriddedSource(**source(store, **changes)))


def same_fields(store: Store, temperature: str = "2m_temperature", geopotential: str = "geopotential") -> None:
    truth = era5()
    np.testing.assert_array_equal(store.time, truth["time"].values)
    np.testing.assert_array_equal(store.latitude, truth["latitude"].values)
    np.testing.assert_array_equal(store.longitude, truth["longitude"].values)
    read = store.read([(temperature, None)], slice(3, 10, 2))
    np.testing.assert_array_equal(read[:, 0], truth["2m_temperature"].values[3:10:2])
    read = store.read([(geopotential, 850), (geopotential, 500)], slice(39, 40))
    np.testing.assert_array_equal(read, truth["geopotential"].values[39:, ::-1])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_of_both_formats(tmp_path: Path, zarr_format: int) -> None:
    store = opened(write_era5(tmp_path / "era5.zarr", zarr_format=zarr_format))
    same_fields(store)
    assert store.is_static("land_sea_mask")
    assert not store.is_static("geopotential")
    assert store.attributes("geopotential")["units"] == "m**2 s**-2"
    assert store.about == {"license": "CC-BY-4.0"}


def test_an_address_of_fsspec() -> None:
    same_fields(opened(write_era5("memory://tests/era5.zarr")))


@pytest.fixture
def served(store: str) -> Iterator[str]:
    """The store behind a web server on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(Path(store).parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/era5.zarr"
        server.shutdown()


def test_a_web_address(served: str) -> None:
    same_fields(opened(served))
    with pytest.raises(DataError, match=r"nothing\.zarr cannot be read"):
        opened(served.replace("era5", "nothing"))


def test_longitude_before_latitude(tmp_path: Path) -> None:
    same_fields(
        opened(write_era5(tmp_path / "turned.zarr", era5().transpose("time", "level", "longitude", "latitude")))
    )


def test_short_names_of_dimensions(tmp_path: Path) -> None:
    names = {"latitude": "lat", "longitude": "lon", "time": "valid_time", "level": "pressure_level"}
    same_fields(opened(write_era5(tmp_path / "short.zarr", era5().rename(names))))


def test_anemoi_store(tmp_path: Path) -> None:
    store = opened(write_anemoi(tmp_path / "an.zarr", missing=["2020-01-01T18:00:00"]))
    assert isinstance(store, AnemoiStore)
    assert store.variables == ["2t", "10u", "z_500", "z_850"]
    assert store.missing == {3}
    assert np.isnan(store.read([("2t", None)], slice(3, 4))).all()
    read = store.read([("z", 850), ("2t", None)], slice(4, 9, 2))
    np.testing.assert_array_equal(read[:, 0], era5()["geopotential"].sel(level=850).values[4:9:2])
    assert read.shape == (3, 2, N_LATITUDE, N_LONGITUDE)
    store.has("z", 500)
    with pytest.raises(DataError, match="has no variable 'z_700' \\(did you mean 'z_500'"):
        store.has("z", 700)


def test_a_reduced_grid_is_refused(tmp_path: Path) -> None:
    path = write_anemoi(tmp_path / "an.zarr")
    group = zarr.open_group(path, mode="r+")
    latitudes = group["latitudes"][:]
    latitudes[5] += 1
    group["latitudes"][:] = latitudes
    with pytest.raises(DataError, match=r"no latitude–longitude grid .*regrid it first"):
        opened(path)


def test_a_member_of_an_ensemble(tmp_path: Path) -> None:
    members = xr.concat([era5(seed=5), era5()], dim="number")
    members["land_sea_mask"] = members["land_sea_mask"].isel(number=0)
    same_fields(opened(write_era5(tmp_path / "members.zarr", members), member=1))
    with pytest.raises(DataError, match="has 1 members, no member 4"):
        opened(write_anemoi(tmp_path / "an.zarr"), member=4)


def test_netcdf_files(tmp_path: Path) -> None:
    dataset = era5()
    for number in range(4):
        dataset.isel(time=slice(10 * number, 10 * number + 10)).to_netcdf(tmp_path / f"part{number}.nc")
    same_fields(opened(str(tmp_path / "part*.nc")))
    dataset.to_netcdf(tmp_path / "whole.nc", format="NETCDF3_64BIT", engine="scipy")
    same_fields(opened(str(tmp_path / "whole.nc")))


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\*\.nc: no such file"):
        opened(str(tmp_path / "none*.nc"))
    (tmp_path / "broken.nc").write_bytes(b"CDF\x01 not whole")
    with pytest.raises(DataError, match=r"broken\.nc cannot be read"):
        opened(str(tmp_path / "broken.nc"))
    with pytest.raises(DataError, match=r"away\.zarr cannot be read"):
        opened(str(tmp_path / "away.zarr"))


def test_grib_files(tmp_path: Path) -> None:
    pytest.importorskip("cfgrib")
    eccodes = pytest.importorskip("eccodes")
    truth = era5(n_steps=3)["geopotential"]
    with (tmp_path / "era5.grib").open("wb") as file:
        for step, moment in enumerate(truth["time"].values):
            for level in truth["level"].values:
                message = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
                keys = {
                    "Ni": N_LONGITUDE,
                    "Nj": N_LATITUDE,
                    "latitudeOfFirstGridPointInDegrees": 90,
                    "latitudeOfLastGridPointInDegrees": -90,
                    "longitudeOfFirstGridPointInDegrees": 0,
                    "longitudeOfLastGridPointInDegrees": 350,
                    "iDirectionIncrementInDegrees": 10,
                    "jDirectionIncrementInDegrees": 10,
                    "dataDate": int(str(moment)[:10].replace("-", "")),
                    "dataTime": 100 * int(str(moment)[11:13]),
                    "level": int(level),
                    "shortName": "z",
                    "bitsPerValue": 24,
                }
                for key, value in keys.items():
                    eccodes.codes_set(message, key, value)
                eccodes.codes_set_values(message, truth.sel(level=level).values[step].ravel().astype(float))
                eccodes.codes_write(message, file)
                eccodes.codes_release(message)
    store = opened(str(tmp_path / "era5.grib"))
    np.testing.assert_array_equal(store.time, truth["time"].values)
    assert store.variables == ["z"]
    np.testing.assert_allclose(store.read([("z", 850)], slice(1, 3))[:, 0], truth.sel(level=850).values[1:], atol=0.01)


def test_grib_without_its_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "era5.grib").write_bytes(b"GRIB")
    monkeypatch.setitem(__import__("sys").modules, "cfgrib", None)
    with pytest.raises(ConfigError, match=r"GRIB needs cfgrib and ecCodes .*install relent\[grib\]"):
        opened(str(tmp_path / "era5.grib"))


def test_what_a_store_lacks_is_named(store: str) -> None:
    found = opened(store)
    for variable, level, message in [
        ("2m_temprature", None, r"no variable '2m_temprature' \(did you mean '2m_temperature'\?\)"),
        ("geopotential", 700, r"geopotential has no level 700 \(nearest: 850; known: 500, 850\)"),
        ("geopotential", None, r"geopotential has levels \(500, 850\); say which"),
        ("2m_temperature", 500, "2m_temperature has no levels; leave `levels` out"),
    ]:
        with pytest.raises(DataError, match=message):
            found.has(variable, level)


def test_two_dimensional_coordinates_are_refused(tmp_path: Path) -> None:
    dataset = era5()[["2m_temperature"]].rename({"latitude": "row", "longitude": "column"})
    mesh = np.meshgrid(dataset["row"].values, dataset["column"].values, indexing="ij")
    dataset = dataset.drop_vars(["row", "column"]).assign_coords(
        latitude=(("row", "column"), mesh[0]), longitude=(("row", "column"), mesh[1])
    )
    with pytest.raises(DataError, match="latitude has two dimensions; regrid"):
        opened(write_era5(tmp_path / "curved.zarr", dataset))
