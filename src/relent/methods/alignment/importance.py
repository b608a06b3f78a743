r"""What is estimated of a target p = P/Z from samples of a proposal q: Z, divergences, and a baseline.

Go et al., arXiv 2302.08215, and its official toolkit (`naver/disco`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from relent.divergences.logits import log_mixture
from relent.divergences.reduction import upcast


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
        log_weights = (target_log_probs - proposal_log_probs).to(self.log_total)
        peak = self.log_total.scatter_reduce(0, which, log_weights, "amax")
        peak = peak.masked_fill(peak == -math.inf, 0.0)
        total = (self.log_total - peak).exp().index_add(0, which, (log_weights - peak[which]).exp())
        self.log_total.copy_(total.log() + peak)
        self.count += which.bincount(minlength=len(self.count))

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


def proposal_advantage(
    policy_log_probs: Tensor, target_log_probs: Tensor, proposal_log_probs: Tensor, log_normaliser: Tensor
) -> Tensor:
    r"""Terms of KL(p‖q) − KL(p‖π) = E_q[P/(Zq)·(log π − log q)], (N,): positive on average where π is nearer to p.

    Args:
        policy_log_probs, target_log_probs, proposal_log_probs, log_normaliser: (N,), as in `divergence_estimates`; 0 is
            returned where log P or log Z is −inf.
    """
    log_ratio = policy_log_probs.detach() - proposal_log_probs
    weight = (target_log_probs - log_normaliser - proposal_log_probs).exp()
    return torch.where((target_log_probs > -math.inf) & (log_normaliser > -math.inf), weight * log_ratio, 0.0)
