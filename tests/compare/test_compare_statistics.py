from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from synthetic_runs import make_method, make_task, write_run

from relent.compare.results import RunResult, read_run
from relent.compare.statistics import COLUMNS, MOST_SEEDS, Sample, compare, difference, ranking, seeds_to_decide
from relent.compare.words import answer
from relent.errors import DataError
from relent.scores.inference import holm_confidence, seeds_needed, t_test_power


def _row(comparison: dict, label: str, metric: str) -> dict:
    return next(row for row in comparison["table"] if (row["label"], row["metric"]) == (label, metric))


def _scores(runs: list[RunResult], label: str, metric: str) -> list[float]:
    return [run.scores[metric] for run in sorted(runs, key=lambda run: run.seed) if run.label == label]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_means_and_paired_differences_equal_scipys(runs: list[RunResult], tmp_path: Path, confidence: float) -> None:
    comparison = compare(make_task(), runs, confidence, tmp_path)
    for label, metric in itertools.product(("pld", "nkd", "smoothing"), ("accuracy", "nll", "spread")):
        own, reference = _scores(runs, label, metric), _scores(runs, "hinton", metric)
        row = _row(comparison, label, metric)
        mean = stats.ttest_1samp(own, 0.0).confidence_interval(confidence)
        paired = stats.ttest_rel(own, reference)
        assert (row["mean"], row["sd"]) == pytest.approx((np.mean(own), np.std(own, ddof=1)), rel=1e-12)
        assert (row["low"], row["high"]) == pytest.approx(tuple(mean), rel=1e-9)
        found = row["difference"]
        assert (found["low"], found["high"]) == pytest.approx(tuple(paired.confidence_interval(confidence)), rel=1e-9)
        assert found["p"] == pytest.approx(paired.pvalue, rel=1e-9)
        assert row["relative_change_percent"] == pytest.approx(100 * (np.mean(own) / np.mean(reference) - 1), rel=1e-9)


def test_holm_covers_every_test_of_the_table_and_no_descriptive_metric(runs: list[RunResult], tmp_path: Path) -> None:
    comparison = compare(make_task(), runs, 0.95, tmp_path)
    tested = [row for row in comparison["table"] if row["direction"] and row["difference"]]
    assert len(tested) == 7  # four methods on accuracy, three on NLL: the one without training has none
    expected = multipletests([row["difference"]["p"] for row in tested], method="holm")[1]
    assert [row["p_holm"] for row in tested] == pytest.approx(list(expected), rel=1e-12)
    assert all(
        row["p_holm"] is None and row["rank"] is None for row in comparison["table"] if row["metric"] == "spread"
    )


def test_seeds_that_would_decide_are_at_the_level_where_holm_stopped(runs: list[RunResult], tmp_path: Path) -> None:
    comparison = compare(make_task(), runs, 0.999, tmp_path)
    tested = [row for row in comparison["table"] if row["p_holm"] is not None]
    levels = holm_confidence([row["difference"]["p"] for row in tested], 0.999)
    undecided = 0
    for row, level in zip(tested, levels, strict=True):
        found = row["difference"]
        if row["verdict"] != "not distinguishable":
            assert row["seeds_needed"] is None
            continue
        undecided += 1
        needed = row["seeds_needed"]
        assert t_test_power(found["mean"], found["sd"], needed, float(level)) >= 0.8
        assert t_test_power(found["mean"], found["sd"], needed - 1, float(level)) < 0.8
    assert undecided
    nkd = next(entry for entry in comparison["ranking"] if entry["label"] == "nkd")
    assert nkd["seeds_needed"] > 3
    assert comparison["ranking"][0]["seeds_needed"] is None


def test_seeds_that_would_decide_have_bounds() -> None:
    assert seeds_to_decide(0.0, 1.0, 0.95) is None
    assert seeds_to_decide(0.1, 0.0, 0.95) is None
    assert seeds_to_decide(0.1, None, 0.95) is None
    assert seeds_to_decide(1e-6, 1.0, 0.95) == MOST_SEEDS
    assert seeds_to_decide(-1.0, 1.0, 0.95) == seeds_needed(1.0, 1.0, 0.95)


def test_better_and_worse_follow_the_metrics_direction(tmp_path: Path) -> None:
    noise = (0.0, 0.001, -0.001)
    for seed, e in enumerate(noise):
        write_run(tmp_path, "hinton", seed, {"accuracy": 0.8, "nll": 0.5})
        write_run(tmp_path, "pld", seed, {"accuracy": 0.9 + e, "nll": 0.3 + e})
        write_run(tmp_path, "weak", seed, {"accuracy": 0.7 + e, "nll": 0.9 + e})
    runs = [read_run(p.parent, p.parts[-5]) for p in sorted(tmp_path.glob("**/config.json"))]
    comparison = compare(make_task(), runs, 0.95, tmp_path)
    said = {(label, m): _row(comparison, label, m)["verdict"] for label in ("pld", "weak") for m in ("accuracy", "nll")}
    assert said == {
        ("pld", "accuracy"): "better",
        ("pld", "nll"): "better",
        ("weak", "accuracy"): "worse",
        ("weak", "nll"): "worse",
    }
    assert [_row(comparison, label, "nll")["rank"] for label in ("pld", "hinton", "weak")] == [1, 2, 3]


def test_an_untrained_method_is_set_against_every_seed(runs: list[RunResult], tmp_path: Path) -> None:
    comparison = compare(make_task(), runs, 0.95, tmp_path)
    row = _row(comparison, "chance", "accuracy")
    reference = _scores(runs, "hinton", "accuracy")
    expected = stats.ttest_1samp(0.5 - np.array(reference), 0.0)
    assert row["difference"]["seeds"] == [0, 1, 2]
    assert row["difference"]["broadcast"]
    assert row["difference"]["p"] == pytest.approx(expected.pvalue, rel=1e-9)
    assert row["low"] is None
    assert any("chance" in note and "one run was set against every seed" in note for note in comparison["notes"])
    assert comparison["seeds"] == [0, 1, 2]


def test_two_untrained_methods_differ_exactly_and_without_a_test(tmp_path: Path) -> None:
    sides = [Sample({0: 0.5}, True), Sample({0: 0.7}, True)]
    found = difference(*sides, 0.95)
    assert found is not None
    assert found.exact
    assert not found.testable
    assert found.mean == pytest.approx(-0.2)
    order = ranking(make_task(), {"a": {"accuracy": sides[0]}, "b": {"accuracy": sides[1]}}, 0.95)
    assert [(e["label"], e["tied"]) for e in order] == [("b", True), ("a", False)]


def test_a_trained_method_with_one_seed_is_not_spread_over_the_others(runs: list[RunResult], tmp_path: Path) -> None:
    one = [run for run in runs if run.label != "pld" or run.seed == 1]
    comparison = compare(make_task(), one, 0.95, tmp_path)
    row = _row(comparison, "pld", "accuracy")
    assert row["difference"]["seeds"] == [1]
    assert row["difference"]["low"] is None
    assert row["verdict"] == "one seed"
    assert any("pld" in note and "not all seeds" in note for note in comparison["notes"])


def test_one_seed_gives_no_intervals_and_says_so(runs: list[RunResult], tmp_path: Path) -> None:
    comparison = compare(make_task(), [run for run in runs if run.seed == 0], 0.95, tmp_path)
    assert all(row["low"] is None and row["p_holm"] is None for row in comparison["table"])
    assert all(entry["tied"] for entry in comparison["ranking"] if entry["label"] != "chance")
    assert "no intervals" in comparison["notes"][0]
    assert "with one seed nothing says" in comparison["answer"]


def test_without_the_baseline_there_are_no_differences(runs: list[RunResult], tmp_path: Path) -> None:
    comparison = compare(make_task(), [run for run in runs if run.label != "hinton"], 0.95, tmp_path)
    assert all(row["difference"] is None for row in comparison["table"])
    assert any("baseline hinton was not run" in note for note in comparison["notes"])


def test_the_answer_names_what_the_seeds_cannot_tell_apart(runs: list[RunResult], tmp_path: Path) -> None:
    comparison = compare(make_task(), runs, 0.95, tmp_path)
    assert comparison["ranking"][0]["label"] == "pld"
    assert not next(e for e in comparison["ranking"] if e["label"] == "chance")["tied"]
    assert comparison["answer"] == (
        "pld has the best Accuracy (0.870, 95 % interval 0.845 to 0.895, 3 seeds); not distinguishable from nkd"
    )


def test_of_many_that_cannot_be_told_apart_the_best_few_are_named(runs: list[RunResult], tmp_path: Path) -> None:
    comparison = compare(make_task(), runs, 0.95, tmp_path)
    first, *others = comparison["ranking"]
    far = next(entry for entry in others if not entry["tied"])
    for count, words in ((7, "m0, m1, m2, m3, m4, m5 and m6"), (9, "m0, m1, m2, m3, m4, m5 and 3 more")):
        tied = [others[0] | {"label": f"m{i}"} for i in range(count)]
        said = answer(comparison | {"ranking": [first, *tied, far]})
        assert said.endswith(f"; not distinguishable from {words}")


def test_equal_methods_are_rarely_called_worse_than_the_best() -> None:
    task, rng, wrong, trials = make_task(), np.random.default_rng(0), 0, 400
    for _ in range(trials):
        noise = rng.normal(size=(5, 4)) + rng.normal(size=4)
        scores = {f"m{i}": {"accuracy": Sample(dict(enumerate(row.tolist())), False)} for i, row in enumerate(noise)}
        wrong += not all(entry["tied"] for entry in ranking(task, scores, 0.9))
    assert wrong <= stats.binom.ppf(0.999, trials, 0.1)


def test_csv_holds_one_row_a_label_and_metric_with_the_seeds_values(runs: list[RunResult], tmp_path: Path) -> None:
    comparison = compare(make_task(), runs, 0.95, tmp_path / "out")
    with (tmp_path / "out" / "comparison.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(comparison["table"]) == 4 * 3 + 1
    pld = next(row for row in rows if row["label"] == "pld" and row["metric"] == "nll")
    found = _row(comparison, "pld", "nll")
    assert float(pld["difference_high"]) == found["difference"]["high"]
    assert {int(k): float(v) for k, v in (pair.split(":") for pair in pld["values"].split())} == {
        int(seed): value for seed, value in found["values"].items()
    }
    assert (pld["unit"], pld["direction"], pld["parameters"]) == ("nats", "lower", "12345")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == json.loads(json.dumps(comparison))


def test_manifests_add_titles_and_papers(runs: list[RunResult], tmp_path: Path) -> None:
    comparison = compare(make_task(), runs, 0.95, tmp_path, {"pld": make_method("pld")})
    by_label = {m["label"]: m for m in comparison["methods"]}
    assert by_label["pld"]["paper"]["arxiv"] == "2401.00001"
    assert by_label["nkd"]["paper"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "smoke"}, "has scale 'smoke'"),
        ({"facts": {"data_checksum": "other"}}, "has data checksum 'other'"),
        ({"task": "weather"}, "is a run of task 'weather'"),
        ({"seed": 0}, "at seed 0 too"),
    ],
)
def test_runs_that_may_not_be_compared_are_refused(
    runs: list[RunResult], tmp_path: Path, changes: dict, message: str
) -> None:
    odd = write_run(**{"results": tmp_path / "b", "method": "pld", "seed": 9, "scores": {"accuracy": 1.0}} | changes)
    with pytest.raises(DataError, match=message):
        compare(make_task(), [*runs, read_run(odd, "pld")], 0.95, tmp_path)


def test_no_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run to compare"):
        compare(make_task(), [], 0.95, tmp_path)


def test_comparison_and_tracking_load_neither_torch_nor_lightning_nor_mlflow() -> None:
    code = (
        "import sys, relent.compare.command, relent.compare.page, relent.track.replay;"
        "import relent.compare.overview, relent.compare.overview_page;"
        "print([m for m in ('torch', 'lightning', 'mlflow', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
