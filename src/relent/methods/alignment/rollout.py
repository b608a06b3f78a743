r"""Rollouts: completions that the policy, or its reference, is sampled from while it is trained.

What is drawn is a function of the run's seed, the optimiser step, the place of a prompt in the batch of that step, and
the number of the completion. Micro-batches, a resume and the number of processes change none of these, and methods with
one seed see common random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from relent.divergences.reduction import masked_sum
from relent.errors import ConfigError
from relent.language.batches import TokenBatch
from relent.language.generation import Generation, generate
from relent.language.log_probs import token_log_probs
from relent.methods.alignment.base import Completions, ReferencedMethod
from relent.models.causal_lm import CausalLM
from relent.train.sampling import derive_seed
from relent.train.sharding import Sharded


class Rollout(NamedTuple):
    """n completions of each of B prompts, those of one prompt beside each other: N = B·n rows. All of it is constant.

    Attributes:
        rows: (N, L) prompts and completions, padded on both sides; the completions are in the loss.
        samples: n.
        prompts: (N,) int64, number of the prompt in the data set.
        rewards: (N,) r(x, y), prompt and completion together.
        reference: (N, L) log π_ref of each token of the completion at its own place, 0 elsewhere.
        sampled: (N, L) likewise under the distribution that was sampled from, at the weights of that moment.
    """

    rows: TokenBatch
    samples: int
    prompts: Tensor
    rewards: Tensor
    reference: Tensor
    sampled: Tensor

    def grouped(self, values: Tensor) -> Tensor:
        """Values of the rows by prompt, (N,) → (B, n)."""
        return values.view(-1, self.samples)


class OnPolicyMethod(ReferencedMethod):
    """A method that samples completions of the batch's prompts in every step and scores them.

    The reward is the exact one, or that of a reward model which the variant `reads`. `terms` calls `rollout`, then
    `completions` for the log-probabilities that carry the gradient. Of the batch it reads the prompts alone.
    """

    batch_order_matters = True
    """What is drawn for a prompt depends on its place in the batch, as the seed of no other prompt does."""

    def setup_method(self) -> None:
        """Find reward and reference.

        Raises:
            ConfigError: The data have no reward, and the variant reads no reward model.
        """
        self.micro_batch = 0
        """Number of the micro-batch within the optimiser step."""
        self.reward = self.find_reward()
        super().setup_method()

    def find_reward(self) -> Callable[[TokenBatch], Tensor]:
        """The reward of rows, (N,): learnt where the variant reads a reward model, else the exact one."""
        if "reward_model" in self.spec.inputs:
            return self.task.learned_reward()
        reward: Callable[[TokenBatch], Tensor] | None = self.task.reward
        if reward is None:
            raise ConfigError(
                f"{self.spec.method}:{self.spec.variant} scores what it samples, but the data of {self.spec.task} have"
                " no reward; take a variant that reads a reward model, such as `learned`",
                key=f"{self.spec.method}: variants.{self.spec.variant}.reads",
            )
        return reward

    def configure_model(self) -> None:
        """Refuse shards of weights, from which nothing can be sampled.

        Raises:
            ConfigError: The run's strategy is `fsdp`.
        """
        if isinstance(self.trainer.strategy, Sharded):
            raise ConfigError(
                f"{self.spec.method} samples from the policy, which needs whole weights on every device; set strategy"
                " to auto or ddp",
                key=f"{self.spec.task}: scales.{self.spec.scale}.execution.strategy",
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum of the terms on one batch."""
        self.micro_batch = batch_idx % self.config.accumulate
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Reward and KL to the reference of one completion of each prompt."""
        rollout = self.draw(batch, self.seeds(f"validation/{batch_idx}", range(len(batch["prompt"])), 1))
        policy = self.completions(rollout)
        size = len(rollout.rewards)
        self.log("validation/reward", rollout.rewards.mean(), batch_size=size)
        self.log("validation/kl", policy.log_ratio().mean(), batch_size=size)

    # ------------------------------------------------------------------------------------------ sampling

    def rollout(
        self,
        batch: dict[str, Tensor],
        samples: int,
        *,
        of: str = "policy",
        **sampling: Any,
    ) -> Rollout:
        """Sample completions of a training batch's prompts.

        Args:
            batch: With `prompt_…`, padded on the left, and `prompt` (B,), their numbers.
            samples: n, completions of each.
            of: Which model is sampled from: `policy`, `reference`, or what else `sampler` of the method knows.
            **sampling: `temperature`, `top_k`, `top_p` of `relent.language.generation.generate`.
        """
        rows = self.batch_rows(len(batch["prompt"]))
        return self.draw(batch, self.seeds(of, rows, samples), of=of, **sampling)

    def seeds(self, what: str, rows: Iterable[int], samples: int) -> list[list[int]]:
        """Seeds of what is drawn in a step: `samples` of them for each row of the whole batch."""
        fixed = (what, self.spec.seed, self.global_step)
        return [[derive_seed(*fixed, row, number) for number in range(samples)] for row in rows]

    def batch_rows(self, count: int) -> range:
        """Places in the whole batch of a step of the `count` rows that this process has of this micro-batch."""
        trainer = self._trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        first = self.micro_batch * count * world + rank
        return range(first, first + count * world, world)

    @torch.no_grad()
    def draw(
        self,
        batch: dict[str, Tensor],
        seeds: list[list[int]],
        *,
        of: str = "policy",
        **sampling: Any,
    ) -> Rollout:
        """One completion for each seed; a row of seeds a prompt. See `rollout`."""
        samples, texts = len(seeds[0]), self.task.texts
        index = torch.arange(len(seeds), device=batch["prompt"].device).repeat_interleave(samples)
        prompts = TokenBatch.from_tensors(batch, "prompt_").rows(index)
        with self.sampler(of) as network:
            found = _sampled(
                network,
                prompts,
                max_new_tokens=texts.options.length,
                end=texts.end,
                padding=texts.end,
                seeds=[seed for row in seeds for seed in row],
                **sampling,
            )
        rows = found.batch()
        reference = self.reference_log_probs(rows)
        sampled = pad(found.sampling_log_probs, (prompts.ids.shape[1], 0))
        return Rollout(rows, samples, batch["prompt"][index], self.reward(rows).to(reference), reference, sampled)

    def sampler(self, of: str) -> AbstractContextManager[CausalLM]:
        """A context that gives the model that is sampled from."""
        return self.reference_policy() if of == "reference" else nullcontext(self.network)

    # ------------------------------------------------------------------------------------------ scoring

    def completions(self, rollout: Rollout) -> Completions:
        """Log-probabilities of a rollout's completions under the policy, with gradient, and under the reference."""
        return Completions(self.token_log_probs(rollout.rows), rollout.reference, rollout.rows.loss)

    @torch.no_grad()
    def reference_log_probs(self, rows: TokenBatch) -> Tensor:
        """log π_ref of the tokens in the loss, (N, L)."""
        with self.reference_policy() as network:
            return token_log_probs(network(rows), rows)

    def gathered(self, values: Tensor) -> Tensor:
        """Values of the rows of all processes, (N, …) → (P·N, …); for estimates that all of them share."""
        several = self._trainer is not None and self.trainer.world_size > 1
        gathered: Any = self.all_gather(values) if several else values
        return torch.as_tensor(gathered).reshape(-1, *values.shape[1:])

    def log_rollout(self, rewards: Tensor, policy: Completions) -> None:
        """Log what every on-policy method is watched by: reward, KL to the reference (k1), entropy, length.

        The last three are estimates from the rollout, in nats a completion and in tokens; KL and entropy are those of
        the policy only if it is the policy that was sampled from.
        """
        log_probs = masked_sum(policy.policy.detach(), policy.mask, dim=-1)
        found = {
            "reward": rewards.mean(),
            "kl": policy.log_ratio().mean(),
            "entropy": -log_probs.mean(),
            "length": policy.mask.sum(-1).float().mean(),
        }
        self.log_terms(found, "rollout")


def _sampled(network: CausalLM, prompts: TokenBatch, **settings: Any) -> Generation:
    """A generation in evaluation mode: a network that recomputes activations in training keeps no cache."""
    training = network.training
    network.eval()
    try:
        return generate(network, prompts, **settings)
    finally:
        network.train(training)
