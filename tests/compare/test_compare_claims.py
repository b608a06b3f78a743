from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from synthetic_runs import make_method, make_task, write_run

from relent.compare.claims import check_claims
from relent.compare.results import RunResult, read_run
from relent.scores.inference import seeds_needed


def _runs(root: Path, **accuracies: tuple[float, ...]) -> list[RunResult]:
    return [
        read_run(write_run(root, method, seed, {"accuracy": value, "nll": 1 - value}), method)
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def _check(runs: list[RunResult], *claims: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    methods = {"pld": make_method("pld", list(claims), **changes), "hinton": make_method("hinton")}
    return check_claims(make_task(), methods, runs, 0.95)


HINTON = (0.80, 0.82, 0.81, 0.79)


@pytest.mark.parametrize(
    ("scores", "claim", "expected"),
    [
        ((0.90, 0.921, 0.91, 0.892), {}, "reproduced"),
        ((0.70, 0.721, 0.71, 0.692), {}, "not reproduced"),
        ((0.80, 0.83, 0.80, 0.80), {}, "inconclusive"),
        ((0.90, 0.921, 0.91, 0.892), {"direction": "lower"}, "not reproduced"),
        ((0.90, 0.921, 0.91, 0.892), {"metric": "nll", "direction": "lower"}, "reproduced"),
        ((0.90, 0.921, 0.91, 0.892), {"margin": 0.2}, "not reproduced"),
        ((0.79, 0.811, 0.80, 0.781), {"kind": "non_inferiority", "margin": 0.05}, "reproduced"),
        ((0.70, 0.721, 0.71, 0.692), {"kind": "non_inferiority", "margin": 0.05}, "not reproduced"),
        ((0.75, 0.78, 0.75, 0.73), {"kind": "non_inferiority", "margin": 0.05}, "inconclusive"),
        ((0.90, 0.921, 0.91, 0.892), {"kind": "mechanism"}, "reproduced"),
        ((0.90, 0.921, 0.91, 0.892), {"kind": "scaling"}, "reproduced"),
        (HINTON, {}, "not reproduced"),
    ],
)
def test_verdicts(tmp_path: Path, scores: tuple[float, ...], claim: dict[str, Any], expected: str) -> None:
    (found,) = _check(_runs(tmp_path, hinton=HINTON, pld=scores), claim)
    assert found["verdict"] == expected
    assert found["seeds"] == 4


def test_numbers_equal_scipys_and_agree_with_holm(tmp_path: Path) -> None:
    runs = _runs(tmp_path, hinton=HINTON, pld=(0.82, 0.85, 0.83, 0.80), nkd=(0.83, 0.81, 0.83, 0.80))
    found = _check(runs, {}, {"baseline": "nkd"}, {"kind": "non_inferiority", "margin": 0.04, "baseline": "nkd"})
    by = {label: [r.scores["accuracy"] for r in runs if r.label == label] for label in ("hinton", "pld", "nkd")}
    raw = [
        stats.ttest_rel(by["pld"], by["hinton"]).pvalue,
        stats.ttest_rel(by["pld"], by["nkd"]).pvalue,
        stats.ttest_1samp([a - b for a, b in zip(by["pld"], by["nkd"], strict=True)], -0.04).pvalue,
    ]
    assert [claim["p"] for claim in found] == pytest.approx(raw, rel=1e-9)
    assert [claim["p_holm"] for claim in found] == pytest.approx(list(multipletests(raw, method="holm")[1]), rel=1e-9)
    plain = stats.ttest_rel(by["pld"], by["hinton"]).confidence_interval(0.95)
    assert (found[0]["low"], found[0]["high"]) == pytest.approx(tuple(plain), rel=1e-9)
    for claim in found:
        assert (claim["verdict"] != "inconclusive") == (claim["p_holm"] <= 0.05)
        assert claim["holm_low"] <= claim["low"] <= claim["high"] <= claim["holm_high"]


def test_holm_takes_verdicts_back_when_claims_are_many(tmp_path: Path) -> None:
    runs = _runs(tmp_path, hinton=HINTON, pld=(0.82, 0.85, 0.84, 0.80), nkd=(0.83, 0.83, 0.85, 0.80))
    alone = _check(runs, {})
    crowd = _check(runs, {}, *[{"baseline": "nkd", "direction": d} for d in ("higher", "lower") * 4])
    assert alone[0]["verdict"] == "reproduced"
    assert crowd[0]["verdict"] == "inconclusive"
    assert crowd[0]["p"] == alone[0]["p"] < crowd[0]["p_holm"]


def test_an_inconclusive_claim_says_how_many_seeds_decide_it(tmp_path: Path) -> None:
    (found,) = _check(_runs(tmp_path, hinton=HINTON, pld=(0.80, 0.83, 0.80, 0.81)), {})
    assert found["seeds_needed"] == seeds_needed(found["difference"], found["sd"], 0.95)
    assert found["seeds_needed"] > 4


def test_a_hopelessly_small_difference_needs_ten_thousand_seeds_or_none(tmp_path: Path) -> None:
    (small,) = _check(_runs(tmp_path / "a", hinton=HINTON, pld=(0.82, 0.80, 0.80001, 0.80)), {})
    assert small["seeds_needed"] == 10_000
    (never,) = _check(_runs(tmp_path / "b", hinton=(0.5, 0.75, 0.5, 0.75), pld=(0.75, 0.5, 0.75, 0.5)), {})
    assert (never["verdict"], never["seeds_needed"]) == ("inconclusive", None)


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ({"baseline": "dist"}, "dist is not in this comparison"),
        ({"variant": "sharp"}, "pld:sharp is not in this comparison"),
        ({"metric": "speed", "tasks": ["images"]}, "task images has no metric speed"),
        ({"metric": "spread"}, "the runs of pld have no spread"),
    ],
)
def test_what_cannot_be_checked_says_why(tmp_path: Path, claim: dict[str, Any], reason: str) -> None:
    variants = {"default": {}, "sharp": {}}
    (found,) = _check(_runs(tmp_path, hinton=HINTON, pld=HINTON), claim, variants=variants)
    assert (found["verdict"], found["reason"]) == ("not checked", reason)
    assert found["difference"] is None


def test_variants_are_found_by_their_label(tmp_path: Path) -> None:
    runs = _runs(tmp_path, hinton=HINTON, pld=HINTON)
    for seed, value in enumerate((0.90, 0.921, 0.91, 0.892)):
        folder = write_run(tmp_path, "pld", seed, {"accuracy": value, "nll": 1 - value}, variant="sharp")
        runs.append(read_run(folder, "pld:sharp"))
    variants = {"default": {}, "sharp": {}}
    found = _check(runs, {"variant": "sharp", "baseline": "pld:default"}, {"baseline": "pld:sharp"}, variants=variants)
    assert [(c["label"], c["baseline"], c["verdict"]) for c in found] == [
        ("pld:sharp", "pld", "reproduced"),
        ("pld", "pld:sharp", "not reproduced"),
    ]


def test_a_claim_about_another_task_is_left_out(tmp_path: Path) -> None:
    assert _check(_runs(tmp_path, hinton=HINTON, pld=HINTON), {"tasks": ["weather"]}) == []


def test_one_seed_is_inconclusive_and_costs_the_others_nothing(tmp_path: Path) -> None:
    runs = _runs(tmp_path, hinton=HINTON, pld=(0.90, 0.921, 0.91, 0.892), nkd=(0.85,))
    found = _check(runs, {}, {"baseline": "nkd"})
    assert [claim["verdict"] for claim in found] == ["reproduced", "inconclusive"]
    assert "one common seed" in found[1]["reason"]
    assert found[0]["p_holm"] == found[0]["p"]


def test_no_common_seed_is_not_checked(tmp_path: Path) -> None:
    runs = _runs(tmp_path, hinton=HINTON)
    runs += [read_run(write_run(tmp_path, "pld", s, {"accuracy": 0.9}), "pld") for s in (7, 8)]
    (found,) = _check(runs, {})
    assert (found["verdict"], found["reason"]) == ("not checked", "pld and hinton have no seed in common")


def test_untrained_sides(tmp_path: Path) -> None:
    untrained = {"max_steps": 0}
    runs = _runs(tmp_path, pld=(0.90, 0.921, 0.91, 0.892))
    runs.append(read_run(write_run(tmp_path, "hinton", 0, {"accuracy": 0.8}, hyperparameters=untrained), "hinton"))
    (found,) = _check(runs, {})
    assert (found["verdict"], found["seeds"]) == ("reproduced", 4)
    assert "run once and set against every seed" in found["reason"]

    both = [
        read_run(write_run(tmp_path / "both", m, 0, {"accuracy": a}, hyperparameters=untrained), m)
        for m, a in (("pld", 0.9), ("hinton", 0.8))
    ]
    won, lost = _check(both, {}, {"direction": "lower"})
    assert (won["verdict"], lost["verdict"]) == ("reproduced", "not reproduced")
    assert "exact on these data" in won["reason"]
    assert won["p_holm"] is None
