"""Ranks of methods over tasks: the Friedman test, and which average ranks a critical difference tells apart.

Source: Demšar, "Statistical comparisons of classifiers over multiple data sets" (JMLR 7, 2006), section 3.2. A task is
one block: its score is one number a method (here a mean over seeds), and only the order within a task counts.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
FEWEST_METHODS = 3
"""The Friedman test compares at least that many; two are a Wilcoxon test's."""


@dataclass(frozen=True)
class Friedman:
    """Whether methods differ over tasks at all."""

    statistic: float
    """χ² of Friedman, corrected for ties; 0 where every task ties all methods."""
    p_value: float
    """From the χ² distribution with k - 1 degrees of freedom: too rough for few tasks."""
    p_permutation: float
    """From random orders within the tasks: right for any number of them."""
    tasks: int
    methods: int


def ranks_within(scores: ArrayLike) -> Array:
    """Ranks within each task, 1 for the highest score; equal scores share the mean of their ranks.

    Args:
        scores: (N, k) one row a task, one column a method, higher is better.

    Raises:
        ValueError: not two dimensions, an empty one, or values that are not finite.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"scores must be (tasks, methods), got shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("scores must be finite: leave out methods and tasks without a score")
    return np.asarray(stats.rankdata(-table, axis=1), dtype=np.float64)


def friedman(scores: ArrayLike, draws: int = 9_999, seed: int = 0) -> Friedman:
    r"""Friedman's test that all methods are equal on every task.

    :math:`\chi^2_F = \frac{12N}{k(k+1)}\left[\sum_j R_j^2 - \frac{k(k+1)^2}{4}\right]` of average ranks :math:`R_j`,
    divided by :math:`1 - \sum (t^3 - t) / (N k (k^2 - 1))` for ties (`scipy.stats.friedmanchisquare`). Given the ties,
    it grows with :math:`\sum_j R_j^2` alone, which is what the permutation test compares.

    Args:
        scores: (N, k) higher is better, k at least 3.
        draws: random orders within the tasks.
        seed: of the draws.

    Raises:
        ValueError: see `ranks_within`, or fewer than 3 methods.
    """
    ranks = ranks_within(scores)
    n, k = ranks.shape
    if k < FEWEST_METHODS:
        raise ValueError(f"the Friedman test needs {FEWEST_METHODS} methods or more, got {k}")
    if np.all(np.ptp(ranks, axis=1) == 0):
        return Friedman(0.0, 1.0, 1.0, n, k)
    statistic, p_value = stats.friedmanchisquare(*ranks.T)
    rng, observed, reached = np.random.default_rng(seed), np.sum(ranks.sum(0) ** 2), 0
    for _ in range(draws):
        reached += bool(np.sum(rng.permuted(ranks, axis=1).sum(0) ** 2) >= observed - 1e-9)
    return Friedman(float(statistic), float(p_value), (1 + reached) / (1 + draws), n, k)


def critical_difference(methods: int, tasks: int, confidence: float = 0.95) -> float:
    r"""Difference of two average ranks beyond which Nemenyi's test tells two methods apart, over all pairs.

    :math:`q_\alpha \sqrt{k(k+1) / (6N)}` with the studentised range of k groups and infinite degrees of freedom over
    :math:`\sqrt 2` (Demšar, equation for CD and table 5a).

    Raises:
        ValueError: fewer than 2 methods or 1 task, confidence outside (0, 1).
    """
    if methods < 2 or tasks < 1 or not 0 < confidence < 1:
        raise ValueError(f"need 2 methods, 1 task and a confidence in (0, 1), got {methods=}, {tasks=}, {confidence=}")
    q = float(stats.studentized_range.ppf(confidence, methods, np.inf)) / sqrt(2)
    return q * sqrt(methods * (methods + 1) / (6 * tasks))


def cliques(average_ranks: ArrayLike, difference: float) -> list[list[int]]:
    """Largest sets of two or more methods whose average ranks all lie within a critical difference.

    Args:
        average_ranks: (k,).
        difference: from `critical_difference`.

    Returns:
        Positions in `average_ranks`, best first, in the order of their best member; a set inside another is left out.
    """
    ranks = np.asarray(average_ranks, dtype=np.float64)
    order = np.argsort(ranks, kind="stable")
    found: list[list[int]] = []
    last = 0
    for start in range(order.size):
        end = int(np.sum(ranks[order] <= ranks[order[start]] + difference + 1e-12))
        if end - start > 1 and end > last:
            found.append([int(i) for i in order[start:end]])
            last = end
    return found
