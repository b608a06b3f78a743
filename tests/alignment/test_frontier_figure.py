"""The figure of reward against KL: what is joined, in which order, and that many methods can be told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from relent.compare.results import RunResult
from relent.figures import joined
from relent.language.exact import FrontierPoint
from relent.tasks.preference_alignment.comparison import curves, draw, frontier_figure

OPTIMUM = [FrontierPoint(1 / k, 1.5 * k**0.5, k, 6 - k)._asdict() for k in (0.01, 0.5, 1, 2, 4, 8, 16, 60)]


def run(method: str, variant: str, seed: int, hyperparameters: dict[str, Any], kl: float, **changes: Any) -> RunResult:
    label = method if variant == "default" else f"{method}:{variant}"
    config = {"method": method, "seed": seed, "hyperparameters": {"max_steps": 9} | hyperparameters, "inputs": {}}
    reward = 1.3 * kl**0.5 + 0.02 * seed - 0.03 * len(method)
    scores = {"kl_to_reference": kl, "expected_reward": reward, "entropy": 6 - kl} | changes.pop("scores", {})
    return RunResult(Path(label), label, config | changes, scores, {"frontier": OPTIMUM}, {})


def sweep(method: str, name: str, values: dict[str, float], seeds: int = 2) -> list[RunResult]:
    return [
        run(method, variant, seed, {name: value}, kl=2.0 / (value + 0.5) + 0.1 * seed + 0.02 * len(method))
        for variant, value in values.items()
        for seed in range(seeds)
    ]


BETAS = {"default": 0.1, "beta_3": 3.0, "beta_1": 1.0, "beta_03": 0.3}


def test_a_curve_holds_the_variants_that_differ_in_strength_alone_in_its_order():
    runs = sweep("dpo", "beta", BETAS)
    runs += [run("dpo", "noisy", 0, {"beta": 1.0, "label_smoothing": 0.1}, kl=1.0)]
    # The same values, and another reward that it reads.
    runs += [run("dpo", "learned", 0, {"beta": 1.0}, kl=1.0, inputs={"reward_model": "there"})]
    runs += [run("sft", "default", 0, {}, kl=0.2)]
    found = curves(runs)
    assert [[members[0].label for members in curve] for curve in found["dpo"]] == [
        ["dpo", "dpo:beta_03", "dpo:beta_1", "dpo:beta_3"],
        ["dpo:noisy"],
        ["dpo:learned"],
    ]
    assert [len(members) for members in found["dpo"][0]] == [2, 2, 2, 2]
    assert found["sft"] == [[[runs[-1]]]]


@pytest.mark.parametrize("name", ["n", "kl_weight"])
def test_other_strengths(name):
    runs = sweep("method", name, {"default": 4, "n_64": 64, "n_2": 2})
    assert [members[0].label for members in curves(runs)["method"][0]] == ["method:n_2", "method", "method:n_64"]


def test_a_line_joins_means_over_seeds_and_dots_are_the_seeds():
    runs = sweep("dpo", "beta", BETAS, seeds=3)
    left = frontier_figure(runs)[0].axes[0]
    line = next(line for line in left.lines if line.get_markevery())
    marks = slice(None, None, line.get_markevery())
    for value, x, y in zip((0.1, 0.3, 1.0, 3.0), line.get_xdata()[marks], line.get_ydata()[marks], strict=True):
        own = [run for run in runs if run.config["hyperparameters"]["beta"] == value]
        assert x == pytest.approx(np.mean([run.scores["kl_to_reference"] for run in own]))
        assert y == pytest.approx(np.mean([run.scores["expected_reward"] for run in own]))
    dots = [line for line in left.lines if line.get_marker() == "."]
    assert sorted(x for line in dots for x in line.get_xdata()) == pytest.approx(
        sorted(run.scores["kl_to_reference"] for run in runs)
    )


def test_lines_are_straight_in_the_units_of_the_data():
    """So that none between two policies crosses the optimum's concave line on an axis that grows as the root."""
    points = np.array([[0.0, 1.0], [4.0, 3.0], [5.0, 0.0]])
    found = joined(points, 4)
    assert found[::4] == pytest.approx(points)
    assert found[:5, 1] == pytest.approx(1 + found[:5, 0] / 2)
    left = frontier_figure(sweep("dpo", "beta", BETAS))[0].axes[0]
    line = next(line for line in left.lines if line.get_markevery())
    x, y = (np.asarray(values)[: line.get_markevery() + 1] for values in line.get_data())
    assert y == pytest.approx(y[0] + (x - x[0]) / (x[-1] - x[0]) * (y[-1] - y[0]))


def test_runs_towards_a_constraint_are_left_out(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    runs = sweep("dpo", "beta", BETAS)
    away = run("f_dpg", "word", 0, {"beta": None}, kl=9.0, scores={"constraint_rate": 0.9})
    assert draw([*runs, away], tmp_path / "a") == draw(runs, tmp_path / "b")
    assert (tmp_path / "a" / "frontier.png").read_bytes() == (tmp_path / "b" / "frontier.png").read_bytes()


def test_fifteen_methods_have_looks_of_their_own_and_one_entry_each_in_the_legend(tmp_path):
    names = [f"method_{'abcdefghijklmno'[i]}" for i in range(15)]
    runs = [run for name in names for run in sweep(name, "beta", BETAS)]
    figure, _ = frontier_figure(runs)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["optimum", *names]
    looks = {
        (to_hex(line.get_color()), line.get_marker()) for line in figure.axes[0].lines if line.get_label() in names
    }
    assert len(looks) == 15
    assert "no policy lies above" in draw(runs, tmp_path)["frontier.png"]
    assert (tmp_path / "frontier.png").stat().st_size > 10_000


def test_the_axes_end_where_the_runs_do_and_not_where_the_optimum_does():
    runs = sweep("dpo", "beta", BETAS)
    left, right = frontier_figure(runs)[0].axes
    for axes, name in ((left, "kl_to_reference"), (right, "entropy")):
        values = [run.scores[name] for run in runs]
        low, high = axes.get_xlim()
        assert low <= min(values)
        assert max(values) < high < max(values) + 0.2 * (max(values) - min(values)) + 0.1
    assert left.get_xlim()[0] == 0
    assert left.get_ylim()[1] < OPTIMUM[-1]["reward"]


def test_runs_without_a_policy_or_a_reward(tmp_path):
    judge = run("reward_model", "default", 0, {}, kl=0.0)
    del judge.scores["kl_to_reference"]
    assert draw([judge], tmp_path) == {}
    own = run("dpo", "default", 0, {"beta": 0.1}, kl=1.0, scores={"preference_accuracy": 0.6})
    del own.scores["expected_reward"]
    own.tables.clear()
    assert "Share of preferences" in draw([judge, own], tmp_path)["frontier.png"]
