r"""f-DPG: any f-divergence to any unnormalised target, minimised by one policy-gradient rule.

Go, Korbak, Kruszewski, Rozen, Ryu, Dymetman, "Aligning Language Models with Preferences through f-divergence
Minimization", arXiv 2302.08215 (ICML 2023). With a target p(x) = P(x)/Z that can be scored and not sampled,

    D_f(π‖p) = E_p f(π(x)/p(x)),   ∇D_f(π_θ‖p) = E_π[ f′(π(x)/p(x)) ∇ log π(x) ]          (theorem 1)

so that −f′ is a pseudo-reward. The targets (`targets`): P = a·b (a pointwise constraint), P = a·exp(λ·φ) (constraints
on moments), P = a·exp(r/β) (a scalar preference; with `reverse_kl` it is RL with a KL penalty).

Names are those of the registry, the target first: `forward_kl` is KL(p‖π) (DPG, GDC), `reverse_kl` KL(π‖p),
`jensen_shannon_unhalved` the paper's JS, `total_variation`, `pearson_chi2` χ²(p‖π), `neyman_chi2` χ²(π‖p).

Gradient, pseudo-rewards, the running Z of each prompt, the window of the baseline, and the proposal that is replaced
when the policy has come nearer to the target are those of the official toolkit. Ours: the constraint is that a
completion contains a word, chosen by how rare it is; λ is one for all prompts; a step is a mean over the prompts of the
batch, in which one that stands there twice counts twice; and the class of policies can be cut down to a distribution of
each position, which cannot realise p.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import zarr
from pydantic import model_validator
from torch import Tensor

from relent.divergences.f_divergence import get_f_divergence
from relent.divergences.f_generator import FDivergence
from relent.divergences.logits import renormalised
from relent.divergences.reduction import masked_sum, upcast
from relent.errors import ConfigError
from relent.files import whole
from relent.language.regulariser import ObjectiveDivergence
from relent.methods.alignment.importance import (
    RunningNormaliser,
    WindowBaseline,
    divergence_estimates,
    proposal_advantage,
)
from relent.methods.alignment.lexical import base_samples, contains, position_log_probs, word_nearest
from relent.methods.alignment.policy_gradient import score_function_loss
from relent.methods.alignment.rollout import OnPolicyMethod
from relent.methods.alignment.targets import exponential_target, fit_coefficients, pointwise_target, reward_target
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.causal_lm import CausalLM
from relent.models.positionwise import PositionwiseLM
from relent.tasks.preference_alignment.data import Pairs, read_base
from relent.tasks.preference_alignment.laws import completion_rewards


class Config(MethodConfig):
    """Hyperparameters of f-DPG."""

    divergence: Literal[
        "jensen_shannon_unhalved", "forward_kl", "reverse_kl", "total_variation", "pearson_chi2", "neyman_chi2"
    ] = hyperparameter("jensen_shannon_unhalved", "D_f between policy and target.", source="code: JS")
    target: Literal["reward", "pointwise", "moments"] = hyperparameter(
        "reward", "a·exp(r/β), a·b, or a·exp(λ·b) with E b = μ; b: the word is there.", source="paper, section 3"
    )
    beta: float | None = hyperparameter(
        1.0, "β of the target `reward`, in the unit of the reward; null for the others.", source="ours", gt=0, le=1000
    )
    word: str | None = hyperparameter(
        None, "Word of the constraint; null: the one nearest to `word_rate`.", source="ours"
    )
    word_rate: float = hyperparameter(
        0.01, "Share of the base model's completions that contain it.", source="ours: a rare word", gt=0, lt=1
    )
    floor: float = hyperparameter(
        0.0,
        "What `pointwise` has in the place of b = 0; needed for KL(π‖p) and χ²(π‖p).",
        source="paper: 0",
        ge=0,
        lt=1,
    )
    moment: float = hyperparameter(0.5, "μ of the target `moments`.", source="arXiv 2012.11635: 0.5", gt=0, lt=1)
    samples: int = hyperparameter(
        16, "Completions of a prompt.", source="ours; code: 1024, of 16 prompts a step", ge=1, le=2**16
    )
    baseline_window: int = hyperparameter(
        1024, "Pseudo-rewards whose mean is the baseline; 0: none.", source="code", ge=0, le=2**20
    )
    proposal: Literal["policy", "offline"] = hyperparameter(
        "policy", "Who is sampled from: the policy, or what it was when last found nearer to the target.", source="code"
    )
    proposal_interval: int = hyperparameter(16, "Steps between two such comparisons.", source="code", ge=1)
    policy_class: Literal["network", "positions"] = hyperparameter(
        "network", "The network, or one distribution a position without context.", source="ours: positions"
    )

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if (self.beta is not None) != (self.target == "reward"):
            raise ValueError(
                f"target {self.target!r} with beta {self.beta}: `reward` needs a beta, the others need null"
            )
        if self.target == "pointwise" and not self.floor and self.divergence in ("reverse_kl", "neyman_chi2"):
            raise ValueError(f"{self.divergence} does not exist under a hard constraint; set floor, such as 1e-4")
        return self


def pseudo_rewards(
    policy_log_probs: Tensor, target_log_probs: Tensor, log_normaliser: Tensor | float, divergence: FDivergence
) -> Tensor:
    r"""R = −f′(π(x)/p(x)), held constant; log p = log P − log Z.

    Args:
        policy_log_probs: (N,), log π of the samples, summed over tokens.
        target_log_probs: (N,), log P; −inf where a hard constraint fails.
        log_normaliser: log Z, one number or (N,). Where it is −inf, no sample of that context has met the constraint
            yet: R is 0 there, and the sample must be left out (:func:`context_mean`).
        divergence: A registered divergence.

    Raises:
        ValueError: A pseudo-reward of −inf: KL(π‖p) or χ²(π‖p) where P(x) = 0.

    Source: theorem 1.
    """
    policy, target = upcast(policy_log_probs.detach()), target_log_probs.detach()
    log_z = torch.as_tensor(log_normaliser, dtype=policy.dtype, device=policy.device).expand_as(policy)
    unknown = log_z == -math.inf
    rewards = divergence.pseudo_reward(policy - (target - log_z.masked_fill(unknown, 0.0)))
    rewards = torch.where(unknown, 0.0, rewards)
    if bool((rewards == -math.inf).any()):
        raise ValueError(
            f"{divergence.name} does not exist where the target has probability 0 and the policy has not; use a target "
            "with a floor (pointwise_target(..., floor=1e-4)), or forward_kl, jensen_shannon_unhalved, total_variation"
        )
    return rewards


def f_dpg_loss(
    policy_log_probs: Tensor,
    rewards: Tensor,
    *,
    baseline: Tensor | float = 0.0,
    proposal_log_probs: Tensor | None = None,
) -> Tensor:
    r"""sg[(π/q) (B − R)] log π(x), (N,): its mean has the gradient of D_f(π‖p); the value is not D_f.

    Args:
        policy_log_probs: (N,), log π of samples x ~ q.
        rewards: (N,), from :func:`pseudo_rewards`.
        baseline: B.
        proposal_log_probs: (N,), log q; None: q = π.
    """
    return score_function_loss(policy_log_probs, rewards, baseline=baseline, proposal_log_probs=proposal_log_probs)


def context_mean(losses: Tensor, contexts: Tensor, log_normaliser: Tensor) -> Tensor:
    """Mean over contexts of the mean over each context's samples; a scalar.

    As in the official code a context with Z = 0 adds nothing and still counts.

    Args:
        losses: (N,), from :func:`f_dpg_loss`.
        contexts: (N,), the index of each sample's context.
        log_normaliser: (N,), log Z of each sample's context.
    """
    present, which = contexts.unique(return_inverse=True)
    kept = torch.where(log_normaliser == -math.inf, 0.0, losses)
    totals = kept.new_zeros(len(present)).index_add(0, which, kept)
    return (totals / which.bincount(minlength=len(present))).mean()


class FDPG(OnPolicyMethod):
    """Trains the policy towards a target distribution by the score function of sampled completions."""

    config: Config
    coefficients: Tensor
    gained: Tensor

    def setup_method(self) -> None:
        config, texts = self.config, self.task.texts
        if config.policy_class == "positions":
            self.network = self._positionwise()
        super().setup_method()
        self.normaliser = RunningNormaliser(len(texts.prompts))
        self.window = WindowBaseline(config.baseline_window) if config.baseline_window else None
        self.word = self._word() if config.target != "reward" else None
        self.register_buffer("coefficients", torch.zeros(1, dtype=torch.float64))
        if config.target == "moments":
            self.coefficients.copy_(self._fitted())
        self.register_buffer("gained", torch.zeros((), dtype=torch.float64))
        self.proposal = copy.deepcopy(self.network).requires_grad_(False) if config.proposal == "offline" else None

    @property
    def _pairs(self) -> Pairs:
        assert self.task.base is not None
        return self.task.base.pairs["train"]

    def _positionwise(self) -> Any:
        """The best policy without context for the base model: its tokens' shares by position."""
        texts, pairs = self.task.texts, self._pairs
        prompts = pairs.prompt.repeat_interleave(2).tolist()
        rows = texts.completed(prompts, pairs.tokens.flatten(0, 1), pairs.lengths.flatten())
        return PositionwiseLM(position_log_probs(rows, texts.vocabulary, texts.row_length))

    def _word(self) -> int:
        """Number of the word of the constraint."""
        texts, config = self.task.texts, self.config
        if config.word is None:
            return word_nearest(base_samples(self._pairs), config.word_rate, texts.vocabulary, texts.end)
        if config.word not in texts.words:
            known = ", ".join(texts.words[:30])
            raise ConfigError(f"{config.word!r} is no word of the data; there are {known}", key="word")
        return texts.words.index(config.word)

    def _fitted(self) -> Tensor:
        """λ, under which E b is μ on average over the training prompts, from the base model's completions."""
        samples = base_samples(self._pairs)
        features = contains(samples.tokens, samples.inside, self._word()).double().unsqueeze(-1)
        moments = torch.tensor([self.config.moment], dtype=torch.float64)
        return fit_coefficients(features, moments, samples.log_weights).coefficients

    def sampler(self, of: str) -> AbstractContextManager[CausalLM]:
        """Beside policy and reference, the proposal."""
        if of == "proposal" and self.proposal is not None:
            return nullcontext(self.proposal)
        return super().sampler(of)

    def objective_divergence(self) -> ObjectiveDivergence | None:
        """That to the target; the reverse KL to the target `reward` is RL with a KL penalty."""
        if self.config.divergence == "reverse_kl" and self.config.target == "reward":
            return super().objective_divergence()
        return ObjectiveDivergence(self.config.divergence, "target")

    # ------------------------------------------------------------------------------------------ training

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        offline = self.proposal is not None
        if offline:
            self._replace_proposal()
        rollout = self.rollout(batch, self.config.samples, of="proposal" if offline else "policy")
        completions = self.completions(rollout)
        policy, base = (masked_sum(v, completions.mask, dim=-1) for v in (completions.policy, completions.reference))
        proposal = masked_sum(rollout.sampled, completions.mask, dim=-1) if offline else policy.detach()
        satisfied = self._satisfied(rollout.rows.ids, rollout.rows.loss)
        target = self.log_target(base, rollout.rewards, satisfied)
        self.normaliser.update(*(self.gathered(v) for v in (target, proposal, rollout.prompts)))
        log_z = self.normaliser.log_normaliser(rollout.prompts).to(target)
        rewards = pseudo_rewards(policy, target, log_z, get_f_divergence(self.config.divergence))
        baseline = self._baseline(rewards, log_z)
        losses = f_dpg_loss(policy, rewards, baseline=baseline, proposal_log_probs=proposal if offline else None)
        if offline:
            self.gained += self.gathered(proposal_advantage(policy, target, proposal, log_z)).mean()
        places = torch.arange(len(losses), device=losses.device) // rollout.samples
        found = {"reward": rollout.rewards.mean(), "pseudo_reward": rewards.mean()}
        if satisfied is not None:
            found["satisfied"] = satisfied.float().mean()
        self._log(found, policy, target, proposal, log_z)
        return {"policy_gradient": context_mean(losses, places, log_z)}

    def log_target(self, base: Tensor, rewards: Tensor, satisfied: Tensor | None) -> Tensor:
        """log P of completions: (…) from log a, r and b of the same shape."""
        config = self.config
        if satisfied is None:
            assert config.beta is not None
            return reward_target(base, rewards, beta=config.beta)
        if config.target == "pointwise":
            return pointwise_target(base, satisfied, floor=config.floor)
        return exponential_target(base, satisfied.to(base).unsqueeze(-1), self.coefficients)

    def _satisfied(self, tokens: Tensor, inside: Tensor) -> Tensor | None:
        return None if self.word is None else contains(tokens, inside, self.word)

    def _baseline(self, rewards: Tensor, log_z: Tensor) -> Tensor | float:
        """B of the samples before; these are added to the window. Those without a Z have no pseudo-reward."""
        if self.window is None:
            return 0.0
        baseline = self.window.value().to(rewards)
        rewards, log_z = self.gathered(rewards), self.gathered(log_z)
        self.window.update(rewards[log_z > -math.inf])
        return baseline

    def _replace_proposal(self) -> None:
        """Every `proposal_interval` steps make the policy the proposal, if it was nearer to the target meanwhile."""
        if self.micro_batch or not self.global_step or self.global_step % self.config.proposal_interval:
            return
        assert self.proposal is not None
        if self.gained > 0:
            self.proposal.load_state_dict(self.network.state_dict())
        self.gained.zero_()

    def _log(self, found: dict[str, Tensor], policy: Tensor, target: Tensor, proposal: Tensor, log_z: Tensor) -> None:
        """Log what was found of a rollout, and estimates of the divergences; prompts without a Z are left out there."""
        known = log_z > -math.inf
        self.log_terms(found | {"unknown_normaliser": 1 - known.float().mean()}, "rollout")
        if known.any():
            parts = (v[known] for v in (policy, target, proposal, log_z))
            self.log_terms(divergence_estimates(*parts)._asdict(), "estimate")

    # ------------------------------------------------------------------------------------------ outputs

    def write_extras(self, folder: Path) -> None:
        """`target.zarr`: p(y|x) of every completion of the test prompts, (P, N), and b (N,) where there is a word."""
        texts = self.task.texts
        with whole(folder / "target.zarr") as temporary:
            group = zarr.create_group(store=temporary)
            word = None if self.word is None else texts.words[self.word]
            group.attrs.update(data_checksum=texts.checksum, word=word, coefficients=self.coefficients.tolist())
            if not self.task.evaluation.exact:
                return
            base = read_base(self.spec.inputs["teacher"], texts, table=True).table
            tokens, lengths = texts.space.sequences(padding=texts.end)
            satisfied = self._satisfied(tokens, torch.arange(tokens.shape[1]) < lengths[:, None])
            assert base is not None
            rows = None if satisfied is None else satisfied.expand_as(base)
            log_p = renormalised(self.log_target(base, completion_rewards(texts), rows))
            group.create_array("probs", data=log_p.exp().numpy())
            if satisfied is not None:
                group.create_array("satisfied", data=satisfied.numpy())
