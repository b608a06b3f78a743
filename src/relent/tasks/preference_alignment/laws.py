"""The law of a policy's completions: what a run's predictions hold, and all that its evaluation knows of the policy.

Most policies are networks. A method whose policy is not one (the best of n samples) gives a law of its own by
`PolicyMethod.completion_law`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relent.language.batches import TokenBatch
from relent.tasks.preference_alignment.data import PreferenceTexts
from relent.tasks.preference_alignment.sampling import completion_log_probs, sampled_rows

if TYPE_CHECKING:
    from relent.models.causal_lm import CausalLM
from relent.models.positionwise import PositionwiseLM

__all__ = ["CompletionLaw", "NetworkLaw", "completion_rewards"]


class CompletionLaw(ABC):
    """π(y|x) of the prompts of a data set."""

    can_be_sampled = True
    """Whether it has samples; else nothing is estimated from any where completions cannot be enumerated."""

    @abstractmethod
    def table(self) -> Tensor:
        """log π(y|x) of every completion of every test prompt, (P, N) float64."""

    @abstractmethod
    def log_probs(self, prompts: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """log π(y|x) of given completions of test prompts, (B,) float64.

        Args:
            prompts: (B,) numbers of the prompts.
            tokens: (B, L), padded after their length.
            lengths: (B,), the end counted.
        """

    @abstractmethod
    def sample(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """One completion of each prompt (B,): tokens (B, L) and lengths (B,)."""


class NetworkLaw(CompletionLaw):
    """The law of a causal language model.

    Args:
        network: The model.
        texts: The data set.
        seed: Of its samples.
    """

    def __init__(self, network: CausalLM | PositionwiseLM, texts: PreferenceTexts, seed: int):
        self.network, self.texts, self.seed = network, texts, seed

    def table(self) -> Tensor:
        device = str(next(self.network.parameters()).device)
        space, prompts = self.texts.space, self.texts.items("test").tolist()
        contexts = (self.texts.context(prompt) for prompt in prompts)
        return torch.stack([space.log_probs(self.network, context, device=device) for context in contexts])

    def log_probs(self, prompts: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        batch = self.texts.completed(prompts.tolist(), tokens, lengths)
        return completion_log_probs(self.network, self.texts, batch).double().sum(1)

    def sample(self, prompts: Tensor, what: str = "evaluation") -> tuple[Tensor, Tensor]:
        """As `CompletionLaw.sample`; `what` they are for decides the draw beside the seed."""
        return sampled_rows(self.network, self.texts, prompts, self.seed, what)


def completion_rewards(texts: PreferenceTexts) -> Tensor:
    """r(x, y) of every completion of every test prompt, (P, N) float64."""
    tokens, lengths = texts.space.sequences(padding=texts.end)
    inside = torch.arange(tokens.shape[1]) < lengths[:, None]
    rewards = []
    for prompt in texts.items("test").tolist():
        context = torch.tensor(texts.context(prompt)).expand(len(tokens), -1)
        before = torch.zeros_like(context, dtype=torch.bool)
        attention, loss = torch.cat([~before, inside], 1), torch.cat([before, inside], 1)
        rewards.append(texts.reward(TokenBatch.of(torch.cat([context, tokens], 1), attention, loss)))
    return torch.stack(rewards)
