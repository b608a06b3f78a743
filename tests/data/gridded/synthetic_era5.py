"""Small stores as others lay them out: ERA5 of WeatherBench 2, `anemoi-datasets`, netCDF; moving waves, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

LEVELS = (500, 850)
N_STEPS, N_LATITUDE, N_LONGITUDE = 40, 19, 36
BEGIN = np.datetime64("2020-01-01T00", "s")
SPLITS = {
    "train": ["2020-01-01", "2020-01-06"],
    "validation": ["2020-01-07", "2020-01-07"],
    "test": ["2020-01-08", "2020-01-10"],
}


def era5(n_steps: int = N_STEPS, seed: int = 0, hours: int = 6) -> xr.Dataset:
    """Waves along latitude circles with noise; dims and names of WeatherBench 2, rows from north to south."""
    generator = np.random.default_rng(seed)
    latitude = np.linspace(90, -90, N_LATITUDE)
    longitude = np.arange(N_LONGITUDE) * 10.0
    time = BEGIN + np.arange(n_steps) * np.timedelta64(3600 * hours, "s")
    phase = np.deg2rad(longitude) - 0.3 * np.arange(n_steps)[:, None, None]
    wave = np.cos(np.deg2rad(latitude))[:, None] * np.cos(2 * phase + 0.4)

    def field(mean: float, size: float) -> np.ndarray:
        return (mean + size * (wave + 0.2 * generator.normal(size=wave.shape))).astype(np.float32)

    geopotential = np.stack([field(54000, 1500), field(14000, 800)], axis=1)
    sst = field(290, 8)
    sst[:, :, 10:16] = np.nan
    grid = ("time", "latitude", "longitude")
    land = (np.isnan(sst[0])).astype(np.float32)
    return xr.Dataset(
        {
            "2m_temperature": (grid, field(280, 15), {"units": "K", "long_name": "2 metre temperature"}),
            "10m_u_component_of_wind": (grid, field(0, 8), {"units": "m s**-1"}),
            "geopotential": (("time", "level", "latitude", "longitude"), geopotential, {"units": "m**2 s**-2"}),
            "sea_surface_temperature": (grid, sst, {"units": "K"}),
            "total_precipitation": (grid, np.abs(field(0, 0.002)), {"units": "m"}),
            "land_sea_mask": (("latitude", "longitude"), land, {"units": "(0 - 1)"}),
        },
        coords={
            "time": time.astype("datetime64[ns]"),
            "latitude": latitude,
            "longitude": longitude,
            "level": list(LEVELS),
        },
        attrs={"license": "CC-BY-4.0"},
    )


def write_era5(path: Path | str, dataset: xr.Dataset | None = None, zarr_format: int = 2, **options: Any) -> str:
    """Write a store as WeatherBench 2 does, one step a chunk."""
    dataset = era5() if dataset is None else dataset
    for name in dataset.variables:
        dataset[name].encoding = {}
    chunked = dataset.chunk({"time": 8}) if "time" in dataset.dims else dataset
    chunked.to_zarr(path, mode="w", zarr_format=zarr_format, consolidated=zarr_format == 2, **options)
    return str(path)


def write_anemoi(path: Path, dataset: xr.Dataset | None = None, missing: list[str] | None = None) -> str:
    """Write a store as `anemoi-datasets` does: data (time, variable, ensemble, cell), zarr format 2."""
    dataset = era5() if dataset is None else dataset
    channels = {
        "2t": dataset["2m_temperature"],
        "10u": dataset["10m_u_component_of_wind"],
        **{f"z_{level}": dataset["geopotential"].sel(level=level) for level in LEVELS},
    }
    data = np.stack([array.values.reshape(len(dataset.time), -1) for array in channels.values()], axis=1)[:, :, None]
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("data", data=data, chunks=(1, *data.shape[1:]))
    group.create_array("dates", data=dataset["time"].values.astype("datetime64[s]"))
    mesh = np.meshgrid(dataset["latitude"].values, dataset["longitude"].values, indexing="ij")
    group.create_array("latitudes", data=mesh[0].ravel())
    group.create_array("longitudes", data=mesh[1].ravel())
    group.attrs.update({"variables": list(channels), "frequency": "6h", "missing_dates": missing or []})
    return str(path)


def source(store: str, **changes: Any) -> dict[str, Any]:
    """Options of a data manifest at a small size."""
    settings: dict[str, Any] = {
        "store": store,
        "variables": [
            "2m_temperature",
            "10m_u_component_of_wind",
            {"name": "geopotential", "levels": list(LEVELS)},
        ],
        "splits": SPLITS,
        "core": 8,
        "block_mb": 0.1,
    }
    return settings | changes


def options(store: str, coarsen: int = 1, tile: int = 8, **changes: Any) -> dict[str, Any]:
    """`data` of a task at a scale."""
    return {"tile": tile, "coarsen": coarsen, "source": source(store, **changes)}
