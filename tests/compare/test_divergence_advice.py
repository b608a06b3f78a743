"""Which divergence, when: the words follow the numbers of made-up results, and ties are said as ties."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import make_task, write_run

from relent.compare.command import run_page
from relent.compare.results import RunResult, read_run
from relent.compare.statistics import compare
from relent.manifest.steps import step_roots

NOISE = (0.01, -0.02, 0.015, 0.0, -0.005)
METRICS = {
    "objective": {"title": "Reward less KL", "direction": "higher", "unit": "nats"},
    "expected_reward": {"title": "Reward", "direction": "higher"},
    "kl_to_reference": {"title": "KL to reference", "unit": "nats"},
    "entropy": {"title": "Entropy", "direction": "higher"},
    "preference_ece": {"title": "Preference ECE", "direction": "lower"},
}
REVERSE, FORWARD, JS = (
    {"name": name, "to": to}
    for name, to in (("reverse_kl", "reference"), ("forward_kl", "reference"), ("jensen_shannon_unhalved", "target"))
)
ALPHA = {"name": "alpha(0.5)", "to": "reference"}
# Means of objective, KL, entropy, calibration error.
SFT = (0.0, 0.1, 5.0, 0.30)
Runs = Mapping[tuple[str, str, float], tuple[dict[str, str] | None, tuple[float, ...]]]


@pytest.fixture
def section(tmp_path: Path) -> Callable[..., dict[str, Any] | None]:
    """Give a function from (method, variant, β) → (divergence, means) to the section, its runs at some seeds."""

    def made(
        runs: Runs, seeds: int = 5, spread: float = 1.0, changes: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        task = make_task(kind="preference_alignment", metrics=METRICS, primary_metric="objective", baseline="sft")
        results: list[RunResult] = []
        for number, ((method, variant, beta), (divergence, means)) in enumerate(runs.items()):
            for seed in range(seeds):
                # Each run has its noise in another order, so that paired differences have a spread.
                noise = spread * NOISE[(seed + number) % len(NOISE)] * (1 + number)
                objective, kl, entropy, ece = (mean + noise for mean in means)
                scores = {"objective": objective, "expected_reward": objective + kl, "kl_to_reference": kl}
                change = (changes or {}).get(variant, {}) if method == "f_dpg" else {}
                scores |= {"entropy": entropy, "preference_ece": ece} | change.get("scores", {})
                values = ({"beta": beta} if beta else {}) | change.get("values", {})
                folder = write_run(tmp_path, method, seed, scores, variant=variant, hyperparameters=values)
                label = method if variant == "default" else f"{method}:{variant}"
                results.append(
                    replace(read_run(folder, label), tables={"divergence": [divergence]} if divergence else {})
                )
        found = compare(task, results, 0.95, tmp_path)["sections"]
        assert json.loads((tmp_path / "comparison.json").read_text())["sections"] == found
        return found[0] if found else None

    return made


def said(section: dict[str, Any], goal: str) -> dict[str, Any]:
    (found,) = [s for s in section["statements"] if goal in s["goal"] and not s["sentence"].startswith("Within")]
    return found


CLEAR = {
    ("sft", "default", 0.0): (None, SFT),
    ("dpo", "default", 1.0): (REVERSE, (1.0, 2.0, 3.0, 0.02)),
    ("f_dpo", "forward_kl", 1.0): (FORWARD, (0.6, 0.9, 4.0, 0.10)),
    ("f_dpg", "default", 1.0): (JS, (-0.9, 0.2, 4.8, 0.2)),
}


def test_each_goal_names_the_divergence_that_the_numbers_name(section):
    found = section(CLEAR)
    reward = said(found, "highest reward less KL")
    assert (reward["best"], reward["divergence"], reward["tied"]) == ("dpo", "reverse KL to the reference", [])
    assert reward["sentence"].startswith(
        "For the highest reward less KL: reverse KL to the reference (dpo: Reward less KL 1.000, 95 % interval "
    )
    assert reward["sentence"].endswith("nats, 5 seeds), told apart from all 2 other divergences")
    # f_dpg has more entropy and has drifted less, but it is worse than the baseline.
    for goal in ("diverse", "drift"):
        statement = said(found, goal)
        assert statement["best"] == "f_dpo:forward_kl"
        assert "among runs told to be better than sft in Reward less KL: forward KL" in statement["sentence"]
    assert said(found, "calibrated")["best"] == "dpo"


def test_other_numbers_change_the_words(section):
    worse = {key: (d, (-m[0], m[1], -m[2], -m[3])) for key, (d, m) in CLEAR.items()}
    found = section(worse)
    assert said(found, "highest reward less KL")["divergence"] == "Jensen–Shannon to the target"
    assert said(found, "calibrated")["best"] == "f_dpg"
    # Only f_dpg is better than sft now.
    assert said(found, "drift")["sentence"].endswith("; no other divergence is among them")


def test_ties_are_said_as_ties_with_the_seeds_that_would_decide(section):
    close = CLEAR | {("f_dpo", "forward_kl", 1.0): (FORWARD, (0.99, 0.9, 4.0, 0.10))}
    reward = said(section(close), "highest reward less KL")
    assert (reward["best"], reward["tied"]) == ("dpo", ["f_dpo:forward_kl"])
    assert "has the best mean, but the seeds do not tell it from forward KL to the reference (" in reward["sentence"]
    assert "(f_dpo:forward_kl; about" in reward["sentence"]
    assert reward["sentence"].endswith(" seeds); told apart from Jensen–Shannon to the target")


def test_a_divergence_is_as_good_as_its_best_run(section):
    """A bad run of the forward KL beside a good one takes nothing from it, and is no tie of its own."""
    runs = CLEAR | {("f_dpo", "weak", 9.0): (FORWARD, (0.1, 0.3, 4.0, 0.4)), ("ppo", "default", 1.0): (REVERSE, SFT)}
    reward = said(section(runs), "highest reward less KL")
    assert (reward["best"], reward["tied"]) == ("dpo", [])
    assert "all 2 other divergences" in reward["sentence"]


def test_within_one_method_and_strength_its_divergences_are_compared_alone(section):
    runs = CLEAR | {
        ("f_dpo", "default", 1.0): (ALPHA, (0.9, 1.5, 3.0, 0.8)),
        ("f_dpo", "beta_3", 3.0): (ALPHA, (5.0, 0.01, 9.0, 0.0)),
    }
    within = [s for s in section(runs)["statements"] if s["sentence"].startswith("Within")]
    assert all(s["sentence"].startswith("Within f_dpo at beta 1, for ") for s in within)
    best = {s["goal"]: s["divergence"] for s in within}
    assert best["the highest reward less KL"] == "α-divergence (α 0.5) to the reference"
    assert best["diverse completions"] == best["the smallest drift from the reference"] == "forward KL to the reference"
    assert all("told apart from the only other divergence" in s["sentence"] for s in within)


def test_runs_that_differ_in_more_than_the_divergence_are_not_compared_within_their_method(section):
    """Nor are runs towards a constraint told at all."""
    other = {"policy_class": "positions"}
    runs = CLEAR | {
        ("f_dpg", "forward_kl", 1.0): (FORWARD, (0.9, 1.5, 3.0, 0.8)),
        ("f_dpg", "positions", 1.0): (JS, (0.9, 1.5, 3.0, 0.8)),
        ("f_dpg", "positions_reverse", 1.0): (REVERSE, (0.8, 1.5, 3.0, 0.8)),
        ("f_dpg", "word", 1.0): (ALPHA, (9.0, 1.5, 3.0, 0.8)),
    }
    changes = {"positions": {"values": other}, "positions_reverse": {"values": other}}
    changes |= {"word": {"scores": {"constraint_rate": 0.9}}, "default": {"values": {"policy_class": "network"}}}
    changes |= {"forward_kl": {"values": {"policy_class": "network"}}}
    found = section(runs, changes=changes)
    within = [
        s for s in found["statements"] if s["goal"] == "diverse completions" and s["sentence"].startswith("Within")
    ]
    words = [s["sentence"].split(",")[0] for s in within]
    assert words == [
        "Within f_dpg at beta 1 and policy_class network",
        "Within f_dpg at beta 1 and policy_class positions",
    ]
    assert {row["label"] for row in found["rows"]}.isdisjoint({"f_dpg:word"})
    assert said(found, "highest reward less KL")["best"] == "dpo"


def test_one_seed_decides_nothing(section):
    found = section(CLEAR, seeds=1)
    assert "with one seed nothing says whether that is more than chance" in said(found, "highest")["sentence"]
    for goal in ("diverse", "drift"):
        assert said(found, goal)["sentence"].endswith(
            "none is named: no run is told to be better than sft in Reward less KL"
        )


def test_where_no_run_is_better_the_fewest_seeds_that_would_tell_are_said(section):
    """Of those with a better mean."""
    found = section(CLEAR, spread=40.0)
    for goal in ("diverse", "drift"):
        assert said(found, goal)["best"] is None
        assert "in Reward less KL; about " in said(found, goal)["sentence"]
        assert said(found, goal)["sentence"].endswith(" seeds would decide dpo")


def test_noise_that_hides_everything_leaves_nobody_told_apart(section):
    found = section(CLEAR, spread=100.0)
    assert len(said(found, "highest")["tied"]) == 2
    assert "told apart" not in said(found, "highest")["sentence"]


def test_the_table_holds_every_run_with_a_divergence_and_intervals_over_seeds(section):
    found = section(CLEAR | {("f_dpo", "default", 0.1): (ALPHA, (0.9, 1.5, 3.0, 0.05))})
    assert found["columns"] == ["expected_reward", "kl_to_reference", "entropy", "preference_ece"]
    rows = {row["label"]: row for row in found["rows"]}
    assert list(rows) == ["f_dpg", "f_dpo:forward_kl", "dpo", "f_dpo"]
    assert rows["f_dpo"]["strength"] == {"beta": 0.1}
    cell = rows["dpo"]["cells"]["entropy"]
    assert cell["n"] == 5
    assert cell["low"] < cell["mean"] < cell["high"]


def test_the_page_shows_words_and_table(section, tmp_path):
    found = section(CLEAR)
    (tmp_path / "claims.json").write_text("[]")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "captions.json").write_text("{}")
    html = run_page(tmp_path).read_text()
    assert "<h2>Which divergence, when</h2>" in html
    for statement in found["statements"]:
        assert f"<li>{statement['sentence']}.</li>" in html
    assert "Jensen–Shannon to the target" in html


def test_there_is_none_for_one_divergence_or_another_kind(section, runs, tmp_path):
    one = {key: (d and REVERSE, m) for key, (d, m) in CLEAR.items()}
    assert section(one) is None
    assert compare(make_task(), runs, 0.95, tmp_path)["sections"] == []


def test_a_change_of_the_rules_of_a_kind_makes_its_comparisons_anew():
    assert step_roots("compare", "preference_alignment")[1:] == ("relent.tasks.preference_alignment.advice",)
    assert step_roots("compare", "classification") == ("relent.compare.statistics",)
