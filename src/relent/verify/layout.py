"""Brings forecasts and truths of any origin into one layout: names of dimensions, units, grids; all lazily.

A forecast becomes a Dataset over (init_time, lead_time, member[, level], latitude, longitude), a truth one over
(time[, level], latitude, longitude). Understood are this project's stores, WeatherBench 2's (`prediction_timedelta`,
`number` or `realization`), ECMWF's GRIB through cfgrib (`step`, `number`, `isobaricInhPa`), netCDF and zarr.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from relent.errors import DataError, nearest

DIMENSIONS: dict[str, tuple[str, ...]] = {
    "lead_time": ("lead_time", "prediction_timedelta", "step", "lead", "leadtime", "forecast_period", "fhour"),
    "init_time": ("init_time", "forecast_reference_time", "initial_time", "reference_time", "reftime"),
    "member": ("member", "number", "realization", "realisation", "ensemble", "ensemble_member", "ens", "sample"),
    "level": ("level", "isobaricInhPa", "pressure_level", "plev", "pressure", "lev"),
    "latitude": ("latitude", "lat", "nav_lat"),
    "longitude": ("longitude", "lon", "nav_lon"),
}
"""Name of ours → names that others give the dimension. `time` is the initial time where there is a lead, else valid."""

VARIABLES: dict[str, str] = {
    "z": "geopotential",
    "t": "temperature",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "q": "specific_humidity",
    "t2m": "2m_temperature",
    "2t": "2m_temperature",
    "d2m": "2m_dewpoint_temperature",
    "2d": "2m_dewpoint_temperature",
    "u10": "10m_u_component_of_wind",
    "10u": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind",
    "10v": "10m_v_component_of_wind",
    "u100": "100m_u_component_of_wind",
    "v100": "100m_v_component_of_wind",
    "msl": "mean_sea_level_pressure",
    "sp": "surface_pressure",
    "sst": "sea_surface_temperature",
    "tp": "total_precipitation",
    "ssrd": "surface_solar_radiation_downwards",
    "ssr": "surface_net_solar_radiation",
    "fdir": "total_sky_direct_solar_radiation_at_surface",
    "ttr": "top_net_thermal_radiation",
}
"""ECMWF's short names → the names of ERA5's and WeatherBench 2's stores."""

SAME_UNITS = (
    {"m s-1", "m s**-1", "m/s"},
    {"m2 s-2", "m**2 s**-2", "m^2/s^2"},
    {"K", "kelvin"},
    {"1", "", "kg kg**-1", "kg kg-1"},
)
FACTORS = {
    ("hPa", "Pa"): (100.0, 0.0),
    ("Pa", "hPa"): (0.01, 0.0),
    ("degC", "K"): (1.0, 273.15),
    ("K", "degC"): (1.0, -273.15),
}
"""(given, wanted) → factor and offset; units in neither table and not the same are refused."""
TOLERANCE = 1e-3
"""Degrees by which coordinates of one grid may differ (float32 against float64)."""


def open_dataset(path: Path | str) -> xr.Dataset:
    """Open a zarr store, a netCDF or a GRIB file lazily.

    Raises:
        DataError: It is not there, or cannot be read; says what is missing to read it.
    """
    text = str(path)
    remote = "://" in text
    if not remote and not Path(text).exists():
        raise DataError(f"{text}: does not exist")
    try:
        if text.endswith((".grib", ".grib2", ".grb", ".grb2")):
            return _open_grib(text)
        if text.rstrip("/").endswith(".zarr") or remote or Path(text).is_dir():
            return _open_zarr(text)
        return xr.open_dataset(text, chunks=None, decode_timedelta=True)
    except ModuleNotFoundError:
        raise DataError(f"{text}: GRIB is read by cfgrib, which is not installed: pip install cfgrib") from None
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{text}: cannot be read ({error})") from None


def _open_grib(text: str) -> xr.Dataset:
    """All messages of a GRIB file. Control and perturbed members, which ecCodes keeps apart, become one ensemble."""
    from cfgrib import open_datasets

    # cfgrib would write an index beside the file, which may not be writable.
    parts = open_datasets(text, backend_kwargs={"indexpath": ""}, decode_timedelta=True)
    by_variables: dict[tuple[str, ...], list[xr.Dataset]] = {}
    for part in parts:
        single = "number" in part.coords and "number" not in part.dims
        same_variables = by_variables.setdefault(tuple(map(str, part.data_vars)), [])
        same_variables.append(part.expand_dims("number") if single else part)
    joined = [
        same[0] if len(same) == 1 else xr.concat(same, "number", coords="minimal", compat="override").sortby("number")
        for same in by_variables.values()
    ]
    return xr.merge(joined, compat="override", join="outer")


def _open_zarr(text: str) -> xr.Dataset:
    import zarr

    consolidated = zarr.open_group(text, mode="r").metadata.consolidated_metadata is not None
    return xr.open_zarr(text, consolidated=consolidated, chunks=None, decode_timedelta=True)


def as_forecast(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """A forecast in our layout.

    Args:
        dataset: As it was opened.
        name: How to call it in errors.

    Raises:
        DataError: It has no lead times, or the grid is none of latitudes and longitudes.
    """
    dataset = _renamed(dataset)
    if "lead_time" not in dataset.coords:
        raise DataError(
            f"{name}: has no lead times (looked for {', '.join(DIMENSIONS['lead_time'])}), so that it is no forecast; "
            f"it has {', '.join(map(str, dataset.dims))}"
        )
    if "init_time" not in dataset.coords and "time" in dataset.coords:
        dataset = dataset.rename(time="init_time")
    if "init_time" not in dataset.coords:
        raise DataError(f"{name}: has no initial times (looked for {', '.join(DIMENSIONS['init_time'])}, time)")
    for dim in ("init_time", "lead_time", "member"):
        if dim not in dataset.dims:
            dataset = dataset.expand_dims(dim) if dim in dataset.coords else dataset.expand_dims({dim: [0]})
    dataset = dataset.assign_coords(lead_time=_timedeltas(dataset["lead_time"], name))
    kept = [
        str(v) for v in dataset.data_vars if {"init_time", "lead_time", "latitude", "longitude"} <= set(dataset[v].dims)
    ]
    dims = [d for d in ("init_time", "lead_time", "member", "level", "latitude", "longitude") if d in dataset.dims]
    return _with_grid(dataset[kept], name).transpose(*dims, missing_dims="ignore")


def as_truth(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """A truth (analysis, reanalysis) in our layout.

    Raises:
        DataError: It has no times, or times that repeat.
    """
    dataset = _renamed(dataset)
    if "time" not in dataset.dims and "valid_time" in dataset.dims:
        dataset = dataset.rename(valid_time="time")
    if "time" not in dataset.dims and "time" in dataset.coords and dataset["time"].ndim == 0:
        dataset = dataset.expand_dims("time")
    if "time" not in dataset.dims:
        raise DataError(
            f"{name}: has no dimension time, so that it cannot be a truth; it has {', '.join(map(str, dataset.dims))}"
        )
    if dataset.sizes.get("member", 1) > 1:
        raise DataError(f"{name}: is an ensemble of {dataset.sizes['member']}; a truth is one field: choose a member")
    dataset = dataset.squeeze("member", drop=True) if "member" in dataset.dims else dataset
    if dataset.indexes["time"].has_duplicates:
        raise DataError(f"{name}: has {int(dataset.indexes['time'].duplicated().sum())} times twice")
    kept = [str(v) for v in dataset.data_vars if {"time", "latitude", "longitude"} <= set(dataset[v].dims)]
    dims = [d for d in ("time", "level", "latitude", "longitude") if d in dataset.dims]
    return _with_grid(dataset[kept], name).transpose(*dims, missing_dims="ignore")


def _renamed(dataset: xr.Dataset) -> xr.Dataset:
    names = {}
    for ours, theirs in DIMENSIONS.items():
        found = [n for n in theirs if n in dataset.dims] or [n for n in theirs if n in dataset.coords]
        if found and found[0] != ours:
            names[found[0]] = ours
    return dataset.rename(names)


_SECONDS = {"hours": 3600, "hour": 3600, "h": 3600, "days": 86400, "day": 86400, "minutes": 60, "seconds": 1}


def _timedeltas(leads: xr.DataArray, name: str) -> np.ndarray:
    """Lead times as timedelta64[ns]; whole numbers are hours unless their units say otherwise."""
    values = np.atleast_1d(leads.values)
    if np.issubdtype(values.dtype, np.timedelta64):
        return values.astype("timedelta64[ns]")
    seconds = _SECONDS.get(leads.attrs.get("units", "hours"))
    if seconds is None or not np.issubdtype(values.dtype, np.number):
        raise DataError(f"{name}: lead times are in {leads.attrs.get('units')!r}; hours or days are understood")
    return (values * seconds * 10**9).astype("timedelta64[ns]")


def _with_grid(dataset: xr.Dataset, name: str) -> xr.Dataset:
    if not dataset.data_vars:
        raise DataError(f"{name}: holds no fields over latitude and longitude")
    for dim in ("latitude", "longitude"):
        if dim not in dataset.dims or dataset[dim].ndim != 1:
            raise DataError(f"{name}: must lie on a grid of latitudes and longitudes; {dim} is no dimension of its own")
    return dataset.assign_coords(
        longitude=dataset["longitude"].astype(float), latitude=dataset["latitude"].astype(float)
    )


def matched(forecast: xr.Dataset, truth: xr.Dataset, chosen: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of a forecast → those of the truth: as chosen, by name, by ECMWF's short name, by standard name.

    Args:
        forecast, truth: In our layout.
        chosen: Forecast variable → truth variable, where their names do not tell.

    Raises:
        DataError: A chosen variable is absent, or nothing matches.
    """
    ours, theirs = list(map(str, forecast.data_vars)), list(map(str, truth.data_vars))
    long_names = {VARIABLES.get(name, name): name for name in theirs}
    standard = {truth[n].attrs["standard_name"]: n for n in theirs if truth[n].attrs.get("standard_name")}
    found: dict[str, str] = {}
    for name in ours:
        by_name = name if name in theirs else long_names.get(VARIABLES.get(name, name))
        partner = (chosen or {}).get(name) or by_name or standard.get(forecast[name].attrs.get("standard_name"))
        if partner is not None:
            found[name] = partner
    for name, known, what in [(n, ours, "forecast") for n in chosen or {}] + [
        (n, theirs, "truth") for n in found.values()
    ]:
        if name not in known:
            raise DataError(f"the {what} has no variable {name!r}{nearest(name, known)}")
    if not found:
        raise DataError(
            f"no variable of the forecast ({', '.join(ours)}) is in the truth ({', '.join(theirs)}); name pairs with "
            "--variable FORECAST=TRUTH"
        )
    return found


def conversion(given: str, wanted: str, variable: str) -> tuple[float, float]:
    """Factor and offset from the truth's units to the forecast's.

    Raises:
        DataError: Both state units, and these cannot be brought together.
    """
    if not given or not wanted or given == wanted or any({given, wanted} <= group for group in SAME_UNITS):
        return 1.0, 0.0
    if (given, wanted) in FACTORS:
        return FACTORS[given, wanted]
    raise DataError(f"{variable}: the truth is in {given!r}, the forecast in {wanted!r}; convert one of them")


def grid_indices(forecast: np.ndarray, truth: np.ndarray, axis: str) -> np.ndarray:
    """For each coordinate of the forecast, its index in the truth; longitudes match modulo 360°.

    Raises:
        DataError: A coordinate of the forecast is not in the truth: the grids differ.
    """
    difference = forecast[:, None] - truth[None]
    if axis == "longitude":
        difference = (difference + 180) % 360 - 180
    index = np.abs(difference).argmin(axis=1)
    far = np.abs(difference[np.arange(len(forecast)), index]) > TOLERANCE
    if far.any():
        raise DataError(
            f"grids differ: {axis} {forecast[far][0]:g} of the forecast is not in the truth (nearest "
            f"{truth[index[far][0]]:g}); bring both to one grid first"
        )
    return index
