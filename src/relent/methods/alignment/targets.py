r"""Targets that can be scored and not sampled: P(x) = p(x)·Z out of a base model a and what is wanted of its texts.

    P = a·b                a pointwise constraint, b ∈ {0, 1}
    P = a·exp(λ·φ)         distributional constraints E_p φ = μ: of all p with these moments the nearest to a
    P = a·exp(r/β)         a scalar preference: the optimum of E r − β·KL(π‖a)

Khalifa, Elsahar, Dymetman, "A Distributional Approach to Controlled Text Generation", arXiv 2012.11635 (GDC); Korbak,
Elsahar, Kruszewski, Dymetman, "Controlling Conditional Language Models without Catastrophic Forgetting", arXiv
2112.00791 (a target for each prompt); Go et al., arXiv 2302.08215.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relent.divergences.logits import log_sum_exp, renormalised
from relent.divergences.reduction import upcast
from relent.methods.alignment.preference import positive

LARGEST_CHANGE = 4.0
"""Nats by which a step of the fit may change the weight of a sequence against the mean."""


def pointwise_target(base_log_probs: Tensor, satisfied: Tensor, *, floor: float = 0.0) -> Tensor:
    r"""log P of P(x) = a(x) max(b(x), floor), b ∈ {0, 1}.

    Args:
        base_log_probs: (N,), log a.
        satisfied: (N,) boolean, b.
        floor: 0 for the hard constraint, under which KL(π‖p) and χ²(π‖p) do not exist; a floor such as 1e-4 (ours)
            gives one target under which all divergences do.

    Returns:
        (N,) nats, −inf where b = 0 and floor = 0.

    Raises:
        ValueError: A floor outside [0, 1).
    """
    if not 0.0 <= floor < 1.0:
        raise ValueError(f"floor must lie in [0, 1), got {floor}")
    base = upcast(base_log_probs.detach())
    return torch.where(satisfied.bool(), base, base + math.log(floor) if floor > 0 else -math.inf)


def exponential_target(base_log_probs: Tensor, features: Tensor, coefficients: Tensor) -> Tensor:
    """log P of P(x) = a(x) exp(λ·φ(x)): (N,) from log a (N,), φ (N, K) and λ (K,)."""
    return upcast(base_log_probs.detach()) + features.to(base_log_probs) @ coefficients.to(base_log_probs)


def reward_target(base_log_probs: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    """log P of P(x) = a(x) exp(r(x)/β), (N,): the posterior of RL with a KL penalty.

    Raises:
        ValueError: β ≤ 0.
    """
    return upcast(base_log_probs.detach()) + rewards.detach() / positive(beta, "beta")


class MomentFit(NamedTuple):
    """Coefficients λ (K,), the largest error of a moment, log Z (its mean over prompts), and the steps that were
    taken; float64 on the CPU."""

    coefficients: Tensor
    error: float
    log_normaliser: Tensor
    steps: int


@torch.no_grad()
def fit_coefficients(
    features: Tensor,
    moments: Tensor,
    log_weights: Tensor,
    *,
    solver: Literal["newton", "gradient"] = "newton",
    tolerance: float = 1e-5,
    learning_rate: float = 0.05,
    max_steps: int = 1000,
) -> MomentFit:
    r"""λ such that E_p φ = μ under p ∝ a·exp(λ·φ): the information projection of a onto the constraints.

    λ minimises the convex log Z(λ) − λ·μ, whose gradient is E_p φ − μ and whose Hessian is Cov_p φ. Of several prompts
    (ours) the mean of both over the prompts is taken: one λ, under which the moments are met on average.

    Args:
        features: (N, K), φ of N sequences: all of them, or samples of a proposal q; or (C, N, K) of C prompts.
        moments: (K,), μ.
        log_weights: (N,) or (C, N): log a(x) if all sequences are given, log a(x) − log q(x) − log N for samples
            of q (0 up to a constant if q = a): moments are self-normalised, only log Z needs the constant; −inf leaves
            a sequence out.
        solver: `newton` with line search (ours: a few steps to rounding), or `gradient`, the steps
            λ ← λ − lr·(E_p φ − μ) of the official code.
        tolerance: Largest error of a moment.
        learning_rate: Of `gradient`.
        max_steps: Most steps.

    Raises:
        ValueError: Shapes that do not fit, an unknown solver, moments that no weighting of the given sequences reaches,
            no convergence.

    Source: arXiv 2012.11635; the official code (`naver/disco`), `BaseDistribution.constrain`.
    """
    phi, mu, weights = (x.detach().double().cpu() for x in (features, moments, log_weights))
    if phi.ndim not in (2, 3) or mu.shape != phi.shape[-1:] or weights.shape != phi.shape[:-1]:
        shapes = f"{tuple(phi.shape)}, {tuple(mu.shape)}, {tuple(weights.shape)}"
        raise ValueError(f"expected features (N, K), moments (K,) and log_weights (N,), got {shapes}")
    if solver not in ("newton", "gradient"):
        raise ValueError(f"solver={solver!r} is unknown; use 'newton' or 'gradient'")
    phi, weights = phi.view(-1, *phi.shape[-2:]), weights.view(-1, weights.shape[-1])
    seen = (weights > -math.inf).unsqueeze(-1)
    least, most = phi.masked_fill(~seen, math.inf).amin(1).mean(0), phi.masked_fill(~seen, -math.inf).amax(1).mean(0)
    if not bool(seen.any(1).all()) or bool(((mu < least) | (mu > most)).any()):
        raise ValueError(
            "a moment lies outside the values that its feature takes on the given sequences: no coefficients reach it; "
            "draw more samples, or state an attainable moment"
        )
    coefficients = torch.zeros_like(mu)
    for step in range(max_steps):
        log_p = renormalised(weights + phi @ coefficients)
        error = _mean_feature(log_p, phi).mean(0) - mu
        if float(error.abs().max()) < tolerance:
            log_normaliser = log_sum_exp(weights + phi @ coefficients).mean()
            return MomentFit(coefficients, float(error.abs().max()), log_normaliser, step)
        if solver == "gradient":
            coefficients = coefficients - learning_rate * error
        else:
            coefficients = _newton_step(coefficients, error, log_p, phi, mu, weights)
    raise ValueError(
        f"the moments were not met after {max_steps} steps, the largest error is {float(error.abs().max()):.3g}: no "
        "distribution may have these moments together; one at the edge of its range (a hard constraint) needs "
        "pointwise_target"
    )


def _mean_feature(log_p: Tensor, phi: Tensor) -> Tensor:
    """E_p φ of each prompt, (C, K)."""
    return (log_p.exp().unsqueeze(-1) * phi).sum(1)


def _newton_step(
    coefficients: Tensor, error: Tensor, log_p: Tensor, phi: Tensor, mu: Tensor, weights: Tensor
) -> Tensor:
    centred = phi - _mean_feature(log_p, phi).unsqueeze(1)
    hessian = ((log_p.exp().unsqueeze(-1) * centred).mT @ centred).mean(0)
    step = torch.linalg.lstsq(hessian, error.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)

    def objective(at: Tensor) -> Tensor:
        return log_sum_exp(weights + phi @ at).mean() - at @ mu

    # A step that changes a weight by many nats can end where one sequence has all the mass, and the Hessian vanishes.
    size = min(1.0, LARGEST_CHANGE / max(float((centred @ step).abs().max()), 1e-300))
    start, slope = objective(coefficients), float(error @ step)
    while size > 1e-8 and float(objective(coefficients - size * step)) > float(start) - 1e-4 * size * slope + 1e-14:
        size *= 0.5
    return coefficients - size * step
