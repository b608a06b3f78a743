r"""A reward model: preferences explained by a reward that a network computes, as RLHF's first step does.

Christiano et al., "Deep Reinforcement Learning from Human Preferences", arXiv 1706.03741, equation 1; on language
models Stiennon et al., "Learning to Summarize from Human Feedback", arXiv 2009.01325, section 3.4, and Ouyang et al.,
arXiv 2203.02155, equation 1. With the Bradley–Terry law P(y_w ≻ y_l | x) = σ(r(x, y_w) − r(x, y_l)),

    L = −E log σ(r_φ(x, y_w) − r_φ(x, y_l))

so that r_φ is known up to a function of the prompt, which no preference sees and no optimal policy either. A method
gets the trained reward by `Task.learned_reward`, where its variant `reads` this one.

To be compared with policies it is judged as one (ours): π_φ(y|x) ∝ π_ref(y|x)·exp(r_φ(x, y)/β), towards which methods
go that maximise this reward at the penalty β. What it lacks of the optimum is what the reward has not learnt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relent.language.batches import TokenBatch, concatenate
from relent.language.exact import optimal_log_probs
from relent.methods.alignment.base import AlignmentMethod
from relent.methods.alignment.preference import preference_loss
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.reward_network import LearnedReward, RewardNetwork
from relent.tasks.preference_alignment.laws import CompletionLaw

ROWS = 512
"""Beginnings of completions that are continued by every token at once."""


class Config(MethodConfig):
    """Hyperparameters of a reward model."""

    beta: float = hyperparameter(
        1.0, "β of the policy that it is judged as; training knows none.", source="ours: the task's β", gt=0, le=1000
    )


def bradley_terry_loss(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """−log σ(r_w − r_l) of each pair.

    Args:
        chosen_rewards, rejected_rewards: (B,).

    Returns:
        (B,) in nats.
    """
    return preference_loss(chosen_rewards - rejected_rewards)


class RewardLaw(CompletionLaw):
    """π_φ(y|x) ∝ π_ref(y|x)·exp(r_φ(x, y)/β); nothing can be sampled from it but by enumeration.

    Args:
        reward: r_φ, frozen.
        reference: π_ref.
        beta: β > 0.
        task: Data set and device.
    """

    can_be_sampled = False

    def __init__(self, reward: LearnedReward, reference: CompletionLaw, beta: float, task: Any, device: torch.device):
        self.reward, self.reference, self.beta = reward, reference, beta
        self.texts, self.device = task.texts, device

    def table(self) -> Tensor:
        rewards = torch.stack([self._all_rewards(prompt) for prompt in self.texts.items("test").tolist()])
        return optimal_log_probs(self.reference.table(), rewards, self.beta)

    def _all_rewards(self, prompt: int) -> Tensor:
        """r_φ of all completions of a prompt in the order of the space, (N,) float64."""
        space, context = self.texts.space, torch.tensor(self.texts.context(prompt))
        everything, rewards = torch.arange(space.vocabulary), []
        for depth in range(space.length):
            last = depth == space.length - 1
            rows = space.prefixes(depth)
            ids = torch.cat([context.expand(len(rows), -1), rows], 1)
            table = self._continued(ids, everything if last else everything[[self.texts.end]])
            rewards.append(table[:, self.texts.end if last else 0])
        return torch.cat([*rewards, table[:, space.words].flatten()])

    def _continued(self, ids: Tensor, tokens: Tensor) -> Tensor:
        network = self.reward.network.to(self.device)
        parts = [network.continued(rows.to(self.device), tokens).double().cpu() for rows in ids.split(ROWS)]
        return torch.cat(parts)

    def log_probs(self, prompts: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Up to a constant of the prompt, which no score of a pair sees."""
        rewards = self._rewards(self.texts.completed(prompts.tolist(), tokens, lengths))
        return self.reference.log_probs(prompts, tokens, lengths) + rewards / self.beta

    def sample(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a reward model is no generator; `can_be_sampled` says so")

    def _rewards(self, rows: TokenBatch) -> Tensor:
        return self.reward(rows.to(self.device)).cpu()


class RewardModel(AlignmentMethod):
    """Trains the reward of the pairs, from the base model's weights on."""

    config: Config
    network: RewardNetwork

    def setup_method(self) -> None:
        body: Any = self.network
        self.network = RewardNetwork(body)

    def rewards(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Rewards of the preferred completions and of the others, (B,) each, in one pass through the network."""
        both = [TokenBatch.from_tensors(batch, f"{side}_") for side in ("chosen", "rejected")]
        chosen, rejected = self.network(concatenate(both, padding=0)).chunk(2)
        return chosen, rejected

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        chosen, rejected = self.rewards(batch)
        self.log_terms({"margin": (chosen - rejected).mean(), "accuracy": (chosen > rejected).float().mean()})
        return {"preference": bradley_terry_loss(chosen, rejected).mean()}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """How often the preferred completion has the higher reward, and the likelihood of that label."""
        chosen, rejected = self.rewards(batch)
        size = len(chosen)
        self.log("validation/preference_accuracy", (chosen > rejected).float().mean(), batch_size=size)
        self.log("validation/preference_nll", bradley_terry_loss(chosen, rejected).mean(), batch_size=size)

    def completion_law(self) -> RewardLaw:
        """The optimal policy under the learnt reward."""
        task: Any = self.task
        reference = task.network_law(task.reference_network().to(self.device))
        return RewardLaw(LearnedReward(self.network), reference, self.config.beta, task, self.device)
