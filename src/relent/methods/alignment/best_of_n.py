r"""Best-of-n: the best of n samples under a reward, with its exact law.

For a base distribution p and a reward with F(y) = P(r ≤ r(y)) and F⁻(y) = P(r < r(y))

    P(best = y) = [F(y)^n − F⁻(y)^n]·p(y)/(F(y) − F⁻(y))

(ties broken by the order of sampling or at random: within a level of the reward the law is p restricted to it). Without
ties KL(best-of-n‖p) ≤ log n − (n − 1)/n, Beirami et al., "Theoretical guarantees on the best-of-n alignment policy",
arXiv 2401.01879; used as a baseline of alignment since Stiennon et al., arXiv 2009.01325.

Nothing is trained: the policy is the base model with n samples a completion, and the reward is the exact one. Where the
completions of a prompt are enumerated its law is exact; else F and F⁻ are the shares of `POOL` further samples, the
completion itself counted among them (ours; the KL is then estimated too low by about n/(2·POOL)).
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relent.divergences.reduction import upcast
from relent.methods.alignment.base import PolicyMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.tasks.preference_alignment.laws import CompletionLaw, NetworkLaw, completion_rewards

if TYPE_CHECKING:
    from relent.models.causal_lm import CausalLM
    from relent.tasks.preference_alignment.training import Task

POOL = 1024
"""Samples of a prompt by which the distribution of its rewards is estimated, where it is not enumerated."""


class Config(MethodConfig):
    """Hyperparameters of best-of-n."""

    n: int = hyperparameter(
        4, "n, samples of which the best is taken.", source="ours: a KL of at most 0.64 nats", ge=1, le=10**6
    )


def best_of_n_log_probs(log_probs: Tensor, rewards: Tensor, n: int) -> Tensor:
    r"""log P(best of n = y) over Y enumerated answers, exact.

    Args:
        log_probs: (…, Y), log p, normalised.
        rewards: (…, Y).
        n: At least 1; 1 gives p itself.

    Returns:
        (…, Y), normalised; computed through log1p and expm1, so that n may be large.

    Raises:
        ValueError: n < 1, shapes that differ, or NaN rewards.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if log_probs.shape != rewards.shape or bool(rewards.isnan().any()):
        raise ValueError(
            f"log_probs and rewards must have one shape (…, Y) and no NaN, got {tuple(log_probs.shape)} and "
            f"{tuple(rewards.shape)}"
        )
    order = rewards.argsort(dim=-1)
    sorted_rewards, sorted_log_probs = rewards.gather(-1, order), upcast(log_probs).gather(-1, order)
    cumulative = torch.logcumsumexp(sorted_log_probs, dim=-1)
    # Multiplied by n below: a rounding of log 1 must not grow with it.
    cumulative = cumulative - cumulative[..., -1:]
    # The last place of each level of equal rewards holds F, the place before the first holds F⁻.
    last = torch.searchsorted(sorted_rewards.contiguous(), sorted_rewards.contiguous(), right=True) - 1
    first = torch.searchsorted(sorted_rewards.contiguous(), sorted_rewards.contiguous())
    up_to = cumulative.gather(-1, last)
    below = torch.where(first > 0, cumulative.gather(-1, (first - 1).clamp(min=0)), -math.inf)
    # log[(F^n − F⁻^n)/(F − F⁻)] with d = log F⁻ − log F ≤ 0.
    gap = below - up_to
    factor = (n - 1) * up_to + _log_one_minus_exp(n * gap) - _log_one_minus_exp(gap)
    result = torch.where(sorted_log_probs == -math.inf, -math.inf, sorted_log_probs + factor)
    return torch.empty_like(result).scatter(-1, order, result)


def _log_one_minus_exp(negative: Tensor) -> Tensor:
    """log(1 − e^d) for d < 0, exact near 0 and far from it."""
    return torch.where(negative > -math.log(2), (-negative.expm1()).log(), (-negative.exp()).log1p())


def best_of_n_kl_bound(n: int) -> float:
    """log n − (n − 1)/n: the most that the KL of best-of-n to p can be, nearly reached by a continuous reward.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def expected_best_of_n(rewards: Tensor, n: int) -> Tensor:
    r"""Unbiased estimate of E[max of n rewards] from N ≥ n samples, Σ_i C(i − 1, n − 1)/C(N, n) r_(i).

    Args:
        rewards: (…, N), samples of the base policy for one prompt a row.
        n: Between 1 and N.

    Returns:
        (…), the mean of the maximum over all subsets of n samples.

    Raises:
        ValueError: n outside [1, N].
    """
    count = rewards.shape[-1]
    if not 1 <= n <= count:
        raise ValueError(f"n must lie in [1, {count}], the number of samples, got {n}")
    log_total = math.lgamma(count + 1) - math.lgamma(n + 1) - math.lgamma(count - n + 1)
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=rewards.device)
    chosen = ranks >= n
    rest = (ranks - n).clamp(min=0)
    log_ways = torch.lgamma(ranks) - math.lgamma(n) - torch.lgamma(rest + 1)
    shares = torch.where(chosen, (log_ways - log_total).exp(), 0.0)
    ordered = upcast(rewards).sort(dim=-1).values
    return (ordered * shares.to(ordered)).sum(dim=-1)


def estimated_log_gain(rewards: Tensor, pool: Tensor, n: int) -> Tensor:
    """log P(best of n = y) − log p(y) of completions with rewards (B,), F estimated from rewards of samples (M,)."""
    together = torch.cat([pool.expand(len(rewards), -1), rewards[:, None]], 1)
    uniform = torch.full_like(together, -math.log(together.shape[1]))
    return (best_of_n_log_probs(uniform, together, n) - uniform)[:, -1]


class BestOfNLaw(CompletionLaw):
    """The law of the best of n completions of a network under the exact reward.

    Args:
        base: The law of one completion.
        n: At least 1.
        exact: Whether completions are enumerated.
    """

    def __init__(self, base: NetworkLaw, n: int, *, exact: bool):
        self.base, self.texts, self.n, self.exact = base, base.texts, n, exact

    @cached_property
    def _table(self) -> Tensor:
        return best_of_n_log_probs(self.base.table(), completion_rewards(self.texts), self.n)

    def table(self) -> Tensor:
        return self._table

    def log_probs(self, prompts: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        if self.exact:
            row = torch.searchsorted(self.texts.items("test"), prompts)
            return self._table[row, self.texts.space.index(tokens, lengths)]
        rewards = self._rewards(prompts, tokens, lengths)
        found = self.base.log_probs(prompts, tokens, lengths)
        for prompt in prompts.unique():
            own = prompts == prompt
            found[own] += estimated_log_gain(rewards[own], self._pool(prompt), self.n)
        return found

    def sample(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        tokens, lengths = self.base.sample(prompts.repeat_interleave(self.n))
        rewards = self._rewards(prompts.repeat_interleave(self.n), tokens, lengths)
        best = rewards.view(-1, self.n).argmax(1) + torch.arange(len(prompts)) * self.n
        return tokens[best], lengths[best]

    def _rewards(self, prompts: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.texts.reward(self.texts.completed(prompts.tolist(), tokens, lengths))

    def _pool(self, prompt: Tensor) -> Tensor:
        """Rewards of `POOL` completions of one prompt."""
        prompts = prompt.expand(POOL)
        return self._rewards(prompts, *self.base.sample(prompts, f"pool/{int(prompt)}"))


class BestOfN(PolicyMethod):
    """The base model with n samples a completion."""

    config: Config
    task: Task
    network: CausalLM

    def completion_law(self) -> BestOfNLaw:
        base = self.task.network_law(self.network)
        return BestOfNLaw(base, self.config.n, exact=self.task.evaluation.exact)
