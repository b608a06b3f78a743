r"""Score-function losses and returns that the reinforcement-learning methods of this family share.

.. math:: \nabla_\theta \mathbb{E}_{x \sim \pi_\theta}[R(x)] = \mathbb{E}_{x \sim q}\Big[
          \frac{\pi(x)}{q(x)} (R(x) - B) \nabla \log \pi(x)\Big]

for any B that does not depend on x, also where R depends on π through log π(x) (its own gradient has expectation
zero). Williams (Machine Learning 8, 1992); rewards with the KL penalty inside: Ziegler et al., arXiv 1909.08593;
leave-one-out baseline: Kool et al. (2019), Ahmadian et al., arXiv 2402.14740.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relent.divergences.estimators import kl_reward
from relent.divergences.reduction import as_mask, upcast


def score_function_loss(
    log_probs: Tensor,
    returns: Tensor,
    *,
    baseline: Tensor | float = 0.0,
    proposal_log_probs: Tensor | None = None,
) -> Tensor:
    r"""−sg[w (R − B)] log π(x), sample by sample: its mean has the gradient of −E_π R.

    The value means nothing: log the mean of the returns.

    Args:
        log_probs: (…), log π of the samples.
        returns: The same shape; held constant.
        baseline: B, one number or one that broadcasts; it may depend on the other samples, never on this one.
        proposal_log_probs: log q of the samples where x ~ q; then w = π(x)/q(x), held constant. None: on-policy, w = 1.

    Raises:
        ValueError: Shapes that differ.
    """
    if log_probs.shape != returns.shape:
        raise ValueError(f"log_probs {tuple(log_probs.shape)} and returns {tuple(returns.shape)} differ in shape")
    log_probs = upcast(log_probs)
    advantages = returns.detach() - baseline
    if proposal_log_probs is not None:
        advantages = advantages * (log_probs.detach() - proposal_log_probs.detach()).exp()
    return -advantages * log_probs


def leave_one_out_mean(returns: Tensor) -> Tensor:
    """Mean of the other samples of the same group, (…, N) to (…, N): a baseline that leaves the gradient unbiased.

    Raises:
        ValueError: Fewer than two samples.
    """
    count = returns.shape[-1]
    if count < 2:
        raise ValueError(f"a leave-one-out mean needs at least two samples, got {count}")
    return (returns.sum(dim=-1, keepdim=True) - returns) / (count - 1)


def token_rewards(
    log_probs: Tensor, reference_log_probs: Tensor, rewards: Tensor, mask: Tensor, *, beta: float
) -> Tensor:
    r"""R_t = −β [log π(y_t|h_t) − log π_ref(y_t|h_t)] + [t = T] r(x, y): the penalty in the reward, held constant.

    Summed over an answer: r − β ρ(y), the return whose gradient is that of E r − β KL(π‖π_ref).

    Args:
        log_probs: (B, L), log π of the sampled tokens.
        reference_log_probs: (B, L).
        rewards: (B,), one for a whole answer.
        mask: (B, L), True on the sampled tokens, the end-of-sequence token among them; at least one a row.
        beta: β ≥ 0.

    Returns:
        (B, L), 0 where masked.

    Raises:
        ValueError: Shapes that differ, β < 0, or a row without a token.
    """
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    keep = as_mask(mask, log_probs.shape)
    if rewards.shape != log_probs.shape[:1]:
        raise ValueError(f"rewards must be ({log_probs.shape[0]},), one an answer, got {tuple(rewards.shape)}")
    if not bool(keep.any(dim=-1).all()):
        raise ValueError("an answer has no token: the reward has no place to stand; leave empty answers out")
    penalties = beta * kl_reward(log_probs, reference_log_probs, mask=mask)
    places = torch.arange(keep.shape[-1], device=keep.device)
    last = torch.where(keep, places, -1).amax(dim=-1, keepdim=True)
    return penalties + torch.where(places == last, rewards.detach().to(penalties).unsqueeze(-1), 0.0)


def rewards_to_go(rewards: Tensor) -> Tensor:
    r"""G_t = Σ_{s ≥ t} R_s over the last dimension."""
    return rewards.flip(-1).cumsum(-1).flip(-1)
