"""Scores ensemble forecasts of gridded fields, weighted with cos(latitude), by variable and lead time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relent.data.tiles import read_fields
from relent.evaluate.run import Evaluation
from relent.runspec import RunSpec
from relent.scores.ensemble import ensemble_variance, mean_error
from relent.scores.spatial import latitude_weights
from relent.scores.streaming import (
    Crps,
    MeanRmse,
    Means,
    MeanStatistic,
    RankFrequencies,
    Spread,
    SpreadSkillRatio,
    Totals,
)
from relent.tasks.ensemble_forecast import figures
from relent.tasks.ensemble_forecast.forecasts import Forecasts

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SpreadErrorCorrelation(MeanStatistic):
    """Correlation over points of the members' standard deviation with the absolute error of their mean.

    Zero for a spread that is the same everywhere; well below one even for a perfect ensemble, because one error is one
    draw from the predicted law.
    """

    @property
    def name(self) -> str:
        return "spread_error_correlation"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        deviation = ensemble_variance(members).sqrt()
        error = mean_error(members, truth, 0, self.nan_policy).abs()
        return {"s": deviation, "e": error, "ss": deviation**2, "ee": error**2, "se": deviation * error}

    def final(self, means: Means) -> NDArray[Any]:
        covariance = means["se"] - means["s"] * means["e"]
        variances = (means["ss"] - means["s"] ** 2) * (means["ee"] - means["e"] ** 2)
        # An ensemble whose spread is the same everywhere has no correlation: none of its error is foreseen.
        result: NDArray[Any] = np.divide(
            covariance, np.sqrt(variances), out=np.zeros_like(covariance), where=variances > 0
        )
        return result


def statistics(members: int) -> list[MeanStatistic]:
    """What is computed of an ensemble of a size; a single member has an error, but no spread and no ranks."""
    if members == 1:
        return [Crps(estimator="biased"), MeanRmse()]
    return [Crps(), MeanRmse(), Spread(), SpreadSkillRatio(), SpreadErrorCorrelation(), RankFrequencies()]


def evaluate(spec: RunSpec, folder: Path) -> Evaluation:
    """Scores on the test split.

    Raises:
        DataError: Data or predictions are missing, broken, or do not belong together.
    """
    # Figures of the same run ask for the same scores right afterwards.
    path = folder / "predictions.zarr" / "zarr.json"
    written = path.stat().st_mtime_ns if path.is_file() else 0
    return _evaluate(spec.inputs["data"], folder, spec.evaluation_options["lead_steps"], written)


@lru_cache(maxsize=1)
def _evaluate(data: str, folder: Path, n_leads: int, written: int) -> Evaluation:
    fields = read_fields(data)
    forecasts = Forecasts(folder / "predictions.zarr", fields)
    by_lead, ranks = [], []
    for variable in fields.variables:
        for lead in range(1, n_leads + 1):
            row, frequencies = _score(forecasts, variable, lead, n_leads)
            by_lead.append(row)
            ranks += [
                {"variable": variable, "lead_hours": row["lead_hours"], "rank": rank, "frequency": float(share)}
                for rank, share in enumerate(frequencies)
            ]
    return Evaluation(headline(by_lead), {"by_lead": by_lead, "ranks": ranks}, _settings(forecasts))


def _score(forecasts: Forecasts, variable: str, lead: int, n_leads: int) -> tuple[Row, NDArray[Any]]:
    """All scores of one variable at one lead, and the frequencies of its ranks."""
    fields, kinds = forecasts.fields, statistics(forecasts.members)
    weights = latitude_weights(torch.from_numpy(fields.latitude))[:, None]
    initials = [initial for initial, leads in fields.cases("test", n_leads) if lead in leads]
    parts: list[list[Totals]] = []
    for initial in initials:
        members, truth = forecasts.pair(variable, initial, lead)
        parts.append([kind.totals(members, truth, weights) for kind in kinds])
    totals = [reduce(Totals.__add__, column) for column in zip(*parts)]
    values = {kind.name: kind.final(total.means()) for kind, total in zip(kinds, totals)}
    ranks = values.pop("rank_frequencies", np.empty(0))
    std = float(fields.std[fields.variables.index(variable)])
    crps = float(values.get("crps_fair", values.get("crps_biased", np.nan)))
    rmse = float(values["ensemble_mean_rmse"])
    row = {
        "variable": variable,
        "units": fields.attributes[variable]["units"],
        "lead_hours": lead * fields.step_hours,
        "cases": len(initials),
        "crps": crps,
        "crps_normalised": crps / std,
        "rmse": rmse,
        "rmse_normalised": rmse / std,
        "spread": float(values.get("spread", 0.0)),
        "spread_skill_ratio": float(values.get("spread_skill_ratio", 0.0)),
    }
    if "spread_error_correlation" in values:
        row["spread_error_correlation"] = float(values["spread_error_correlation"])
    return row, ranks


SHORT_HOURS, LONG_HOURS = 6, 24


def headline(rows: list[Row]) -> dict[str, float]:
    """The task's metrics: means over the variables, at 6 h and (with the suffix `_24h`) at 24 h."""
    scores = {}
    columns = {
        "crps": "crps_normalised",
        "rmse": "rmse_normalised",
        "spread_skill_ratio": "spread_skill_ratio",
        "spread_error_correlation": "spread_error_correlation",
    }
    for metric, column in columns.items():
        for hours, suffix in ((SHORT_HOURS, ""), (LONG_HOURS, "_24h")):
            values = [row[column] for row in rows if row["lead_hours"] == hours and column in row]
            if values and (metric != "spread_error_correlation" or hours == SHORT_HOURS):
                scores[metric + suffix] = float(np.mean(values))
    return scores


def _settings(forecasts: Forecasts) -> dict[str, Any]:
    return {
        "split": "test",
        "crps_estimator": forecasts.estimator,
        "members": forecasts.members,
        "weights": "cos(latitude)",
        "reduction": "weighted mean over times and grid points, one square root at the end",
        "normalisation": "training standard deviation of each variable",
        "draws": "prior",
        "module_mode": "eval",
    }


def draw(spec: RunSpec, folder: Path, into: Path) -> None:
    """Stamp maps of the longest forecast, spread and skill by lead, rank histograms."""
    fields = read_fields(spec.inputs["data"])
    forecasts = Forecasts(folder / "predictions.zarr", fields)
    evaluation = evaluate(spec, folder)
    initial, leads = fields.cases("test", spec.evaluation_options["lead_steps"])[0]
    for variable in fields.variables:
        figures.stamp_map(forecasts, variable, initial, max(leads), spec.method).savefig(
            into / f"forecast_{variable}.png"
        )
    figures.spread_skill(evaluation.tables["by_lead"], forecasts.members).savefig(into / "spread_skill.png")
    if evaluation.tables["ranks"]:
        ranks = {spec.method: [evaluation.tables["ranks"]]}
        figures.rank_histograms(ranks, figures.styles([spec.method]), SHORT_HOURS).savefig(into / "rank_histograms.png")
