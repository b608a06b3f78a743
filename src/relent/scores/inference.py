"""Inference over seeds and items: intervals, tests, multiplicity, verdicts and power. NumPy and SciPy only, no torch.

Every interval is two-sided, and every p-value is the inversion of the interval that it comes with: ``p_value <= 1 -
confidence`` exactly when the interval excludes the null. `paired_difference` defaults to Student's t because seeds are
few: with 3 seeds a nominal 95 % percentile bootstrap covers about 75 % (see its docstring), the t interval 95 %.
"""

from bisect import bisect_left
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Array = NDArray[np.float64]
Means = Literal["t", "bootstrap", "bca"]
Proportion = Literal["wilson", "clopper-pearson"]
Blocks = Literal["stationary", "circular"]
Direction = Literal["higher", "lower"]
Kind = Literal["superiority", "non-inferiority", "equivalence"]
Verdict = Literal["reproduced", "not reproduced", "inconclusive"]

_CHUNK = 4_000_000  # numbers held at once by a resampling loop (32 MB)


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval, in the units of the score, with the p-value of its null."""

    estimate: float
    low: float  # -inf where the data cannot bound it
    high: float  # inf where the data cannot bound it
    p_value: float  # two-sided
    n: int  # seeds, trials or time steps behind it
    method: str
    confidence: float  # nominal coverage


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    confidence: float = 0.95,
    method: Means = "t",
    null: float = 0.0,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    r"""Interval of the mean of ``d = a - b`` over seeds that ran under common random numbers.

    ``t``: :math:`\bar d \pm t_{n-1,(1+c)/2}\, s_d/\sqrt n`, exact for normal differences at any n >= 2.
    ``bootstrap``: percentile interval over resampled seeds. ``bca``: Efron's bias-corrected and accelerated interval.

    Coverage measured for normal differences at nominal 80/90/95 % (20,000 replicates, 999 resamples, standard error
    at most 0.4 points): bootstrap 61/62/75 % for n = 3, 69/79/84 % for n = 5, 75/85/90 % for n = 10, 77/87/93 % for
    n = 20; bca 61/70/73, 70/79/84, 75/84/90 and 77/87/92 %; t nominal at each. Do not use the bootstraps on few seeds.

    One seed gives an infinite interval and p = 1. Differences that are all equal give a t interval of zero width with
    p = 0 (p = 1 at the null): either the seeds do not act, or the score is too coarse to show that they do.

    Args:
        a, b: (n,) one score a seed, in the same seed order.
        confidence: nominal coverage in (0, 1).
        method: "t", "bootstrap" or "bca".
        null: difference under the null hypothesis of the p-value (score units).
        resamples: number of bootstrap draws; an end point beyond their reach is infinite.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: unequal or empty inputs, values that are not finite, confidence outside (0, 1), unknown method.

    Source: Student (1908); Efron, "Better bootstrap confidence intervals" (1987), equations 2.3 and 6.6.
    """
    d = _differences(a, b)
    _check_confidence(confidence)
    if method not in ("t", "bootstrap", "bca"):
        raise ValueError(f'method must be "t", "bootstrap" or "bca", got {method!r}')
    if method == "t":
        low, high, p = (float(x) for x in _t_bounds(d, confidence, null))
    else:
        rng = np.random.default_rng(seed)
        means = np.concatenate([_counts(rng, rows, d.size) @ d / d.size for rows in _chunks(resamples, d.size)])
        constants = _bca_constants(d, means) if method == "bca" else (0.0, 0.0)
        low, high, p = _bootstrap_bounds(means, d.size, confidence, null, *constants)
    return Interval(float(np.clip(d.mean(), d.min(), d.max())), low, high, p, d.size, method, confidence)


def hierarchical_bootstrap(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, null: float = 0.0, resamples: int = 1999, seed: int = 0
) -> Interval:
    """Percentile interval of the mean paired difference, resampling seeds and items (pigeonhole bootstrap).

    One test set serves every seed, so a replicate draws seeds and, independently, items. The interval answers "new
    seeds and new items", where `paired_difference` over seed means answers "new seeds, these items". Few seeds make
    its seed part too narrow by ``sqrt((S - 1) / S)``, as in every bootstrap; noise that is neither of the seed nor of
    the item is counted up to three times, which errs on the wide side. Measured at nominal 95 % (standard deviations
    0.5 of the seed, 1 of the item, 1 of both; 60 items): 84 % for 3 seeds, 92 % for 5, 95 % for 10.

    Args:
        a, b: (S, I) score of seed s on item i, paired in both axes.
        confidence, null, resamples, seed: as in `paired_difference`.

    Raises:
        ValueError: shapes unequal, not two-dimensional or with an empty axis, values not finite.

    Source: Owen, "The pigeonhole bootstrap" (2007), arXiv:0712.1111.
    """
    d = _differences(a, b, ndim=2)
    _check_confidence(confidence)
    (seeds, items), rng = d.shape, np.random.default_rng(seed)
    means = [
        np.einsum("bi,bi->b", _counts(rng, rows, seeds) @ d, _counts(rng, rows, items)) / d.size
        for rows in _chunks(resamples, items)
    ]
    low, high, p = _bootstrap_bounds(np.concatenate(means), seeds, confidence, null)
    return Interval(float(d.mean()), low, high, p, seeds, "hierarchical bootstrap", confidence)


def block_bootstrap(
    series: ArrayLike,
    confidence: float = 0.95,
    kind: Blocks = "stationary",
    block_length: float | None = None,
    null: float = 0.0,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean of an autocorrelated series, such as score differences over forecast start times.

    ``circular``: moving blocks of one length on the series closed to a ring (moving blocks that end at the edges are
    not centred on the sample mean). ``stationary``: block lengths are geometric. Blocks shorter than the memory
    undercover: at AR(1) with coefficient 0.5, n = 200, nominal 95 % covers about 90 %, an independent bootstrap 74 %.

    Args:
        series: (n,) in time order, equally spaced, without gaps.
        kind: "stationary" or "circular".
        block_length: (mean) block length in steps; default `optimal_block_length`.
        confidence, null, resamples, seed: as in `paired_difference`.

    Raises:
        ValueError: empty, not one-dimensional or not finite series; block length outside [1, n]; unknown kind.

    Source: Politis & Romano (1992, 1994), "The stationary bootstrap".
    """
    x = _finite(series, "series", 1)
    _check_confidence(confidence)
    _check_blocks(kind)
    n = x.size
    length = optimal_block_length(x, kind) if block_length is None else float(block_length)
    if not 1 <= length <= n:
        raise ValueError(f"block_length must lie in [1, {n}], got {length}")
    rng = np.random.default_rng(seed)
    means = np.concatenate([x[_block_indices(rng, rows, n, length, kind)].mean(-1) for rows in _chunks(resamples, n)])
    low, high, p = _bootstrap_bounds(means, n, confidence, null)
    return Interval(float(x.mean()), low, high, p, n, f"{kind} block bootstrap", confidence)


def optimal_block_length(series: ArrayLike, kind: Blocks = "stationary") -> float:
    r"""Block length that minimises the mean squared error of the bootstrap variance of the mean, in time steps.

    :math:`b = (2G^2/D)^{1/3} n^{1/3}` with :math:`G=\sum_k \lambda(k/M)|k|R(k)`, :math:`g=\sum_k\lambda(k/M) R(k)`,
    D = 2g² (stationary) or 4g²/3 (circular), R the autocovariance, λ the flat-top window. Clipped to [1, n/3].

    Source: Politis & White (2004) with the correction of Patton, Politis & White (2009).
    """
    _check_blocks(kind)
    x = _finite(series, "series", 1)
    n, x = x.size, x - x.mean()
    if n < 8 or not np.any(x):
        return 1.0
    quiet_run = max(5, floor(sqrt(np.log10(n))))
    reach = min(n - 1, ceil(sqrt(n)) + quiet_run)
    covariance = np.array([x[: n - k] @ x[k:] for k in range(reach + 1)]) / n
    quiet = np.abs(covariance[1:] / covariance[0]) < 2 * sqrt(np.log10(n) / n)
    starts = [m for m in range(reach - quiet_run + 1) if quiet[m : m + quiet_run].all()]
    window = min(2 * max(starts[0] if starts else reach, 1), reach)
    lag = np.arange(1, window + 1)
    weight = np.clip(2 * (1 - lag / window), 0, 1)
    g_hat = 2 * np.sum(weight * lag * covariance[1 : window + 1])
    spectrum = covariance[0] + 2 * np.sum(weight * covariance[1 : window + 1])
    d_hat = (2 if kind == "stationary" else 4 / 3) * spectrum**2
    return float(np.clip(np.cbrt(2 * g_hat**2 / d_hat * n), 1, max(1, n / 3)))


def sign_flip_test(a: ArrayLike, b: ArrayLike, null: float = 0.0, resamples: int = 99_999, seed: int = 0) -> float:
    """Two-sided p-value of the paired sign-flip permutation test: under the null, d is symmetric about `null`.

    Exact by enumeration of all 2ⁿ sign vectors up to n = 16, by ``(exceedances + 1) / (resamples + 1)`` beyond. The
    smallest p that n pairs allow is 2^(1-n): 1 for one pair, 0.5 for two, 0.25 for three; 0.05 needs six.

    Source: Fisher, "The Design of Experiments" (1935), section 21; Phipson & Smyth (2010) for the added one.
    """
    d = _differences(a, b) - null
    n = d.size
    observed = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # rounding must not break exact ties with the observed sum
    if n <= 16:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ d) >= observed))
    rng = np.random.default_rng(seed)
    flips = (rng.choice((-1.0, 1.0), (rows, n)) for rows in _chunks(resamples, n))
    return (sum(int(np.sum(np.abs(signs @ d) >= observed)) for signs in flips) + 1) / (resamples + 1)


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values, in the order given: reject at α where the adjusted value is at most α.

    Controls the family-wise error rate under any dependence: ``max_{j <= i} min(1, (m - j + 1) p_(j))``.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    p = _p_values(p_values)
    order, adjusted = np.argsort(p, kind="stable"), np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(np.arange(p.size, 0, -1) * p[order]))
    return adjusted


def holm_confidence(p_values: ArrayLike, confidence: float = 0.95) -> Array:
    """Confidence level of each claim's interval such that the interval excludes its null iff Holm rejects at 1 - c.

    The claim of rank i gets ``1 - α / (m - i + 1)`` while Holm rejects, and every claim from the first one that is
    not rejected (rank k) on gets ``1 - α / (m - k + 1)``, the level at which the procedure stopped; tied p-values
    share the level of the first of them. Verdicts from these intervals have family-wise error at most α. The intervals
    are *not* simultaneous (joint coverage 1 - α needs ``1 - α / m`` for all of them, which this choice never exceeds).

    Args:
        p_values: (m,) from `decision_p_value` or any test whose interval is its inversion.
        confidence: 1 - α of the family.

    Raises:
        ValueError: p-values outside [0, 1] or none, confidence outside (0, 1).
    """
    _check_confidence(confidence)
    p = _p_values(p_values)
    alpha = 1 - confidence
    rank = stats.rankdata(p, method="min")
    failed = p > alpha / (p.size - rank + 1)
    stop = rank[failed].min() if failed.any() else p.size
    return np.asarray(1 - alpha / (p.size - np.minimum(rank, stop) + 1), dtype=np.float64)


def proportion_interval(
    successes: float, n: int, confidence: float = 0.95, method: Proportion = "wilson", null: float = 0.5
) -> Interval:
    """Interval of a binomial proportion.

    ``wilson`` inverts the score test: nominal on average over the proportion, below it at some (95 %: never under 89 %
    for n >= 5 and proportions in [0.05, 0.95]). ``clopper-pearson`` inverts the exact binomial test: never below.

    Args:
        successes: count in [0, n]; half counts (ties) are allowed.
        n: number of trials, at least 1.
        null: proportion under the null hypothesis of the p-value, in (0, 1).

    Raises:
        ValueError: a count, n, null or confidence out of range, unknown method.

    Source: Wilson (1927); Clopper & Pearson (1934); Brown, Cai & DasGupta (2001).
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need n >= 1 and 0 <= successes <= n, got successes={successes}, n={n}")
    if not 0 < null < 1:
        raise ValueError(f"null must lie in (0, 1), got {null}")
    share, tail = successes / n, (1 - confidence) / 2
    if method == "wilson":
        z = float(special.ndtri(1 - tail))
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        low, high = max(0.0, centre - half), min(1.0, centre + half)
        p = 2 * float(special.ndtr(-abs(share - null) / sqrt(null * (1 - null) / n)))
    elif method == "clopper-pearson":
        failures = n - successes
        low = float(special.betaincinv(successes, failures + 1, tail)) if successes else 0.0
        high = float(special.betaincinv(successes + 1, failures, 1 - tail)) if failures else 1.0
        at_least = float(special.betainc(successes, failures + 1, null)) if successes else 1.0
        at_most = float(special.betaincc(successes + 1, failures, null)) if failures else 1.0
        p = min(1.0, 2 * min(at_least, at_most))
    else:
        raise ValueError(f'method must be "wilson" or "clopper-pearson", got {method!r}')
    return Interval(share, low, high, p, n, method, confidence)


def win_rate_interval(wins: int, losses: int, ties: int = 0, confidence: float = 0.95) -> Interval:
    """Wilson interval of the win rate ``(wins + ties / 2) / n`` against 0.5, two-sided.

    Counting a tie as half a win keeps the rate of A over B and of B over A complementary. Ties lower the variance to
    ``p (1 - p) - ties / (4 n)``, which Wilson's does not use: with ties the interval is wider than need be.

    Raises:
        ValueError: negative counts or no comparison at all.
    """
    if min(wins, losses, ties) < 0 or wins + losses + ties == 0:
        raise ValueError(f"need non-negative counts with a positive sum, got {wins=}, {losses=}, {ties=}")
    return proportion_interval(wins + ties / 2, wins + losses + ties, confidence, "wilson")


def verdict(interval: Interval, kind: Kind, margin: float = 0.0, direction: Direction = "higher") -> Verdict:
    """What an interval of (method - baseline) says about a claim. [L, H] below is in the direction of improvement.

    superiority:     reproduced if L > margin; not reproduced if H <= margin.
    non-inferiority: reproduced if L > -margin; not reproduced if H <= -margin.
    equivalence:     reproduced if L > -margin and H < margin; not reproduced if H <= -margin or L >= margin.

    All else is inconclusive: more seeds could decide it (`seeds_needed`). An equivalence verdict from a two-sided
    interval at 1 - α is the two one-sided tests at α/2 each, hence conservative.

    Args:
        margin: in score units, >= 0; must be positive for non-inferiority and equivalence. For superiority it is the
            smallest improvement that counts.
        direction: whether "higher" or "lower" scores are better.

    Raises:
        ValueError: NaN end points, a margin out of range, unknown kind or direction.
    """
    nulls, sign = _oriented_nulls(kind, margin, direction)
    if np.isnan(interval.low) or np.isnan(interval.high):
        raise ValueError("the interval has NaN end points: the scores behind it are not finite")
    low, high = sorted((sign * interval.low, sign * interval.high))
    if low > nulls[0] and (len(nulls) == 1 or high < nulls[1]):
        return "reproduced"
    if high <= nulls[0] or (len(nulls) == 2 and low >= nulls[1]):
        return "not reproduced"
    return "inconclusive"


def decision_p_value(
    a: ArrayLike, b: ArrayLike, kind: Kind, margin: float = 0.0, direction: Direction = "higher", method: Means = "t"
) -> float:
    """p-value that a claim is decided either way: at most α iff the 1 - α interval gives a verdict.

    It is the two-sided p against the claim's null (equivalence: the larger of those against both margins). Feed it to
    `holm_confidence`, build the interval at the level that comes back, and `verdict` agrees with Holm. (One exception:
    an end point that lies exactly on the null, as when method and baseline are the same numbers.)
    """
    nulls, sign = _oriented_nulls(kind, margin, direction)
    return max(paired_difference(a, b, method=method, null=sign * null).p_value for null in nulls)


def t_test_power(difference: float, sd: float, n: int, confidence: float = 0.95) -> float:
    r"""Probability that the t interval of n seeds lies wholly on the side of 0 where the true difference lies.

    :math:`P(T'_{n-1,\delta} > t_{n-1,(1+c)/2})` with noncentrality :math:`\delta = |\mathrm{difference}|\sqrt n/sd`.

    Args:
        difference: true mean difference minus the claim's null, score units.
        sd: standard deviation of the paired difference over seeds.
        n: number of seeds, at least 2.
    """
    _check_confidence(confidence)
    if not (isfinite(difference) and isfinite(sd) and sd >= 0 and n >= 2):
        raise ValueError(f"need a finite difference, sd >= 0 and n >= 2, got {difference=}, {sd=}, {n=}")
    if sd == 0:
        return float(difference != 0)
    critical = float(special.stdtrit(n - 1, (1 + confidence) / 2))
    return float(stats.nct.sf(critical, n - 1, abs(difference) * sqrt(n) / sd))


def seeds_needed(difference: float, sd: float, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """Smallest number of paired seeds whose t interval decides a claim with probability `power`; None if none does.

    Uses the noncentral t of `t_test_power`; the normal approximation promises too few (3 for an effect of 1.7
    standard deviations, where 5 are needed). `sd` estimated from few seeds is itself uncertain: read the answer as an
    order of magnitude. A zero difference is never decided.

    Source: Cohen, "Statistical power analysis for the behavioral sciences" (1988), section 2.
    """
    if not 0 < power < 1:
        raise ValueError(f"power must lie in (0, 1), got {power}")
    if difference == 0:
        return None
    few, enough = 1, 2
    while t_test_power(difference, sd, enough, confidence) < power:
        few, enough = enough, 2 * enough
    middle = range(few + 1, enough)  # power grows with n
    return few + 1 + bisect_left(middle, power, key=lambda n: t_test_power(difference, sd, n, confidence))


def _t_bounds(d: Array, confidence: float, null: float) -> tuple[Array, Array, Array]:
    """Low, high and p of Student's interval along the last axis."""
    n = d.shape[-1]
    mean = np.clip(d.mean(-1), d.min(-1), d.max(-1))  # rounding must not move the mean of equal values
    if n == 1:
        return mean - inf, mean + inf, np.ones_like(mean)
    error = np.where(np.ptp(d, axis=-1) == 0, 0.0, d.std(-1, ddof=1) / sqrt(n))
    half = special.stdtrit(n - 1, (1 + confidence) / 2) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(mean == null, 0.0, np.abs(mean - null) / error)
    return mean - half, mean + half, 2 * special.stdtr(n - 1, -statistic)


def _bootstrap_bounds(
    means: Array, n: int, confidence: float, null: float, z0: float = 0.0, acceleration: float = 0.0
) -> tuple[float, float, float]:
    """Low, high and p from bootstrap means of n units; z0 = acceleration = 0 is the percentile interval.

    End points are order statistics chosen so that the p-value is their exact inversion.
    """
    if n == 1:
        return -inf, inf, 1.0
    ordered, total = np.sort(means), means.size + 1
    tail = float(special.ndtri((1 - confidence) / 2))

    def level(z: float) -> float:
        shifted = z0 + z
        return float(special.ndtr(z0 + shifted / (1 - acceleration * shifted)))

    def tail_of(share: float) -> float:
        shifted = float(special.ndtri(share)) - z0
        return float(special.ndtr(shifted / (1 + acceleration * shifted) - z0))

    slack = 1e-9  # (B + 1) α / 2 that is whole in exact arithmetic must not be floored to one less
    below, above = floor(total * level(tail) + slack), floor(total * (1 - level(-tail)) + slack)
    low = float(ordered[below - 1]) if below > 0 else -inf
    high = float(ordered[-above]) if above > 0 else inf
    at_most = min(int(np.searchsorted(ordered, null, side="right")) + 1, means.size) / total
    less = max(int(np.searchsorted(ordered, null, side="left")), 1) / total
    return low, high, min(1.0, 2 * tail_of(at_most), 2 * (1 - tail_of(less)))


def _bca_constants(d: Array, means: Array) -> tuple[float, float]:
    """Bias correction z0 (ties count half) and the jackknife acceleration of a mean."""
    estimate, tolerance = d.mean(), 1e-12 * np.abs(d).max()
    share = np.mean(means < estimate - tolerance) + np.mean(np.abs(means - estimate) <= tolerance) / 2
    share = np.clip(share, 0.5 / means.size, 1 - 0.5 / means.size)
    deviation = d - estimate
    spread = np.sum(deviation**2) ** 1.5
    if spread == 0:
        return 0.0, 0.0
    return float(special.ndtri(share)), float(np.sum(deviation**3) / (6 * spread))


def _counts(rng: np.random.Generator, rows: int, n: int) -> Array:
    """(rows, n) how often each of n units is drawn in n draws with replacement."""
    drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _block_indices(rng: np.random.Generator, rows: int, n: int, length: float, kind: str) -> NDArray[np.int64]:
    """(rows, n) indices of resampled series: runs of consecutive steps on the ring of n steps."""
    step = np.arange(n)
    fresh = rng.random((rows, n)) < 1 / length if kind == "stationary" else (step % round(length) == 0)[None]
    fresh[:, 0] = True
    began = np.maximum.accumulate(np.where(fresh, step, 0), axis=1)
    start = np.take_along_axis(rng.integers(0, n, (rows, n)), began, axis=1)
    return np.asarray((start + step - began) % n)


def _chunks(total: int, width: int) -> list[int]:
    """Sizes of the pieces in which `total` rows of `width` numbers are drawn."""
    if total < 1:
        raise ValueError(f"resamples must be at least 1, got {total}")
    rows = max(1, _CHUNK // max(1, width))
    return [min(rows, total - start) for start in range(0, total, rows)]


def _differences(a: ArrayLike, b: ArrayLike, ndim: int = 1) -> Array:
    first, second = _finite(a, "a", ndim), _finite(b, "b", ndim)
    if first.shape != second.shape:
        raise ValueError(f"a and b must be paired, got shapes {first.shape} and {second.shape}")
    return first - second


def _finite(values: ArrayLike, name: str, ndim: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name} must be a non-empty array of {ndim} dimension(s), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite: handle runs that diverged before inference")
    return array


def _p_values(p_values: ArrayLike) -> Array:
    p = _finite(p_values, "p_values", 1)
    if np.any((p < 0) | (p > 1)):
        raise ValueError("p_values must lie in [0, 1]")
    return p


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")


def _check_blocks(kind: str) -> None:
    if kind not in ("stationary", "circular"):
        raise ValueError(f'kind must be "stationary" or "circular", got {kind!r}')


def _oriented_nulls(kind: Kind, margin: float, direction: Direction) -> tuple[tuple[float, ...], int]:
    """Nulls of a claim in the direction of improvement, ascending, and the sign of that direction."""
    if kind not in ("superiority", "non-inferiority", "equivalence"):
        raise ValueError(f'kind must be "superiority", "non-inferiority" or "equivalence", got {kind!r}')
    if direction not in ("higher", "lower"):
        raise ValueError(f'direction must be "higher" or "lower", got {direction!r}')
    if not (isfinite(margin) and margin >= 0) or (kind != "superiority" and margin == 0):
        raise ValueError(f"{kind} needs a finite margin {'>= 0' if kind == 'superiority' else '> 0'}, got {margin}")
    nulls = {"superiority": (margin,), "non-inferiority": (-margin,), "equivalence": (-margin, margin)}[kind]
    return nulls, 1 if direction == "higher" else -1
