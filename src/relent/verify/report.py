"""From totals to tables: scores with block-bootstrap intervals, and the files of a verification."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from relent.errors import DataError
from relent.files import whole, write_json
from relent.scores.resampling import (
    FEWEST,
    block_counts,
    interval_block_length,
    replicate_interval,
    replicates,
)
from relent.scores.streaming import Totals
from relent.verify.engine import FieldScores, Verification
from relent.verify.statistics import Entry, entries, is_scalar

Row = dict[str, Any]
RESAMPLES = 1999
MOST_WAVENUMBERS = 60
SEED = 20240519


@dataclass(frozen=True)
class Resampling:
    """How intervals are made."""

    confidence: float = 0.95
    resamples: int = RESAMPLES
    block_length: float | None = None
    """Mean length of a block in initial times; None: estimated from the CRPS of each lead."""


def block_length(fields: list[FieldScores], lead: int, given: float | None) -> float:
    """Mean block length of one lead, in initial times: the longest that any field's CRPS asks for.

    One length for all fields, so that they are resampled alike (`relent.scores.resampling.interval_block_length`).
    """
    series = [_series(field, lead) for field in fields]
    n = min(len(values) for values in series)
    if given is not None:
        return float(np.clip(given, 1, max(1, n)))
    return max(interval_block_length(values) if len(values) else 1.0 for values in series)


def _series(field: FieldScores, lead: int) -> np.ndarray:
    totals = field.by_init["crps"]
    weights = totals.weights["crps"][:, lead, 0]
    known = weights > 0
    values: np.ndarray = totals.sums["crps"][known, lead, 0] / weights[known]
    return values


def at_lead(totals: Totals, lead: int, known: np.ndarray) -> Totals:
    """Totals (n, R) of one lead, of the initial times that count."""
    return Totals(
        {name: value[known, lead] for name, value in totals.sums.items()},
        {name: value[known, lead] for name, value in totals.weights.items()},
    )


def summed(totals: Totals) -> Totals:
    """Totals over the first dimension."""
    return Totals(
        {name: value.sum(0) for name, value in totals.sums.items()},
        {name: value.sum(0) for name, value in totals.weights.items()},
    )


def score_rows(verification: Verification, how: Resampling | None) -> list[Row]:
    """One row a field, region, lead and score, with its interval.

    Args:
        verification: Totals.
        how: None: no intervals.
    """
    rows = []
    for lead, hours in enumerate(verification.lead_hours):
        length = block_length(verification.fields, lead, how.block_length) if how else None
        for field in verification.fields:
            rows += list(_rows(verification, field, lead, float(hours), how, length))
    return rows


def _rows(
    verification: Verification,
    field: FieldScores,
    lead: int,
    hours: float,
    how: Resampling | None,
    length: float | None,
) -> Iterator[Row]:
    known: np.ndarray = np.asarray(field.by_init["crps"].weights["crps"][:, lead].any(axis=1))
    n = int(known.sum())
    if not n:
        return
    counts = None
    if how is not None and length is not None and n >= FEWEST:
        counts = block_counts(n, min(length, n), how.resamples, seed=SEED)
    areas = np.array([weights.sum() for weights in verification.regions.values()])
    for entry in field.entries:
        if not is_scalar(entry):
            continue
        totals = at_lead(field.by_init[entry.name], lead, known)
        values = np.atleast_1d(entry.statistic.final(summed(totals).means()))
        draws = None if counts is None else replicates(totals, counts, entry.statistic.final)
        weight = next(iter(summed(totals).weights.values()))
        for r, region in enumerate(verification.regions):
            interval = None
            if draws is not None and how is not None and length is not None:
                interval = replicate_interval(values[r], draws[:, r], n, min(length, n), how.confidence)
            finite = interval is not None and np.isfinite(interval.low)
            yield {
                "variable": field.variable,
                "level": field.level,
                "units": field.units,
                "region": region,
                "lead_hours": hours,
                "score": entry.name,
                "value": _number(values[r]),
                "low": interval.low if interval is not None and finite else None,
                "high": interval.high if interval is not None and finite else None,
                "cases": n,
                "coverage": round(float(weight[r] / (n * areas[r])), 6),
                "block_length": None if length is None or counts is None else round(length, 2),
            }


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def rank_rows(verification: Verification, leads: Sequence[int] | None = None) -> list[Row]:
    """Frequency of each rank in the first region, one row a field, lead and rank; `leads` are positions, None: all."""
    rows = []
    for field, lead, hours in _fields_and_leads(verification, leads):
        if "ranks" in field.pooled:
            frequencies = _at(field.pooled["ranks"], "share", (lead, 0))
            rows += [
                {"variable": field.name, "lead_hours": hours, "rank": rank, "frequency": float(value)}
                for rank, value in enumerate(frequencies)
                if np.isfinite(value)
            ]
    return rows


def reliability_rows(verification: Verification, leads: Sequence[int] | None = None) -> list[Row]:
    """Observed frequency of each event by the number of members that foresee it: an exact reliability diagram."""
    rows = []
    for field, lead, hours in _fields_and_leads(verification, leads):
        for name in (name for name in field.pooled if name.startswith("events_")):
            without, with_event = np.split(_at(field.pooled[name], "share", (lead, 0)), 2)
            rows += [
                {
                    "variable": field.name,
                    "lead_hours": hours,
                    "event": name.removeprefix("events_"),
                    "probability": count / verification.members,
                    "frequency": float(yes / (no + yes)),
                    "share": float(no + yes),
                }
                for count, (no, yes) in enumerate(zip(without, with_event))
                if no + yes > 0
            ]
    return rows


def spectrum_rows(verification: Verification, leads: Sequence[int] | None = None) -> list[Row]:
    """Power of members, ensemble mean and truth by wavenumber; of many wavenumbers those evenly spaced in logarithm."""
    count = len(verification.wavenumber)
    chosen = np.unique(np.geomspace(1, max(1, count - 1), MOST_WAVENUMBERS).round().astype(int))
    rows = []
    for field, lead, hours in _fields_and_leads(verification, leads):
        if "spectra" not in field.pooled:
            continue
        power = {kind: _at(field.pooled["spectra"], kind, (lead,)) for kind in ("member", "mean", "truth")}
        rows += [
            {"variable": field.name, "lead_hours": hours, "wavenumber": float(verification.wavenumber[k])}
            | {kind: float(values[k]) for kind, values in power.items()}
            for k in chosen
            if np.isfinite(power["truth"]).all()
        ]
    return rows


def _fields_and_leads(
    verification: Verification, leads: Sequence[int] | None
) -> Iterator[tuple[FieldScores, int, float]]:
    hours = verification.lead_hours
    for field in verification.fields:
        for lead in range(len(hours)) if leads is None else leads:
            yield field, lead, float(hours[lead])


def _at(totals: Totals, term: str, index: tuple[int, ...]) -> np.ndarray:
    """Means of one term at an index; NaN where nothing counted."""
    values: np.ndarray = totals.means()[term][index]
    return values


def write(verification: Verification, folder: Path, how: Resampling) -> list[Row]:
    """Write `scores.csv`, `scores.json` (settings and tables) and `totals.zarr` into a folder; returns the scores.

    The totals let two verifications be compared later, case by case (`relent scorecard`).
    """
    rows = score_rows(verification, how)
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "scores.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    settings = verification.settings | {
        "intervals": f"{how.confidence:.0%}, stationary block bootstrap over initial times, {how.resamples} "
        f"replicates; none below {FEWEST} initial times",
        "wavenumber": verification.wavenumber_unit,
    }
    tables = {
        "ranks": rank_rows(verification),
        "reliability": reliability_rows(verification),
        "spectra": spectrum_rows(verification),
    }
    write_json(folder / "scores.json", {"settings": settings, "scores": rows, **tables})
    with whole(folder / "totals.zarr") as temporary:
        totals_dataset(verification).to_zarr(temporary, mode="w", zarr_format=3, consolidated=False)
    return rows


# ------------------------------------------------------------------------------------------------ totals on disk

_TOTALS_DIMS = ("field", "init_time", "lead_time", "region")


def totals_dataset(verification: Verification) -> xr.Dataset:
    """Sums and weights of every score that is one number, by field, initial time, lead and region."""
    fields = verification.fields
    variables = {}
    for entry in fields[0].entries:
        if not is_scalar(entry):
            continue
        for term in fields[0].by_init[entry.name].sums:
            for kind in ("sums", "weights"):
                stacked = np.stack([getattr(f.by_init[entry.name], kind)[term] for f in fields])
                variables[f"{entry.name}.{term}.{kind}"] = (_TOTALS_DIMS, stacked)
    events = [e.name.removeprefix("events_") for e in fields[0].entries if e.name.startswith("events_")]
    about = {
        "members": verification.members,
        "settings": json.dumps(verification.settings),
        "events": json.dumps(events),
        "fields": json.dumps([[f.variable, f.level, f.units, f.long_name] for f in fields]),
        # Names as text, not as arrays: zarr's version 3 has no specified type for them yet.
        "regions": json.dumps({name: float(weights.sum()) for name, weights in verification.regions.items()}),
    }
    coordinates = {"init_time": verification.init_time, "lead_time": verification.lead_time}
    return xr.Dataset(variables, coordinates, about)


def read(folder: Path | str) -> Verification:
    """A verification from its `totals.zarr`: scores that are one number, without ranks, events and spectra.

    Raises:
        DataError: It is not there or not whole.
    """
    path = Path(folder) / "totals.zarr"
    try:
        dataset = xr.open_zarr(path, consolidated=False, chunks=None, decode_timedelta=True).load()
        facts = json.loads(dataset.attrs["fields"])
        settings, members = json.loads(dataset.attrs["settings"]), int(dataset.attrs["members"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: is no verification ({error}); make it with relent verify") from None
    known = _known_entries(members, json.loads(dataset.attrs["events"]))
    fields = []
    for position, (variable, level, units, long_name) in enumerate(facts):
        by_init: dict[str, Totals] = {}
        for name in known:
            terms = [
                str(v).split(".")[1]
                for v in dataset.data_vars
                if str(v).startswith(f"{name}.") and str(v).endswith(".sums")
            ]
            by_init[name] = Totals(
                {term: dataset[f"{name}.{term}.sums"].values[position] for term in terms},
                {term: dataset[f"{name}.{term}.weights"].values[position] for term in terms},
            )
        fields.append(FieldScores(variable, level, units, long_name, list(known.values()), by_init, {}, None))
    regions = {name: np.array([area]) for name, area in json.loads(dataset.attrs["regions"]).items()}
    init_time, lead_time = dataset["init_time"].values, dataset["lead_time"].values
    return Verification(fields, regions, init_time, lead_time, members, np.empty(0), "", settings)


def _known_entries(members: int, events: list[str]) -> dict[str, Entry]:
    """Scores that a stored verification has, by name: those that `entries` makes for such events."""
    from relent.verify.truth import Climatology

    none = np.zeros((1, 1))
    numbers = {float(event.rpartition("_p")[2]): none for event in events}
    climate = Climatology(none, numbers, 0, False) if events else None
    return {entry.name: entry for entry in entries(members, climate) if is_scalar(entry)}
