"""The truth that a forecast is held against, read frame by frame on the forecast's grid, and its climatology."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from relent.data.tiles import Fields, read_fields
from relent.errors import DataError
from relent.grid import Topology
from relent.verify.layout import as_truth, conversion, grid_indices, matched, open_dataset

FEWEST_STEPS = 50
"""Training steps from which percentiles are taken at each grid point; with fewer they are pooled along each row."""
BAND_BYTES, CLIMATE_BYTES = 2**28, 2**30
"""What is read at once for percentiles, and what the training steps of a prepared data set may take."""


@dataclass(frozen=True)
class Climatology:
    """Of one field: its mean (H, W) and percentiles (H, W) by number, how many steps they come from, and how."""

    mean: np.ndarray
    percentiles: dict[float, np.ndarray]
    steps: int
    pooled: bool


def percentiles_of(values: np.ndarray, numbers: tuple[float, ...], pooled: bool) -> np.ndarray:
    """Percentiles (P, h, W) of fields (T, h, W): at each point, or of all points of a row."""
    cut = np.nanpercentile(values, numbers, axis=(0, 2) if pooled else 0)
    return np.broadcast_to(cut[..., None], (*cut.shape, values.shape[-1])) if pooled else cut


class Truth(ABC):
    """True fields by valid time. `pairs` names the truth's variable of each forecast variable."""

    pairs: dict[str, str]
    time: np.ndarray
    """Times at which the truth is known, ascending."""
    training: np.ndarray
    """Positions in `time` of the steps that the climatology is made of; may be empty."""
    topology: Topology
    source: str
    checksum: str = ""

    @abstractmethod
    def read(self, variable: str, level: float | None, steps: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """Fields (n, rows, W) of a forecast variable at positions of `time`, in the forecast's units, on its grid."""

    def climatology(
        self, variable: str, level: float | None, shape: tuple[int, int], numbers: tuple[float, ...]
    ) -> Climatology:
        """Mean and percentiles of the training steps, in bands of rows that fit into memory.

        With fewer than `FEWEST_STEPS` steps the percentiles are those of all points of a row: a percentile of a handful
        of values is none.
        """
        steps = self.training
        pooled = len(steps) < FEWEST_STEPS
        band = max(1, BAND_BYTES // max(1, len(steps) * shape[1] * 4))
        means, found = [], []
        for start in range(0, shape[0], band):
            values = self.read(variable, level, steps, slice(start, start + band)).astype(np.float64)
            means.append(np.nanmean(values, axis=0))
            found.append(percentiles_of(values, numbers, pooled))
        percentiles = np.concatenate(found, axis=1)
        return Climatology(np.concatenate(means), dict(zip(numbers, percentiles)), len(steps), pooled)

    def positions(self, init_time: np.ndarray, lead_time: np.ndarray) -> np.ndarray:
        """Positions in `time` of initial times + leads, (I, L); −1 where the truth is not known."""
        wanted = init_time[:, None].astype("datetime64[ns]") + lead_time[None]
        if not len(self.time):
            return np.full(wanted.shape, -1)
        found = np.searchsorted(self.time, wanted).clip(max=len(self.time) - 1)
        return np.where(self.time[found] == wanted, found, -1)


class FieldsTruth(Truth):
    """A prepared data set of this project; its training split is the climatology.

    A frame of such a data set is read with all its variables. Percentiles come from as many training steps, spread
    evenly, as `CLIMATE_BYTES` hold, read once for all variables; anomalies are from the data set's base state.
    """

    def __init__(self, fields: Fields, forecast: xr.Dataset, chosen: dict[str, str] | None = None):
        self.fields = fields
        grid = xr.Dataset(
            {
                name: (
                    ("time", "latitude", "longitude"),
                    np.empty((0, *fields.shape), np.float32),
                    fields.attributes[name],
                )
                for name in fields.variables
            }
        )
        pairs = matched(forecast, grid, chosen)
        self.pairs = dict(sorted(pairs.items(), key=lambda pair: fields.variables.index(pair[1])))
        self.rows = grid_indices(forecast["latitude"].values, fields.latitude, "latitude")
        self.columns = grid_indices(forecast["longitude"].values, fields.longitude, "longitude")
        self._scaling(forecast, fields)
        known = np.flatnonzero(fields.usable)
        order = known[np.argsort(fields.time[known], kind="stable")]
        self.steps, self.time = order, fields.time[order].astype("datetime64[ns]")
        self.training = np.flatnonzero(np.isin(order, fields.splits["train"]))
        self._frames: dict[int, np.ndarray] = {}
        self._frame_bytes = 4 * len(fields.variables) * len(self.rows) * len(self.columns)
        self._most_frames = max(8, BAND_BYTES // self._frame_bytes)
        whole = len(self.rows) == fields.shape[0], len(self.columns) == fields.shape[1]
        self.topology = fields.topology.of_tile(all_rows=whole[0], all_columns=whole[1])
        self.source, self.checksum = f"data set {fields.checksum}", fields.checksum

    def positions(self, init_time: np.ndarray, lead_time: np.ndarray) -> np.ndarray:
        """As of any truth; a forecast has none beyond the end of its trajectory, where another one begins."""
        found = super().positions(init_time, lead_time)
        starts = np.searchsorted(self.fields.time, init_time).clip(max=len(self.fields.time) - 1)
        own = self.fields.trajectory[starts][:, None]
        return np.where(self.fields.trajectory[self.steps[found]] == own, found, -1)

    def _scaling(self, forecast: xr.Dataset, fields: Fields) -> None:
        self.scaling = {
            name: conversion(fields.attributes[partner].get("units", ""), forecast[name].attrs.get("units", ""), name)
            for name, partner in self.pairs.items()
        }

    def read(self, variable: str, level: float | None, steps: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        if not len(steps):
            return np.empty((0, len(self.rows[rows]), len(self.columns)), np.float32)
        return self._physical(variable, np.stack([self._frame(int(step)) for step in steps]))[:, rows]

    def _physical(self, variable: str, anomalies: np.ndarray) -> np.ndarray:
        """One variable (n, H, W) in the forecast's units, of standardised anomalies (n, C, H, W)."""
        fields, channel = self.fields, self.fields.variables.index(self.pairs[variable])
        factor, offset = self.scaling[variable]
        values: np.ndarray = anomalies[:, channel] * float(fields.std[channel]) + self._base(channel)
        return values if (factor, offset) == (1, 0) else values * factor + offset

    def _base(self, channel: int) -> np.ndarray:
        base = self.fields.base[channel].numpy()[self.rows]
        chosen: np.ndarray = base[:, self.columns] if base.ndim == 2 else np.repeat(base[:, None], len(self.columns), 1)
        return chosen

    def _frame(self, step: int) -> np.ndarray:
        """Standardised anomalies (C, H, W) of a position in `time`; the last ones are kept for the next variable."""
        frame = self._frames.get(step)
        if frame is None:
            if len(self._frames) >= self._most_frames:
                self._frames.clear()
            rows, columns = torch.from_numpy(self.rows), torch.from_numpy(self.columns)
            frame = self._frames[step] = self.fields.frames(int(self.steps[step]), 1, rows, columns)[0].numpy()
        return frame

    @cached_property
    def _training_frames(self) -> np.ndarray:
        count = min(len(self.training), max(2, CLIMATE_BYTES // self._frame_bytes))
        chosen = self.training[np.unique(np.linspace(0, len(self.training) - 1, count).round().astype(int))]
        return np.stack([self._frame(int(step)) for step in chosen])

    def climatology(
        self, variable: str, level: float | None, shape: tuple[int, int], numbers: tuple[float, ...]
    ) -> Climatology:
        """Base state, and percentiles of training steps; with few of them those of all points of a row."""
        values = self._physical(variable, self._training_frames)
        pooled = len(values) < FEWEST_STEPS
        found = percentiles_of(values, numbers, pooled)
        factor, offset = self.scaling[variable]
        mean = self._base(self.fields.variables.index(self.pairs[variable])) * factor + offset
        return Climatology(mean, dict(zip(numbers, found)), len(values), pooled)


class DatasetTruth(Truth):
    """Any analysis in zarr, netCDF or GRIB; its climatology is that of another such data set, or none.

    Args:
        path: The store or file.
        forecast: In our layout; its grid must be part of the truth's.
        chosen: Forecast variable → truth variable; None: all that match.
        period: First and last time of the climatology, in the truth itself.
    """

    def __init__(
        self,
        path: Path | str,
        forecast: xr.Dataset,
        chosen: dict[str, str] | None = None,
        period: tuple[str, str] | None = None,
    ):
        truth = as_truth(open_dataset(path), str(path)).sortby("time")
        # Stores without consolidated metadata list their variables in any order.
        self.pairs = dict(sorted(matched(forecast, truth, chosen).items()))
        rows = grid_indices(forecast["latitude"].values, truth["latitude"].values, "latitude")
        columns = grid_indices(forecast["longitude"].values, truth["longitude"].values, "longitude")
        self.rows, self.columns, self.truth = rows, columns, truth
        self.scaling = {
            name: conversion(truth[partner].attrs.get("units", ""), forecast[name].attrs.get("units", ""), name)
            for name, partner in self.pairs.items()
        }
        self.time = truth["time"].values.astype("datetime64[ns]")
        self.training = np.empty(0, int)
        if period is not None:
            inside = truth.indexes["time"].slice_indexer(*period)  # a date stands for its whole day
            self.training = np.arange(len(self.time))[inside]
            if not len(self.training):
                raise DataError(f"{path}: has no time from {period[0]} to {period[1]} for the climatology")
        longitude = forecast["longitude"].values
        around = len(longitude) > 2 and np.isclose(abs(longitude[1] - longitude[0]) * len(longitude), 360)
        self.topology, self.source = Topology.globe if around else Topology.regional, str(path)

    def read(self, variable: str, level: float | None, steps: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        field = self.truth[self.pairs[variable]]
        if "level" in field.coords:
            field = self._at_level(field, variable, level)
        factor, offset = self.scaling[variable]
        if not len(steps):
            return np.empty((0, len(self.rows[rows]), len(self.columns)), np.float32)
        # A slice of time first: stores are read by it, and frames of one reading lie close together.
        low, high = int(steps.min()), int(steps.max()) + 1
        near = high - low <= 2 * len(steps)
        frames = field.isel(time=slice(low, high)).values[steps - low] if near else field.isel(time=steps).values
        values: np.ndarray = frames[:, self.rows[rows]][:, :, self.columns]
        return values if (factor, offset) == (1, 0) else values * factor + offset

    def _at_level(self, field: xr.DataArray, variable: str, level: float | None) -> xr.DataArray:
        levels = np.atleast_1d(field["level"].values).astype(float)
        field = field if "level" in field.dims else field.expand_dims("level")
        if level is None and len(levels) == 1:
            return field.isel(level=0)
        if level is None or not np.isclose(levels, level).any():
            raise DataError(f"{variable}: the truth has the levels {', '.join(f'{v:g}' for v in levels)}, not {level}")
        return field.isel(level=int(np.abs(levels - level).argmin()))


def open_truth(
    path: Path | str,
    forecast: xr.Dataset,
    chosen: dict[str, str] | None = None,
    period: tuple[str, str] | None = None,
) -> Truth:
    """A prepared data set of this project (a folder with `dataset.zarr`), or any store or file.

    Raises:
        DataError: It cannot be read, or does not fit the forecast.
    """
    folder = Path(path)
    if (folder / "dataset.zarr").is_dir():
        return FieldsTruth(read_fields(folder), forecast, chosen)
    return DatasetTruth(path, forecast, chosen, period)
