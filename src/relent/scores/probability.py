r"""Scores of probabilities of a binary event: Brier score and its decomposition, reliability, ROC."""

from typing import NamedTuple

import torch
from torch import Tensor

from relent.scores._arrays import (
    NanPolicy,
    apply_nan_policy,
    check_floating,
    common_dtype,
    members_first,
    takes_arrays,
)
from relent.scores.spatial import weighted_mean


def _events(
    probability: Tensor, outcome: Tensor, weights: Tensor | None, nan_policy: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Flat probability, outcome and weights in float64, checked; points with NaN dropped under "omit".

    Raises:
        ValueError: shapes that differ, probabilities outside [0, 1], outcomes other than 0 and 1, NaN unless "omit".
    """
    check_floating(probability=probability)
    if probability.shape != outcome.shape:
        raise ValueError(f"probability and outcome differ in shape: {tuple(probability.shape)}, {tuple(outcome.shape)}")
    weight = torch.ones_like(probability) if weights is None else weights.expand_as(probability)
    flat = [value.double().reshape(-1) for value in (probability, outcome, weight)]
    apply_nan_policy(nan_policy, probability=flat[0], outcome=flat[1])
    present = ~(flat[0].isnan() | flat[1].isnan())
    if nan_policy == "omit":
        flat = [value[present] for value in flat]
    elif not bool(present.all()):
        raise ValueError('NaN has no bin: choose nan_policy="omit", or mask the points before')
    if bool(((flat[0] < 0) | (flat[0] > 1)).any()):
        raise ValueError("probability must lie in [0, 1]: these look like logits or percentages")
    if not bool(((flat[1] == 0) | (flat[1] == 1)).all()):
        raise ValueError("outcome must be 0 or 1")
    return flat[0], flat[1], flat[2]


@takes_arrays("(),()->()")
def brier_score(probability: Tensor, outcome: Tensor) -> Tensor:
    """(p − o)² at each point: (…), NaN where either is NaN.

    Args: probability: (…) in [0, 1], floating; outcome: (…) boolean or 0/1. Raises: TypeError if not floating.
    Source: Brier 1950, halved (one class of two).
    """
    check_floating(probability=probability)
    value = probability.to(common_dtype(probability))
    return (value - outcome.to(value.dtype)).square()


@takes_arrays("(m),()->()", members=lambda call: (call["member_dim"],))
def brier_score_ensemble(
    members: Tensor,
    truth: Tensor,
    *,
    threshold: float | Tensor,
    fair: bool = True,
    member_dim: int = 0,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""Brier score of the event y > t with p = share of members above t:  (p − o)² − p(1 − p)/(M − 1) if fair.

    The fair form has the expectation of an infinite ensemble; single values may be negative.

    Args:
        members, truth, member_dim: as in `relent.scores.crps.crps_ensemble`.
        threshold: a number, or a tensor that broadcasts against the truth (numbers only with dask arrays).
        fair: subtract the part that comes from having M members only.
        nan_policy: "omit": p from the members present; NaN where the truth is NaN or too few members are left.

    Returns: (…). The step has no useful gradient. Raises: ValueError for one member with `fair`, or as `crps_ensemble`.
    Source: Ferro 2014 (fair); Brier 1950.
    """
    first, truth = members_first(members, truth, member_dim)
    if fair and len(first) < 2:
        raise ValueError("the fair Brier score needs two members at least; fair=False takes one")
    apply_nan_policy(nan_policy, members=first, truth=truth)
    present = ~first.isnan()
    count = present.sum(0).to(first.dtype)
    if nan_policy == "propagate":
        count = torch.where(present.all(0), count, torch.nan)
    probability = (first > threshold).sum(0) / count
    outcome = torch.where(truth.isnan(), truth, (truth > threshold).to(truth.dtype))
    score = (probability - outcome).square()
    return score - probability * (1 - probability) / (count - 1) if fair else score


def _bin_of(probability: Tensor, bins: int | Tensor) -> tuple[Tensor, int]:
    """Index of each probability's bin and the number of bins; bins are [a, b), the last one [a, b]."""
    if isinstance(bins, int):
        if bins < 1:
            raise ValueError(f"bins must be positive, got {bins}")
        bins = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=probability.device)
    edges = bins.double()
    if edges.dim() != 1 or len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or not bool((edges.diff() > 0).all()):
        raise ValueError("bin edges must rise strictly from 0 to 1")
    return torch.bucketize(probability, edges[1:-1], right=True), len(edges) - 1


class ReliabilityCurve(NamedTuple):
    """Of each bin, (bins,) each: mean forecast probability, observed frequency, weight (count). NaN in empty bins."""

    probability: Tensor
    frequency: Tensor
    weight: Tensor


@takes_arrays()
def reliability_curve(
    probability: Tensor,
    outcome: Tensor,
    weights: Tensor | None = None,
    *,
    bins: int | Tensor = 10,
    nan_policy: NanPolicy = "raise",
) -> ReliabilityCurve:
    """Observed frequency of the event against its forecast probability, bin by bin.

    Args:
        probability: any shape, in [0, 1], floating; outcome: same shape, boolean or 0/1; weights: broadcastable.
        bins: number of equal bins, or their edges from 0 to 1. For an ensemble, edges between the M + 1 possible
            values lose nothing: `torch.cat([zero, (torch.arange(M) + 0.5) / M, one])`.
        nan_policy: "raise" or "omit"; "propagate" raises too: a NaN falls in no bin.
    Returns: float64. Raises: ValueError as said, and for values out of range.
    Source: Murphy & Winkler 1977; Wilks 2019, Statistical Methods in the Atmospheric Sciences.
    """
    p, o, w = _events(probability, outcome, weights, nan_policy)
    index, count = _bin_of(p, bins)
    weight, sum_p, sum_o = (
        torch.zeros(count, dtype=torch.float64, device=p.device).index_add(0, index, v) for v in (w, w * p, w * o)
    )
    return ReliabilityCurve(sum_p / weight, sum_o / weight, weight)


class BrierDecomposition(NamedTuple):
    """brier = reliability − resolution + uncertainty + within_variance − within_covariance, exactly."""

    brier: Tensor
    reliability: Tensor
    resolution: Tensor
    uncertainty: Tensor
    within_variance: Tensor
    within_covariance: Tensor


@takes_arrays()
def brier_decomposition(
    probability: Tensor,
    outcome: Tensor,
    weights: Tensor | None = None,
    *,
    bins: int | Tensor = 10,
    nan_policy: NanPolicy = "raise",
) -> BrierDecomposition:
    r"""Murphy's decomposition of the mean Brier score over bins k: mean forecast p̄_k, frequency ō_k, weight share f_k.

        reliability Σ f_k (p̄_k − ō_k)²    resolution Σ f_k (ō_k − ō)²    uncertainty ō (1 − ō)
        within-bin variance Σ_i f_i (p_i − p̄_k)²    within-bin covariance 2 Σ_i f_i (o_i − ō_k)(p_i − p̄_k)

    reliability − resolution + uncertainty is the Brier score of forecasts rounded to their bin's mean; the two
    within-bin terms make up the rest, and vanish when each bin holds one value. With few cases a bin, reliability and
    resolution are both too large (Bröcker 2012).

    Args, errors: as `reliability_curve`. Returns: float64 scalars.
    Source: Murphy 1973; within-bin terms: Stephenson, Coelho & Jolliffe 2008.
    """
    p, o, w = _events(probability, outcome, weights, nan_policy)
    w = w / w.sum()
    index, _ = _bin_of(p, bins)
    curve = reliability_curve(p, o, w, bins=bins)
    base = (w * o).sum()
    filled = curve.weight > 0
    share, mean_p, mean_o = curve.weight[filled], curve.probability[filled], curve.frequency[filled]
    off_p, off_o = p - curve.probability[index], o - curve.frequency[index]
    return BrierDecomposition(
        brier=(w * (p - o).square()).sum(),
        reliability=(share * (mean_p - mean_o).square()).sum(),
        resolution=(share * (mean_o - base).square()).sum(),
        uncertainty=base * (1 - base),
        within_variance=(w * off_p.square()).sum(),
        within_covariance=2 * (w * off_p * off_o).sum(),
    )


class RocCurve(NamedTuple):
    """Hit rate against false alarm rate for falling thresholds, (n + 1,) each; the first is +∞ (never warn)."""

    false_alarm_rate: Tensor
    hit_rate: Tensor
    threshold: Tensor


@takes_arrays()
def roc_curve(
    probability: Tensor, outcome: Tensor, weights: Tensor | None = None, *, nan_policy: NanPolicy = "raise"
) -> RocCurve:
    """Relative operating characteristic: warn when p ≥ threshold, one point for each distinct probability.

    Args, errors: as `reliability_curve`; ValueError also if all outcomes are equal. Returns: float64.
    Source: Mason 1982.
    """
    p, o, w = _events(probability, outcome, weights, nan_policy)
    positive, negative = (w * o).sum(), (w * (1 - o)).sum()
    if positive == 0 or negative == 0:
        raise ValueError("the ROC needs outcomes of both kinds")
    values, index = torch.unique(p, return_inverse=True)
    hits, alarms = (torch.zeros_like(values).index_add(0, index, w * v).flip(0).cumsum(0) for v in (o, 1 - o))
    zero = values.new_zeros(1)
    return RocCurve(
        torch.cat([zero, alarms / negative]),
        torch.cat([zero, hits / positive]),
        torch.cat([values.new_full((1,), torch.inf), values.flip(0)]),
    )


@takes_arrays()
def roc_auc(
    probability: Tensor, outcome: Tensor, weights: Tensor | None = None, *, nan_policy: NanPolicy = "raise"
) -> Tensor:
    """Area under the ROC, by the trapezoidal rule: P(p of an event > p of a non-event) + ½ P(equal). ½ is no skill.

    Args, errors: as `roc_curve`. Returns: a float64 scalar in [0, 1].
    """
    curve = roc_curve(probability, outcome, weights, nan_policy=nan_policy)
    return torch.trapezoid(curve.hit_rate, curve.false_alarm_rate)


@takes_arrays()
def brier_skill_score(probability: Tensor, outcome: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 − BS / BS_reference, means over all points; `reference` is the climatological probability, broadcastable.

    Returns: a scalar, one is perfect, zero no better than the reference. Raises: as `brier_score`.
    """
    score = weighted_mean(brier_score(probability, outcome), weights)
    return 1 - score / weighted_mean(brier_score(reference.expand_as(probability), outcome), weights)
