"""Block bootstrap of scores that are functions of means, such as a root mean square error or a spread-skill ratio.

The score of a test period is f(Σ_t s_t / Σ_t w_t) of each term (`relent.scores.streaming`). Its replicates come from
the totals of the time steps: blocks of neighbouring steps are drawn, their totals added, and f is applied to each
replicate. A bootstrap of each step's own score would give another quantity (a mean of roots), and one of single steps
would take neighbours, which are alike, for independent.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from relent.scores.inference import Array, Blocks, Interval, _block_indices, _chunks, optimal_block_length
from relent.scores.streaming import Means, Totals

FEWEST = 8
"""Steps below which no interval is given: it would hold less often than it says, by more than can be told."""


def interval_block_length(series: ArrayLike) -> float:
    """Mean block length for an interval of the mean of a series, in steps: max(2 b, 1.5 n^(1/3)), at most n / 4.

    b is the length that is best for the variance (`optimal_block_length`); an interval needs longer blocks, and on
    short series b is often one though neighbours are alike. The factors are ours: coverage in `replicate_interval`.

    Args:
        series: (n,) in time order, equally spaced.

    Raises:
        ValueError: It is empty, not one-dimensional or not finite.
    """
    n = np.size(series)
    return float(np.clip(max(2 * optimal_block_length(series), 1.5 * np.cbrt(n)), 1, max(1.0, n / 4)))


def block_counts(n: int, block_length: float, resamples: int, kind: Blocks = "stationary", seed: int = 0) -> Array:
    """(resamples, n): how often each of n steps in time order is drawn, in blocks of neighbours on a ring.

    Args:
        n: Number of steps.
        block_length: (Mean) length of a block, in steps.
        resamples: Number of replicates.
        kind: "stationary" (geometric lengths) or "circular" (one length).
        seed: Of the draws; two forecasts that are compared must be resampled alike.

    Raises:
        ValueError: A block length outside [1, n], or no replicates.

    Source: Politis & Romano (1992, 1994).
    """
    if not 1 <= block_length <= n:
        raise ValueError(f"block_length must lie in [1, {n}], got {block_length}")
    rng = np.random.default_rng(seed)
    counts = []
    for rows in _chunks(resamples, n):
        drawn = _block_indices(rng, rows, n, block_length, kind) + n * np.arange(rows)[:, None]
        counts.append(np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n))
    return np.concatenate(counts).astype(np.float64)


def replicates(totals: Totals, counts: Array, final: Callable[[Means], Array]) -> Array:
    """The score in each replicate, (resamples, …).

    Args:
        totals: Of each step: every sum and weight is (n, …).
        counts: (resamples, n), of `block_counts`.
        final: The score from the means of its terms, elementwise over leading dimensions.
    """
    drawn = Totals(
        {name: np.tensordot(counts, value, 1) for name, value in totals.sums.items()},
        {name: np.tensordot(counts, value, 1) for name, value in totals.weights.items()},
    )
    return np.asarray(final(drawn.means()), dtype=np.float64)


def replicate_interval(
    estimate: float, draws: ArrayLike, n: int, block_length: float, confidence: float = 0.95, null: float = 0.0
) -> Interval:
    r"""Interval and two-sided p-value of a score from its replicates: estimate ± t_{k−1} √(k/(k − 1)) · sd of the
    draws.

    k = n / block length is the number of blocks that the series is worth. Percentiles of the draws are too narrow for
    few blocks, and useless far out, where many comparisons look. Measured for the mean of AR(1) series with blocks from
    `interval_block_length` (400 series each): nominal 95 % covers 94 to 98 % without memory; with a coefficient of 0.5
    it covers 88 % at n = 30 to 120 and 95 % at n = 360, with 0.8 78 % at n = 30, 91 % at n = 120 and 93 % at n = 360.
    Percentile intervals with the shorter blocks: 92, 78 to 88, and 59 to 82 %.

    Args:
        estimate: The score of the whole period.
        draws: (resamples,), of `replicates`; for a difference of two forecasts, the difference of both, drawn alike.
        n: Steps behind it. Fewer than `FEWEST` give an infinite interval and p = 1, as do draws that are not finite (a
            ratio whose denominator no drawn step fills).
        block_length: Of the draws, in steps.
        confidence: Nominal coverage.
        null: Value under the null hypothesis of the p-value.
    """
    values = np.asarray(draws, dtype=np.float64)
    blocks = n / block_length
    if n < FEWEST or blocks <= 1 or not np.isfinite(values).all() or not np.isfinite(estimate):
        return Interval(float(estimate), -np.inf, np.inf, 1.0, n, "block bootstrap, t", confidence)
    error = float(values.std(ddof=1)) * np.sqrt(blocks / (blocks - 1))
    half = float(special.stdtrit(blocks - 1, (1 + confidence) / 2)) * error
    distance = abs(estimate - null)
    # Equal forecasts differ by nothing, however it is resampled.
    p_value = 2 * float(special.stdtr(blocks - 1, -distance / error)) if error > 0 else float(distance == 0)
    return Interval(float(estimate), estimate - half, estimate + half, p_value, n, "block bootstrap, t", confidence)
