"""Stores of any origin come into one layout, or are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import stores
import xarray as xr

from relent.errors import ConfigError, DataError
from relent.verify.command import Choice, verify_stores
from relent.verify.layout import as_forecast, as_truth, conversion, grid_indices, matched, open_dataset
from relent.verify.report import score_rows


def crps(forecast: Path, truth: Path, choice: Choice | None = None) -> dict[tuple[str, float | None, float], float]:
    rows = score_rows(verify_stores(forecast, str(truth), choice or Choice()), None)
    region = rows[0]["region"]
    return {
        (r["variable"], r["level"], r["lead_hours"]): r["value"]
        for r in rows
        if r["score"] == "crps" and r["region"] == region
    }


@pytest.fixture(scope="module")
def plain(forecast_path: Path, truth_path: Path) -> dict[tuple[str, float | None, float], float]:
    return crps(forecast_path, truth_path)


def test_all_fields_levels_and_leads_are_scored(plain: dict[tuple[str, float | None, float], float]) -> None:
    fields = [("mean_sea_level_pressure", None), ("temperature", 850.0), ("temperature", 500.0)]
    assert set(plain) == {(*field, hours) for field in fields for hours in (12.0, 24.0, 36.0)}


ECMWF = {
    "time": "time",
    "prediction_timedelta": "step",
    "level": "isobaricInhPa",
    "temperature": "t",
    "mean_sea_level_pressure": "msl",
}
OTHER = {"time": "forecast_reference_time", "prediction_timedelta": "lead", "number": "realization", "latitude": "lat"}
OTHER |= {"longitude": "lon", "level": "plev"}


@pytest.mark.parametrize("names", [ECMWF, OTHER], ids=["ecmwf", "other"])
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_names_orders_and_conventions_of_others_change_no_score(
    names: dict[str, str],
    suffix: str,
    truth_path: Path,
    tmp_path: Path,
    plain: dict[tuple[str, float | None, float], float],
) -> None:
    dataset = stores.forecast()
    dataset = dataset.assign_coords(longitude=(dataset["longitude"] + 180) % 360 - 180).sortby("longitude")
    dataset = dataset.isel(latitude=slice(None, None, -1)).transpose("number", ..., "time").rename(names)
    found = crps(stores.written(dataset, tmp_path / f"forecast{suffix}"), truth_path)
    renamed = {names.get(name, name): name for name in ("temperature", "mean_sea_level_pressure")}
    for (variable, level, hours), value in found.items():
        assert value == pytest.approx(plain[renamed[variable], level, hours], rel=1e-6)
    assert len(found) == len(plain)


def test_lead_times_as_numbers_are_hours(forecast_path: Path) -> None:
    dataset = stores.forecast().assign_coords(prediction_timedelta=[12, 24, 36])
    leads = as_forecast(dataset, "f")["lead_time"].values
    np.testing.assert_array_equal(leads, np.array([12, 24, 36], "timedelta64[h]"))
    dataset["prediction_timedelta"].attrs["units"] = "days"
    assert as_forecast(dataset, "f")["lead_time"].values[0] == np.timedelta64(12, "D")


def test_a_single_initial_time_lead_and_member_are_dimensions(truth_path: Path, tmp_path: Path) -> None:
    one = stores.forecast().isel(time=0, prediction_timedelta=1, number=0)
    found = crps(stores.written(one.drop_vars("number"), tmp_path / "one.nc"), truth_path)
    assert {hours for _, _, hours in found} == {24.0}
    both = stores.forecast(), stores.truth()
    error = np.abs(both[0]["temperature"][0, 1, 0, 0] - both[1]["temperature"][2, 0])
    weights = np.cos(np.deg2rad(stores.LATITUDE))[:, None] + 0 * error
    assert found["temperature", 850.0, 24.0] == pytest.approx(np.average(error, weights=weights), rel=1e-5)


def test_units_are_converted_or_refused(truth_path: Path, tmp_path: Path) -> None:
    dataset = stores.forecast()
    dataset["temperature"] = dataset["temperature"] - 273.15
    dataset["temperature"].attrs["units"] = "degC"
    whole = crps(stores.written(dataset, tmp_path / "celsius.zarr"), truth_path)
    kelvin = crps(stores.written(stores.forecast(), tmp_path / "kelvin.zarr"), truth_path)
    assert whole == pytest.approx(kelvin, rel=1e-4)
    assert conversion("m s**-1", "m s-1", "u") == (1.0, 0.0)
    dataset["temperature"].attrs["units"] = "W m-2"
    with pytest.raises(DataError, match="temperature: the truth is in 'K', the forecast in 'W m-2'"):
        crps(stores.written(dataset, tmp_path / "watts.zarr"), truth_path)


def test_variables_match_by_short_and_standard_names() -> None:
    def named(**variables: str) -> xr.Dataset:
        return xr.Dataset({name: ((), 0.0, {"standard_name": s} if s else {}) for name, s in variables.items()})

    theirs = named(geopotential="", T2="air_temperature")
    assert matched(named(z="", tas="air_temperature", q=""), theirs) == {"z": "geopotential", "tas": "T2"}
    assert matched(named(a=""), theirs, {"a": "T2"}) == {"a": "T2"}
    with pytest.raises(DataError, match=r"no variable 'T3' \(did you mean 'T2'\?\)"):
        matched(named(a=""), theirs, {"a": "T3"})
    with pytest.raises(DataError, match="no variable of the forecast"):
        matched(named(q=""), theirs)


def test_grids_match_modulo_360_or_are_refused() -> None:
    np.testing.assert_array_equal(grid_indices(np.array([-30.0, 0, 30]), stores.LONGITUDE, "longitude"), [11, 0, 1])
    with pytest.raises(DataError, match="grids differ: latitude 10 of the forecast is not in the truth"):
        grid_indices(np.array([10.0]), stores.LATITUDE, "latitude")


def test_what_is_no_forecast_and_no_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no lead times"):
        as_forecast(stores.truth(), "t")
    with pytest.raises(DataError, match="1 times twice"):
        as_truth(xr.concat([stores.truth(), stores.truth().isel(time=[3])], "time"), "t")
    with pytest.raises(DataError, match=r"nothing\.zarr: does not exist"):
        open_dataset(tmp_path / "nothing.zarr")
    (tmp_path / "broken.nc").write_bytes(b"no netCDF")
    with pytest.raises(DataError, match=r"broken\.nc: cannot be read"):
        open_dataset(tmp_path / "broken.nc")


def test_what_a_user_gets_wrong_is_one_line(forecast_path: Path, truth_path: Path, tmp_path: Path) -> None:
    late = stores.truth().assign_coords(time=stores.truth()["time"] + np.timedelta64(900, "D"))
    with pytest.raises(DataError, match="no forecast has a truth: forecasts are valid from 2018-01-01T12"):
        crps(forecast_path, stores.written(late, tmp_path / "late.nc"))
    with pytest.raises(ConfigError, match=r"no variable 'temperatur' \(did you mean 'temperature'\?\)"):
        crps(forecast_path, truth_path, Choice(variables=("temperatur",)))
    with pytest.raises(ConfigError, match="region 'here' has no grid point"):
        crps(forecast_path, truth_path, Choice(regions=("here=1,2,3,4",)))
    with pytest.raises(ConfigError, match="is no region; write NAME=SOUTH,NORTH,WEST,EAST"):
        crps(forecast_path, truth_path, Choice(regions=("50,60",)))
    with pytest.raises(DataError, match="has no time from 2030"):
        crps(forecast_path, truth_path, Choice(period=("2030-01-01", "2031-01-01")))
