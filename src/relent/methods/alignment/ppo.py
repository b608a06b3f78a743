r"""PPO with a KL penalty in the reward: clipped policy and value losses, and generalised advantages.

Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347, equations 7 and 9; advantages: Schulman et
al., arXiv 1506.02438, equation 16; the use on language models with R_t = −β k1_t + [t = T] r: Ziegler et al., arXiv
1909.08593, Ouyang et al., arXiv 2203.02155. With one update a batch and no clipping it is REINFORCE with a critic.

The value loss is clipped too and halved, advantages are whitened over the valid tokens of the batch, as the code of
TRL's and OpenAI's trainers does and the paper does not say; whitened advantages change the step, not its sign.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from relent.divergences.reduction import Reduction, as_mask, masked_mean, reduce, upcast


class Advantages(NamedTuple):
    """A_t and the returns A_t + v_t that the value network learns, both (B, L) and constant."""

    advantages: Tensor
    returns: Tensor


@torch.no_grad()
def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float = 1.0, trace: float = 0.95
) -> Advantages:
    r"""A_t = Σ_{s≥t} (γλ)^{s−t} δ_s with δ_t = R_t + γ v_{t+1} − v_t and v = 0 after the last token.

    Args:
        rewards: (B, L), R_t of sampled tokens (`policy_gradient.token_rewards`).
        values: (B, L), v of the state **before** token t.
        mask: (B, L), True on the sampled tokens: one run a row, padding on either side.
        discount: γ in [0, 1].
        trace: λ in [0, 1]; 0 is one-step temporal difference, 1 the whole return less v.

    Returns:
        Both 0 where masked.

    Raises:
        ValueError: γ or λ outside [0, 1], shapes that differ.
    """
    if not (0.0 <= discount <= 1.0 and 0.0 <= trace <= 1.0):
        raise ValueError(f"discount and trace must lie in [0, 1], got {discount} and {trace}")
    keep = as_mask(mask, rewards.shape)
    rewards, values = (torch.where(keep, upcast(x), 0.0) for x in (rewards, values))
    carried, following = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    columns = []
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + discount * following - values[:, t]
        carried = torch.where(keep[:, t], delta + discount * trace * carried, 0.0)
        following = values[:, t]
        columns.append(carried)
    advantages = torch.stack(columns[::-1], dim=1)
    return Advantages(advantages, torch.where(keep, advantages + values, 0.0))


def whitened(values: Tensor, mask: Tensor, *, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """(v − mean)/√(variance + ε) over the kept entries (unbiased variance); without the shift the mean is put back.

    Raises:
        ValueError: Fewer than two kept entries.
    """
    keep = as_mask(mask, values.shape)
    count = keep.sum()
    if int(count) < 2:
        raise ValueError("whitening needs at least two valid tokens")
    mean = masked_mean(values, keep)
    variance = masked_mean((values - mean).square(), keep, count=count - 1)
    scaled = (values - mean) * (variance + epsilon).rsqrt()
    return torch.where(keep, scaled if shift_mean else scaled + mean, 0.0)


def ppo_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float = 0.2,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""−min( w A, clip(w, 1 − ε, 1 + ε) A ) with w = π(y_t|h_t)/π_old(y_t|h_t), equation 7.

    Args:
        log_probs: (B, L), log π with gradient.
        old_log_probs: (B, L), log of the policy that sampled.
        advantages: (B, L); held constant.
        mask: (B, L).
        clip: ε > 0.
        reduction: As of `divergences.reduction.reduce`; `mean` is over valid tokens.

    Raises:
        ValueError: ε ≤ 0 or shapes that differ.
    """
    if not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}")
    keep = as_mask(mask, log_probs.shape)
    # Padding may hold anything: it is set to 0 before the exponential, so that no gradient there is NaN.
    difference = torch.where(keep, upcast(log_probs) - upcast(old_log_probs.detach()), 0.0)
    ratio, advantages = difference.exp(), torch.where(keep, upcast(advantages.detach()), 0.0)
    return reduce(torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)), keep, reduction)


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float | None = 0.2,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""½ max( (v − G)², (v_old + clip(v − v_old, ±ε) − G)² ); without a clip ½ (v − G)².

    Args:
        values: (B, L), v with gradient.
        old_values: (B, L), v at sampling time.
        returns: (B, L), G; held constant.
        mask: (B, L).
        clip: ε, in units of the reward, or None.
        reduction: As above.

    Raises:
        ValueError: ε ≤ 0 or shapes that differ.
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    keep = as_mask(mask, values.shape)
    v, old, target = (torch.where(keep, upcast(x), 0.0) for x in (values, old_values.detach(), returns.detach()))
    error = (v - target).square()
    if clip is not None:
        error = torch.maximum(error, (old + (v - old).clamp(-clip, clip) - target).square())
    return reduce(0.5 * error, keep, reduction)


def clipped_share(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, *, clip: float = 0.2) -> Tensor:
    """Share of valid tokens whose ratio lies outside 1 ± ε: a scalar to log."""
    ratio = (log_probs.detach() - old_log_probs.detach()).exp()
    return masked_mean(((ratio - 1).abs() > clip).float(), mask)
