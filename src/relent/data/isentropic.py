"""Potential vorticity and wind on the 340 K isentrope, 1959-06-03 to 1959-06-05: real global fields in 8 MB.

The file is the test data of the PyPI package `wavebreaking` (MIT): ten six-hourly steps on a 1° grid. It does not name
its reanalysis; its variables, levels and history are those of a LAGRANTO P-file of ERA5, very probably that.
Nothing here loads torch or Lightning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from relent.data.receipt import sha256, write_receipt
from relent.data.statistics import finish, moments
from relent.errors import ConfigError, DataError, nearest

SOURCE, FILE = "wavebreaking", "demo_data.nc"
STEP = np.timedelta64(6, "h")
LEVEL = 340.0
"""Potential temperature of the surface, K."""
TRAIN, VALIDATION, TEST = 0, 1, 2
SPLIT_LENGTHS = (6, 1, 3)
"""Steps for training, validation and test, in the order of time: the validation step is the gap before the test."""
READING_OPTIONS = ("tile", "tile_stride")
NOTICE = (
    "Contains modified Copernicus Climate Change Service information, if the fields are ERA5; neither the European "
    "Commission nor ECMWF is responsible for any use of it."
)


@dataclass(frozen=True)
class Variable:
    """What is known about a field."""

    long_name: str
    standard_name: str
    units: str
    bound: float
    """No sane value is larger in size: catches another unit."""


VARIABLES = {
    "PV": Variable("Ertel potential vorticity", "ertel_potential_vorticity", "1e-6 K m2 kg-1 s-1", 200.0),
    "U": Variable("eastward wind", "eastward_wind", "m s-1", 250.0),
    "V": Variable("northward wind", "northward_wind", "m s-1", 250.0),
}


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write `out/dataset.zarr` (fields, split, statistics of the training steps) and `out/receipt.json`.

    Args:
        sources: Folder of the source `wavebreaking`, which holds `demo_data.nc`.
        out: Folder to write; the caller renames it when it is whole.
        options: `coarsen`: side of the blocks of grid points that are averaged (1: the 1° grid). The options of the
            reader (`tile`, `tile_stride`) are passed over.
        seed: Unused: nothing is drawn.

    Raises:
        ConfigError: An option is unknown or out of range.
        DataError: The file is missing or unreadable, or is not what it should be; names the variable or step.
    """
    coarsen = _coarsen(options)
    path = Path(sources[SOURCE]) / FILE
    fields = check(read(path), path)
    if coarsen > 1:
        fields = block_mean(fields, coarsen)
    fields = fields.assign(split=split(fields.sizes["time"]))
    fields.attrs = provenance(sha256(path), coarsen)
    out.mkdir(parents=True, exist_ok=True)
    store = out / "dataset.zarr"
    write(fields, store)
    statistics(fields).to_zarr(store, group="statistics", mode="a", zarr_format=3, consolidated=False)
    counts = {name: int((fields["split"] == code).sum()) for name, code in _SPLIT_CODES.items()}
    write_receipt(out, sources=[SOURCE], options={"coarsen": coarsen}, steps=counts, **fields.attrs)


_SPLIT_CODES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def _coarsen(options: dict[str, Any]) -> int:
    known = ("coarsen", *READING_OPTIONS)
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown data option {name!r}{nearest(name, known)}", key="data")
    value = options.get("coarsen", 1)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 20:
        raise ConfigError(f"must be a whole number from 1 to 20, got {value!r}", key="data.coarsen")
    return value


def read(path: Path) -> xr.Dataset:
    """The file's three fields in memory, dimensions named in full.

    Raises:
        DataError: The file is missing, unreadable or truncated, or lacks a variable or coordinate.
    """
    if not path.is_file():
        raise DataError(f"{path}: does not exist; run the data rule that fetches the package {SOURCE!r}")
    try:
        with xr.open_dataset(path, engine="netcdf4") as dataset:
            dataset.load()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read as netCDF ({error}); delete it and fetch it again") from None
    for name in VARIABLES:
        if name not in dataset:
            raise DataError(f"{path}: has no variable {name!r}; it has {', '.join(map(str, dataset.data_vars))}")
    dataset = dataset.rename({short: long for short, long in _DIMENSIONS.items() if short in dataset.variables})
    for name in ("time", "latitude", "longitude"):
        if name not in dataset.coords:
            raise DataError(f"{path}: has no coordinate {name!r}")
    return dataset


_DIMENSIONS = {"lat": "latitude", "lon": "longitude"}


def check(dataset: xr.Dataset, path: Path) -> xr.Dataset:
    """The fields as float32, rows south to north, with units and CF names; refuses what is not as it should be.

    Raises:
        DataError: Dimensions, level, units, times, grid or values are not those of the file that we know.
    """
    _check_level(dataset, path)
    _check_grid(dataset, path)
    fields = {}
    for name, variable in VARIABLES.items():
        array = dataset[name]
        if set(array.dims) != {"time", "latitude", "longitude"}:
            raise DataError(f"{path}: {name} has dimensions {array.dims}; time, latitude and longitude are needed")
        units = array.attrs.get("units", variable.units)
        if units != variable.units:
            raise DataError(f"{path}: {name} is in {units!r}, not in {variable.units!r}")
        array = array.transpose("time", "latitude", "longitude").astype(np.float32)
        _check_values(array, name, variable, path)
        array.attrs = {k: getattr(variable, k) for k in ("long_name", "standard_name", "units")}
        fields[name] = array.drop_encoding()
    result = xr.Dataset(fields).drop_vars("lev", errors="ignore").sortby("latitude")
    result = result.assign_coords({name: result[name].astype(np.float64) for name in ("latitude", "longitude")})
    return with_coordinate_attributes(result)


def _check_level(dataset: xr.Dataset, path: Path) -> None:
    if "lev" in dataset.coords and float(dataset["lev"]) != LEVEL:
        raise DataError(f"{path}: level is {float(dataset['lev']):g} K, not {LEVEL:g} K")


def _check_grid(dataset: xr.Dataset, path: Path) -> None:
    times = dataset["time"].values
    steps = np.diff(times)
    wrong = np.flatnonzero(steps != STEP)
    if wrong.size:
        first = int(wrong[0])
        raise DataError(
            f"{path}: {times[first + 1]} follows {times[first]}; frames must be exactly six hours apart, without a gap"
        )
    if times.size != sum(SPLIT_LENGTHS):
        raise DataError(f"{path}: has {times.size} time steps, not {sum(SPLIT_LENGTHS)}")
    latitude = dataset["latitude"].values
    if latitude.ndim != 1 or np.unique(np.diff(latitude)).size != 1 or np.abs(latitude).max() > 90:
        raise DataError(f"{path}: latitudes must be evenly spaced and lie within ±90 degrees")
    longitude = dataset["longitude"].values.astype(float)
    spacing = np.diff(longitude)
    if not np.allclose(spacing, spacing[0]) or not np.isclose(spacing[0] * longitude.size, 360):
        raise DataError(f"{path}: longitudes must go once around the globe in even steps")


def _check_values(array: xr.DataArray, name: str, variable: Variable, path: Path) -> None:
    missing = ~np.isfinite(array.values)
    if missing.any():
        step = int(np.flatnonzero(missing.any(axis=(1, 2)))[0])
        raise DataError(
            f"{path}: {name} holds {int(missing.sum())} values that are not finite, first at "
            f"{array['time'].values[step]}; none are allowed here"
        )
    largest = float(np.abs(array.values).max())
    if largest > variable.bound or largest < variable.bound / 1e4:
        raise DataError(f"{path}: {name} reaches {largest:g} in size, which cannot be in {variable.units}")


def with_coordinate_attributes(dataset: xr.Dataset) -> xr.Dataset:
    """CF names and units on latitude, longitude and time."""
    for name, units in (("latitude", "degrees_north"), ("longitude", "degrees_east")):
        dataset[name].attrs = {"standard_name": name, "units": units}
    dataset["time"].attrs = {"standard_name": "time"}
    for name in ("time", "latitude", "longitude"):
        dataset[name].encoding = {}
    return dataset


def block_mean(fields: xr.Dataset, side: int) -> xr.Dataset:
    """Means over blocks of `side` × `side` points, weighted with cos(latitude); rows that fill no block are dropped.

    Raises:
        ConfigError: The blocks do not fill the circle of longitudes.
    """
    n_rows, n_columns = fields.sizes["latitude"] // side, fields.sizes["longitude"] // side
    if n_columns * side != fields.sizes["longitude"]:
        raise ConfigError(f"{side} does not divide the {fields.sizes['longitude']} longitudes", key="data.coarsen")
    latitude = fields["latitude"].values[: n_rows * side].reshape(n_rows, side)
    longitude = fields["longitude"].values[: n_columns * side].reshape(n_columns, side)
    weights = np.cos(np.deg2rad(latitude))
    coordinates = {"time": fields["time"], "latitude": latitude.mean(axis=1), "longitude": longitude.mean(axis=1)}
    coarse = xr.Dataset(coords=coordinates)
    for name in VARIABLES:
        blocks = fields[name].values[:, : n_rows * side, : n_columns * side].reshape(-1, n_rows, side, n_columns, side)
        means = np.einsum("trsck,rs->trc", blocks, weights) / (weights.sum(axis=1)[:, None] * side)
        coarse[name] = (("time", "latitude", "longitude"), means.astype(np.float32), fields[name].attrs)
    return with_coordinate_attributes(coarse)


def split(n_steps: int) -> xr.DataArray:
    """Which part a step belongs to, by time alone: neighbours six hours apart are nearly copies."""
    codes = np.repeat(np.array([TRAIN, VALIDATION, TEST], dtype=np.int8), SPLIT_LENGTHS)[:n_steps]
    attributes = {"flag_values": list(_SPLIT_CODES.values()), "flag_meanings": " ".join(_SPLIT_CODES)}
    return xr.DataArray(codes, dims="time", attrs=attributes)


def statistics(fields: xr.Dataset) -> xr.Dataset:
    """What a forecast model needs to know of the climate, from the training steps only.

    For each variable: `base` (latitude), the mean over steps and longitudes; `std`, of the anomalies from the base;
    `damping` (lead), the regression slope of an anomaly on the one `lead` steps before; `residual_std` (lead), of what
    the slope leaves, in units of `std`. See `relent.data.statistics`.
    """
    train = fields["split"].values == TRAIN
    n_leads = int(train.sum()) - 1
    values = np.stack([fields[name].values for name in VARIABLES], axis=1)
    shift = values[train].mean(axis=(0, 2, 3), dtype=np.float64)
    found = finish(moments(values, shift, train, 0, n_leads), shift, fields["latitude"].values)
    leads = ("lead", np.arange(1, n_leads + 1), {"long_name": "lead, steps"})
    result = xr.Dataset(coords={"latitude": fields["latitude"], "lead": leads})
    for channel, (name, variable) in enumerate(VARIABLES.items()):
        units = {"units": variable.units}
        result[f"{name}_base"] = xr.DataArray(found["base"][channel], dims="latitude", attrs=units)
        result[f"{name}_std"] = xr.DataArray(found["std"][channel], attrs=units)
        for key in ("damping", "residual_std"):
            result[f"{name}_{key}"] = xr.DataArray(found[key][:, channel], dims="lead", attrs={"units": "1"})
    return result


def provenance(digest: str, coarsen: int) -> dict[str, str]:
    """Where the fields come from, as global attributes."""
    grid = "1 degree grid" if coarsen == 1 else f"1 degree grid averaged over blocks of {coarsen} x {coarsen} points"
    return {
        "Conventions": "CF-1.11",
        "title": "Potential vorticity and wind on the 340 K isentrope, 1959-06-03 to 1959-06-05",
        "source": f"{FILE} of the Python package {SOURCE} 0.3.8 (sha256 {digest}); {grid}",
        "reanalysis": "not named in the file; very probably ERA5",
        "licence": "MIT (package)",
        "notice": NOTICE,
        "variables": " ".join(VARIABLES),
        "step_hours": str(int(STEP / np.timedelta64(1, "h"))),
    }


def write(fields: xr.Dataset, store: Path) -> None:
    """Write the fields as zarr, chunked so that a tile with all its steps lies in few chunks."""
    chunks = (min(16, fields.sizes["time"]), min(45, fields.sizes["latitude"]), min(60, fields.sizes["longitude"]))
    encoding = {name: {"chunks": chunks} for name in VARIABLES}
    fields.to_zarr(store, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
