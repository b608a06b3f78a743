"""λ chosen by validation, and what is compared at the chosen ones, on runs whose scores are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import stats

from relent.compare.results import RunResult, by_label
from relent.errors import DataError
from relent.tasks.ensemble_forecast.sweep import NAME, chosen, compared, draw, last_validation, sweeps

HOURS = (6, 12, 18, 24)
SEEDS = (0, 1, 2)


def run(
    folder: Path, method: str, weight: float, seed: int, validation: float | None, crps: float, **more: Any
) -> RunResult:
    """A run whose CRPS is `crps` · (1, 2, 3, 4) by lead, the same of both variables give or take 0.1."""
    path = folder / f"{method}_{weight}_{seed}_{len(more)}"
    path.mkdir()
    rows = [(0, "train/loss", 9.0), (50, "validation/crps", 7.0), (99, "validation/spread", 1.0)]
    rows += [] if validation is None else [(99, "validation/crps", validation)]
    rows = rows if validation is not None else rows[:1]
    lines = [f"{step},{name},{value!r}" for step, name, value in rows]
    (path / "metrics.csv").write_text("\n".join(["step,metric,value", *lines, ""]))
    table = [
        {
            "variable": name,
            "lead_hours": float(hours),
            "crps_normalised": crps * hours / 6 + sign * 0.1,
            "spread_skill_ratio": 0.5 + 0.1 * sign,
        }
        for hours in HOURS
        for name, sign in (("upper", 1), ("lower", -1))
    ]
    config = {"method": method, "seed": seed, "hyperparameters": {"kl_weight": weight, "max_steps": 9, **more}}
    return RunResult(path, f"{method}:lambda_{weight:g}", config, {}, {"by_lead": table}, {})


def score(method: str, weight: float, seed: int) -> tuple[float, float]:
    """Validation and test CRPS: the first is best at λ 1 of `one` and at λ 0.1 of `two`, the test is best elsewhere."""
    best = {"one": 1.0, "two": 0.1}[method]
    noise = 0.01 * ((7 * seed + (3 if method == "one" else 5)) % 4)
    return 1 + abs(math.log10(weight / best)) + noise, 1 + weight / 10 + noise + (0.2 if method == "two" else 0)


@pytest.fixture
def runs(tmp_path: Path) -> list[RunResult]:
    folder = tmp_path / "runs"
    folder.mkdir()
    grid = {"one": (5.0, 0.1, 1.0), "two": (0.01, 0.1, 1.0)}
    found = [
        run(folder, method, weight, seed, *score(method, weight, seed))
        for method, weights in grid.items()
        for weight in weights
        for seed in SEEDS
    ]
    # Neither the same λ by another name nor a variant in which something else differs belongs to the sweep.
    found += [run(folder, "one", 2.0, 0, 0.0, 0.0, kl_annealing=0.5)]
    return found


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return differences.mean(), differences.mean() - half, differences.mean() + half


def test_validation_and_not_the_test_chooses(runs: list[RunResult]) -> None:
    found = sweeps(by_label(runs))
    assert {method: [s.weight for s in settings] for method, settings in found.items()} == {
        "one": [0.1, 1.0, 5.0],
        "two": [0.01, 0.1, 1.0],
    }
    assert chosen(found["one"]).weight == 1.0
    assert chosen(found["two"]).weight == 0.1
    lowest_test = min(found["one"], key=lambda s: np.mean(list(s.sample(lambda h: True).values())))
    assert lowest_test.weight == 0.1  # the test would have chosen another one


def test_differences_are_paired_by_seed(runs: list[RunResult]) -> None:
    found = sweeps(by_label(runs))
    result = compared(found["one"], found["two"])

    def crps(method: str, weight: float, factor: float) -> np.ndarray:
        return np.array([factor * score(method, weight, seed)[1] for seed in SEEDS])

    factors = {"best": 2.5, "best_first_lead": 1.0, "best_late_leads": 3.5}
    expected = {name: crps("one", 1.0, factor) - crps("two", 0.1, factor) for name, factor in factors.items()}
    shared = (0.1, 1.0)
    expected["sweep"] = np.mean([crps("one", w, 2.5) - crps("two", w, 2.5) for w in shared], axis=0)
    assert result.keys() == expected.keys()
    for name, differences in expected.items():
        own = result[name]
        assert own is not None
        assert (own.mean, own.low, own.high) == pytest.approx(interval(differences), abs=1e-12)
        assert own.seeds == list(SEEDS)


def test_the_caption_says_what_was_chosen_and_what_came_of_it(runs: list[RunResult], tmp_path: Path) -> None:
    captions = draw(by_label(runs), tmp_path)
    words = captions[f"{NAME}.png"]
    assert "one λ 1, two λ 0.1." in words
    assert "at the end of its values" not in words
    mean, low, high = interval(np.array([2.5 * (score("one", 1.0, s)[1] - score("two", 0.1, s)[1]) for s in SEEDS]))
    assert f"at these λ: {mean:+.4f} ({low:+.4f} to {high:+.4f})" in words
    assert imread(tmp_path / f"{NAME}.png").std() > 0
    numbers = json.loads((tmp_path / f"{NAME}.json").read_text())
    assert numbers["chosen"]["two"]["label"] == "two:lambda_0.1"
    assert numbers["differences"][0]["best"]["mean"] == pytest.approx(mean)


def test_a_choice_at_the_end_of_the_values_is_said(runs: list[RunResult], tmp_path: Path) -> None:
    cut = [r for r in runs if r.config["hyperparameters"]["kl_weight"] != 5.0]
    assert "one λ 1 (at the end of its values" in draw(by_label(cut), tmp_path)[f"{NAME}.png"]


def test_one_seed_has_no_interval(runs: list[RunResult], tmp_path: Path) -> None:
    words = draw(by_label(r for r in runs if r.seed == 0), tmp_path)[f"{NAME}.png"]
    assert words.count("one seed, no interval") == 4


def test_one_value_is_no_sweep(runs: list[RunResult], tmp_path: Path) -> None:
    assert draw(by_label(r for r in runs if r.config["hyperparameters"]["kl_weight"] == 1.0), tmp_path) == {}
    assert not list(tmp_path.glob("*.png"))


def test_runs_that_cannot_be_chosen_from(tmp_path: Path) -> None:
    blind = run(tmp_path, "one", 1.0, 0, None, 1.0)
    with pytest.raises(DataError, match="has no validation/crps"):
        last_validation(blind.folder)
    with pytest.raises(DataError, match="cannot be read"):
        last_validation(tmp_path / "nowhere")
    apart = [run(tmp_path, "two", 0.1, 0, 1.0, 1.0), run(tmp_path, "two", 1.0, 1, 1.0, 1.0)]
    with pytest.raises(DataError, match="have no seed in common"):
        draw(by_label(apart), tmp_path)
