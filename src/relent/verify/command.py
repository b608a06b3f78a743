"""The steps of `relent verify` and `relent scorecard`: files in, files out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from relent.errors import ConfigError, DataError, nearest
from relent.files import read_json, whole, write_json
from relent.tasks.ensemble_forecast.store import check_shards
from relent.verify import figures, report, scorecard
from relent.verify.engine import Verification, verify
from relent.verify.layout import as_forecast, open_dataset
from relent.verify.regions import Region, region_weights
from relent.verify.report import Resampling
from relent.verify.truth import Truth, open_truth

FIGURE_LEADS = 3


@dataclass(frozen=True)
class Choice:
    """What of a forecast is verified, and against which climate.

    Args:
        variables: `NAME` or `FORECAST=TRUTH`; none: all that match.
        regions: `NAME=SOUTH,NORTH[,WEST,EAST]`; none: those of the grid.
        period: First and last time of the climatology in the truth, where it has no training split.
        percentiles: Thresholds of events.
    """

    variables: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    period: tuple[str, str] | None = None
    percentiles: tuple[float, ...] = (90, 95, 98)


def read_forecast(path: Path | str) -> xr.Dataset:
    """A forecast in our layout.

    Raises:
        DataError: It cannot be read, is not whole, or is no forecast.
    """
    if Path(path).is_dir():
        check_shards(Path(path))
    return as_forecast(open_dataset(path), str(path))


def chosen_variables(choice: Choice, forecast: xr.Dataset) -> tuple[xr.Dataset, dict[str, str]]:
    """The forecast with the variables that are asked for, and the truth's names where they are given.

    Raises:
        ConfigError: The forecast has no such variable.
    """
    if not choice.variables:
        return forecast, {}
    parts = [text.partition("=") for text in choice.variables]
    for name, _, _ in parts:
        if name not in forecast.data_vars:
            raise ConfigError(f"the forecast has no variable {name!r}{nearest(name, map(str, forecast.data_vars))}")
    return forecast[[name for name, _, _ in parts]], {name: partner for name, _, partner in parts if partner}


def run_verify(forecast: Path | str, truth: str, choice: Choice, how: Resampling, out: Path) -> list[dict[str, Any]]:
    """Verify a forecast against a truth; writes `scores.csv`, `scores.json`, `totals.zarr` and `figures/` into `out`.

    Raises:
        DataError: Forecast or truth are missing, broken, or do not fit each other.
        ConfigError: A region or variable does not exist.
    """
    found = verify_stores(forecast, truth, choice)
    rows = report.write(found, out, how)
    with whole(out / "figures") as folder:
        folder.mkdir()
        draw(found, rows, Path(forecast).stem, folder)
    return rows


def verify_stores(forecast: Path | str, truth: str, choice: Choice) -> Verification:
    """Totals of a forecast against a truth."""
    given, partners = chosen_variables(choice, read_forecast(forecast))
    known = open_truth(truth, given, partners, choice.period)
    latitude, longitude = given["latitude"].values, given["longitude"].values
    regions = [Region.parse(text) for text in choice.regions] or None
    weights = region_weights(regions, latitude, longitude, known.topology)
    settings = _settings(forecast, given, known, choice)
    return verify(given, known, weights, percentiles=choice.percentiles, settings=settings)


def _settings(path: Path | str, forecast: xr.Dataset, truth: Truth, choice: Choice) -> dict[str, Any]:
    members = forecast.sizes["member"]
    climate = f"{len(truth.training)} steps of the truth" if len(truth.training) else "none: no anomalies and no events"
    return {
        "forecast": str(path),
        "truth": truth.source,
        "truth_checksum": truth.checksum,
        "members": members,
        "crps_estimator": "fair" if members > 1 else "absolute error (one member)",
        "weights": "equal" if truth.topology == "torus" else "cos(latitude)",
        "reduction": "weighted mean over initial times and grid points, one square root at the end",
        "climatology": climate,
        "percentiles": list(choice.percentiles) if len(truth.training) else [],
        "grid": [float(f"{v:.6g}") for axis in ("latitude", "longitude") for v in _ends(forecast[axis].values)],
        "missing": "a point counts where all members and the truth are known",
    }


def _ends(axis: np.ndarray) -> list[float]:
    return [float(axis.min()), float(axis.max()), float(len(axis))]


def draw(found: Verification, rows: list[dict[str, Any]], label: str, into: Path) -> None:
    """Figures of a verification, in its first region."""
    from relent.figures import styles

    region = next(iter(found.regions))
    wide: dict[tuple[str, float], dict[str, Any]] = {}
    for row in (row for row in rows if row["region"] == region):
        name = row["variable"] if row["level"] is None else f"{row['variable']} {row['level']:g}"
        key = {"variable": name, "units": row["units"], "lead_hours": row["lead_hours"]}
        wide.setdefault((name, row["lead_hours"]), key)[row["score"]] = row["value"]
    by_lead = list(wide.values())
    figures.spread_skill(by_lead, found.members).savefig(into / "spread_skill.png")
    scored = sorted({row["lead_hours"] for row in by_lead})
    leads = [scored[i] for i in np.unique(np.linspace(0, len(scored) - 1, FIGURE_LEADS).round().astype(int))]
    if spectra := report.spectrum_rows(found):
        figures.spectra(spectra, found.wavenumber_unit, leads).savefig(into / "spectra.png")
    if ranks := report.rank_rows(found):
        figures.rank_histograms({label: [ranks]}, styles([label]), leads[0]).savefig(into / "rank_histograms.png")
    if reliability := report.reliability_rows(found):
        figures.reliability(reliability, leads[0]).savefig(into / "reliability.png")


# ------------------------------------------------------------------------------------------------ the scorecard


def run_scorecard(
    forecasts: tuple[str, str],
    labels: tuple[str, str],
    truth: str | None,
    choice: Choice,
    score: str,
    how: Resampling,
    out: Path,
) -> dict[str, Any]:
    """Compare two forecasts; writes `scorecard.csv`, `scorecard.json` and `scorecard.png`; returns the summary.

    Args:
        forecasts: Each a folder of `relent verify`, a run's folder, or a forecast (then `truth` is needed).
        labels: What to call them.
        truth: Of forecasts that are not verified yet; a run has its own.
        choice: What of them is compared.
        score: Of which less is better.
        how: Confidence and block length.
        out: Folder.

    Raises:
        DataError: One of them cannot be read, or they have nothing in common.
        ConfigError: The score is unknown.
    """
    first, second = (verification_of(path, truth, choice) for path in forecasts)
    region = choice.regions[0].partition("=")[0] if choice.regions else None
    card = scorecard.compare(
        first,
        second,
        labels,
        score=score,
        region=region,
        confidence=how.confidence,
        block_length=how.block_length,
    )
    out.mkdir(parents=True, exist_ok=True)
    with whole(out / "scorecard.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(card.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(card.rows)
    write_json(out / "scorecard.json", {"summary": card.summary, "pairs": card.rows})
    with whole(out / "scorecard.png") as temporary:
        figures.scorecard(card.rows, card.summary).savefig(temporary, format="png")
    return card.summary


def verification_of(path: str, truth: str | None, choice: Choice) -> Verification:
    """A verification that was written, one of a run's own predictions, or one of a forecast against the truth given."""
    folder = Path(path)
    if (folder / "totals.zarr").is_dir():
        return report.read(folder)
    if (folder / "predictions.zarr").is_dir():
        data = truth or str(read_json(folder / "config.json")["inputs"]["data"])
        return verify_stores(folder / "predictions.zarr", data, choice)
    if truth is None:
        raise DataError(f"{path}: is neither a run nor a folder of relent verify; give --truth to verify it first")
    return verify_stores(path, truth, choice)


def label_of(path: str, others: Sequence[str] = ()) -> str:
    """A short name: `method:variant seedN` of a run, else the name of the file or folder."""
    folder = Path(path)
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        variant = "" if config["variant"] == "default" else f":{config['variant']}"
        return f"{config['method']}{variant} seed{config['seed']}"
    name = folder.name.removesuffix(".zarr") or str(folder)
    return f"{folder.parent.name}/{name}" if name in others else name
