"""Small forecasts and truths on disk, in the layouts that others use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

STEP = np.timedelta64(12, "h")
START = np.datetime64("2018-01-01T00", "ns")
N_INIT, N_LEAD, MEMBERS = 24, 3, 5
LATITUDE, LONGITUDE = np.linspace(-75, 75, 7), np.arange(12) * 30.0


def truth(seed: int = 0, memory: float = 0.0) -> xr.Dataset:
    """Two variables, one at two levels, over (time, level, latitude, longitude); AR(1) in time."""
    generator = np.random.default_rng(seed)
    n = N_INIT + N_LEAD
    noise = generator.normal(size=(n, 2, len(LATITUDE), len(LONGITUDE)))
    for k in range(1, n):
        noise[k] = memory * noise[k - 1] + np.sqrt(1 - memory**2) * noise[k]
    coordinates = {"time": START + np.arange(n) * STEP, "level": [850, 500]}
    coordinates |= {"latitude": LATITUDE, "longitude": LONGITUDE}
    dims = ("time", "level", "latitude", "longitude")
    fields = {
        "temperature": (dims, (250 + noise).astype("float32"), {"units": "K"}),
        "mean_sea_level_pressure": (dims[:1] + dims[2:], (1e5 + noise[:, 0]).astype("float32"), {"units": "Pa"}),
    }
    return xr.Dataset(fields, coordinates)


def forecast(seed: int = 1, error: float = 0.5, members: int = MEMBERS, of: xr.Dataset | None = None) -> xr.Dataset:
    """Truth + error · N(0, 1) + error · N(0, 1) of each member, in WeatherBench 2's layout: calibrated."""
    generator = np.random.default_rng(seed)
    known = truth() if of is None else of
    steps = np.arange(N_INIT)[:, None] + np.arange(1, N_LEAD + 1)
    fields = {}
    for name, field in known.data_vars.items():
        true = field.values[steps][:, :, None]
        centre = true + error * generator.normal(size=true.shape)
        values = centre + error * generator.normal(size=(*true.shape[:2], members, *true.shape[3:]))
        dims = ("time", "prediction_timedelta", "number", *field.dims[1:])
        fields[name] = (dims, values.astype("float32"), field.attrs)
    coordinates = {
        "time": START + np.arange(N_INIT) * STEP,
        "prediction_timedelta": np.arange(1, N_LEAD + 1) * STEP.astype("timedelta64[ns]"),
        "number": np.arange(members),
        **{dim: known[dim] for dim in ("level", "latitude", "longitude")},
    }
    return xr.Dataset(fields, coordinates)


def written(dataset: xr.Dataset, path: Path) -> Path:
    """Write a store or a file."""
    if path.suffix == ".zarr":
        dataset.to_zarr(path, zarr_format=3, consolidated=False)
    else:
        dataset.to_netcdf(path)
    return path
