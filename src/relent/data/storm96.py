"""The blizzard of January 1996 over North America: 64 real six-hourly analyses with real gaps, in two megabytes.

Six files of the Debian package `libncarg-data` (examples of the NCAR Command Language): analyses of the US National
Weather Service from 1996-01-05 00 UTC on, 33 × 36 points. They name neither variables nor units; both are read off the
values. A wedge of the grid lies outside the product's own map and is never known; the largest rectangle that is always
known and whose sides are multiples of four has rows 0–31 and columns 8–27. Three steps lack one or two variables: they
are kept, marked as unusable. Nothing here loads torch or Lightning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from relent.data.options import StormOptions, checked
from relent.data.receipt import sha256, write_receipt
from relent.data.statistics import finish, moments
from relent.errors import DataError

SOURCE = "storm96"
STEP_HOURS = 6
N_STEPS = 64
ROWS, COLUMNS = slice(0, 32), slice(8, 28)
TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, -1
SPLIT_LENGTHS = ((TRAIN, 36), (UNUSED, 2), (VALIDATION, 6), (UNUSED, 2), (TEST, 18))
"""Steps in the order of time. The two before the validation are lost ones; two before the test keep it apart."""
LEADS = 8
"""Leads for which the statistics know damping and residual: two days, of which 28 pairs of training steps are left."""
NOTICE = (
    "One synoptic episode of sixteen days: differences between methods here say nothing about other weather, and "
    "neighbouring steps are not independent."
)


@dataclass(frozen=True)
class Variable:
    """What is known about a field, and between what bounds its values must lie in its units."""

    file: str
    long_name: str
    standard_name: str
    units: str
    lowest: float
    highest: float


VARIABLES = {
    "u": Variable("Ustorm.cdf", "eastward wind near the surface", "eastward_wind", "m s-1", -60, 60),
    "v": Variable("Vstorm.cdf", "northward wind near the surface", "northward_wind", "m s-1", -60, 60),
    "t": Variable("Tstorm.cdf", "air temperature near the surface", "air_temperature", "K", 200, 330),
    "p": Variable("Pstorm.cdf", "pressure at mean sea level", "air_pressure_at_mean_sea_level", "Pa", 9e4, 1.1e5),
    "u_500": Variable("U500storm.cdf", "eastward wind at 500 hPa", "eastward_wind", "m s-1", -120, 120),
    "v_500": Variable("V500storm.cdf", "northward wind at 500 hPa", "northward_wind", "m s-1", -120, 120),
}


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write `out/dataset.zarr` (fields, split, usable steps, statistics of the training steps) and `out/receipt.json`.

    Args:
        sources: Folder of the source `storm96`, which holds the six files.
        out: Folder to write; the caller renames it when it is whole.
        options: See `StormOptions`; they concern reading alone.
        seed: Unused: nothing is drawn.

    Raises:
        ConfigError: An option is unknown or out of range.
        DataError: A file is missing or unreadable, or is not what it should be; names file, variable and step.
    """
    checked(StormOptions, options)
    folder = Path(sources[SOURCE])
    fields = xr.Dataset({name: read(folder / variable.file, variable) for name, variable in VARIABLES.items()})
    usable = np.all([np.isfinite(fields[name].values).all(axis=(1, 2)) for name in VARIABLES], axis=0)
    fields = fields.assign(usable=("time", usable), split=split(usable))
    digests = ", ".join(f"{v.file} {sha256(folder / v.file)[:12]}" for v in VARIABLES.values())
    fields.attrs = provenance(digests)
    out.mkdir(parents=True, exist_ok=True)
    store = out / "dataset.zarr"
    fields.to_zarr(store, mode="w", zarr_format=3, consolidated=False)
    statistics(fields).to_zarr(store, group="statistics", mode="a", zarr_format=3, consolidated=False)
    names = {TRAIN: "train", VALIDATION: "validation", TEST: "test", UNUSED: "unused"}
    counts = {name: int((fields["split"] == code).sum()) for code, name in names.items()}
    lost = [str(time)[:16] for time in fields["time"].values[~usable]]
    write_receipt(out, sources=[SOURCE], options={}, steps=counts, lost_steps=lost, **fields.attrs)


def read(path: Path, variable: Variable) -> xr.DataArray:
    """One variable on the rectangle, float32, with time, units and CF names; lost steps are NaN.

    Raises:
        DataError: The file is missing, unreadable or another one, or values lie outside the variable's bounds.
    """
    if not path.is_file():
        raise DataError(f"{path}: does not exist; run the data rule that fetches the source {SOURCE!r}")
    try:
        with xr.open_dataset(path, engine="netcdf4", decode_times=False) as dataset:
            dataset.load()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read as netCDF ({error}); delete it and fetch it again") from None
    found = [name for name, array in dataset.data_vars.items() if array.dims == ("timestep", "lat", "lon")]
    if len(found) != 1:
        raise DataError(f"{path}: has {len(found)} variables over timestep, lat and lon, not one")
    array = dataset[found[0]].isel(lat=ROWS, lon=COLUMNS)
    values = array.values.astype(np.float32)
    _check(values, variable, path)
    coordinates = {
        "time": ("time", _times(dataset, path), {"standard_name": "time"}),
        "latitude": ("latitude", _degrees(array, "lat"), {"standard_name": "latitude", "units": "degrees_north"}),
        "longitude": ("longitude", _degrees(array, "lon"), {"standard_name": "longitude", "units": "degrees_east"}),
    }
    about = {key: getattr(variable, key) for key in ("long_name", "standard_name", "units")} | {"role": "prognostic"}
    return xr.DataArray(values, coords=coordinates, dims=("time", "latitude", "longitude"), attrs=about)


def _times(dataset: xr.Dataset, path: Path) -> NDArray[np.datetime64]:
    try:
        text = dataset["reftime"].item().decode().strip()
        day, hour = text.rsplit(" ", 1)
        start = np.datetime64(f"{day.replace(' ', '-')}T{hour}", "ns")
        hours = dataset["timestep"].values.astype(np.int64)
    except (KeyError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: its times cannot be read ({error})") from None
    if hours.size != N_STEPS or (np.diff(hours) != STEP_HOURS).any():
        raise DataError(f"{path}: must have {N_STEPS} steps {STEP_HOURS} hours apart, has {hours.size}, or a gap")
    return start + hours * np.timedelta64(1, "h")


def _degrees(array: xr.DataArray, name: str) -> NDArray[np.float64]:
    return array[name].values.astype(np.float64)


def _check(values: NDArray[np.float32], variable: Variable, path: Path) -> None:
    """Steps are whole or lost, and values are in the variable's units."""
    shape = (N_STEPS, ROWS.stop - ROWS.start, COLUMNS.stop - COLUMNS.start)
    if values.shape != shape:
        raise DataError(f"{path}: has the shape {values.shape} on the rectangle that is used, not {shape}")
    known = np.isfinite(values)
    broken = np.flatnonzero(known.any(axis=(1, 2)) & ~known.all(axis=(1, 2)))
    if broken.size:
        raise DataError(f"{path}: step {broken[0]} lacks a part of the rectangle; a step is known or lost as a whole")
    if not known.any():
        raise DataError(f"{path}: no value is known")
    lowest, highest = float(values[known].min()), float(values[known].max())
    if lowest < variable.lowest or highest > variable.highest:
        raise DataError(
            f"{path}: {variable.long_name} goes from {lowest:g} to {highest:g}, which cannot be in {variable.units}"
        )


def split(usable: NDArray[np.bool_]) -> xr.DataArray:
    """Which part a step belongs to, by time alone: steps six hours apart are nearly copies. Lost ones to none."""
    codes = np.concatenate([np.full(length, code, dtype=np.int8) for code, length in SPLIT_LENGTHS])
    codes[~usable] = UNUSED
    attributes = {"flag_values": [TRAIN, VALIDATION, TEST, UNUSED], "flag_meanings": "train validation test unused"}
    return xr.DataArray(codes, dims="time", attrs=attributes)


def statistics(fields: xr.Dataset) -> xr.Dataset:
    """What a forecast model needs to know of the climate, from the training steps only.

    For each variable: `base` (latitude, longitude), the mean over steps; `std`, of the anomalies from the base;
    `damping` (lead), the regression slope of an anomaly on the one `lead` steps before; `residual_std` (lead), of what
    the slope leaves, in units of `std`. Means over points are weighted with cos(latitude), see
    `relent.data.statistics`.
    """
    train = fields["split"].values == TRAIN
    values = np.stack([fields[name].values for name in VARIABLES], axis=1).astype(float)
    base = values[train].mean(axis=0)
    nothing = np.zeros(len(VARIABLES))
    found = finish(moments(values - base, nothing, train, 0, LEADS), nothing, fields["latitude"].values)
    result = xr.Dataset(coords={"lead": ("lead", np.arange(1, LEADS + 1), {"long_name": "lead, in steps"})})
    for channel, (name, variable) in enumerate(VARIABLES.items()):
        units = {"units": variable.units}
        result[f"{name}_base"] = xr.DataArray(base[channel], dims=("latitude", "longitude"), attrs=units)
        result[f"{name}_std"] = xr.DataArray(found["std"][channel], attrs=units)
        for key in ("damping", "residual_std"):
            result[f"{name}_{key}"] = xr.DataArray(found[key][:, channel], dims="lead", attrs={"units": "1"})
    return result


def provenance(digests: str) -> dict[str, str | int]:
    """Where the fields come from, as global attributes."""
    return {
        "Conventions": "CF-1.11",
        "title": "Blizzard of January 1996 over North America, six-hourly analyses from 1996-01-05 00 UTC",
        "source": f"Debian package libncarg-data 6.6.2.dfsg.1-1 (sha256: {digests}); rows 0-31, columns 8-27",
        "licence": "package: UCAR, BSD style; fields: US National Weather Service, public domain",
        "notice": NOTICE,
        "variables": " ".join(VARIABLES),
        "step_hours": STEP_HOURS,
        "topology": "regional",
    }
