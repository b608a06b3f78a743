r"""RL with a KL penalty as Bayesian inference: the exact posterior, the ELBO, and three objectives to compare.

Korbak, Perez, Buckley, "RL with KL penalties is better viewed as Bayesian inference", arXiv 2205.11275 (Findings of
EMNLP 2022). For a prior π₀, a reward r and β > 0

    J(π) = E_π r − β KL(π‖π₀) = −β KL(π‖π*) + β log Z,   π*(x) = π₀(x) exp(r(x)/β)/Z

J/β is the evidence lower bound of log Z, tight at the posterior π*. Without the penalty (β = 0) every optimum lies on
argmax r, whatever the prior. Minimising KL(π*‖π) instead (distribution matching, GDC) has the same optimum in a rich
family and another one in a restricted family.

Arguments are log-probabilities of **whole sequences**, summed over tokens, never averaged over the length.

[paper] the identity, the posterior, the collapse without the penalty, the forward KL as the other choice; [code] (the
authors' toolkit `naver/disco`) a running Z of each prompt; ours: the leave-one-out baseline, proposals that mix prior
and policy, networks and recipe. The paper trains nothing. With `elbo` the method is `reinforce_kl` at the same β: what
it adds is the comparison, judged by KL(π‖π*), which is the gap of the bound, and log Z, ELBO and effective sample size.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.divergences.logits import log_mixture, log_sum_exp
from relent.divergences.reduction import masked_sum, upcast
from relent.language.batches import concatenate
from relent.language.regulariser import ObjectiveDivergence
from relent.methods.alignment.base import Completions
from relent.methods.alignment.importance import RunningNormaliser
from relent.methods.alignment.policy_gradient import leave_one_out_mean, score_function_loss
from relent.methods.alignment.preference import positive
from relent.methods.alignment.rollout import OnPolicyMethod, Rollout
from relent.methods.config import MethodConfig, hyperparameter


class Config(MethodConfig):
    """Hyperparameters of the comparison."""

    objective: Literal["elbo", "reward", "forward_kl"] = hyperparameter(
        "elbo", "J(π), as KL-penalised RL; E_π r alone; or −KL(π*‖π), distribution matching.", source="paper"
    )
    beta: float = hyperparameter(
        1.0,
        "β of the posterior, in the unit of the reward; `reward` is only measured against it.",
        source="ours: at 1 a log-likelihood as reward makes π* Bayes' posterior",
        gt=0,
        le=1000,
    )
    samples: int = hyperparameter(
        4, "Completions of a prompt.", source="ours: 256 a step at the laptop scale; code: 1024", ge=2, le=2**16
    )
    prior_share: float = hyperparameter(
        0.5, "Share of them that the prior gives, for `forward_kl`: bounds the weights.", source="ours", ge=0, le=1
    )


class Posterior(NamedTuple):
    """log π* (…, Y) and the log-evidence log Z (…)."""

    log_probs: Tensor
    log_evidence: Tensor


def posterior(prior_log_probs: Tensor, rewards: Tensor, *, beta: float) -> Posterior:
    r"""π*(y) ∝ π₀(y) exp(r(y)/β) over Y enumerated sequences, and log Z.

    Args:
        prior_log_probs: (…, Y), normalised.
        rewards: (…, Y).
        beta: β > 0.

    Raises:
        ValueError: β ≤ 0.
    """
    unnormalised = upcast(prior_log_probs) + rewards / positive(beta, "beta")
    log_evidence = log_sum_exp(unnormalised)
    return Posterior(unnormalised - log_evidence.unsqueeze(-1), log_evidence)


def expected_reward(policy_log_probs: Tensor, rewards: Tensor) -> Tensor:
    """E_π r over Y enumerated sequences: (…) from (…, Y)."""
    return (policy_log_probs.exp() * rewards).sum(dim=-1)


def kl_regularised_objective(
    policy_log_probs: Tensor, prior_log_probs: Tensor, rewards: Tensor, *, beta: float
) -> Tensor:
    r"""J(π) = E_π r − β KL(π‖π₀), exact: (…) from (…, Y). β = 0 is pure RL.

    Raises:
        ValueError: β < 0.
    """
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    value = expected_reward(policy_log_probs, rewards)
    return value - beta * forward_kl(policy_log_probs, prior_log_probs) if beta > 0 else value


def elbo_gap(policy_log_probs: Tensor, prior_log_probs: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    """log Z − J(π)/β = KL(π‖π*) ≥ 0, computed from both sides of the bound: (…) from (…, Y)."""
    evidence = posterior(prior_log_probs, rewards, beta=beta).log_evidence
    return evidence - kl_regularised_objective(policy_log_probs, prior_log_probs, rewards, beta=beta) / beta


def collapsed_optimum(prior_log_probs: Tensor, rewards: Tensor) -> Tensor:
    r"""The limit of π* as β → 0: π₀ restricted to the sequences of highest reward and renormalised, (…, Y).

    Pure RL has every distribution on these sequences as an optimum; which one a run ends at is an accident.
    """
    prior = upcast(prior_log_probs)
    possible = rewards.masked_fill(prior == -math.inf, -math.inf)
    kept = prior.masked_fill(possible < possible.amax(-1, keepdim=True), -math.inf)
    return kept - log_sum_exp(kept).unsqueeze(-1)


def kl_regularised_returns(log_probs: Tensor, prior_log_probs: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    r"""r − β (log π − log π₀) of sampled sequences, (N,), held constant. At π = π* it is β log Z for every sequence.

    That it depends on π is why the paper does not call the objective RL.

    Raises:
        ValueError: β < 0.
    """
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    return rewards.detach() - beta * (log_probs.detach() - prior_log_probs.detach())


def kl_rl_loss(
    log_probs: Tensor, prior_log_probs: Tensor, rewards: Tensor, *, beta: float, baseline: Tensor | float = 0.0
) -> Tensor:
    r"""−sg[r − β(log π − log π₀) − B] log π(x), (N,): its mean has the gradient of −J; β = 0 is pure RL.

    Args:
        log_probs: (N,), log π of samples x ~ π.
        prior_log_probs: (N,).
        rewards: (N,), raw: whitened rewards change β.
        beta: β ≥ 0.
        baseline: B, such as `policy_gradient.leave_one_out_mean` of :func:`kl_regularised_returns`.
    """
    returns = kl_regularised_returns(log_probs, prior_log_probs, rewards, beta=beta)
    return score_function_loss(log_probs, returns, baseline=baseline)


def forward_kl_weights(
    prior_log_probs: Tensor, rewards: Tensor, proposal_log_probs: Tensor, log_evidence: Tensor | float, *, beta: float
) -> Tensor:
    r"""w = π*(x)/q(x) of samples x ~ q, (N,): all 1 if q = π*. Their mean is 1; see `effective_sample_size`."""
    log_target = upcast(prior_log_probs) + rewards / positive(beta, "beta") - log_evidence
    return (log_target - proposal_log_probs).exp().detach()


def forward_kl_loss(
    log_probs: Tensor,
    weights: Tensor,
    *,
    proposal_log_probs: Tensor | None = None,
    baseline: Tensor | float = 0.0,
) -> Tensor:
    r"""−sg[π*/q − B π/q] log π(x), (N,): its mean has the gradient of KL(π*‖π), for any constant B.

    Args:
        log_probs: (N,), log π of samples x ~ q.
        weights: (N,), π*/q of :func:`forward_kl_weights`; log Z there is exact or a running mean that has seen this
            batch (`importance.RunningNormaliser`).
        proposal_log_probs: (N,), log q; None: q = π. Half of the samples from the prior keep the weights bounded.
        baseline: B; 1 is the mean of the weights.

    Source: distribution matching as in GDC, arXiv 2012.11635.
    """
    if proposal_log_probs is not None:
        baseline = baseline * (log_probs - proposal_log_probs).detach().exp()
    return score_function_loss(log_probs, weights, baseline=baseline)


def effective_sample_size(weights: Tensor) -> Tensor:
    """(Σ w)²/Σ w² of importance weights (…, N), in [1, N]: how many samples the estimate really rests on."""
    return weights.sum(dim=-1).square() / weights.square().sum(dim=-1).clamp(min=torch.finfo(weights.dtype).tiny)


class RLKLBayes(OnPolicyMethod):
    """Trains the policy towards the posterior by one of three objectives, and tells how far from it the bound is."""

    config: Config

    def setup_method(self) -> None:
        super().setup_method()
        self.normaliser = RunningNormaliser(len(self.task.texts.prompts))

    def objective_divergence(self) -> ObjectiveDivergence | None:
        """The reverse KL to the posterior is that to the prior, in the reward's objective; `reward` alone has none."""
        if self.config.objective == "forward_kl":
            return ObjectiveDivergence("forward_kl", "target")
        return super().objective_divergence() if self.config.objective == "elbo" else None

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        from_prior = round(config.prior_share * config.samples) if config.objective == "forward_kl" else 0
        rollout = self._sampled(batch, from_prior)
        policy = self.completions(rollout)
        log_probs, prior = (masked_sum(v.double(), policy.mask, dim=-1) for v in (policy.policy, policy.reference))
        proposal = log_mixture(prior, log_probs.detach(), from_prior / config.samples)
        rewards = rollout.rewards.double()
        log_evidence = self._log_evidence(rollout.prompts, prior + rewards / config.beta, proposal)
        weights = forward_kl_weights(prior, rewards, proposal, log_evidence, beta=config.beta)
        self._log(rollout, policy, weights, log_evidence, len(batch["prompt"]) * (config.samples - from_prior))
        if config.objective == "forward_kl":
            losses = forward_kl_loss(log_probs, weights, proposal_log_probs=proposal, baseline=1.0)
        else:
            beta = config.beta if config.objective == "elbo" else 0.0
            returns = kl_regularised_returns(log_probs, prior, rewards, beta=beta)
            baseline = leave_one_out_mean(rollout.grouped(returns)).flatten()
            losses = kl_rl_loss(log_probs, prior, rewards, beta=beta, baseline=baseline)
        return {config.objective: losses.mean()}

    def _sampled(self, batch: dict[str, Tensor], from_prior: int) -> Rollout:
        """Completions of the policy, then `from_prior` of each prompt from the prior."""
        counts = {"policy": self.config.samples - from_prior, "reference": from_prior}
        parts = [self.rollout(batch, count, of=of) for of, count in counts.items() if count]
        if len(parts) == 1:
            return parts[0]
        rows = concatenate([part.rows for part in parts], padding=self.task.texts.end)
        columns = zip(*(part[2:] for part in parts))
        return Rollout(rows, 1, *(torch.cat(values) for values in columns))

    def _log_evidence(self, prompts: Tensor, target: Tensor, proposal: Tensor) -> Tensor:
        """log Z of each completion's prompt, from all samples so far, those of all processes among them."""
        self.normaliser.update(self.gathered(target), self.gathered(proposal), self.gathered(prompts))
        return self.normaliser.log_normaliser(prompts)

    def _log(
        self, rollout: Rollout, policy: Completions, weights: Tensor, log_evidence: Tensor, from_policy: int
    ) -> None:
        """The bound from the `from_policy` first completions, the weights π*/q of all.

        Where few of the samples count (`effective_sample_share`: a policy that has collapsed), log Z comes out too low.
        """
        found = {"effective_sample_share": effective_sample_size(weights) / len(weights), "weight": weights.mean()}
        if from_policy:
            own = Completions(*(values[:from_policy] for values in policy))
            self.log_rollout(rollout.rewards[:from_policy], own)
            elbo = (rollout.rewards[:from_policy] / self.config.beta - own.log_ratio().detach()).mean()
            log_z = log_evidence[:from_policy].mean()
            found |= {"elbo": elbo, "log_evidence": log_z, "elbo_gap": log_z - elbo}
        self.log_terms(found, "posterior")
