r"""REINFORCE with a KL penalty: the plain policy gradient of E r − β KL(π‖π_ref), without clipping or a value network.

Three estimators of one gradient:

    sequence   −sg[r − β Σ_t k1_t − B] Σ_t log π(y_t|h_t)          k1_t = log π(y_t|h_t) − log π_ref(y_t|h_t)
    token      −Σ_t sg[r − β Σ_{s≥t} k1_s − B] log π(y_t|h_t)      a token answers for what follows it
    exact      −sg[r − B] Σ_t log π + β (Σ_t KL_t + Σ_s log π(y_s|h_s) sg[Σ_{t>s} KL_t])     KL_t over the vocabulary

Williams (Machine Learning 8, 1992); the penalty in the reward: Ziegler et al., arXiv 1909.08593; sequences as actions
and the leave-one-out B: Ahmadian et al., "Back to Basics", arXiv 2402.14740; the exact form: Amini, Vieira, Cotterell,
arXiv 2504.10637, section 4.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from relent.divergences.estimators import sequence_kl_loss
from relent.divergences.reduction import masked_sum
from relent.methods.alignment.policy_gradient import rewards_to_go, score_function_loss, token_rewards


def reinforce_kl_loss(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    rewards: Tensor,
    mask: Tensor,
    *,
    beta: float,
    level: Literal["sequence", "token"] = "sequence",
    baseline: Tensor | float = 0.0,
) -> Tensor:
    r"""Loss of each answer whose mean has the gradient of −(E r − β KL(π‖π_ref)), from sampled tokens.

    Args:
        log_probs: (B, L), log π of tokens sampled from π.
        reference_log_probs: (B, L).
        rewards: (B,).
        mask: (B, L), True on sampled tokens.
        beta: β ≥ 0.
        level: `sequence` or `token`, as above.
        baseline: B, one number or (B,); it must not depend on the answer itself.

    Returns:
        (B,).

    Raises:
        ValueError: An unknown level, β < 0, shapes that differ, an empty answer.
    """
    parts = token_rewards(log_probs, reference_log_probs, rewards, mask, beta=beta)
    if level == "sequence":
        return score_function_loss(masked_sum(log_probs, mask, dim=-1), parts.sum(dim=-1), baseline=baseline)
    if level != "token":
        raise ValueError(f"level={level!r} is unknown; use 'sequence' or 'token'")
    shift = baseline.unsqueeze(-1) if isinstance(baseline, Tensor) and baseline.ndim == 1 else baseline
    return masked_sum(score_function_loss(log_probs, rewards_to_go(parts), baseline=shift), mask, dim=-1)


def reinforce_exact_kl_loss(
    log_probs: Tensor, token_kl: Tensor, rewards: Tensor, mask: Tensor, *, beta: float, baseline: Tensor | float = 0.0
) -> Tensor:
    r"""The same with the KL of each next-token distribution summed over the vocabulary: less variance.

    Args:
        log_probs: (B, L), log π of tokens sampled from π.
        token_kl: (B, L), KL(π(·|h_t)‖π_ref(·|h_t)) **with gradient**, `discrete.forward_kl(policy, reference)`.
        rewards: (B,).
        mask: (B, L).
        beta: β ≥ 0.
        baseline: B of the reward alone.

    Returns:
        (B,).

    Raises:
        ValueError: β < 0 or shapes that differ.
    """
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    reward_part = score_function_loss(masked_sum(log_probs, mask, dim=-1), rewards, baseline=baseline)
    return reward_part + beta * sequence_kl_loss(log_probs, token_kl, exact=True, mask=mask)
