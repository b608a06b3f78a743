"""The mean difference over tasks: against the t interval, Welch's test, and its coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from relent.scores.inference import paired_difference
from relent.scores.strata import mean_over_strata


def test_one_task_is_the_t_interval() -> None:
    d = np.array([0.01, 0.03, 0.02, 0.05])
    found, expected = mean_over_strata([d], confidence=0.9), paired_difference(d, np.zeros(4), 0.9)
    assert (found.low, found.high, found.p_value) == pytest.approx((expected.low, expected.high, expected.p_value))
    assert found.n == 4


def test_two_tasks_are_welchs_test() -> None:
    """The mean of d₁ and d₂ is half the difference of d₁ and -d₂."""
    first, second = np.array([0.4, 1.1, 0.9]), np.array([2.0, -1.0, 3.5, 0.5])
    welch = stats.ttest_ind(first, -second, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    found = mean_over_strata([first, second])
    assert found.p_value == pytest.approx(welch.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((low / 2, high / 2), rel=1e-9)


@pytest.mark.parametrize(("tasks", "lowest"), [(2, 0.93), (6, 0.945)])
def test_coverage_with_three_seeds_and_unequal_spreads(tasks: int, lowest: float) -> None:
    rng, hits, trials = np.random.default_rng(0), 0, 4000
    for noise in rng.normal(size=(trials, tasks, 3)) * np.linspace(1, 4, tasks)[:, None]:
        found = mean_over_strata(list(noise))
        hits += found.low <= 0 <= found.high
    assert lowest < hits / trials < 0.975


def test_weights_are_shares() -> None:
    first, second = np.array([1.0, 2.0, 3.0]), np.array([5.0, 9.0])
    assert mean_over_strata([first, second], [3, 1]).estimate == pytest.approx(0.75 * 2 + 0.25 * 7)
    assert mean_over_strata([first, second], [3, 1]) == mean_over_strata([first, second], [0.75, 0.25])
    assert mean_over_strata([first, second]) == mean_over_strata([first, second], [2, 2])


def test_no_spread_at_all_is_a_point() -> None:
    found = mean_over_strata([[0.1] * 3, [0.3] * 3])
    assert (found.low, found.high, found.p_value) == (0.2, 0.2, 0.0)
    assert mean_over_strata([[0.0] * 3, [0.0] * 3]).p_value == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "one stratum or more"),
        (([[0.1]],), "2 seeds or more"),
        (([[0.1, float("nan")]],), "finite"),
        (([[0.1, 0.2]], [1.0, 1.0]), "one positive weight"),
        (([[0.1, 0.2]], [0.0]), "one positive weight"),
        (([[0.1, 0.2]], None, 1.0), "confidence"),
    ],
)
def test_bad_input_is_refused(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_over_strata(*arguments)
