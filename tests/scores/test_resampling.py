"""Block bootstrap of functions of means: equal to the bootstrap of a mean, honest coverage, alike for two forecasts."""

import numpy as np
import pytest

from relent.scores.inference import _block_indices, optimal_block_length
from relent.scores.resampling import (
    FEWEST,
    block_counts,
    interval_block_length,
    replicate_interval,
    replicates,
)
from relent.scores.streaming import Totals


def ar1(rng: np.random.Generator, rho: float, n: int) -> np.ndarray:
    series = rng.normal(size=n)
    series[0] /= np.sqrt(1 - rho**2)
    for t in range(1, n):
        series[t] += rho * series[t - 1]
    return series


@pytest.mark.parametrize("kind", ["stationary", "circular"])
def test_counts_are_those_of_the_drawn_blocks(kind):
    counts = block_counts(20, 4.0, 300, kind, seed=3)
    drawn = _block_indices(np.random.default_rng(3), 300, 20, 4.0, kind)
    assert counts.shape == (300, 20)
    np.testing.assert_array_equal(counts.sum(1), 20)
    np.testing.assert_array_equal(counts[7], np.bincount(drawn[7], minlength=20))
    series = np.random.default_rng(0).normal(size=20)
    np.testing.assert_allclose(counts @ series / 20, series[drawn].mean(1), rtol=1e-12, atol=1e-12)


def test_a_ratio_is_formed_after_drawing():
    rng = np.random.default_rng(1)
    sums = {"a": rng.uniform(1, 2, (15, 3)), "b": rng.uniform(3, 4, (15, 3))}
    weights = {"a": rng.uniform(1, 2, (15, 3)), "b": np.ones((15, 3))}
    weights["a"][4] = sums["a"][4] = 0  # a step that does not count
    counts = block_counts(15, 2.0, 50, seed=0)
    found = replicates(Totals(sums, weights), counts, lambda means: np.sqrt(means["a"] / means["b"]))
    for draw, value in zip(counts, found):
        means = {name: draw @ sums[name] / (draw @ weights[name]) for name in sums}
        np.testing.assert_allclose(value, np.sqrt(means["a"] / means["b"]), rtol=1e-12)


@pytest.mark.parametrize(("rho", "n", "least"), [(0.0, 30, 0.92), (0.5, 120, 0.83), (0.5, 360, 0.91)])
def test_coverage_of_the_mean_of_autocorrelated_series(rho, n, least):
    """Nominal 95 %; 250 series, so that the bound leaves three standard errors to what the docstring says."""
    rng, held = np.random.default_rng(4), 0
    for number in range(250):
        series = ar1(rng, rho, n)
        length = interval_block_length(series)
        draws = block_counts(n, length, 200, seed=number) @ series / n
        interval = replicate_interval(series.mean(), draws, n, length)
        held += interval.low <= 0 <= interval.high
        assert (interval.p_value <= 0.05) == (not interval.low <= 0 <= interval.high)
    assert held / 250 > least


def test_blocks_grow_with_memory_and_length():
    rng = np.random.default_rng(2)
    short, long = (np.median([interval_block_length(ar1(rng, rho, 200)) for _ in range(20)]) for rho in (0.0, 0.9))
    assert long > 2 * short
    series = ar1(rng, 0.9, 200)
    assert interval_block_length(series) == pytest.approx(min(50, 2 * optimal_block_length(series)))
    assert interval_block_length(np.ones(4)) == 1.0


def test_what_cannot_be_bounded_is_not():
    assert replicate_interval(1.0, np.linspace(0, 1, 50), FEWEST - 1, 1.0).p_value == 1
    assert replicate_interval(1.0, [1.0, np.nan], 50, 2.0).high == np.inf
    assert replicate_interval(1.0, [1.0, 1.1], 10, 10.0).low == -np.inf
    same = replicate_interval(0.0, np.zeros(9), 50, 2.0)
    assert (same.low, same.high, same.p_value) == (0, 0, 1)
    with pytest.raises(ValueError, match=r"block_length must lie in \[1, 5\]"):
        block_counts(5, 6, 10)
