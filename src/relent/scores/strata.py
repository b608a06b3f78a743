"""A mean difference over several strata (tasks, or sets of tasks), each with its own few seeds and its own spread."""

from collections.abc import Sequence
from math import isfinite, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from relent.scores.inference import Interval


def mean_over_strata(
    differences: Sequence[ArrayLike], weights: Sequence[float] | None = None, confidence: float = 0.95
) -> Interval:
    r"""Interval of a weighted mean of the differences of H strata, for other seeds on the same strata.

    :math:`\bar d = \sum_h w_h \bar d_h` with standard error :math:`\sqrt{\sum_h u_h}`,
    :math:`u_h = w_h^2 s_h^2 / n_h`, and Student's t with Satterthwaite's degrees of freedom
    :math:`(\sum_h u_h)^2 / \sum_h \frac{u_h^2}{n_h - 1}`. Strata are fixed and independent of each other. The interval
    says nothing about other strata.

    Coverage measured for normal differences at nominal 95 % (20,000 replicates, 3 seeds, spreads 1 to 4, equal
    weights): 94 % for 2 strata, 96 % for 6.

    Args:
        differences: (H,) of (n_h,) paired differences over seeds, two seeds at least, in one unit.
        weights: (H,) positive, scaled to sum to one; default: equal.
        confidence: nominal coverage in (0, 1).

    Returns:
        The interval; its p-value is that of a mean difference of 0 (0 where no stratum has any spread and the mean is
        not 0). `n` is the number of all differences.

    Raises:
        ValueError: no stratum, one of fewer than 2 seeds, values that are not finite, weights that are not positive or
            too few, confidence outside (0, 1).

    Source: Satterthwaite, "An approximate distribution of estimates of variance components" (1946).
    """
    strata = [np.asarray(d, dtype=np.float64) for d in differences]
    if not strata or any(d.ndim != 1 or d.size < 2 or not np.isfinite(d).all() for d in strata):
        raise ValueError("need one stratum or more, each with finite differences at 2 seeds or more")
    share = np.ones(len(strata)) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (len(strata),) or not all(isfinite(w) and w > 0 for w in share):
        raise ValueError(f"need one positive weight a stratum, got {weights}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    share = share / share.sum()
    n = np.array([d.size for d in strata], dtype=np.float64)
    estimate = float(share @ [d.mean() for d in strata])
    # Equal values must not have a spread by rounding.
    u = share**2 * np.array([d.var(ddof=1) if np.ptp(d) else 0.0 for d in strata]) / n
    error, total = sqrt(u.sum()), int(n.sum())
    if error == 0:
        return Interval(estimate, estimate, estimate, float(estimate == 0), total, "t over strata", confidence)
    degrees = float(u.sum() ** 2 / np.sum(u**2 / (n - 1)))
    half = float(special.stdtrit(degrees, (1 + confidence) / 2)) * error
    p = 2 * float(special.stdtr(degrees, -abs(estimate) / error))
    return Interval(estimate, estimate - half, estimate + half, p, total, "t over strata", confidence)
