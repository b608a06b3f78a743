r"""Clipped policy gradients with a value head: what PPO and the methods that change its reference share.

Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347, equations 7 and 9; advantages: Schulman et
al., arXiv 1506.02438, equation 16; the use on language models with R_t = −β k1_t + [t = T] r: Ziegler et al., arXiv
1909.08593, Ouyang et al., arXiv 2203.02155. With one update a batch and no clipping it is REINFORCE with a critic.

Value losses are clipped too, and halved, and advantages whitened over the valid tokens of a batch, in the code of TRL's
and OpenAI's trainers, not in the papers; whitening changes the step, not its sign.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from relent.divergences.estimators import kl_k3
from relent.divergences.reduction import Reduction, as_mask, masked_mean, reduce, upcast
from relent.language.batches import TokenBatch
from relent.language.log_probs import token_log_probs
from relent.methods.alignment.base import Completions
from relent.methods.alignment.config import ProximalConfig
from relent.methods.alignment.policy_gradient import token_rewards
from relent.methods.alignment.rollout import OnPolicyMethod


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


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(G − v)/Var(G) over valid tokens: 1 where the critic foresees every return, 0 where it knows the mean."""
    errors, returns = (returns - values).detach()[mask], returns[mask]
    return 1 - errors.var(correction=0) / returns.var(correction=0).clamp(min=torch.finfo(returns.dtype).tiny)


class Experience(NamedTuple):
    """A rollout with all that the epochs over it need; N rows of L tokens, constant.

    Attributes:
        rows: Prompts and completions, the completions in the loss.
        rewards: (N,).
        reference: (N, L) log π_ref.
        log_probs: (N, L) log π_old.
        values: (N, L) v_old of the state before each token.
        advantages: (N, L).
        returns: (N, L), what the critic learns.
    """

    rows: TokenBatch
    rewards: Tensor
    reference: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """As a checkpoint holds it."""
        return self.rows.tensors("rows_") | dict(zip(self._fields[1:], self[1:]))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Experience:
        """The inverse of `tensors`."""
        return cls(TokenBatch.from_tensors(tensors, "rows_"), *(tensors[name] for name in cls._fields[1:]))


class ProximalMethod(OnPolicyMethod):
    """Trains policy and critic by several epochs over one rollout.

    An optimiser step is one epoch over the rollout of a batch; every `epochs` steps the policy is sampled anew, and the
    batches between are passed over. So all methods take the same number of steps, and epochs save samples.
    The critic is a linear function of the policy's hidden states that starts at 0.
    """

    config: ProximalConfig

    def setup_method(self) -> None:
        super().setup_method()
        embedding = self.network.model.get_output_embeddings().weight
        self.value_head = nn.Linear(embedding.shape[1], 1, dtype=embedding.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.experience: dict[int, Experience] = {}
        """By micro-batch."""

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        if self.global_step % config.epochs == 0:
            self.experience[self.micro_batch] = self.collect(batch)
        old = self.experience[self.micro_batch]
        mask = old.rows.loss
        log_probs, values = self.evaluated(old.rows)
        self._log(old, log_probs, values)
        policy = ppo_policy_loss(
            log_probs, old.log_probs, old.advantages, mask, clip=config.clip, reduction="sequence_sum"
        )
        value = ppo_value_loss(
            values, old.values, old.returns, mask, clip=config.value_clip or None, reduction="sequence_sum"
        )
        return {"policy": policy, "value": config.value_weight * value}

    @torch.no_grad()
    def collect(self, batch: dict[str, Tensor]) -> Experience:
        """Sample completions of a batch's prompts and estimate their advantages."""
        config = self.config
        rollout = self.rollout(batch, config.samples)
        log_probs, values = self.evaluated(rollout.rows)
        mask = rollout.rows.loss
        rewards = token_rewards(log_probs, rollout.reference, rollout.rewards, mask, beta=config.beta)
        found = generalised_advantages(rewards, values, mask, discount=config.discount, trace=config.trace)
        advantages = whitened(found.advantages, mask) if config.whiten else found.advantages
        return Experience(
            rollout.rows, rollout.rewards, rollout.reference, log_probs, values, advantages, found.returns
        )

    def evaluated(self, rows: TokenBatch) -> tuple[Tensor, Tensor]:
        """log π of the tokens in the loss and v of the state before each, (N, L) both."""
        output = self.network(rows)
        values = pad(self.value_head(output.hidden[:, :-1]).squeeze(-1), (1, 0))
        return token_log_probs(output, rows), torch.where(rows.loss, upcast(values), 0.0)

    def _log(self, old: Experience, log_probs: Tensor, values: Tensor) -> None:
        mask = old.rows.loss
        self.log_rollout(old.rewards, Completions(old.log_probs, old.reference, mask))
        found = {
            "clipped_share": clipped_share(log_probs, old.log_probs, mask, clip=self.config.clip),
            "kl_from_sampler": masked_mean(kl_k3(old.log_probs, log_probs.detach(), mask=mask), mask),
            "explained_variance": explained_variance(values, old.returns, mask),
        }
        self.log_terms(found)

    # ------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the rollouts of all processes whose epochs are not over."""
        unfinished = self.experience if self.global_step % self.config.epochs else {}
        checkpoint["experience"] = {number: self._of_processes(old.tensors()) for number, old in unfinished.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this process's rollouts."""
        rank = self.trainer.global_rank
        self.experience = {
            number: Experience.from_tensors({name: v[rank].to(self.device) for name, v in tensors.items()})
            for number, tensors in checkpoint["experience"].items()
        }

    def _of_processes(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of every process, (P, …), on the CPU; rows are padded on the right to the longest of all."""
        width = int(self.gathered(torch.tensor([tensors["rows_ids"].shape[1]], device=self.device)).max())
        wide = {k: pad(v, (0, width - v.shape[1])) if v.ndim == 2 else v for k, v in tensors.items()}
        return {name: self.gathered(values).view(-1, *values.shape).cpu() for name, values in wide.items()}
