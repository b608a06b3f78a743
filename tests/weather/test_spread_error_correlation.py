"""Flow dependence: the correlation of spread and error, streamed, against direct computations and a closed form."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.scores.streaming import Totals
from relent.verify.statistics import SpreadErrorCorrelation

STATISTIC = SpreadErrorCorrelation()


def direct(members: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Weighted Pearson correlation of the members' standard deviation and the absolute error of their mean."""
    spread, error = members.std(0, ddof=1), np.abs(members.mean(0) - truth)
    covariance = np.cov(spread.ravel(), error.ravel(), aweights=weights.ravel(), bias=True)
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 12), parts=st.integers(1, 7))
def test_streamed_over_any_chunks_it_is_the_direct_one(seed: int, size: int, parts: int) -> None:
    draw = np.random.default_rng(seed)
    scale = draw.uniform(0.1, 3.0, (20, 6))
    members = scale * draw.normal(size=(size, 20, 6)) + draw.normal(size=(20, 6))
    truth, weights = scale * draw.normal(size=(20, 6)), draw.uniform(0.1, 1.0, (20, 6))
    chunks = np.array_split(np.arange(20), parts)
    totals: list[Totals] = [STATISTIC.totals(members[:, rows], truth[rows], weights[rows]) for rows in chunks]
    streamed = float(STATISTIC.final(reduce(add, totals).means()))
    assert streamed == pytest.approx(direct(members, truth, weights), abs=1e-10)
    assert -1 <= streamed <= 1


def test_a_perfect_ensemble_has_the_known_correlation() -> None:
    """Spread s of 1 or 2, error s·|z|: √(2/π)·sd(s) / √(E s² − 2/π·(E s)²), far below one for a perfect ensemble."""
    draw = np.random.default_rng(0)
    scale = draw.integers(1, 3, 40_000).astype(float)
    members, truth = scale * draw.normal(size=(100, 40_000)), scale * draw.normal(size=40_000)
    expected = np.sqrt(2 / np.pi) * 0.5 / np.sqrt(2.5 - 2 / np.pi * 2.25)
    assert expected == pytest.approx(0.386, abs=1e-3)
    assert float(STATISTIC.final(STATISTIC.totals(members, truth).means())) == pytest.approx(expected, abs=0.015)


def test_a_spread_that_is_the_same_everywhere_foresees_nothing() -> None:
    draw = np.random.default_rng(1)
    truth = draw.normal(size=500)
    members = np.array([-1.0, 1.0])[:, None] + np.zeros(500)
    assert float(STATISTIC.final(STATISTIC.totals(members, truth).means())) == 0
