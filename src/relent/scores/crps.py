r"""Continuous ranked probability score of ensembles and closed-form laws: a score and, differentiable, a loss.

    CRPS(F, y) = ∫ (F(x) − 1{x ≥ y})² dx = E|X − y| − ½ E|X − X'|,   X, X' ~ F independent

(Gneiting & Raftery 2007, eq. 20 and 21).

It is negatively oriented, non-negative for a law F and has the unit of y. From M members drawn from F it can only be
estimated, and the estimators differ; their names go with every number (see `docs/estimators.md`).
Every function takes torch tensors, numpy arrays or dask arrays (see `relent.scores._arrays`).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from relent.scores._arrays import (
    Estimator,
    NanPolicy,
    apply_nan_policy,
    check_floating,
    common_dtype,
    members_first,
    takes_arrays,
)
from relent.scores._sorting import crps_blocks, pair_factor

_INV_SQRT_PI = 1 / math.sqrt(math.pi)


def estimator_alpha(estimator: str, alpha: float, members: int) -> float:
    """Weight of the fair estimator in the family α · fair + (1 − α) · biased.

    Raises:
        ValueError: if the estimator is unknown, if α lies outside (0, 1] for "almost_fair", or if one member is given
            to an estimator that divides by M − 1.
    """
    if estimator not in ("fair", "biased", "almost_fair"):
        raise ValueError(f'estimator must be "fair", "biased" or "almost_fair", got {estimator!r}')
    if estimator == "biased":
        return 0.0
    if members < 2:
        raise ValueError(
            f'estimator="{estimator}" needs two members at least, got {members}; of one member only the "biased" '
            "estimator is defined, and is the absolute error"
        )
    if estimator == "fair":
        return 1.0
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
    return alpha


@takes_arrays("(m),()->()", members=lambda call: (call["member_dim"],))
def crps_ensemble(
    members: Tensor,
    truth: Tensor,
    *,
    estimator: Estimator = "fair",
    alpha: float = 0.95,
    member_dim: int = 0,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""CRPS of each point's ensemble.

        CRPS_α = (1/M) Σ_m |x_m − y| − (1 − ε) / (2 M (M − 1)) Σ_{m,m'} |x_m − x_m'|,   ε = (1 − α) / M

    - "fair" (α = 1): its expectation is the CRPS of the law the members are drawn from, whatever M, so that ensembles
      of different sizes compare (Ferro 2014). Single values may be negative. With M = 2 it is zero for every pair that
      encloses the truth: do not train with it alone.
    - "biased" (α = 0): the CRPS of the empirical distribution; too large by E|X − X'| / (2M).
    - "almost_fair": α · fair + (1 − α) · biased; takes the degeneracy away, for training (Lang et al. 2024, AIFS-CRPS).

    One sort per point: O(M log M) time; memory beyond input and output is a few MiB without gradients, and one more
    array of the size of `members` (the derivative) with them.

    Args:
        members: (M, …) with the member dimension at `member_dim`; floating. Half precision is computed in float32.
        truth: (…), the shape of `members` without `member_dim`.
        estimator: which estimator; say it wherever the number is shown.
        alpha: weight of the fair one in "almost_fair".
        member_dim: position of the member dimension.
        nan_policy: "propagate": a NaN member or truth makes its point NaN. "omit": NaN members are left out, so that M
            differs from point to point; the point is NaN where the truth is, or where too few members are left.
            "raise": ValueError. The gradient is zero at NaN points, so they can be masked after the call.

    Returns:
        (…), in the unit of `truth`; the wider dtype of the two, float32 at least. Infinite values give NaN.

    Raises:
        ValueError: shapes that do not match, one member with "fair" or "almost_fair", unknown names, NaN under "raise".
        TypeError: input that is not floating.

    The derivative by a member is sign(x_m − y)/M − (1 − ε)/(M(M − 1)) · (members below − members above): zero
    contributions at ties, hence equal for equal members.
    Source: Gneiting & Raftery 2007 (eq. 21); Ferro 2014; Lang et al. 2024, arXiv 2412.15832.
    """
    first, truth = members_first(members, truth, member_dim)
    apply_nan_policy(nan_policy, members=members, truth=truth)
    weight = estimator_alpha(estimator, alpha, len(first))
    with_slope = torch.is_grad_enabled() and (first.requires_grad or truth.requires_grad)
    score, _ = _EnsembleCrps.apply(first, truth, weight, nan_policy == "omit", with_slope)
    return score


class _EnsembleCrps(torch.autograd.Function):
    """CRPS_α of (M, …) members, with the derivative by the members computed while their order is at hand."""

    @staticmethod
    def forward(members: Tensor, truth: Tensor, alpha: float, omit: bool, with_slope: bool) -> tuple[Tensor, Tensor]:
        if members.device.type != "cpu" or torch.compiler.is_compiling():
            return _crps_whole(members, truth, alpha, omit, with_slope)
        flat = members.detach().reshape(len(members), -1)
        score, slope = crps_blocks(flat.numpy(), truth.detach().reshape(-1).numpy(), alpha, omit, with_slope)
        derivative = members.new_empty(0) if slope is None else torch.from_numpy(slope).reshape(members.shape)
        return torch.from_numpy(score).reshape(truth.shape), derivative

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (slope,) = ctx.saved_tensors
        by_members = gradients[0] * slope
        by_truth = -by_members.sum(0) if ctx.needs_input_grad[1] else None
        return by_members, by_truth, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        members: Tensor,
        truth: Tensor,
        *settings: Any,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """A batch dimension is one more point dimension: it goes to the end of both."""
        batched = [
            value.unsqueeze(-1).expand(*value.shape, info.batch_size) if dim is None else value.movedim(dim, -1)
            for value, dim in zip((members, truth), in_dims)
        ]
        return _EnsembleCrps.apply(batched[0], batched[1], *settings), (-1, -1)


def _crps_whole(members: Tensor, truth: Tensor, alpha: float, omit: bool, with_slope: bool) -> tuple[Tensor, Tensor]:
    """The arithmetic of `crps_blocks` in one piece, for accelerators and for torch.compile."""
    difference = members - truth
    missing = difference.isnan() if omit else torch.zeros_like(difference, dtype=torch.bool)
    count = len(members) - missing.sum(0).to(difference.dtype)
    factor = pair_factor(count, alpha)
    filled = difference.masked_fill(missing, torch.inf)
    ordered = filled.sort(dim=0).values
    rank = torch.arange(1, len(members) + 1, dtype=count.dtype, device=count.device).view(-1, *[1] * truth.dim())
    pairs = ((2 * rank - count - 1) * ordered).masked_fill(rank > count, 0).sum(0)
    score = difference.masked_fill(missing, 0).abs().sum(0) / count - factor * pairs
    if not with_slope:
        return score, members.new_empty(0)
    haystack, needle = (values.movedim(0, -1).contiguous() for values in (ordered, filled))
    balance = torch.searchsorted(haystack, needle) + torch.searchsorted(haystack, needle, right=True)
    slope = filled.sign() / count - factor * (balance.movedim(-1, 0) - count)
    return score, slope.masked_fill(missing | score.isnan(), 0)


Chaining = Callable[[Tensor], Tensor]


def chain_above(threshold: float | Tensor) -> Chaining:
    """v(x) = max(x, t): the weight 1{z ≥ t}, for high extremes. Source: Allen et al. 2023, arXiv 2202.12732."""
    return lambda values: torch.clamp(values, min=torch.as_tensor(threshold, dtype=values.dtype, device=values.device))


def chain_below(threshold: float | Tensor) -> Chaining:
    """v(x) = min(x, t): the weight 1{z ≤ t}, for low extremes."""
    return lambda values: torch.clamp(values, max=torch.as_tensor(threshold, dtype=values.dtype, device=values.device))


def chain_between(lower: float | Tensor, upper: float | Tensor) -> Chaining:
    """v(x) = min(max(x, a), b): the weight 1{a ≤ z ≤ b}."""
    return lambda values: chain_below(upper)(chain_above(lower)(values))


@takes_arrays("(m),()->()", members=lambda call: (call["member_dim"],))
def crps_threshold_weighted(
    members: Tensor,
    truth: Tensor,
    chaining: Chaining,
    *,
    estimator: Estimator = "fair",
    alpha: float = 0.95,
    member_dim: int = 0,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""Threshold-weighted CRPS: ∫ w(z) (F(z) − 1{z ≥ y})² dz, through v with v(b) − v(a) = ∫_a^b w.

    It is the CRPS of the chained members against the chained truth, E|v(X) − v(y)| − ½ E|v(X) − v(X')|, and it stays
    proper: cases are not selected by their outcome.

    Args:
        members, truth, estimator, alpha, member_dim, nan_policy: as in `crps_ensemble`.
        chaining: non-decreasing v, applied to (M, …) members and (…) truth: `chain_above(t)`, `chain_below(t)`,
            `chain_between(a, b)`, or any elementwise function on tensors. Thresholds may be tensors that broadcast
            against the truth (a climatological percentile at each grid point); with dask arrays they must be numbers.

    Returns: (…), in the unit of v. Raises: as `crps_ensemble`.
    Source: Gneiting & Ranjan 2011; Allen, Ginsbourger & Ziegel 2023, arXiv 2202.12732.
    """
    first, truth = members_first(members, truth, member_dim)
    return crps_ensemble(chaining(first), chaining(truth), estimator=estimator, alpha=alpha, nan_policy=nan_policy)


def _normal_density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _standardised(truth: Tensor, location: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(truth − location) / scale and the scale, NaN where it is not positive."""
    check_floating(truth=truth, location=location, scale=scale)
    dtype = common_dtype(truth, location, scale)
    width = scale.to(dtype)
    width = torch.where(width > 0, width, torch.nan)
    return (truth.to(dtype) - location.to(dtype)) / width, width


@takes_arrays("(),(),()->()")
def crps_gaussian(truth: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    r"""CRPS of N(μ, σ²): σ [ z (2Φ(z) − 1) + 2φ(z) − 1/√π ], z = (y − μ)/σ.

    Args: truth, mean, std: broadcastable, floating; half precision is computed in float32.
    Returns: their broadcast shape, in the unit of y; NaN where σ ≤ 0 or an input is NaN.
    Raises: TypeError if not floating.
    Source: Gneiting et al. 2005, Monthly Weather Review 133.
    """
    z, width = _standardised(truth, mean, std)
    return width * (z * torch.erf(z * math.sqrt(0.5)) + 2 * _normal_density(z) - _INV_SQRT_PI)


@takes_arrays("(),(),()->()")
def crps_logistic(truth: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    r"""CRPS of the logistic law: s [ z − 2 log F(z) − 1 ], F(z) = 1/(1 + e^(−z)), z = (y − μ)/s.

    Shapes, dtypes, NaN and errors as in `crps_gaussian`. Source: Jordan, Krüger & Lerch 2019, arXiv 1709.04743.
    """
    z, width = _standardised(truth, location, scale)
    return width * (z - 2 * functional.logsigmoid(z) - 1)


@takes_arrays("(),(),()->()")
def crps_uniform(truth: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    r"""CRPS of the uniform law on [a, b]: (b − a) [ |u − c| + c² − c + 1/3 ], u = (y − a)/(b − a), c = u cut to [0, 1].

    Shapes, dtypes and errors as in `crps_gaussian`; NaN where b ≤ a.
    Source: Jordan, Krüger & Lerch 2019, arXiv 1709.04743.
    """
    u, width = _standardised(truth, lower, upper - lower)
    inside = u.clamp(0, 1)
    return width * ((u - inside).abs() + inside.square() - inside + 1 / 3)


def _folded_mean(mean: Tensor, std: Tensor) -> Tensor:
    """E|N(μ, σ²)| = 2σφ(μ/σ) + μ(2Φ(μ/σ) − 1)."""
    z = mean / std
    return 2 * std * _normal_density(z) + mean * torch.erf(z * math.sqrt(0.5))


@takes_arrays("(),(k),(k),(k)->()", **{n: lambda call: (call["component_dim"],) for n in ("mean", "std", "weight")})
def crps_gaussian_mixture(
    truth: Tensor, mean: Tensor, std: Tensor, weight: Tensor, *, component_dim: int = 0
) -> Tensor:
    r"""CRPS of the mixture Σ_k w_k N(μ_k, σ_k²):

        Σ_k w_k A(y − μ_k, σ_k²) − ½ Σ_{k,l} w_k w_l A(μ_k − μ_l, σ_k² + σ_l²),   A(μ, σ²) = 2σφ(μ/σ) + μ(2Φ(μ/σ) − 1)

    Args:
        truth: (…), floating.
        mean, std, weight: of one shape, (K, …) with the components at `component_dim`. Weights are made to sum to one.
    Returns: (…), in the unit of y; NaN where a σ_k ≤ 0.
    Raises: ValueError if the three shapes differ or do not fit `truth`; TypeError if not floating.
    Source: Grimit, Gneiting, Berrocal & Johnson 2006 (the time is O(K²), the memory O(K)).
    """
    if not mean.shape == std.shape == weight.shape:
        raise ValueError(f"mean, std and weight differ in shape: {[tuple(t.shape) for t in (mean, std, weight)]}")
    mean, truth = members_first(mean, truth, component_dim)
    std, weight = (value.to(mean.dtype).movedim(component_dim, 0) for value in (std, weight))
    std = torch.where(std > 0, std, torch.nan)
    weight = weight / weight.sum(0)
    score = (weight * _folded_mean(truth - mean, std)).sum(0)
    for k in range(len(mean)):
        score = score - 0.5 * weight[k] * (weight * _folded_mean(mean[k] - mean, torch.hypot(std[k], std))).sum(0)
    return score
