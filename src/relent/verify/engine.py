"""Runs a verification: reads a forecast block by block on dask, and adds up totals by initial time, lead and region.

A block is a few leads of one initial time, all members, the whole map; what a worker holds is that block and, of one
band of rows at a time, the statistics' own arrays. Memory does not grow with the length of the forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import xarray as xr

from relent.errors import DataError
from relent.scores.streaming import Totals
from relent.verify.statistics import Entry, entries, is_scalar, spectra, wavenumbers
from relent.verify.truth import Climatology, Truth

BLOCK_BYTES = 2**24
"""Leads of a block are so many that its members take about this much, one at least."""
BAND_BYTES = 2**23
"""Members of one band of rows in float64: small enough for the statistics' arrays to stay in the processor's cache."""


FEWEST_POINTS = 4
"""Points a side below which a map has no spectrum."""


@dataclass
class FieldScores:
    """Totals of one field (a variable at a level).

    `by_init`: of each score that is one number, totals (I, L, R) over initial times, leads and regions, and `gaps`, the
    weight of points where a member is missing but the truth is not. `pooled`: of ranks and event tables (L, R, X), and
    of `spectra` (L, K), over all initial times.
    """

    variable: str
    level: float | None
    units: str
    long_name: str
    entries: list[Entry]
    by_init: dict[str, Totals]
    pooled: dict[str, Totals]
    climate: Climatology | None
    scale: float = float("nan")
    """Standard deviation by which scores of several fields are made comparable; NaN where none is known."""

    @property
    def name(self) -> str:
        """Variable and level, such as `geopotential 500`."""
        return self.variable if self.level is None else f"{self.variable} {self.level:g}"

    def cases(self) -> np.ndarray:
        """(L, R): initial times that count."""
        known: np.ndarray = (self.by_init["crps"].weights["crps"] > 0).sum(0)
        return known


@dataclass
class Verification:
    """All fields of one forecast, with what their numbers stand on."""

    fields: list[FieldScores]
    regions: dict[str, np.ndarray]
    init_time: np.ndarray
    lead_time: np.ndarray
    members: int
    wavenumber: np.ndarray
    wavenumber_unit: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def lead_hours(self) -> np.ndarray:
        """Leads in hours."""
        hours: np.ndarray = self.lead_time / np.timedelta64(1, "h")
        return hours


def verify(
    forecast: xr.Dataset,
    truth: Truth,
    regions: dict[str, np.ndarray],
    *,
    percentiles: Sequence[float] = (90, 95, 98),
    settings: dict[str, Any] | None = None,
) -> Verification:
    """Score every field of a forecast that the truth knows.

    Args:
        forecast: In our layout (`relent.verify.layout.as_forecast`), lazy.
        truth: What is verified against; its `pairs` say which variables.
        regions: Weights (H, W) by name.
        percentiles: Of the truth's training steps, as thresholds of events.
        settings: What is said beside the numbers.

    Raises:
        DataError: No pair of initial time and lead has a truth, or a field holds no valid point.
    """
    latitude, longitude = forecast["latitude"].values, forecast["longitude"].values
    starts, leads = forecast["init_time"].values, forecast["lead_time"].values
    positions = truth.positions(starts, leads)
    if not (positions >= 0).any():
        raise DataError(
            f"no forecast has a truth: forecasts are valid from {starts.min() + leads.min()} to "
            f"{starts.max() + leads.max()}, {truth.source} knows {len(truth.time)} times"
            + (f" from {truth.time[0]} to {truth.time[-1]}" if len(truth.time) else "")
        )
    known = (positions >= 0).any(axis=1)
    forecast, positions = forecast.isel(init_time=np.flatnonzero(known)), positions[known]
    with_spectra = min(len(latitude), len(longitude)) >= FEWEST_POINTS
    numbers, unit = wavenumbers(latitude, longitude, truth.topology) if with_spectra else (np.empty(0), "")
    found = []
    for variable in truth.pairs:
        array = forecast[variable]
        levels = [float(v) for v in np.atleast_1d(array["level"].values)] if "level" in array.coords else [None]
        for level in levels:
            chosen = array.sel(level=level) if "level" in array.dims else array
            found.append(_field(chosen, truth, level, regions, positions, tuple(percentiles), with_spectra))
    times = forecast["init_time"].values, forecast["lead_time"].values
    return Verification(found, regions, *times, forecast.sizes["member"], numbers, unit, settings or {})


def _field(
    array: xr.DataArray,
    truth: Truth,
    level: float | None,
    regions: dict[str, np.ndarray],
    positions: np.ndarray,
    percentiles: tuple[float, ...],
    with_spectra: bool,
) -> FieldScores:
    variable = str(array.name)
    shape = (array.sizes["latitude"], array.sizes["longitude"])
    climate = truth.climatology(variable, level, shape, percentiles) if len(truth.training) else None
    worker = _Worker(
        truth,
        variable,
        level,
        entries(array.sizes["member"], climate),
        np.stack(list(regions.values())),
        (array["latitude"].values, array["longitude"].values) if with_spectra else None,
    )
    by_init, pooled = _over_blocks(array, positions, worker)
    if not by_init["crps"].weights["crps"].any():
        raise DataError(f"{variable}: no point of any forecast is known together with its truth; is the store whole?")
    attributes = array.attrs
    return FieldScores(
        variable,
        level,
        str(attributes.get("units", "")),
        str(attributes.get("long_name", variable)),
        worker.entries,
        by_init,
        pooled,
        climate,
    )


@dataclass(frozen=True)
class _Worker:
    """Totals of blocks of one field."""

    truth: Truth
    variable: str
    level: float | None
    entries: list[Entry]
    weights: np.ndarray
    """(R, H, W)."""
    grid: tuple[np.ndarray, np.ndarray] | None
    """Latitude and longitude, where spectra are asked for."""

    def block(self, members: np.ndarray, positions: np.ndarray) -> list[list[dict[str, Totals]]]:
        """Totals of each pair of a block: members (I, L, M, H, W), positions (I, L) in the truth, −1 for none."""
        wanted = np.unique(positions[positions >= 0])
        frames = dict(zip(wanted.tolist(), self.truth.read(self.variable, self.level, wanted)))
        unknown = np.full(members.shape[3:], np.nan, np.float32)
        return [
            [self.pair(ensemble, frames.get(int(position), unknown)) for ensemble, position in zip(*row)]
            for row in zip(members, positions)
        ]

    def pair(self, members: np.ndarray, truth: np.ndarray) -> dict[str, Totals]:
        """Totals of one map, (M, H, W) and (H, W): a point counts where all members and the truth are known."""
        height = max(1, BAND_BYTES // (8 * len(members) * members.shape[2]))
        bands = [slice(start, start + height) for start in range(0, members.shape[1], height)]
        parts = [self._band(members[:, rows], truth[rows], rows) for rows in bands]
        totals = {name: reduce(Totals.__add__, (part[name] for part in parts)) for name in parts[0]}
        if self.grid is not None:
            totals["spectra"] = spectra(members, truth, *self.grid, self.truth.topology)
        return totals

    def _band(self, members: np.ndarray, truth: np.ndarray, rows: slice) -> dict[str, Totals]:
        missing = np.isnan(members).any(0)
        unknown = np.isnan(truth) | missing
        weights = np.where(unknown, 0.0, self.weights[:, rows])
        gaps = (self.weights[:, rows] * (missing & ~np.isnan(truth))).sum((1, 2))
        members, truth = (np.where(unknown, 0, values).astype(np.float64) for values in (members, truth))
        shifted: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        found = {"gaps": Totals({"gaps": gaps}, {"gaps": self.weights[:, rows].sum((1, 2))})}
        for entry in self.entries:
            pair = (members, truth)
            if entry.reference is not None:
                key = (id(entry.reference), entry.sign)
                if key not in shifted:
                    reference = np.where(unknown, 0, entry.reference[rows])
                    shifted[key] = (entry.sign * (members - reference), entry.sign * (truth - reference))
                pair = shifted[key]
            found[entry.name] = entry.statistic.region_totals(*pair, weights)
        return found


def _over_blocks(
    array: xr.DataArray, positions: np.ndarray, worker: _Worker
) -> tuple[dict[str, Totals], dict[str, Totals]]:
    """Totals over all blocks, one dask task each: by initial time and lead, and pooled over initial times."""
    from dask.base import compute
    from dask.delayed import delayed

    array = array.transpose("init_time", "lead_time", "member", "latitude", "longitude")
    bytes_of_lead = 4 * array.sizes["member"] * array.sizes["latitude"] * array.sizes["longitude"]
    n_leads = min(array.sizes["lead_time"], max(1, BLOCK_BYTES // bytes_of_lead))
    chunked = array.chunk({"init_time": 1, "lead_time": n_leads, "member": -1, "latitude": -1, "longitude": -1})
    scalar = frozenset(["gaps", *(entry.name for entry in worker.entries if is_scalar(entry))])
    rows = []
    for known, row in zip(positions, chunked.data.to_delayed()[:, :, 0, 0, 0]):
        places = [known[None, start : start + n_leads] for start in range(0, len(known), n_leads)]
        # A block none of whose pairs has a truth is not read.
        blocks = [
            delayed(worker.block, pure=False)(block, place) if (place >= 0).any() else place.size
            for place, block in zip(places, row)
        ]
        rows.append(delayed(_row, pure=False)(blocks, scalar))
    while len(rows) > 1:
        rows = [delayed(_join, pure=False)(rows[start : start + 16], scalar) for start in range(0, len(rows), 16)]
    (computed,) = compute(rows[0])
    return {k: v for k, v in computed.items() if k in scalar}, {k: v for k, v in computed.items() if k not in scalar}


def _row(blocks: list[list[list[dict[str, Totals]]] | int], scalar: frozenset[str]) -> dict[str, Totals]:
    """Totals of one initial time, (1, L, …), of pooled ones (L, …). A number stands for leads without a truth."""
    example = next(block for block in blocks if not isinstance(block, int))[0][0]
    empty = {
        name: Totals(*({k: np.zeros_like(v) for k, v in part.items()} for part in (total.sums, total.weights)))
        for name, total in example.items()
    }
    pairs = [pair for block in blocks for pair in ([empty] * block if isinstance(block, int) else block[0])]

    def stacked(name: str, part: str, term: str) -> np.ndarray:
        values = np.stack([getattr(pair[name], part)[term] for pair in pairs])
        return values[None] if name in scalar else values

    return {
        name: Totals(*({term: stacked(name, part, term) for term in total.sums} for part in ("sums", "weights")))
        for name, total in example.items()
    }


def _join(rows: list[dict[str, Totals]], scalar: frozenset[str]) -> dict[str, Totals]:
    """Totals of several initial times: side by side, or added where they are pooled."""

    def side_by_side(name: str, part: str) -> dict[str, np.ndarray]:
        return {term: np.concatenate([getattr(row[name], part)[term] for row in rows]) for term in rows[0][name].sums}

    return {
        name: Totals(side_by_side(name, "sums"), side_by_side(name, "weights"))
        if name in scalar
        else reduce(Totals.__add__, (row[name] for row in rows))
        for name in rows[0]
    }
