"""A small netCDF file with the layout of the 340 K fields: waves that travel along latitude circles, with noise."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from relent.data.isentropic import FILE, SOURCE, prepare
from relent.manifest.catalogue import Catalogue, Run
from relent.runspec import RunSpec

CONFIG = Path(__file__).parents[2] / "config"
N_LATITUDE, N_LONGITUDE, N_STEPS = 22, 32, 10


def atmosphere(seed: int = 0) -> xr.Dataset:
    """Ten six-hourly steps; each latitude circle moves by its own speed, with new small noise at every step."""
    generator = np.random.default_rng(seed)
    latitude = np.linspace(-84, 84, N_LATITUDE)
    longitude = -180 + np.arange(N_LONGITUDE) * 360 / N_LONGITUDE
    time = np.datetime64("1959-06-03T12", "ns") + np.arange(N_STEPS) * np.timedelta64(6, "h")
    phase = np.deg2rad(longitude)[None, None] - 0.35 * np.arange(N_STEPS)[:, None, None]
    jet = np.cos(np.deg2rad(latitude))[None, :, None]
    waves = [sum(jet * np.cos(k * phase + generator.uniform(0, 6.28)) for k in (1, 2, 3)) for _ in range(3)]
    noise = generator.normal(size=(3, N_STEPS, N_LATITUDE, N_LONGITUDE))
    base = {"PV": np.deg2rad(latitude), "U": 10 * np.cos(np.deg2rad(latitude)), "V": 0 * latitude}
    fields = {}
    for number, (name, zonal) in enumerate(base.items()):
        scale = 1.0 if name == "PV" else 10.0
        values = scale * (waves[number] + 0.15 * noise[number]) + zonal[None, :, None]
        fields[name] = (("time", "lat", "lon"), values.astype(np.float32))
    coordinates = {"time": time, "lat": latitude, "lon": longitude, "lev": ((), 340.0, {"units": "K"})}
    return xr.Dataset(fields, coords=coordinates)


def write_source(folder: Path, dataset: xr.Dataset) -> dict[str, Path]:
    """Write the file as the fetch rule would; returns the sources of `prepare`."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset.to_netcdf(folder / FILE)
    return {SOURCE: folder}


def prepared(root: Path, dataset: xr.Dataset | None = None) -> Path:
    """Prepare a data set under `root`; returns its folder."""
    sources = write_source(root / "source", atmosphere() if dataset is None else dataset)
    prepare(sources, root / "data", {"coarsen": 1, "tile": 16})
    return root / "data"


@cache
def own_catalogue() -> Catalogue:
    """The project's own manifests, read once."""
    return Catalogue.load(CONFIG)


def run_spec(method: str, data: Path, output: Path, seed: int = 0, **changes: Any) -> RunSpec:
    """A run of the real manifests at smoke scale on a prepared data set; `changes` are hyperparameters."""
    spec = own_catalogue().stage_spec(Run("weather_isentropic", method, "default", "smoke", seed))
    return replace(spec, inputs={"data": str(data)}, output=str(output), hyperparameters=spec.hyperparameters | changes)
