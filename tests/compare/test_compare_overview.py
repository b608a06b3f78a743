"""The page of a group: what it says follows from the comparisons' tests, and from nothing else."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from synthetic_runs import make_method, make_task, write_run
from test_compare_page import Balanced

from relent.compare import command
from relent.compare.critical import critical_difference_of, largest_block
from relent.compare.critical_plot import critical_plot
from relent.compare.overview import COLUMNS, run_overview
from relent.compare.together import linked_by_source
from relent.errors import DataError
from relent.files import read_json
from relent.manifest.models import Group
from relent.scores.ranks import critical_difference

METRICS = {
    "accuracy": {"title": "Accuracy", "direction": "higher"},
    "ece": {"title": "ECE", "direction": "lower", "unit": "nats"},
}
GAINS = {"hinton": 0.0, "pld": 0.05, "nkd": 0.0, "weak": -0.05, "cross_entropy": -0.002}
NOISE = {
    "hinton": (0, 1, -1),
    "pld": (0.3, 1, -1),
    "nkd": (-8, 3, 5),
    "weak": (0, 1.2, -1),
    "cross_entropy": (4, 1, -5),
}
SECONDS = {"hinton": 12.0, "pld": 15.0, "nkd": 30.0, "weak": 8.0, "cross_entropy": 10.0}
GROUP = Group(
    title="Which <objective> & why?",
    tasks=["digits", "sprites", "words"],
    goals={"accuracy": ["mrr", "accuracy"], "calibration": ["ece"]},
    reference="cross_entropy",
)


def _compare(root: Path, name: str, gains: dict[str, float], seeds: int = 3, **task_changes: Any) -> Any:
    """One comparison in `root/name`: accuracy is 0.8 with the gains, ECE 0.2 and the same for everybody but noise."""
    task = make_task(**{"name": name, "metrics": METRICS, "baseline": "hinton", "sources": [name]} | task_changes)
    runs = []
    for position, (method, gain) in enumerate(gains.items()):
        for seed in range(seeds):
            e = 0.001 * NOISE[method][seed]
            score = 0.8 + 0.01 * seed + gain + e
            scores = {"accuracy": score, "mrr": score, "ece": 0.2 + 0.01 * ((5 * seed + 3 * position) % 7)}
            facts = {"training_seconds": SECONDS[method], "peak_memory_mb": 1000 + 20 * SECONDS[method]}
            folder = write_run(root, method, seed, {k: scores[k] for k in task.metrics}, task=name, facts=facts)
            runs.append((folder, method))
    claims = [{"text": "PLD <b>wins</b>"}, {"baseline": "weak", "direction": "lower"}]
    methods = {m: make_method(m, claims if m == "pld" else [], title=f"Method <{m}>") for m in gains}
    command.run_compare(task, runs, 0.95, root / name, methods)
    command.run_claims(task, methods, runs, 0.95, root / name)
    return task


def _overview(root: Path, tasks: dict[str, Any], group: Group = GROUP) -> dict[str, Any]:
    run_overview("classification", group, tasks, {name: root / name for name in tasks}, root / "classification")
    return read_json(root / "classification" / "overview.json")


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Any]:
    words = {"mrr": METRICS["accuracy"] | {"title": "MRR"}}
    few = {"cross_entropy": 0.0, "pld": 0.002}
    return {
        "digits": _compare(tmp_path, "digits", GAINS),
        "sprites": _compare(tmp_path, "sprites", GAINS, sources=["digits"]),
        "words": _compare(
            tmp_path, "words", few, metrics=words, primary_metric="mrr", baseline="cross_entropy", notice="Few & small."
        ),
    }


def _goal(overview: dict[str, Any], name: str) -> dict[str, Any]:
    return next(goal for goal in overview["goals"] if goal["goal"] == name)


def _entry(overview: dict[str, Any], goal: str, label: str) -> dict[str, Any]:
    return next(entry for entry in _goal(overview, goal)["entries"] if entry["label"] == label)


def test_marks_are_those_of_the_comparisons(tmp_path: Path, tasks: dict[str, Any]) -> None:
    overview = _overview(tmp_path, tasks)
    assert len(overview["table"]) == 2 * 5 * 2 + 2
    for row in overview["table"]:
        comparison = read_json(tmp_path / row["task"] / "comparison.json")
        (own,) = [r for r in comparison["table"] if (r["label"], r["metric"]) == (row["label"], row["metric"])]
        assert all(row[key] == own[key] for key in ("mean", "low", "high", "rank", "verdict", "p_holm", "seeds_needed"))
        assert row["baseline"] == comparison["baseline"]
        for goal in row["goals"]:
            if row["verdict"] in ("better", "worse"):
                assert row["task"] in _entry(overview, goal, row["label"])[row["verdict"]]


def test_who_is_named_and_who_is_not(tmp_path: Path, tasks: dict[str, Any]) -> None:
    overview = _overview(tmp_path, tasks)
    standings = {e["label"]: e["standing"] for e in _goal(overview, "accuracy")["entries"]}
    assert standings == {"pld": "better", "nkd": "open", "weak": "worse", "cross_entropy": "open"}
    assert _goal(overview, "accuracy")["metrics"] == {"digits": "accuracy", "sprites": "accuracy", "words": "mrr"}
    pld = _entry(overview, "accuracy", "pld")
    assert pld["better"] == ["digits", "sprites"]
    (undecided,) = pld["open"]
    assert undecided["task"] == "words"
    assert undecided["seeds_needed"] > 3
    assert _goal(overview, "accuracy")["headline"].startswith(
        "Better than the baseline, and nowhere worse: pld (2 of 3"
    )
    calibration = _goal(overview, "calibration")
    assert calibration["headline"].startswith("No method was told to be better")
    assert {e["standing"] for e in calibration["entries"]} == {"open"}
    assert "nkd (" in calibration["lines"][-1]
    assert overview["answer"] == (
        "better than the baseline and nowhere worse for accuracy: pld (2 of 3 tasks, on average over 2); "
        "for calibration: no method"
    )


def test_a_better_mean_names_nobody(tmp_path: Path) -> None:
    gains = dict.fromkeys(("hinton", "nkd", "cross_entropy"), 0.0) | {"nkd": 0.003}
    tasks = {name: _compare(tmp_path, name, gains) for name in ("digits", "sprites")}
    overview = _overview(tmp_path, tasks, GROUP.model_copy(update={"tasks": list(tasks)}))
    best = [row for row in overview["table"] if row["label"] == "nkd" and row["metric"] == "accuracy"]
    assert all(row["rank"] == 1 for row in best)
    assert "nkd" not in _goal(overview, "accuracy")["headline"]
    assert _entry(overview, "accuracy", "nkd")["standing"] == "open"


def test_better_here_and_worse_there_is_no_advice(tmp_path: Path) -> None:
    gains = {"hinton": 0.0, "pld": 0.05}
    tasks = {
        "digits": _compare(tmp_path, "digits", gains),
        "sprites": _compare(tmp_path, "sprites", gains | {"pld": -0.05}),
    }
    overview = _overview(tmp_path, tasks, GROUP.model_copy(update={"tasks": list(tasks)}))
    entry = _entry(overview, "accuracy", "pld")
    assert (entry["standing"], entry["better"], entry["worse"]) == ("mixed", ["digits"], ["sprites"])
    assert _goal(overview, "accuracy")["headline"].startswith("No method was told to be better")
    assert (
        "pld, as it depends: better on 1 of 2 tasks (digits); worse on 1 of 2 tasks (sprites)"
        in (_goal(overview, "accuracy")["lines"][0])
    )


def test_one_seed_says_that_it_tells_nothing(tmp_path: Path) -> None:
    tasks = {name: _compare(tmp_path, name, GAINS, seeds=1) for name in ("digits", "sprites")}
    overview = _overview(tmp_path, tasks, GROUP.model_copy(update={"tasks": list(tasks)}))
    assert {goal["headline"] for goal in overview["goals"]} == {"One seed was run, which tells nothing"}
    html = (tmp_path / "classification" / "overview.html").read_text()
    assert "None" not in html


def _differences(root: Path, entry: dict[str, Any]) -> list[np.ndarray]:
    """Paired differences of an entry over the tasks together: one array of seeds a task."""
    metric = {"Accuracy": "accuracy", "ECE": "ece"}[entry["title"]]
    found = []
    for task in entry["tasks"]:
        rows = {r["label"]: r for r in read_json(root / task / "comparison.json")["table"] if r["metric"] == metric}
        own, base = rows[entry["label"]]["values"], rows[entry["baseline"]]["values"]
        found.append(np.array([own[seed] - base[seed] for seed in own]))
    return found


def test_averages_over_tasks_of_the_same_data_are_paired_by_seed(tmp_path: Path, tasks: dict[str, Any]) -> None:
    """One t test of the seeds' means over tasks, whatever the tasks share; Holm's correction over methods and goals."""
    overview = _overview(tmp_path, tasks)
    found = [e["together"] for goal in overview["goals"] for e in goal["entries"] if e["together"]]
    assert len(found) == 2 * 4
    p = []
    for entry in found:
        by_seed = np.mean(_differences(tmp_path, entry), axis=0)
        test = stats.ttest_1samp(by_seed, 0.0)
        assert (entry["difference"], entry["p"]) == pytest.approx((by_seed.mean(), test.pvalue), rel=1e-6, abs=1e-15)
        assert (entry["low"], entry["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-6)
        assert (entry["tasks"], entry["strata"]) == (["digits", "sprites"], 1)
        p.append(test.pvalue)
    assert [e["p_holm"] for e in found] == pytest.approx(list(multipletests(p, method="holm")[1]), rel=1e-6)


def test_averages_over_tasks_of_other_data_are_welchs(tmp_path: Path) -> None:
    """Two strata are one Welch test of the first differences against the negative second ones."""
    tasks = {"digits": _compare(tmp_path, "digits", GAINS), "sprites": _compare(tmp_path, "sprites", GAINS, seeds=2)}
    overview = _overview(tmp_path, tasks, GROUP.model_copy(update={"tasks": list(tasks)}))
    for entry in (e["together"] for e in _goal(overview, "accuracy")["entries"]):
        first, second = _differences(tmp_path, entry)
        assert len(second) < len(first)
        assert entry["p"] == pytest.approx(stats.ttest_ind(first, -second, equal_var=False).pvalue, rel=1e-6)
        assert entry["strata"] == 2


def test_tasks_are_linked_by_their_sources() -> None:
    sources = {"a": ["x"], "b": ["y"], "c": ["y", "z"], "d": ["z", "x"], "e": ["v"], "f": []}
    assert linked_by_source("abef", sources) == [["a"], ["b"], ["e"], ["f"]]
    assert linked_by_source("abcdef", sources) == [["a", "b", "c", "d"], ["e"], ["f"]]


def test_costs_are_ratios_to_the_reference(tmp_path: Path, tasks: dict[str, Any]) -> None:
    overview = _overview(tmp_path, tasks)
    costs = {method["label"]: method for method in overview["methods"]}
    assert costs["nkd"]["time"] == pytest.approx({"middle": 3.0, "low": 3.0, "high": 3.0, "tasks": 2})
    assert costs["pld"]["memory"]["middle"] == pytest.approx(1300 / 1200)
    assert costs["cross_entropy"]["time"]["middle"] == 1.0
    html = (tmp_path / "classification" / "overview.html").read_text()
    assert "<li>less than 0.9 times: weak (0.80)</li>" in html
    assert "<li>2 to 5 times: nkd (3.00)</li>" in html
    assert "Training takes 1.50 times as long as cross_entropy&#39;s" in html


def test_costs_without_the_reference_are_not_known(tmp_path: Path) -> None:
    gains = {"hinton": 0.0, "pld": 0.05}
    tasks = {name: _compare(tmp_path, name, gains) for name in ("digits", "sprites")}
    overview = _overview(tmp_path, tasks, GROUP.model_copy(update={"tasks": list(tasks)}))
    assert all(method["time"] is None for method in overview["methods"])
    assert "No comparison has cross_entropy" in (tmp_path / "classification" / "overview.html").read_text()


def test_the_page_is_self_contained_well_formed_and_escaped(tmp_path: Path, tasks: dict[str, Any]) -> None:
    hostile = GROUP.model_copy(update={"goals": {"<script>alert(1)</script> & more": ["accuracy", "mrr"]}})
    overview = _overview(tmp_path, tasks, hostile)
    html = (tmp_path / "classification" / "overview.html").read_text()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert all(address.startswith("data:") for address in parser.addresses)
    assert "http" not in html
    assert "url(" not in html
    assert html.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in html
    assert "Which &lt;objective&gt; &amp; why?" in html
    assert "Method &lt;pld&gt;" in html
    assert "words: Few &amp; small." in html
    assert overview["goals"][0]["headline"] in html


def test_the_page_holds_every_method_on_every_task(tmp_path: Path, tasks: dict[str, Any]) -> None:
    overview = _overview(tmp_path, tasks)
    html = (tmp_path / "classification" / "overview.html").read_text()
    table = html.split("All methods on all tasks")[1].split("</table>")[0]
    rows = dict(re.findall(r'<tr>\s*<td data-value="(\w+)">(.*?)</tr>', table, flags=re.S))
    assert list(rows) == list(GAINS)
    assert rows["pld"].count('class="better"') == 2
    assert rows["weak"].count('class="worse"') == 2
    assert rows["cross_entropy"].count("seeds</span>") == 2
    assert rows["nkd"].count('<td data-value="">–</td>') == 1
    assert rows["hinton"].count("baseline") == 2
    assert "2 ✓" in rows["pld"]
    claims = {m["label"]: m["claims"] for m in overview["methods"]}
    assert claims["pld"] == {"reproduced": 2, "not reproduced": 2}


def test_the_csv_holds_the_table(tmp_path: Path, tasks: dict[str, Any]) -> None:
    overview = _overview(tmp_path, tasks)
    with (tmp_path / "classification" / "overview.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert tuple(rows[0]) == COLUMNS
    assert [(r["task"], r["label"], r["metric"]) for r in rows] == [
        (r["task"], r["label"], r["metric"]) for r in overview["table"]
    ]
    assert float(rows[0]["mean"]) == overview["table"][0]["mean"]


def test_different_scales_are_refused(tmp_path: Path, tasks: dict[str, Any]) -> None:
    path = tmp_path / "words" / "comparison.json"
    path.write_text(path.read_text().replace('"scale": "laptop"', '"scale": "smoke"'))
    with pytest.raises(DataError, match="different values of scale: digits laptop, sprites laptop, words smoke"):
        _overview(tmp_path, tasks)


def test_a_missing_comparison_is_named(tmp_path: Path, tasks: dict[str, Any]) -> None:
    (tmp_path / "words" / "claims.json").unlink()
    with pytest.raises(DataError, match=r"words/claims\.json: does not exist"):
        _overview(tmp_path, tasks)


# ------------------------------------------------------------------------------------------- ranks over tasks


def test_the_largest_block_of_tasks_and_methods() -> None:
    tasks = ["a", "b", "c", "d"]
    ran = {"m1": {"a", "b", "c", "d"}, "m2": {"a", "b", "c"}, "m3": {"a", "b", "c"}, "m4": {"a", "b"}, "m5": {"d"}}
    assert largest_block(ran, tasks) == (["a", "b", "c"], ["m1", "m2", "m3"])
    # Neither method's own tasks are the best block, only what two of them share.
    crossed = {"m1": {"a", "b", "c"}, "m2": {"b", "c", "d"}, "m3": {"a", "b", "c"}, "m4": {"b", "c", "d"}}
    assert largest_block(crossed, tasks) == (["b", "c"], ["m1", "m2", "m3", "m4"])
    assert largest_block({"m1": {"a"}, "m2": {"a"}, "m3": {"a"}}, tasks) == ([], [])


def test_ranks_are_taken_over_shared_tasks_alone_with_their_warnings(tmp_path: Path, tasks: dict[str, Any]) -> None:
    ranks = _overview(tmp_path, tasks)["ranks"]
    assert ranks["tasks"] == ["digits", "sprites"]
    assert ranks["methods"] == ["pld", "hinton", "nkd", "cross_entropy", "weak"]
    assert ranks["ranks"] == [1.0, 2.5, 2.5, 4.0, 5.0]
    assert ranks["difference"] == pytest.approx(critical_difference(5, 2, 0.95))
    assert ranks["warnings"][0].startswith("With 2 tasks nothing can be told")
    assert "digits and sprites are made from the same sources" in ranks["warnings"][1]
    html = (tmp_path / "classification" / "overview.html").read_text()
    assert all(warning in html for warning in ranks["warnings"])


def test_the_tasks_that_are_needed_are_enough() -> None:
    scores = np.array([[3.0, 2.0, 1.0]] * 2)
    found = critical_difference_of(scores, ["a", "b"], ["x", "y", "z"], 0.95, {})
    enough = int(re.search(r"At least (\d+) tasks", found.warnings[0])[1])
    assert critical_difference(3, enough) <= 2 < critical_difference(3, enough - 1)


def test_too_few_methods_on_two_tasks_are_told_and_not_drawn() -> None:
    found = critical_difference_of(np.empty((0, 0)), [], [], 0.95, {})
    assert "No three methods ran on two tasks" in found.says
    assert critical_plot({"methods": [], "ranks": []}) == ""


def test_the_figure_joins_what_is_not_told_apart() -> None:
    scores = np.array([[9.0, 8, 7, 2, 1, 0.5]] * 12)
    found = critical_difference_of(scores, [f"t{i}" for i in range(12)], [*"abcd", "e" * 40, "<f>"], 0.95, {})
    assert found.warnings == []
    assert "told apart by Nemenyi's test" in found.says
    svg = critical_plot(vars(found))
    assert svg.count('class="clique"') == len(found.cliques) > 1
    assert svg.count("<polyline") == 6
    assert f"<title>{'e' * 40}</title>5.00 {'e' * 29}…" in svg
    assert "&lt;f&gt;" in svg
    assert "<f>" not in svg


def test_chance_is_called_chance() -> None:
    scores = np.random.default_rng(1).normal(size=(6, 8))
    found = critical_difference_of(scores, [f"t{i}" for i in range(6)], list("abcdefgh"), 0.95, {})
    assert "not told apart at all" in found.says
