r"""Scores of ensembles beside the CRPS: multivariate scores, spread and skill, rank histograms.

Shapes: `members` (M, …) with the member dimension at `member_dim`, `truth` (…). Pointwise scores keep the points;
scores that need an average (RMSE, spread, their ratio) take weights and give one number, with the square root after all
averaging.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relent.scores._arrays import (
    Estimator,
    NanPolicy,
    apply_nan_policy,
    check_floating,
    common_dtype,
    members_first,
    takes_arrays,
)
from relent.scores.crps import estimator_alpha
from relent.scores.spatial import weighted_mean


def _events_last(members: Tensor, truth: Tensor, member_dim: int, event_dim: int) -> tuple[Tensor, Tensor]:
    """(M, …, D) members and (…, D) truth; `event_dim` counts in `members`."""
    member, event = member_dim % members.dim(), event_dim % members.dim()
    if member == event:
        raise ValueError(f"member_dim={member_dim} and event_dim={event_dim} are the same dimension")
    first, truth = members_first(members, truth, member_dim)
    in_truth = event - (event > member)
    return first.movedim(in_truth + 1, -1), truth.movedim(in_truth, -1)


_CORE_AXES = {
    "members": lambda call: (call["member_dim"], call["event_dim"]),
    "truth": lambda call: (
        call["event_dim"] % call["members"].ndim
        - (call["event_dim"] % call["members"].ndim > call["member_dim"] % call["members"].ndim),
    ),
}


def _drop_missing(members: Tensor, nan_policy: str) -> tuple[Tensor, Tensor]:
    """Members with NaN set to zero where they are left out, and which are present: both (M, …)."""
    present = ~members.isnan() if nan_policy == "omit" else torch.ones_like(members, dtype=torch.bool)
    return torch.where(present, members, 0), present


@takes_arrays("(m,d),(d)->()", **_CORE_AXES)
def energy_score(
    members: Tensor,
    truth: Tensor,
    *,
    estimator: Estimator = "fair",
    alpha: float = 0.95,
    member_dim: int = 0,
    event_dim: int = -1,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""Energy score, the CRPS of vectors: (1/M) Σ_m ‖x_m − y‖ − c Σ_{m<m'} ‖x_m − x_m'‖.

    c = (M − 1 + α) / (M² (M − 1)): α = 1 "fair", c = 1/(M(M − 1)); α = 0 "biased", c = 1/M²; "almost_fair" between.
    With D = 1 it is the CRPS.

    Args:
        members: (M, …, D) with the members at `member_dim` and the components at `event_dim`; floating.
        truth: the shape of `members` without `member_dim`.
        estimator, alpha: as in `relent.scores.crps.crps_ensemble`.
        event_dim: position, in `members`, of the dimension over which the Euclidean norm is taken. Scale the
            components first: the norm adds their units.
        nan_policy: "omit" leaves out a member that has a NaN component; a NaN in the truth makes the point NaN.

    Returns: (…). Time O(M² D), memory O(M D) a point. The gradient at coinciding vectors is zero.
    Raises: as `crps_ensemble`; ValueError if the two dimensions are one.
    Source: Gneiting & Raftery 2007, eq. 22; fair: Ferro 2014.
    """
    first, truth = _events_last(members, truth, member_dim, event_dim)
    apply_nan_policy(nan_policy, members=first, truth=truth)
    weight = estimator_alpha(estimator, alpha, len(first))
    whole = (
        ~first.isnan().any(-1)
        if nan_policy == "omit"
        else torch.ones(first.shape[:-1], dtype=torch.bool, device=first.device)
    )
    first = torch.where(whole[..., None], first, 0)
    count = whole.sum(0).to(first.dtype)
    factor = (count - 1 + weight) / (count.square() * (count - 1)) if weight else 1 / count.square()
    error = (torch.linalg.vector_norm(first - truth, dim=-1) * whole).sum(0) / count
    pairs = torch.zeros_like(error)
    for m in range(1, len(first)):
        distance = torch.linalg.vector_norm(first[:m] - first[m], dim=-1)
        pairs = pairs + (distance * (whole[:m] & whole[m])).sum(0)
    return error - factor * pairs


@takes_arrays("(m,d),(d)->()", **_CORE_AXES)
def variogram_score(
    members: Tensor,
    truth: Tensor,
    *,
    p: float = 0.5,
    weights: Tensor | None = None,
    member_dim: int = 0,
    event_dim: int = -1,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""Variogram score of order p: Σ_{i,j} w_ij ( |y_i − y_j|^p − (1/M) Σ_m |x_mi − x_mj|^p )².

    It sees wrong correlations that the energy score hardly sees, and no bias that all components share.

    Args:
        members, truth, member_dim, event_dim: as in `energy_score`.
        p: order, positive; 0.5 is the authors' choice. For p < 1 the gradient is infinite where components coincide.
        weights: (D, D), non-negative, often falling with distance; None: ones. Both (i, j) and (j, i) are summed.
        nan_policy: "omit" leaves out members with a NaN component; a NaN in the truth makes the point NaN.

    Returns: (…), in the unit of y to the power 2p. Memory O(M D²) a point.
    Raises: ValueError for p ≤ 0, weights of another shape, or as `energy_score`.
    Source: Scheuerer & Hamill 2015, Monthly Weather Review 143.
    """
    if p <= 0:
        raise ValueError(f"p must be positive, got {p}")
    first, truth = _events_last(members, truth, member_dim, event_dim)
    apply_nan_policy(nan_policy, members=first, truth=truth)
    size = truth.shape[-1]
    if weights is not None and weights.shape != (size, size):
        raise ValueError(f"weights must be ({size}, {size}), got {tuple(weights.shape)}")
    i, j = torch.triu_indices(size, size, offset=1, device=first.device)
    pair_weights = torch.full_like(truth[..., i], 2) if weights is None else (weights + weights.T).to(first)[i, j]
    whole = (
        ~first.isnan().any(-1, keepdim=True)
        if nan_policy == "omit"
        else torch.ones_like(first[..., :1], dtype=torch.bool)
    )
    first = torch.where(whole, first, 0)
    expected = ((first[..., i] - first[..., j]).abs().pow(p) * whole).sum(0) / whole.sum(0)
    observed = (truth[..., i] - truth[..., j]).abs().pow(p)
    score = (pair_weights * (observed - expected).square()).sum(-1)
    # With one component there is no pair that could carry the gap into the sum.
    undefined = truth.isnan().any(-1) | first.isnan().any(-1).any(0) | ~whole.any(0).squeeze(-1)
    return score.masked_fill(undefined, torch.nan)


@takes_arrays("(m)->()", members=lambda call: (call["member_dim"],))
def ensemble_mean(members: Tensor, *, member_dim: int = 0, nan_policy: NanPolicy = "propagate") -> Tensor:
    """Mean over the members present: (…). NaN where none is left. Raises: as `crps_ensemble`."""
    check_floating(members=members)
    apply_nan_policy(nan_policy, members=members)
    filled, present = _drop_missing(members.to(common_dtype(members)).movedim(member_dim, 0), nan_policy)
    return filled.sum(0) / present.sum(0)


@takes_arrays("(m)->()", members=lambda call: (call["member_dim"],))
def ensemble_variance(members: Tensor, *, member_dim: int = 0, nan_policy: NanPolicy = "propagate") -> Tensor:
    r"""Unbiased variance of the members, Σ_m (x_m − x̄)² / (M − 1).

    Args: members: (M, …), floating; member_dim, nan_policy: as in `crps_ensemble` ("omit": M counts those present).
    Returns: (…), squared unit; NaN where fewer than two members are present.
    Raises: ValueError for fewer than two members or NaN under "raise"; TypeError if not floating.
    """
    check_floating(members=members)
    first = members.to(common_dtype(members)).movedim(member_dim, 0)
    if len(first) < 2:
        raise ValueError(f"a variance needs two members at least, got {len(first)}")
    apply_nan_policy(nan_policy, members=first)
    filled, present = _drop_missing(first, nan_policy)
    count = present.sum(0)
    centred = torch.where(present, filled - filled.sum(0) / count, 0)
    degrees = torch.where(count > 1, count - 1, torch.nan)
    return centred.square().sum(0) / degrees


@takes_arrays()
def spread(
    members: Tensor, weights: Tensor | None = None, *, member_dim: int = 0, nan_policy: NanPolicy = "propagate"
) -> Tensor:
    """√(weighted mean of the unbiased variance): the root is taken once, after averaging over all points.

    Args: members, member_dim, nan_policy: as in `ensemble_variance`; weights: broadcastable to the points.
    Returns: a scalar, in the unit of the members. Raises: as `ensemble_variance`.
    Source: Fortin et al. 2014, Journal of Hydrometeorology 15.
    """
    variance = ensemble_variance(members, member_dim=member_dim, nan_policy=nan_policy)
    return weighted_mean(variance, weights, nan_policy=nan_policy).sqrt()


def mean_error(members: Tensor, truth: Tensor, member_dim: int, nan_policy: NanPolicy) -> Tensor:
    """x̄ − y at each point, the one form behind RMSE, MAE and bias; NaN where the truth is, or no member is left."""
    first, truth = members_first(members, truth, member_dim)
    apply_nan_policy(nan_policy, truth=truth)
    return ensemble_mean(first, nan_policy=nan_policy) - truth


@takes_arrays()
def ensemble_mean_rmse(
    members: Tensor,
    truth: Tensor,
    weights: Tensor | None = None,
    *,
    member_dim: int = 0,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    """√(weighted mean of (x̄ − y)²), one root after averaging over time and space (not a mean of each map's RMSE).

    Args: as in `crps_ensemble`; weights: broadcastable to the points. "omit" leaves out NaN members, then NaN points.
    Returns: a scalar, in the unit of the truth. Raises: as `crps_ensemble`.
    """
    error = mean_error(members, truth, member_dim, nan_policy)
    return weighted_mean(error.square(), weights, nan_policy=nan_policy).sqrt()


@takes_arrays()
def spread_skill_ratio(
    members: Tensor,
    truth: Tensor,
    weights: Tensor | None = None,
    *,
    member_dim: int = 0,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""√((M + 1)/M) · spread / RMSE of the ensemble mean: one for a calibrated ensemble of any size.

    Below one the ensemble is under-dispersed.

    The factor stands for the sampling error of the mean of M members: if members and truth are drawn from one law of
    variance σ², the squared error of the mean is (1 + 1/M) σ² on average. Many published ratios lack it.

    Args: as in `ensemble_mean_rmse`; under "omit" a point counts if its truth and two members are present, in
        numerator and denominator alike, and its variance is multiplied by its own (M + 1)/M.
    Returns: a scalar. Raises: as `ensemble_variance` and `crps_ensemble`.
    Source: Fortin et al. 2014, Journal of Hydrometeorology 15.
    """
    first, truth = members_first(members, truth, member_dim)
    expected, actual = (
        weighted_mean(term, weights, nan_policy=nan_policy) for term in spread_skill_terms(first, truth, nan_policy)
    )
    return (expected / actual).sqrt()


def spread_skill_terms(members: Tensor, truth: Tensor, nan_policy: NanPolicy) -> tuple[Tensor, Tensor]:
    """(M + 1)/M · variance and squared error of the mean at each point of (M, …) members, NaN in both or in neither."""
    variance = ensemble_variance(members, nan_policy=nan_policy)
    squared_error = mean_error(members, truth, 0, nan_policy).square()
    count = _drop_missing(members, nan_policy)[1].sum(0).to(variance.dtype)  # a ratio of integers would be float32
    return (count + 1) / count * variance + 0 * squared_error, squared_error + 0 * variance


@takes_arrays()
def bias(
    members: Tensor,
    truth: Tensor,
    weights: Tensor | None = None,
    *,
    member_dim: int = 0,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    """Weighted mean of x̄ − y: positive where the ensemble is too high. Arguments, errors: as `ensemble_mean_rmse`."""
    return weighted_mean(mean_error(members, truth, member_dim, nan_policy), weights, nan_policy=nan_policy)


@takes_arrays()
def ensemble_mean_mae(
    members: Tensor,
    truth: Tensor,
    weights: Tensor | None = None,
    *,
    member_dim: int = 0,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    """Weighted mean of |x̄ − y|. Arguments, errors: as `ensemble_mean_rmse`."""
    return weighted_mean(mean_error(members, truth, member_dim, nan_policy).abs(), weights, nan_policy=nan_policy)


Ties = Literal["random", "uniform"]


def rank_shares(members: Tensor, truth: Tensor, ties: Ties, generator: torch.Generator | None = None) -> Tensor:
    """Share of each rank at each point, (…, M + 1), for (M, …) members: one-hot without ties; NaN where a value is."""
    if ties not in ("random", "uniform"):
        raise ValueError(f'ties must be "random" or "uniform", got {ties!r}')
    below, tied = (members < truth).sum(0), (members == truth).sum(0)
    rank = torch.arange(len(members) + 1, device=members.device)
    if ties == "random":
        draw = torch.rand(truth.shape, generator=generator, dtype=torch.float64, device=members.device)
        shares = rank == (below + (draw * (tied + 1)).floor().long())[..., None]
        shares = shares.to(members.dtype)
    else:
        among = (rank >= below[..., None]) & (rank <= (below + tied)[..., None])
        shares = among.to(members.dtype) / (tied + 1)[..., None]
    undefined = members.isnan().any(0) | truth.isnan()
    return torch.where(undefined[..., None], torch.nan, shares)


@takes_arrays()
def rank_histogram(
    members: Tensor,
    truth: Tensor,
    weights: Tensor | None = None,
    *,
    ties: Ties = "random",
    generator: torch.Generator | None = None,
    member_dim: int = 0,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    """How often the truth takes each rank among the members: flat for a calibrated ensemble, ∪ if under-dispersed.

    Args:
        members, truth, member_dim: as in `crps_ensemble`.
        weights: broadcastable to the points; None: one each, so that the result counts cases.
        ties: a truth that equals t members could stand at t + 1 ranks. "random" draws one (whole counts, for the χ²
            test), "uniform" gives each a share of 1/(t + 1) (no random numbers). Precipitation needs one of them.
        generator: random numbers for "random".
        nan_policy: "omit" leaves out points with any NaN, members included: rank counts of ensembles of different
            sizes do not add up; "propagate" makes the whole histogram NaN.

    Returns: (M + 1,) counts (float), entry r for r members below the truth. Raises: as `crps_ensemble`.
    Source: Hamill 2001; ties: Hamill & Colucci 1998.
    """
    first, truth = members_first(members, truth, member_dim)
    apply_nan_policy(nan_policy, members=first, truth=truth)
    shares = rank_shares(first, truth, ties, generator)
    if nan_policy == "omit":
        shares = torch.where(shares.isnan(), 0, shares)
    if weights is not None:
        shares = shares * weights.to(shares).expand(truth.shape)[..., None]
    return shares.reshape(-1, len(first) + 1).sum(0)


class RankTest(NamedTuple):
    """χ² statistic of a rank histogram against uniform ranks, its degrees of freedom and its p-value."""

    statistic: float
    degrees: int
    p_value: float


@takes_arrays()
def rank_histogram_test(counts: Tensor) -> RankTest:
    """Pearson's χ² test that the ranks are uniform: Σ_r (n_r − n/(M + 1))² / (n/(M + 1)), M degrees of freedom.

    The p-value holds for independent cases: neighbouring grid points and overlapping forecasts are not: it
    is too small for them.

    Args: counts: (M + 1,) whole counts, from `ties="random"` and no weights.
    Raises: ValueError if the counts are not one-dimensional, negative, or fewer than five a rank are expected.
    Source: Wilks 2019, Statistical Methods in the Atmospheric Sciences.
    """
    if counts.dim() != 1 or len(counts) < 2 or not bool((counts >= 0).all()):
        raise ValueError(
            f"counts must be one-dimensional, two at least and not negative, got shape {tuple(counts.shape)}"
        )
    expected = float(counts.sum()) / len(counts)
    if expected < 5:
        raise ValueError(f"the χ² test needs five cases a rank at least, got {expected:.3g}")
    statistic = float((counts.double() - expected).square().sum() / expected)
    degrees = len(counts) - 1
    p_value = torch.special.gammaincc(torch.tensor(degrees / 2).double(), torch.tensor(statistic / 2).double())
    return RankTest(statistic, degrees, float(p_value) if math.isfinite(statistic) else math.nan)
