r"""REINFORCE with a KL penalty: the plain policy gradient of E r − β KL(π‖π_ref), without clipping or a value network.

Three estimators of one gradient:

    sequence   −sg[r − β Σ_t k1_t − B] Σ_t log π(y_t|h_t)          k1_t = log π(y_t|h_t) − log π_ref(y_t|h_t)
    token      −Σ_t sg[r − β Σ_{s≥t} k1_s − B] log π(y_t|h_t)      a token answers for what follows it
    exact      −sg[r − B] Σ_t log π + β (Σ_t KL_t + Σ_s log π(y_s|h_s) sg[Σ_{t>s} KL_t])     KL_t over the vocabulary

Williams (Machine Learning 8, 1992); the penalty in the reward: Ziegler et al., arXiv 1909.08593; sequences as actions
and the leave-one-out B: Ahmadian et al., "Back to Basics", arXiv 2402.14740; the exact form: Amini, Vieira, Cotterell,
arXiv 2504.10637, section 4.

Whole completions as actions and B of the other completions of the same prompt are arXiv 2402.14740's (RLOO), β and the
number of completions TRL's; the mean over prompts, so that micro-batches add up, and the choice of estimator are ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from relent.divergences.estimators import sequence_kl_loss
from relent.divergences.fused.losses import fused_reverse_kl
from relent.divergences.reduction import masked_sum
from relent.language.log_probs import LMOutput, next_token_head, token_log_probs
from relent.methods.alignment.base import Completions
from relent.methods.alignment.policy_gradient import (
    leave_one_out_mean,
    rewards_to_go,
    score_function_loss,
    token_rewards,
)
from relent.methods.alignment.rollout import OnPolicyMethod, Rollout
from relent.methods.config import MethodConfig, hyperparameter


class Config(MethodConfig):
    """Hyperparameters of REINFORCE with a KL penalty."""

    beta: float = hyperparameter(
        0.05, "β, strength of the KL penalty, in the unit of the reward.", source="code: TRL, RLOOConfig", gt=0, le=1000
    )
    samples: int = hyperparameter(
        2, "n, completions of a prompt; each has the others as its baseline.", source="code: TRL", ge=2, le=1024
    )
    estimator: Literal["sequence", "token", "exact"] = hyperparameter(
        "sequence",
        "How the KL penalty enters: whole completions, what follows a token, or sums over the vocabulary.",
        source="arXiv 2402.14740: whole completions",
    )


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


class ReinforceKL(OnPolicyMethod):
    """Trains the policy by the score function of its own completions, each against the others of its prompt."""

    config: Config

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        rollout = self.rollout(batch, self.config.samples)
        output = self.network(rollout.rows)
        policy = Completions(token_log_probs(output, rollout.rows), rollout.reference, rollout.rows.loss)
        self.log_rollout(rollout.rewards, policy)
        if self.config.estimator == "exact":
            return {"policy_gradient": self._exact_loss(rollout, policy, output).mean()}
        returns = rollout.rewards - self.config.beta * policy.log_ratio().detach()
        losses = reinforce_kl_loss(
            policy.policy,
            policy.reference,
            rollout.rewards,
            policy.mask,
            beta=self.config.beta,
            level=self.config.estimator,
            baseline=self._baseline(rollout, returns),
        )
        return {"policy_gradient": losses.mean()}

    def _exact_loss(self, rollout: Rollout, policy: Completions, output: LMOutput) -> Tensor:
        _, head, mask = next_token_head(output, rollout.rows)
        with torch.no_grad(), self.reference_policy() as network:
            _, reference, _ = next_token_head(network(rollout.rows), rollout.rows)
        token_kl = pad(fused_reverse_kl(reference, head, mask=mask, reduction="none"), (1, 0))
        return reinforce_exact_kl_loss(
            policy.policy,
            token_kl,
            rollout.rewards,
            policy.mask,
            beta=self.config.beta,
            baseline=self._baseline(rollout, rollout.rewards),
        )

    def _baseline(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """Mean return of the other completions of the same prompt, (N,)."""
        baseline = leave_one_out_mean(rollout.grouped(returns)).flatten()
        self.log_terms({"return": returns.mean(), "advantage": (returns - baseline).abs().mean()}, "rollout")
        return baseline
