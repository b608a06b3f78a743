"""Scores ensemble forecasts of gridded fields, weighted with cos(latitude), by variable and lead time.

The numbers are those of `relent verify`: one way from forecasts to scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from relent.data.tiles import Fields
from relent.errors import DataError
from relent.evaluate.run import Evaluation
from relent.figures import styles
from relent.grid import Topology
from relent.runspec import RunSpec
from relent.tasks.ensemble_forecast.forecasts import Forecasts
from relent.verify import figures, maps
from relent.verify.engine import FieldScores, Verification, verify
from relent.verify.regions import region_weights
from relent.verify.report import (
    at_lead,
    rank_rows,
    reliability_rows,
    spectrum_rows,
    summed,
)
from relent.verify.statistics import is_scalar
from relent.verify.truth import FieldsTruth

Row = dict[str, Any]
DAY_HOURS = 24
HEADLINE = {
    "crps": "crps_normalised",
    "rmse": "rmse_normalised",
    "spread_skill_ratio": "spread_skill_ratio",
    "spread_error_correlation": "spread_error_correlation",
    "anomaly_correlation": "anomaly_correlation",
}
"""Metric → column of the table by lead."""


def evaluate(spec: RunSpec, folder: Path) -> Evaluation:
    """Scores on the test split.

    Raises:
        DataError: Data or predictions are missing, broken, or do not belong together.
    """
    truth, forecasts = _read(spec, folder)
    fields, n_leads = truth.fields, spec.evaluation_options["lead_steps"]
    regions = region_weights(None, fields.latitude, fields.longitude, fields.topology)
    regions = dict(list(regions.items())[:1])
    found = verify(forecasts.layout(), truth, regions)
    check_whole(forecasts, found, scored_cases(fields, spec.evaluation_options))
    by_lead = [
        _row(found, field, lead, float(fields.std[fields.variables.index(field.variable)]))
        for field in found.fields
        for lead in range(n_leads)
        if field.cases()[lead, 0]
    ]
    reported = report_leads(spec.evaluation_options, fields)
    chosen = [lead - 1 for lead in reported]
    tables = {"by_lead": by_lead, "ranks": rank_rows(found, chosen)}
    tables |= {"reliability": reliability_rows(found, chosen), "spectra": spectrum_rows(found, chosen)}
    return Evaluation(headline(by_lead, fields, reported), tables, _settings(forecasts, found, reported))


def _read(spec: RunSpec, folder: Path) -> tuple[FieldsTruth, Forecasts]:
    forecasts = Forecasts(folder / "predictions.zarr", spec.inputs["data"])
    return FieldsTruth(forecasts.fields, forecasts.layout()), forecasts


def report_leads(options: dict[str, Any], fields: Fields) -> list[int]:
    """Leads, in steps, that have metrics of their own: as the task says, else the first and the one at a day."""
    n_leads = options["lead_steps"]
    given = options.get("report_leads") or [1, DAY_HOURS // fields.step_hours]
    return [lead for lead in dict.fromkeys(given) if 1 <= lead <= n_leads]


def scored_cases(fields: Fields, options: dict[str, Any]) -> list[tuple[int, list[int]]]:
    """Initial steps and leads that a run forecasts and is scored on."""
    return fields.cases("test", options["lead_steps"], options.get("initial_stride", 1))


def check_whole(forecasts: Forecasts, found: Verification, cases: list[tuple[int, list[int]]]) -> None:
    """Check that every case of the test is there, at every point whose truth is known.

    Raises:
        DataError: A value is not finite: a chunk is missing or the run diverged.
    """
    position = {time: i for i, time in enumerate(found.init_time.astype("datetime64[ns]"))}
    for initial, leads in cases:
        time = forecasts.fields.time[initial]
        number = position.get(time.astype("datetime64[ns]"))
        for field in found.fields:
            gaps = field.by_init["gaps"].sums["gaps"]
            for lead in leads:
                if number is None or lead > gaps.shape[1]:
                    raise DataError(
                        f"{forecasts.path}: has no {field.variable} from {time} at lead step {lead}; "
                        "train the run again"
                    )
                if gaps[number, lead - 1].any():
                    raise DataError(
                        f"{forecasts.path}: {field.variable} from {time} at lead step {lead} is not finite: "
                        "a chunk is missing or the run diverged; train it again"
                    )


def _row(found: Verification, field: FieldScores, lead: int, std: float) -> Row:
    """All scores of one variable at one lead that are one number."""
    values = {}
    for entry in field.entries:
        if is_scalar(entry):
            totals = field.by_init[entry.name]
            everything = np.ones(len(found.init_time), bool)
            values[entry.name] = float(entry.statistic.final(summed(at_lead(totals, lead, everything)).means())[0])
    row = {
        "variable": field.variable,
        "units": field.units,
        "lead_hours": float(found.lead_hours[lead]),
        "cases": int(field.cases()[lead, 0]),
        "crps_normalised": values["crps"] / std,
        "rmse_normalised": values["rmse"] / std,
        "spread": 0.0,
        "spread_skill_ratio": 0.0,
    }
    return row | {name: value for name, value in values.items() if np.isfinite(value)}


def headline(rows: list[Row], fields: Fields, leads: list[int]) -> dict[str, float]:
    """The task's metrics: means over the variables at the reported leads.

    Named by hours (`crps` at the first lead, `crps_24h`), or by steps where time is nominal (`crps_lead1`,
    `crps_lead10`), there with the mean over all leads beside them (`crps_mean`).
    """
    nominal = fields.topology is Topology.torus
    scores = {}
    for metric, column in HEADLINE.items():
        for number, lead in enumerate(leads):
            hours = lead * fields.step_hours
            name = f"{metric}_lead{lead}" if nominal else metric if number == 0 else f"{metric}_{hours}h"
            values = [row[column] for row in rows if row["lead_hours"] == hours and column in row]
            if values:
                scores[name] = float(np.mean(values))
        every = [row[column] for row in rows if column in row]
        if nominal and every:
            scores[f"{metric}_mean"] = float(np.mean(every))
    return scores


def _settings(forecasts: Forecasts, found: Verification, leads: list[int]) -> dict[str, Any]:
    climate = found.fields[0].climate
    torus = forecasts.fields.topology is Topology.torus
    how = "all points of a row" if climate is not None and climate.pooled else "each grid point"
    return {
        "split": "test",
        "crps_estimator": forecasts.estimator,
        "members": forecasts.members,
        "weights": "equal" if torus else "cos(latitude)",
        "reduction": "weighted mean over times and grid points, one square root at the end",
        "normalisation": "training standard deviation of each variable",
        "report_leads": leads,
        "events": f"percentiles of the training steps, of {how}",
        "wavenumber": found.wavenumber_unit,
        "draws": "prior",
        "module_mode": "eval",
    }


# ---------------------------------------------------------------------------------------------------------- figures


def draw(spec: RunSpec, folder: Path, evaluation: Evaluation, into: Path) -> None:
    """Stamp maps of the longest forecast, a meteogram, spread and skill, ranks, reliability, spectra."""
    truth, forecasts = _read(spec, folder)
    fields, tables = truth.fields, evaluation.tables
    initial, leads = longest_case(fields, spec.evaluation_options)
    for variable in forecasts.variables:
        case = forecasts.case(variable, initial, max(leads))
        maps.stamp_map(case, spec.method).savefig(into / f"forecast_{variable}.png")
    meteogram(forecasts, initial, leads, spec.method).savefig(into / "meteogram.png")
    figures.spread_skill(tables["by_lead"], forecasts.members).savefig(into / "spread_skill.png")
    hours = [lead * fields.step_hours for lead in evaluation.settings["report_leads"]]
    if tables["ranks"]:
        ranks = {spec.method: [tables["ranks"]]}
        look = styles([spec.method])
        figures.rank_histograms(ranks, look, hours[0]).savefig(into / "rank_histograms.png")
        figures.reliability(tables["reliability"], hours[0]).savefig(into / "reliability.png")
    unit = evaluation.settings["wavenumber"]
    figures.spectra(tables["spectra"], unit, hours).savefig(into / "spectra.png")


def longest_case(fields: Fields, options: dict[str, Any]) -> tuple[int, list[int]]:
    """The first case of the test that has the most leads."""
    return max(scored_cases(fields, options), key=lambda case: (max(case[1]), -case[0]))


def meteogram(forecasts: Forecasts, initial: int, leads: list[int], label: str) -> Figure:
    """All variables where the first one is least certain at the longest lead (of one member: most wrong)."""
    fields = forecasts.fields
    last = forecasts.case(forecasts.variables[0], initial, max(leads))
    size = last.members.std(0) if len(last.members) > 1 else np.abs(last.members[0] - last.truth)
    row, column = np.unravel_index(np.nanargmax(size), size.shape)
    series = []
    for variable in forecasts.variables:
        pairs = [forecasts.pair(variable, initial, lead) for lead in leads]
        members = np.stack([pair[0][:, row, column].numpy() for pair in pairs], axis=1)
        truth = np.array([float(pair[1][row, column]) for pair in pairs])
        series.append(maps.Series(variable, fields.attributes[variable].get("units", ""), members, truth))
    place = maps.place_name(fields.latitude[row], fields.longitude[column], fields.topology)
    valid = fields.time[[initial + lead for lead in leads]]
    return maps.meteogram(series, valid, place, fields.time[initial], label)
