"""Variational methods over the weight λ of their KL, and at the one that each method's own validation chooses.

Two objectives are not compared fairly at one λ, which may suit the one and not the other. Here each method takes the λ
whose validation CRPS, averaged over seeds, is lowest; the test scores of the two chosen are compared, seed by seed. The
mean over all λ that both have tells how much a method minds a λ that was not tuned.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from relent.compare.results import RunResult
from relent.compare.statistics import Difference, Sample, difference
from relent.errors import DataError
from relent.figures import DPI, plain, styles
from relent.files import write_json
from relent.manifest.fingerprint import canonical

WEIGHT, VALIDATION = "kl_weight", "validation/crps"
NAME = "kl_weight_sweep"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Setting:
    """A method at one λ; scores by seed."""

    label: str
    weight: float
    validation: dict[int, float]
    """CRPS of roll-outs over the validation split, mean over its leads, at the end of the training."""
    crps: dict[int, dict[float, float]]
    """Test CRPS in training standard deviations, mean over variables: seed → lead in hours → score."""
    spread_skill: dict[int, float]
    """Test spread-skill ratio at the first lead, mean over variables."""

    @classmethod
    def of(cls, runs: Sequence[RunResult]) -> Setting:
        """The runs of one variant."""
        weight = float(runs[0].config["hyperparameters"][WEIGHT])
        crps = {run.seed: by_lead(run, "crps_normalised") for run in runs}
        ratios = {run.seed: by_lead(run, "spread_skill_ratio") for run in runs}
        first = {seed: ratio[min(ratio)] for seed, ratio in ratios.items()}
        return cls(runs[0].label, weight, {run.seed: last_validation(run.folder) for run in runs}, crps, first)

    def sample(self, leads: Callable[[float], bool]) -> dict[int, float]:
        """Test CRPS by seed, mean over the leads (in hours) that are asked for."""
        return {
            seed: float(np.mean([score for hours, score in scores.items() if leads(hours)]))
            for seed, scores in self.crps.items()
        }


def by_lead(run: RunResult, column: str) -> dict[float, float]:
    """Mean over variables of a score, by lead in hours."""
    rows = run.tables["by_lead"]
    hours = dict.fromkeys(float(row["lead_hours"]) for row in rows)
    return {h: float(np.mean([row[column] for row in rows if row["lead_hours"] == h])) for h in hours}


def last_validation(folder: Path) -> float:
    """The validation CRPS of the weights that were kept, from a run's `metrics.csv`.

    Raises:
        DataError: The run has none.
    """
    path, found = folder / "metrics.csv", None
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                found = float(row["value"]) if row["metric"] == VALIDATION else found
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); train the run again") from None
    if found is None:
        raise DataError(f"{path}: has no {VALIDATION}, by which λ is chosen; train the run again")
    return found


def sweeps(groups: Mapping[str, Sequence[RunResult]]) -> dict[str, list[Setting]]:
    """Method → its settings in the order of λ, for methods of which several λ were run and nothing else differs."""
    found: dict[tuple[str, str], dict[float, Sequence[RunResult]]] = {}
    for runs in groups.values():
        values = dict(runs[0].config["hyperparameters"])
        if WEIGHT in values:
            weight = float(values.pop(WEIGHT))
            found.setdefault((runs[0].method, canonical(values)), {}).setdefault(weight, runs)
    longest: dict[str, dict[float, Sequence[RunResult]]] = {}
    for (method, _), by_weight in found.items():
        if len(by_weight) > max(1, len(longest.get(method, ()))):
            longest[method] = by_weight
    return {method: [Setting.of(by[weight]) for weight in sorted(by)] for method, by in longest.items()}


def chosen(settings: Sequence[Setting]) -> Setting:
    """The setting with the lowest validation CRPS, averaged over the seeds that all settings have.

    Raises:
        DataError: They have no seed in common.
    """
    seeds = set.intersection(*(set(setting.validation) for setting in settings))
    if not seeds:
        raise DataError(f"{', '.join(s.label for s in settings)}: have no seed in common; run the same seeds of each")
    return min(settings, key=lambda setting: np.mean([setting.validation[seed] for seed in sorted(seeds)]))


def compared(first: Sequence[Setting], second: Sequence[Setting]) -> dict[str, Difference | None]:
    """Paired differences of the test CRPS (first − second), with intervals over seeds.

    `best`, `best_first_lead`, `best_late_leads` (the later half): each at its own best λ by validation; `sweep`: mean
    over the λ that both have (none: None).
    """
    a, b = chosen(first), chosen(second)
    hours = sorted(next(iter(a.crps.values())))
    leads: dict[str, Callable[[float], bool]] = {
        "best": lambda h: True,
        "best_first_lead": lambda h: h == hours[0],
        "best_late_leads": lambda h: h > hours[(len(hours) - 1) // 2],
    }
    found = {name: _difference(a.sample(of), b.sample(of)) for name, of in leads.items()}
    shared = sorted({s.weight for s in first} & {s.weight for s in second})
    return {**found, "sweep": _difference(_sweep_mean(first, shared), _sweep_mean(second, shared)) if shared else None}


def _difference(first: dict[int, float], second: dict[int, float]) -> Difference | None:
    return difference(Sample(first, fixed=False), Sample(second, fixed=False), CONFIDENCE)


def _sweep_mean(settings: Sequence[Setting], weights: Sequence[float]) -> dict[int, float]:
    """Mean over λ of the test CRPS over all leads, of each seed that was run at all of them."""
    samples = [setting.sample(lambda h: True) for setting in settings if setting.weight in weights]
    seeds = set.intersection(*(set(sample) for sample in samples))
    return {seed: float(np.mean([sample[seed] for sample in samples])) for seed in sorted(seeds)}


# ---------------------------------------------------------------------------------------------------------- figure


def draw(groups: Mapping[str, Sequence[RunResult]], into: Path) -> dict[str, str]:
    """Draw the sweep and write its numbers, `kl_weight_sweep.json`; nothing where no method was run at several λ.

    Args:
        groups: Label → runs of that label.
        into: Folder of the files.

    Returns:
        File name → caption; the caption says what was chosen and what came of it.

    Raises:
        DataError: A run has no validation score, or λ of one method no seed in common.
    """
    found = sweeps(groups)
    if not found:
        return {}
    pairs = {pair: compared(*(found[method] for method in pair)) for pair in combinations(found, 2)}
    _figure(found).savefig(into / f"{NAME}.png")
    numbers = {
        "chosen": {method: asdict(chosen(settings)) for method, settings in found.items()},
        "settings": {method: [asdict(setting) for setting in settings] for method, settings in found.items()},
        "differences": [
            {"first": a, "second": b, **{name: asdict(d) if d else None for name, d in compared_pair.items()}}
            for (a, b), compared_pair in pairs.items()
        ],
    }
    write_json(into / f"{NAME}.json", numbers)
    return {f"{NAME}.png": " ".join([_introduction(found), *(_words(a, b, pairs[a, b]) for a, b in pairs)])}


def _introduction(found: Mapping[str, Sequence[Setting]]) -> str:
    picks = []
    for method, settings in found.items():
        best = chosen(settings)
        edge = " (at the end of its values: a better one may lie beyond)" if best in (settings[0], settings[-1]) else ""
        picks.append(f"{method} λ {best.weight:g}{edge}")
    return (
        "Over the weight λ of the KL: CRPS, mean over leads and variables, on test (lines) and validation (dashed), "
        "and spread-skill ratio on test at the first lead; means over seeds, bands: their range. Rings: λ with the "
        f"lowest validation CRPS: {', '.join(picks)}."
    )


def _words(first: str, second: str, found: Mapping[str, Difference | None]) -> str:
    titles = {
        "best": "at these λ",
        "best_first_lead": "at the first lead",
        "best_late_leads": "over the later half of the leads",
        "sweep": "mean over the λ that both have",
    }
    said = [f"{words}: {_interval(found[name])}" for name, words in titles.items() if found[name] is not None]
    return f"Test CRPS of {first} less that of {second}, with {CONFIDENCE:.0%} intervals over seeds: {'; '.join(said)}."


def _interval(found: Difference | None) -> str:
    assert found is not None
    if found.low is None or found.high is None:
        return f"{found.mean:+.4f} (one seed, no interval)"
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def _figure(found: Mapping[str, Sequence[Setting]]) -> Figure:
    figure = Figure(figsize=(8.6, 3.8), dpi=DPI, layout="constrained")
    scores, ratios = figure.subplots(1, 2)
    for method, look in styles(list(found)).items():
        settings = found[method]
        weights = [setting.weight for setting in settings]
        test = [list(setting.sample(lambda h: True).values()) for setting in settings]
        _band(scores, weights, test, look, method)
        validation = [float(np.mean(list(setting.validation.values()))) for setting in settings]
        scores.plot(weights, validation, color=look["color"], lw=1, ls="--")
        best = settings.index(chosen(settings))
        ring: dict[str, Any] = {"ls": "", "marker": "o", "ms": 12, "mfc": "none", "mec": look["color"], "mew": 1.4}
        scores.plot(weights[best], validation[best], **ring)
        _band(ratios, weights, [list(setting.spread_skill.values()) for setting in settings], look, method)
    scores.set_ylabel("CRPS (training std)", fontsize=9)
    ratios.set_ylabel("spread-skill ratio, first lead", fontsize=9)
    ratios.axhline(1, color="k", lw=0.8, ls=":")
    known = [setting.weight for settings in found.values() for setting in settings]
    for axes in (scores, ratios):
        if min(known) > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(weight for weight in known if weight))
        axes.set_xlabel("weight λ of the KL", fontsize=9)
        plain(axes)
    scores.legend(fontsize=8, frameon=False)
    return figure


def _band(
    axes: Axes, weights: Sequence[float], values: Sequence[Sequence[float]], look: Mapping[str, Any], label: str
) -> None:
    """Mean over seeds as a line, their range as a band."""
    axes.plot(weights, [np.mean(v) for v in values], label=label, lw=1.6, ms=5, **look)
    axes.fill_between(weights, [min(v) for v in values], [max(v) for v in values], color=look["color"], alpha=0.2, lw=0)
