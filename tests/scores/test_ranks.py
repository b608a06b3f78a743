"""Ranks over tasks against Demšar's worked example, scipy, and what must hold for any scores."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from relent.scores.ranks import cliques, critical_difference, friedman, ranks_within

# AUC of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 data sets (Demšar 2006, table 6). The paper ranks "voting" 4, 1, 2, 3
# from values of which it prints three digits.
AUC = np.array(
    [
        (0.763, 0.768, 0.771, 0.798),
        (0.599, 0.591, 0.590, 0.569),
        (0.954, 0.971, 0.968, 0.967),
        (0.628, 0.661, 0.654, 0.657),
        (0.882, 0.888, 0.886, 0.898),
        (0.936, 0.931, 0.916, 0.931),
        (0.661, 0.668, 0.609, 0.685),
        (0.583, 0.583, 0.563, 0.625),
        (0.775, 0.838, 0.866, 0.875),
        (1.000, 1.000, 1.000, 1.000),
        (0.940, 0.962, 0.965, 0.962),
        (0.619, 0.666, 0.614, 0.669),
        (0.972, 0.981, 0.9751, 0.975),
        (0.957, 0.978, 0.946, 0.970),
    ]
)


def test_demsars_average_ranks() -> None:
    assert ranks_within(AUC).mean(0) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)


def test_demsars_friedman_statistic() -> None:
    """His formula leaves ties out: χ² = 9.28, F = 3.69 with 3 and 39 degrees of freedom. Ours is that over 1 - C."""
    ranks = ranks_within(AUC)
    n, k = ranks.shape
    plain = 12 * n / (k * (k + 1)) * (np.sum(ranks.mean(0) ** 2) - k * (k + 1) ** 2 / 4)
    assert plain == pytest.approx(9.28, abs=5e-3)
    assert (n - 1) * plain / (n * (k - 1) - plain) == pytest.approx(3.69, abs=5e-3)
    ties = sum(t**3 - t for row in ranks for t in np.unique(row, return_counts=True)[1])
    found = friedman(AUC)
    assert found.statistic == pytest.approx(plain / (1 - ties / (n * k * (k * k - 1))), rel=1e-12)
    scipys = stats.friedmanchisquare(*AUC.T)
    assert (found.statistic, found.p_value) == pytest.approx((scipys.statistic, scipys.pvalue), rel=1e-12)
    assert (found.tasks, found.methods) == (14, 4)


def test_demsars_critical_difference_and_groups() -> None:
    """At 0.10 he finds 1.10 (from a table of three digits: 2.291 · 0.488) and that C4.5 differs from both with m."""
    assert critical_difference(4, 14, 0.95) == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(4, 14, 0.90) == pytest.approx(2.291 * np.sqrt(4 * 5 / (6 * 14)), abs=5e-4)
    ranks = ranks_within(AUC).mean(0)
    assert cliques(ranks, critical_difference(4, 14, 0.90)) == [[3, 1, 2], [2, 0]]


@pytest.mark.parametrize(
    ("confidence", "table"),
    [
        (0.95, {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}),
        (0.90, {2: 1.645, 3: 2.052, 4: 2.291, 5: 2.459, 6: 2.589, 7: 2.693, 8: 2.780, 9: 2.855, 10: 2.920}),
    ],
)
def test_critical_values_are_those_of_the_table(confidence: float, table: dict[int, float]) -> None:
    """Demšar 2006, table 5a."""
    for k, q in table.items():
        assert critical_difference(k, 1, confidence) / np.sqrt(k * (k + 1) / 6) == pytest.approx(q, abs=1.1e-3)


def test_the_permutation_test_agrees_with_all_orders() -> None:
    """Three methods on three tasks have 216 joint orders, all equally likely if the methods are equal."""
    scores = np.array([(3.0, 2.0, 1.0), (3.0, 1.0, 2.0), (2.0, 3.0, 1.0)])
    orders = [np.array(order) for order in ((1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1))]
    sums = [np.sum((a + b + c) ** 2) for a in orders for b in orders for c in orders]
    observed = np.sum(ranks_within(scores).sum(0) ** 2)
    assert friedman(scores).p_permutation == pytest.approx(np.mean(np.array(sums) >= observed), abs=0.02)


def test_equal_methods_are_rarely_told_apart_by_permutation_with_few_tasks() -> None:
    rng, trials = np.random.default_rng(0), 300
    wrong = sum(friedman(rng.normal(size=(4, 6)), draws=499).p_permutation <= 0.1 for _ in range(trials))
    assert wrong <= stats.binom.ppf(0.999, trials, 0.1)


def test_scores_that_tie_everywhere_tell_nothing() -> None:
    found = friedman(np.ones((5, 4)))
    assert (found.statistic, found.p_value, found.p_permutation) == (0.0, 1.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(ranks=st.lists(st.floats(1, 12), min_size=2, max_size=12), difference=st.floats(0.01, 12))
def test_a_clique_joins_what_is_within_the_difference_and_nothing_else(ranks: list[float], difference: float) -> None:
    found = cliques(ranks, difference)
    together = {(i, j) for members in found for i in members for j in members}
    for i, a in enumerate(ranks):
        for j, b in enumerate(ranks):
            if i != j and abs(abs(a - b) - difference) > 1e-9:
                assert ((i, j) in together) == (abs(a - b) < difference)
    assert all(not set(a) <= set(b) and not set(b) <= set(a) for a, b in pairwise(found))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_ranks_ignore_units_and_sum_to_a_constant(seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, size=(5, 4)).astype(float)
    ranks = ranks_within(scores)
    assert np.array_equal(ranks, ranks_within(np.exp(scores) * [[2.0], [3.0], [0.5], [1.0], [9.0]]))
    assert ranks.sum(1) == pytest.approx([10.0] * 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranks_within([1.0, 2.0]), "must be \\(tasks, methods\\)"),
        (lambda: ranks_within(np.empty((0, 3))), "must be \\(tasks, methods\\)"),
        (lambda: ranks_within([[1.0, np.nan]]), "must be finite"),
        (lambda: friedman([[1.0, 2.0], [2.0, 1.0]]), "needs 3 methods"),
        (lambda: critical_difference(1, 5), "need 2 methods"),
        (lambda: critical_difference(3, 0), "need 2 methods"),
        (lambda: critical_difference(3, 5, 1.0), "confidence"),
    ],
)
def test_what_cannot_be_ranked_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
