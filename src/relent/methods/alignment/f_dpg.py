r"""f-DPG: any f-divergence to any unnormalised target, minimised by one policy-gradient rule.

Go, Korbak, Kruszewski, Rozen, Ryu, Dymetman, "Aligning Language Models with Preferences through f-divergence
Minimization", arXiv 2302.08215 (ICML 2023). With a target p(x) = P(x)/Z that can be scored and not sampled,

    D_f(π‖p) = E_p f(π(x)/p(x)),   ∇D_f(π_θ‖p) = E_π[ f′(π(x)/p(x)) ∇ log π(x) ]          (theorem 1)

so that −f′ is a pseudo-reward. Targets: P = a·b (a pointwise constraint), P = a·exp(λ·φ) (distributional constraints,
Khalifa et al., arXiv 2012.11635), P = a·exp(r/β) (a scalar preference; with `reverse_kl` it is RL with a KL penalty).

Names are those of the registry, the target first: `forward_kl` is KL(p‖π) (DPG, GDC), `reverse_kl` KL(π‖p),
`jensen_shannon_unhalved` the paper's JS, `total_variation`, `pearson_chi2` χ²(p‖π), `neyman_chi2` χ²(π‖p).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from relent.divergences.f_generator import FDivergence
from relent.divergences.logits import log_mixture, log_sum_exp, renormalised
from relent.divergences.reduction import upcast
from relent.methods.alignment.policy_gradient import score_function_loss
from relent.methods.alignment.preference import positive


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
    """Coefficients λ (K,), the largest error of a moment, log Z, and the steps that were taken; float64 on the CPU."""

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

    λ minimises the convex log Z(λ) − λ·μ, whose gradient is E_p φ − μ and whose Hessian is Cov_p φ.

    Args:
        features: (N, K), φ of N sequences: all of them, or samples of a proposal q.
        moments: (K,), μ.
        log_weights: (N,): log a(x) if all sequences are given, log a(x) − log q(x) − log N for samples of q (0 up to a
            constant if q = a): moments are self-normalised, only log Z needs the constant.
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
    if phi.ndim != 2 or mu.shape != phi.shape[1:] or weights.shape != phi.shape[:1]:
        shapes = f"{tuple(phi.shape)}, {tuple(mu.shape)}, {tuple(weights.shape)}"
        raise ValueError(f"expected features (N, K), moments (K,) and log_weights (N,), got {shapes}")
    if solver not in ("newton", "gradient"):
        raise ValueError(f"solver={solver!r} is unknown; use 'newton' or 'gradient'")
    seen = phi[weights > -math.inf]
    if len(seen) == 0 or bool(((mu < seen.amin(0)) | (mu > seen.amax(0))).any()):
        raise ValueError(
            "a moment lies outside the values that its feature takes on the given sequences: no coefficients reach it; "
            "draw more samples, or state an attainable moment"
        )
    coefficients = torch.zeros_like(mu)
    for step in range(max_steps):
        log_p = renormalised(weights + phi @ coefficients)
        error = log_p.exp() @ phi - mu
        if float(error.abs().max()) < tolerance:
            log_normaliser = log_sum_exp(weights + phi @ coefficients)
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


def _newton_step(
    coefficients: Tensor, error: Tensor, log_p: Tensor, phi: Tensor, mu: Tensor, weights: Tensor
) -> Tensor:
    centred = phi - log_p.exp() @ phi
    hessian = (log_p.exp().unsqueeze(-1) * centred).mT @ centred
    step = torch.linalg.lstsq(hessian, error.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)

    def objective(at: Tensor) -> Tensor:
        return log_sum_exp(weights + phi @ at) - at @ mu

    size, start, slope = 1.0, objective(coefficients), float(error @ step)
    while size > 1e-8 and float(objective(coefficients - size * step)) > float(start) - 1e-4 * size * slope + 1e-14:
        size *= 0.5
    return coefficients - size * step


class RunningNormaliser(nn.Module):
    r"""Online estimate of Z: for each context the mean of P(x)/q(x) over every sample seen so far, in log space.

    Update with a batch **before** its loss is computed. Its state is part of the module's, so that a resumed run goes
    on with the same estimate.
    """

    log_total: Tensor
    count: Tensor

    def __init__(self, contexts: int = 1) -> None:
        super().__init__()
        self.register_buffer("log_total", torch.full((contexts,), -math.inf, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(contexts, dtype=torch.float64))

    @torch.no_grad()
    def update(self, target_log_probs: Tensor, proposal_log_probs: Tensor, contexts: Tensor | None = None) -> None:
        """Add samples x ~ q: log P(x) and log q(x), (N,), and the index of each sample's context (N,)."""
        which = torch.zeros(len(target_log_probs), dtype=torch.long, device=target_log_probs.device)
        which = which if contexts is None else contexts
        log_weights = (target_log_probs - proposal_log_probs).double()
        for context in which.unique().tolist():
            chosen = which == context
            parts = torch.cat((self.log_total[context : context + 1], log_weights[chosen].to(self.log_total)))
            self.log_total[context] = log_sum_exp(parts)
            self.count[context] += int(chosen.sum())

    def log_normaliser(self, contexts: Tensor | None = None) -> Tensor:
        """log Z of the given contexts, or of the only one; −inf where every sample had P(x) = 0: skip those."""
        log_z = self.log_total - self.count.clamp(min=1).log()
        return log_z[0] if contexts is None else log_z[contexts]


class WindowBaseline(nn.Module):
    """B: the mean of the last `size` pseudo-rewards, read before the minibatch is added; 0 before the first one."""

    window: Tensor
    seen: Tensor

    def __init__(self, size: int = 1024) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.register_buffer("window", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def value(self) -> Tensor:
        """B, a scalar."""
        held = int(self.seen.clamp(max=len(self.window)))
        return self.window[:held].mean() if held else self.window.new_zeros(())

    @torch.no_grad()
    def update(self, pseudo_rewards: Tensor) -> None:
        """Add R (not R − B) of a minibatch, (N,), in order.

        Raises:
            ValueError: A value that is not finite, which would stay in the window for `size` samples.
        """
        if not bool(pseudo_rewards.isfinite().all()):
            raise ValueError("a pseudo-reward is not finite: this divergence does not exist under a hard constraint")
        size = len(self.window)
        values = pseudo_rewards.to(self.window)[-size:]
        first = int(self.seen) + len(pseudo_rewards) - len(values)
        self.window[(first + torch.arange(len(values), device=values.device)) % size] = values
        self.seen += len(pseudo_rewards)


def pseudo_rewards(
    policy_log_probs: Tensor, target_log_probs: Tensor, log_normaliser: Tensor | float, divergence: FDivergence
) -> Tensor:
    r"""R = −f′(π(x)/p(x)), held constant; log p = log P − log Z.

    Args:
        policy_log_probs: (N,), log π of the samples, summed over tokens.
        target_log_probs: (N,), log P; −inf where a hard constraint fails.
        log_normaliser: log Z, one number or (N,). Where it is −inf, no sample of that context has met the constraint
            yet: R is 0 there, and the sample must be left out (:func:`context_mean`).
        divergence: A registered divergence.

    Raises:
        ValueError: A pseudo-reward of −inf: KL(π‖p) or χ²(π‖p) where P(x) = 0.

    Source: theorem 1.
    """
    policy, target = upcast(policy_log_probs.detach()), target_log_probs.detach()
    log_z = torch.as_tensor(log_normaliser, dtype=policy.dtype, device=policy.device).expand_as(policy)
    unknown = log_z == -math.inf
    rewards = divergence.pseudo_reward(policy - (target - log_z.masked_fill(unknown, 0.0)))
    rewards = torch.where(unknown, 0.0, rewards)
    if bool((rewards == -math.inf).any()):
        raise ValueError(
            f"{divergence.name} does not exist where the target has probability 0 and the policy has not; use a target "
            "with a floor (pointwise_target(..., floor=1e-4)), or forward_kl, jensen_shannon_unhalved, total_variation"
        )
    return rewards


def f_dpg_loss(
    policy_log_probs: Tensor,
    rewards: Tensor,
    *,
    baseline: Tensor | float = 0.0,
    proposal_log_probs: Tensor | None = None,
) -> Tensor:
    r"""sg[(π/q) (B − R)] log π(x), (N,): its mean has the gradient of D_f(π‖p); the value is not D_f.

    Args:
        policy_log_probs: (N,), log π of samples x ~ q.
        rewards: (N,), from :func:`pseudo_rewards`.
        baseline: B.
        proposal_log_probs: (N,), log q; None: q = π.
    """
    return score_function_loss(policy_log_probs, rewards, baseline=baseline, proposal_log_probs=proposal_log_probs)


def context_mean(losses: Tensor, contexts: Tensor, log_normaliser: Tensor) -> Tensor:
    """Mean over contexts of the mean over each context's samples; a scalar.

    As in the official code a context with Z = 0 adds nothing and still counts.

    Args:
        losses: (N,), from :func:`f_dpg_loss`.
        contexts: (N,), the index of each sample's context.
        log_normaliser: (N,), log Z of each sample's context.
    """
    present, which = contexts.unique(return_inverse=True)
    kept = torch.where(log_normaliser == -math.inf, 0.0, losses)
    totals = kept.new_zeros(len(present)).index_add(0, which, kept)
    return (totals / which.bincount(minlength=len(present))).mean()


class DivergenceEstimates(NamedTuple):
    """Scalars: KL(p‖π), total variation, Jensen–Shannon (the usual one, half of the paper's generator)."""

    forward_kl: Tensor
    total_variation: Tensor
    jensen_shannon: Tensor


def divergence_estimates(
    policy_log_probs: Tensor, target_log_probs: Tensor, proposal_log_probs: Tensor, log_normaliser: Tensor | float
) -> DivergenceEstimates:
    r"""Importance-sampled divergences between p and π from samples x ~ q.

    KL(p‖π) = −log Z + mean[(P/(Zq)) (log P − log π)], TV = ½ mean|π/q − P/(Zq)|,
    JS = ½ mean[(p/q) log(p/m) + (π/q) log(π/m)], m = (p + π)/2.

    Args:
        policy_log_probs: (N,), log π.
        target_log_probs: (N,), log P; −inf allowed.
        proposal_log_probs: (N,), log q.
        log_normaliser: log Z.

    Source: the official code, `disco/metrics`.
    """
    policy, proposal = upcast(policy_log_probs.detach()), proposal_log_probs.detach()
    target = target_log_probs.detach() - log_normaliser
    p_weight, pi_weight = (target - proposal).exp(), (policy - proposal).exp()
    kept = target > -math.inf
    mixed = log_mixture(target, policy, 0.5)

    def weighted(weight: Tensor, log_ratio: Tensor) -> Tensor:
        return torch.where(kept, weight * log_ratio.masked_fill(~kept, 0.0), 0.0).mean()

    from_policy = (pi_weight * (policy - mixed)).mean()
    return DivergenceEstimates(
        weighted(p_weight, target - policy),
        0.5 * (pi_weight - p_weight).abs().mean(),
        0.5 * (weighted(p_weight, target - mixed) + from_policy),
    )
