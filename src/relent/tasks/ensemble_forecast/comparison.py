"""Figures of a comparison of ensemble forecasts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from relent.compare.results import RunResult, by_label
from relent.data.tiles import read_fields
from relent.figures import styles
from relent.tasks.ensemble_forecast import sweep
from relent.tasks.ensemble_forecast.evaluation import longest_case, scored_cases
from relent.tasks.ensemble_forecast.forecasts import Forecasts
from relent.verify import figures, maps

MAP_METHODS = 4
FARTHEST = 2.0
"""Distance to the perfect ensemble at which the axis ends."""
PERFECT = "perfect_ensemble"
"""Method whose members are draws from the true law: no forecast has a lower CRPS on average."""


def draw(runs: list[RunResult], into: Path) -> dict[str, str]:
    """Draw the figures of a comparison.

    Args:
        runs: Evaluated runs of one task at one scale.
        into: Folder of the PNG files.

    Returns:
        File name → caption.

    Raises:
        DataError: Data or predictions of a run are missing or broken.
    """
    grouped = by_label(runs)
    # The methods with the lowest CRPS come first in maps and legends.
    order = sorted(grouped, key=lambda label: np.mean([_mean_crps(run) for run in grouped[label]]))
    groups = {label: grouped[label] for label in order}
    captions = _scores_by_lead(groups, into) | _distance(groups, into) | _flow(groups, into) | sweep.draw(groups, into)
    return captions | _ranks(groups, into) | _spectra(groups, into) | _maps(groups, into)


def _mean_crps(run: RunResult) -> float:
    return float(np.mean([row["crps_normalised"] for row in run.tables["by_lead"]]))


def _scores_by_lead(groups: dict[str, list[RunResult]], into: Path) -> dict[str, str]:
    tables = {label: [run.tables["by_lead"] for run in runs] for label, runs in groups.items()}
    look = styles(list(groups))
    figures.by_lead(tables, "crps", "CRPS ({units})", look).savefig(into / "crps_by_lead.png")
    members = {label: runs[0].settings["members"] for label, runs in groups.items()}
    sizes = ", ".join(f"{label} {size}" for label, size in members.items())
    n_pairs, won = _share_won(groups)
    cases = _cases(next(iter(groups.values()))[0])
    captions = {
        "crps_by_lead.png": (
            f"CRPS by variable and lead time (weights: {_weights(groups)}): fair estimator, absolute error for a "
            f"single member. Lines: mean over seeds; bands: their range. Members: {sizes}. Initial times: {cases}. "
            f"{won} (of {n_pairs} pairs of variable and lead time)."
        )
    }
    ensembles = {label: tables[label] for label, size in members.items() if size > 1}
    if ensembles:
        title = "spread-skill ratio"
        figure = figures.by_lead(ensembles, "spread_skill_ratio", title, look, reference=1.0)
        figure.savefig(into / "spread_skill_by_lead.png")
        captions["spread_skill_by_lead.png"] = (
            "Spread-skill ratio √((M + 1)/M) · spread / RMSE of the ensemble mean: 1 is calibrated, below 1 "
            "under-dispersed. Single-member forecasts have none."
        )
    return captions


def _weights(groups: dict[str, list[RunResult]]) -> str:
    return str(next(iter(groups.values()))[0].settings["weights"])


def _cases(run: RunResult) -> str:
    """How many initial times each lead has, in words."""
    rows = run.tables["by_lead"]
    found = [(row["cases"], row["lead_hours"]) for row in rows if row["variable"] == rows[0]["variable"]]
    if len({count for count, _ in found}) == 1:
        return str(found[0][0])
    return ", ".join(f"{count} at {hours:g} h" for count, hours in found)


def _share_won(groups: dict[str, list[RunResult]]) -> tuple[int, str]:
    """How often each method has the lowest CRPS (mean over seeds) among the pairs of variable and lead time."""
    means: dict[tuple[str, float], dict[str, float]] = {}
    for label, runs in groups.items():
        for run in runs:
            for row in run.tables["by_lead"]:
                pair = means.setdefault((row["variable"], row["lead_hours"]), {})
                pair[label] = pair.get(label, 0.0) + row["crps"] / len(runs)
    winners = [min(pair, key=lambda label: pair[label]) for pair in means.values()]
    counts = {label: winners.count(label) for label in groups if label in winners}
    return len(means), "Lowest CRPS: " + ", ".join(f"{label} {count}" for label, count in counts.items())


# ------------------------------------------------------------------------------------------------ the perfect ensemble


def _perfect(groups: dict[str, list[RunResult]]) -> RunResult | None:
    return next((run for runs in groups.values() for run in runs if run.method == PERFECT), None)


def _crps_by_hours(run: RunResult) -> dict[float, float]:
    rows = run.tables["by_lead"]
    hours = dict.fromkeys(row["lead_hours"] for row in rows)
    return {h: float(np.mean([row["crps_normalised"] for row in rows if row["lead_hours"] == h])) for h in hours}


def _distance(groups: dict[str, list[RunResult]], into: Path) -> dict[str, str]:
    """CRPS over that of the perfect ensemble by lead, where the comparison has one."""
    perfect = _perfect(groups)
    others = {label: runs for label, runs in groups.items() if runs[0].method != PERFECT}
    if perfect is None or not others:
        return {}
    best = _crps_by_hours(perfect)
    tables: dict[str, dict[float, list[float]]] = {}
    for label, runs in others.items():
        for run in runs:
            for hours, crps in _crps_by_hours(run).items():
                tables.setdefault(label, {}).setdefault(hours, []).append(crps / best[hours])
    label = "CRPS / CRPS of the perfect ensemble"
    near = {
        label: ratios for label, ratios in tables.items() if min(map(np.mean, ratios.values())) < FARTHEST
    } or tables
    figures.distance(near, styles(list(groups)), label, FARTHEST).savefig(into / "distance_to_perfect.png")
    far = ", ".join(label for label in tables if label not in near)
    hidden = f" Not drawn, always above {FARTHEST:g}: {far}." if far else ""
    words = "; ".join(
        f"{label} " + " → ".join(f"{np.mean(ratios[hours]):.2f}" for hours in (min(ratios), max(ratios)))
        for label, ratios in tables.items()
    )
    return {
        "distance_to_perfect.png": (
            "CRPS, mean over variables, divided by that of the perfect ensemble (the true model from the true state, "
            f"{perfect.settings['members']} members): 1 cannot be beaten on average. Lines: mean over seeds; bands: "
            f"their range. First → last lead: {words}.{hidden}"
        )
    }


def _flow(groups: dict[str, list[RunResult]], into: Path) -> dict[str, str]:
    """Whether the spread is where the perfect ensemble's is: correlation over points of the logarithms of both."""
    perfect = _perfect(groups)
    others = {
        label: runs for label, runs in groups.items() if runs[0].method != PERFECT and runs[0].settings["members"] > 1
    }
    if perfect is None or not others:
        return {}
    fields = read_fields(perfect.config["inputs"]["data"])
    options = perfect.config["evaluation_options"]
    best = _log_spread(Forecasts(perfect.folder / "predictions.zarr", fields), options)
    tables: dict[str, dict[float, list[float]]] = {}
    for label, runs in others.items():
        for run in runs:
            own = _log_spread(Forecasts(run.folder / "predictions.zarr", fields), options)
            for lead, value in _correlations(own, best).items():
                tables.setdefault(label, {}).setdefault(float(lead * fields.step_hours), []).append(value)
    name = "correlation of log spread with the perfect one"
    figure = figures.distance(tables, styles(list(groups)), name)
    figure.savefig(into / "flow_dependence.png")
    words = ", ".join(f"{label} {np.mean(ratios[min(ratios)]):.2f}" for label, ratios in tables.items())
    return {
        "flow_dependence.png": (
            "Flow dependence: correlation over points and initial times of the logarithm of the spread with that of "
            "the perfect ensemble, mean over variables; 0 for a spread that is the same everywhere. Sampling errors of "
            f"both keep even two perfect ensembles below 1. First lead: {words}."
        )
    }


def _log_spread(forecasts: Forecasts, options: dict[str, Any]) -> dict[int, dict[str, np.ndarray]]:
    """Logarithm of the spread at the first and last lead, by variable, over all initial times and points."""
    found: dict[int, dict[str, list[np.ndarray]]] = {}
    for initial, leads in scored_cases(forecasts.fields, options):
        for lead in {1, options["lead_steps"]} & set(leads):
            for variable in forecasts.variables:
                members = forecasts.pair(variable, initial, lead)[0].numpy()
                spread = np.log(np.maximum(members.std(0, ddof=1), np.finfo(np.float32).tiny))
                found.setdefault(lead, {}).setdefault(variable, []).append(spread.ravel())
    return {lead: {name: np.concatenate(parts) for name, parts in by.items()} for lead, by in sorted(found.items())}


def _correlations(own: dict[int, dict[str, np.ndarray]], best: dict[int, dict[str, np.ndarray]]) -> dict[int, float]:
    return {
        lead: float(np.mean([_correlation(own[lead][name], best[lead][name]) for name in best[lead]])) for lead in best
    }


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; zero where one does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


# ------------------------------------------------------------------------------------------------ ranks, spectra, maps


def _ranks(groups: dict[str, list[RunResult]], into: Path) -> dict[str, str]:
    tables = {label: [run.tables["ranks"] for run in runs] for label, runs in groups.items() if runs[0].tables["ranks"]}
    if not tables:
        return {}
    hours = min(row["lead_hours"] for row in next(iter(tables.values()))[0])
    figures.rank_histograms(tables, styles(list(groups)), hours).savefig(into / "rank_histograms.png")
    return {
        "rank_histograms.png": (
            f"Rank of the truth among the members at {hours:g} h (weights: {_weights(groups)}), over its expectation: "
            "flat is calibrated, U-shaped under-dispersed. Neighbouring points are not independent. Mean over seeds."
        )
    }


def _spectra(groups: dict[str, list[RunResult]], into: Path) -> dict[str, str]:
    """Power of the members over that of the truth, at the longest lead that all report."""
    tables: dict[str, list[figures.Rows]] = {
        label: [run.tables["spectra"] for run in runs] for label, runs in groups.items()
    }
    hours = max(row["lead_hours"] for row in next(iter(tables.values()))[0])
    settings: dict[str, Any] = next(iter(groups.values()))[0].settings
    unit = settings["wavenumber"]
    figures.power_ratio(tables, styles(list(groups)), hours, unit).savefig(into / "spectra.png")
    return {
        "spectra.png": (
            f"Power of single members at {hours:g} h over that of the truth, by {unit}: below 1 the forecast is too "
            "smooth, above 1 too rough. Mean over initial times and seeds."
        )
    }


def _maps(groups: dict[str, list[RunResult]], into: Path) -> dict[str, str]:
    """Maps of the longest forecast, of one seed of the first methods."""
    chosen = {label: min(runs, key=lambda run: run.seed) for label, runs in list(groups.items())[:MAP_METHODS]}
    reference = next(iter(chosen.values()))
    fields = read_fields(reference.config["inputs"]["data"])
    forecasts = {label: Forecasts(run.folder / "predictions.zarr", fields) for label, run in chosen.items()}
    initial, leads = longest_case(fields, reference.config["evaluation_options"])
    captions = {}
    for variable in forecasts[reference.label].variables:
        name = f"forecast_{variable}.png"
        cases = {label: run.case(variable, initial, max(leads)) for label, run in forecasts.items()}
        maps.truth_and_forecasts(cases).savefig(into / name)
        captions[name] = (
            f"{variable} at {cases[reference.label].window}: truth, members, means and spread. Seed {reference.seed}. "
            "One case, no evidence."
        )
    return captions
