"""Figures of a comparison of ensemble forecasts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relent.compare.results import RunResult, by_label
from relent.data.tiles import read_fields
from relent.tasks.ensemble_forecast import figures
from relent.tasks.ensemble_forecast.forecasts import Forecasts

MAP_METHODS = 4


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
    order = sorted(grouped, key=lambda label: sum(r.scores["crps"] for r in grouped[label]) / len(grouped[label]))
    groups = {label: grouped[label] for label in order}
    return _scores_by_lead(groups, into) | _ranks(groups, into) | _maps(groups, into)


def _scores_by_lead(groups: dict[str, list[RunResult]], into: Path) -> dict[str, str]:
    tables = {label: [run.tables["by_lead"] for run in runs] for label, runs in groups.items()}
    look = figures.styles(list(groups))
    figures.by_lead(tables, "crps", "CRPS ({units})", look).savefig(into / "crps_by_lead.png")
    members = {label: runs[0].settings["members"] for label, runs in groups.items()}
    sizes = ", ".join(f"{label} {size}" for label, size in members.items())
    n_pairs, won = _share_won(groups)
    cases = ", ".join(f"{row['cases']} at {row['lead_hours']} h" for row in _first_variable(groups))
    captions = {
        "crps_by_lead.png": (
            "CRPS by variable and lead time, weighted with cos(latitude): fair estimator, absolute error for a single "
            f"member. Lines: mean over seeds; bands: range of the seeds. Members: {sizes}. Initial times: {cases}. "
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


def _first_variable(groups: dict[str, list[RunResult]]) -> list[dict[str, Any]]:
    rows = next(iter(groups.values()))[0].tables["by_lead"]
    return [row for row in rows if row["variable"] == rows[0]["variable"]]


def _share_won(groups: dict[str, list[RunResult]]) -> tuple[int, str]:
    """How often each method has the lowest CRPS (mean over seeds) among the pairs of variable and lead time."""
    means: dict[tuple[str, int], dict[str, float]] = {}
    for label, runs in groups.items():
        for run in runs:
            for row in run.tables["by_lead"]:
                pair = means.setdefault((row["variable"], row["lead_hours"]), {})
                pair[label] = pair.get(label, 0.0) + row["crps"] / len(runs)
    winners = [min(pair, key=lambda label: pair[label]) for pair in means.values()]
    counts = {label: winners.count(label) for label in groups if label in winners}
    return len(means), "Lowest CRPS: " + ", ".join(f"{label} {count}" for label, count in counts.items())


def _ranks(groups: dict[str, list[RunResult]], into: Path) -> dict[str, str]:
    tables = {label: [run.tables["ranks"] for run in runs] for label, runs in groups.items() if runs[0].tables["ranks"]}
    if not tables:
        return {}
    hours = min(row["lead_hours"] for row in next(iter(tables.values()))[0])
    figures.rank_histograms(tables, figures.styles(list(groups)), hours).savefig(into / "rank_histograms.png")
    return {
        "rank_histograms.png": (
            f"Rank of the truth among the members at {hours} h, weighted with cos(latitude), over its expectation: "
            "flat is calibrated, U-shaped under-dispersed. Neighbouring points are not independent. Mean over seeds."
        )
    }


def _maps(groups: dict[str, list[RunResult]], into: Path) -> dict[str, str]:
    """Maps of the longest forecast, of one seed of the first methods."""
    chosen = {label: min(runs, key=lambda run: run.seed) for label, runs in list(groups.items())[:MAP_METHODS]}
    reference = next(iter(chosen.values()))
    fields = read_fields(reference.config["inputs"]["data"])
    forecasts = {label: Forecasts(run.folder / "predictions.zarr", fields) for label, run in chosen.items()}
    initial, leads = fields.cases("test", reference.config["evaluation_options"]["lead_steps"])[0]
    captions = {}
    for variable in fields.variables:
        name = f"forecast_{variable}.png"
        figures.truth_and_forecasts(forecasts, variable, initial, max(leads)).savefig(into / name)
        captions[name] = (
            f"{variable} at {forecasts[reference.label].window(initial, max(leads))}: truth, members, means and "
            f"spread. Seed {reference.seed}. One case, no evidence."
        )
    return captions
