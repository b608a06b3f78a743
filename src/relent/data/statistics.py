r"""What a forecast model needs to know of the climate, from the training steps only, in one pass over the data.

For each variable: `base`, the mean by latitude over steps and longitudes; `std`, of the anomalies from it; for leads of
k = 1, 2, … steps `damping` ρ_k, the regression slope of an anomaly on the one k steps before, and `residual_std`, the
size of what the slope leaves, in units of `std`. Means over latitude are weighted with w = cos(latitude).

With a fixed shift c near the mean, d = x − c, and sums over known cells of a latitude φ,

    n = Σ 1,  S₁ = Σ d,  S₂ = Σ d²;   over pairs (t, t + k):  n_k,  A = Σ d_t,  B = Σ d_{t+k},  AA, BB, AB,

everything follows for any base b(φ): with β = b − c,

    std² = Σ_φ w (S₂ − 2βS₁ + β²n) / Σ_φ w n,
    ρ_k  = Σ_φ w (AB − β(A + B) + β²n_k) / Σ_φ w (AA − 2βA + β²n_k),

and so on. The sums are float64 and add up: over blocks of time, tiles, workers, in any order of the same parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SINGLE = ("count", "first", "second")
PAIR = ("count", "before", "after", "before_square", "after_square", "product")


@dataclass
class Moments:
    """Sums by channel and latitude.

    `single` is (3, C, H): n, S₁, S₂; `pairs` is (lead, 6, C, H): n_k, A, B, AA, BB, AB.
    """

    single: Floats
    pairs: Floats

    @classmethod
    def empty(cls, leads: int, channels: int, rows: int) -> Moments:
        """All sums zero."""
        return cls(np.zeros((len(SINGLE), channels, rows)), np.zeros((leads, len(PAIR), channels, rows)))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.single + other.single, self.pairs + other.pairs)

    def into_rows(self, other: Moments, rows: NDArray[np.int64]) -> None:
        """Add the sums of a tile's rows to those of the whole grid."""
        self.single[:, :, rows] += other.single
        self.pairs[:, :, :, rows] += other.pairs


def moments(values: NDArray[np.float32], shift: Floats, counted: NDArray[np.bool_], begin: int, leads: int) -> Moments:
    """Sums of a block of consecutive steps.

    Args:
        values: (step, C, H, W); NaN where unknown. The first `begin` steps are only the earlier ones of pairs.
        shift: c, (C).
        counted: (step); whether it is a training step that is used.
        begin: First step that is counted itself.
        leads: Longest lead.
    """
    n_steps, channels, rows, _ = values.shape
    result = Moments.empty(leads, channels, rows)
    if not counted[begin:].any():
        return result
    for channel in range(channels):
        anomaly = values[:, channel].astype(np.float64) - shift[channel]
        known = np.isfinite(anomaly)
        gaps = not known.all()
        if gaps:
            anomaly[~known] = 0
        # Sums over longitude by step, from which those of the pairs follow where no cell is unknown.
        n, s1 = known.sum(axis=2).astype(np.float64), anomaly.sum(axis=2)
        s2 = np.einsum("thw,thw->th", anomaly, anomaly)
        own = counted.copy()
        own[:begin] = False
        result.single[:, channel] = n[own].sum(0), s1[own].sum(0), s2[own].sum(0)
        for lead in range(1, leads + 1):
            after = np.arange(max(begin, lead), n_steps)
            after = after[counted[after] & counted[after - lead]]
            if not after.size:
                continue
            before = after - lead
            product = np.zeros(rows)
            for i, j in zip(before, after):
                product += np.einsum("hw,hw->h", anomaly[i], anomaly[j])
            if gaps:
                sums = _pairs_with_gaps(anomaly, known, before, after)
            else:
                sums = np.stack(
                    [n[before].sum(0), s1[before].sum(0), s1[after].sum(0), s2[before].sum(0), s2[after].sum(0)]
                )
            result.pairs[lead - 1, :5, channel] = sums
            result.pairs[lead - 1, 5, channel] = product
    return result


def _pairs_with_gaps(
    anomaly: Floats, known: NDArray[np.bool_], before: NDArray[np.int64], after: NDArray[np.int64]
) -> Floats:
    """n_k, A, B, AA, BB over the cells that are known at both steps."""
    sums = np.zeros((5, anomaly.shape[1]))
    for i, j in zip(before, after):
        both = known[i] & known[j]
        first, second = anomaly[i] * both, anomaly[j] * both
        sums[0] += both.sum(axis=1)
        sums[1] += first.sum(axis=1)
        sums[2] += second.sum(axis=1)
        sums[3] += np.einsum("hw,hw->h", first, first)
        sums[4] += np.einsum("hw,hw->h", second, second)
    return sums


def finish(total: Moments, shift: Floats, latitude: Floats) -> dict[str, Floats]:
    """`base` (C, H), `std` (C), `damping` and `residual_std` (lead, C).

    A latitude where nothing is known gets the mean of the others; a channel that never changes has `std` 1, `damping` 0
    and `residual_std` 1, so that its anomalies are zero and finite.

    Raises:
        ValueError: A channel is nowhere known.
    """
    weights = np.cos(np.deg2rad(latitude))
    n, s1, s2 = total.single
    empty = np.flatnonzero((n * weights).sum(axis=1) <= 0)
    if empty.size:
        raise ValueError(f"channel {int(empty[0])} has no known value in the training steps")
    mean = (weights * s1).sum(1) / (weights * n).sum(1)
    beta = np.where(n > 0, s1 / np.where(n > 0, n, 1), mean[:, None])
    weight = (weights * n).sum(1)
    variance = (weights * (s2 - 2 * beta * s1 + beta**2 * n)).sum(1) / weight
    # Rounding leaves a little of a constant's square.
    constant = variance <= 1e-12 * np.maximum((weights * s2).sum(1) / weight, np.finfo(float).tiny)
    std = np.sqrt(np.where(constant, 1, variance))
    n_k, a, b, aa, bb, ab = total.pairs.transpose(1, 0, 2, 3)
    cross = (weights * (ab - beta * (a + b) + beta**2 * n_k)).sum(-1)
    before = (weights * (aa - 2 * beta * a + beta**2 * n_k)).sum(-1)
    after = (weights * (bb - 2 * beta * b + beta**2 * n_k)).sum(-1)
    pairs = (weights * n_k).sum(-1)
    usable = (pairs > 0) & (before > 0) & ~constant
    damping = np.where(usable, cross / np.where(usable, before, 1), 0)
    left = np.maximum(after - 2 * damping * cross + damping**2 * before, 0) / np.where(usable, pairs, 1)
    residual = np.where(usable, np.sqrt(left) / std, 1)
    return {"base": beta + shift[:, None], "std": std, "damping": damping, "residual_std": residual}
