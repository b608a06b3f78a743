from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.language.log_probs import sequence_log_probs
from relent.methods.alignment.rl_kl_bayes import RLKLBayes, elbo_gap, expected_reward, forward_kl_loss, posterior

MANY = 1e12


def knows_evidence(module: RLKLBayes, prompt: int, log_evidence: Tensor) -> None:
    """As if so many samples of a prompt had been seen that those to come change nothing."""
    module.normaliser.count[prompt] = MANY
    module.normaliser.log_total[prompt] = log_evidence + math.log(MANY)


@pytest.fixture
def logged(monkeypatch) -> dict[str, float]:
    """What methods have logged last."""
    found: dict[str, float] = {}

    def keep(module, terms: dict[str, Tensor], prefix: str = "train") -> None:
        found.update({f"{prefix}/{name}": float(value.detach()) for name, value in terms.items()})

    monkeypatch.setattr(RLKLBayes, "log_terms", keep)
    return found


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("rl_kl_bayes")


def test_with_the_penalty_it_is_reinforce(module_in_float64, same_step):
    module, batch = module_in_float64("rl_kl_bayes", {"beta": 0.7})
    other, _ = module_in_float64("reinforce_kl", {"beta": 0.7, "samples": 4})
    other.network = module.network
    same_step(module, batch, other.training_step(batch, 0))


@pytest.mark.parametrize("objective", ["reward", "forward_kl"])
def test_the_expected_step_is_the_exact_gradient(module_in_float64, one_prompt, expected_step, objective):
    module, _ = module_in_float64("rl_kl_bayes", {"beta": 0.7, "objective": objective})
    known = one_prompt(module, 32)
    policy = sequence_log_probs(module.network(known.rows), known.rows)
    best = posterior(known.reference, known.rewards, beta=0.7)
    knows_evidence(module, int(known.batch["prompt"][0]), best.log_evidence)
    exact = {"reward": -expected_reward(policy, known.rewards), "forward_kl": forward_kl(best.log_probs, policy)}
    expected_step(module, known.batch, exact[objective])


def test_half_of_the_completions_come_from_the_prior(module_in_float64, same_step):
    """q is the mixture, half and half, and Z the mean of P/q over the completions of a prompt, this batch included."""
    module, batch = module_in_float64("rl_kl_bayes", {"beta": 0.7, "objective": "forward_kl"})
    parts = [module.rollout(batch, 2, of=of) for of in ("policy", "reference")]
    log_probs = torch.cat([sequence_log_probs(module.network(part.rows), part.rows) for part in parts])
    prior, rewards, prompts = (
        torch.cat(values) for values in zip(*((p.reference.sum(1), p.rewards, p.prompts) for p in parts))
    )
    proposal = torch.stack([log_probs.detach(), prior]).logsumexp(0) - math.log(2)
    weights = prior + rewards / 0.7 - proposal
    alike = prompts[:, None] == prompts
    log_z = weights.expand_as(alike).masked_fill(~alike, -torch.inf).logsumexp(1) - alike.sum(1).double().log()
    losses = forward_kl_loss(log_probs, (weights - log_z).exp(), proposal_log_probs=proposal, baseline=1.0)
    same_step(module, batch, losses.mean())


def test_evidence_bound_and_weights_are_those_of_enumeration(module_in_float64, one_prompt, logged):
    module, _ = module_in_float64("rl_kl_bayes", {"beta": 0.7, "samples": 64})
    known = one_prompt(module, 64)
    policy = sequence_log_probs(module.network(known.rows), known.rows).detach()
    best = posterior(known.reference, known.rewards, beta=0.7)
    module.terms(known.batch)
    assert logged["posterior/log_evidence"] == pytest.approx(float(best.log_evidence), abs=0.1)
    gap = elbo_gap(policy, known.reference, known.rewards, beta=0.7)
    assert logged["posterior/elbo_gap"] == pytest.approx(float(gap), abs=0.2)
    share = 1 / (2 * best.log_probs - policy).exp().sum()
    assert logged["posterior/effective_sample_share"] == pytest.approx(float(share), abs=0.1)


def test_a_posterior_as_policy_has_a_tight_bound(module_in_float64, one_prompt, logged):
    """With a reward of 0 everywhere the prior is the posterior: weights 1 and no gap."""
    module, _ = module_in_float64("rl_kl_bayes", {"beta": 0.7})
    module.network.load_base(module.task.weights("teacher"))
    module.reward = lambda rows: torch.zeros(len(rows), dtype=torch.float64)
    module.double().terms(one_prompt(module, 8).batch)
    assert abs(logged["posterior/elbo_gap"]) < 1e-10
    assert logged["posterior/effective_sample_share"] == pytest.approx(1.0)


def test_reward_alone_collapses_and_the_penalty_leads_to_the_posterior(scores_after):
    changes = {"max_steps": 40, "learning_rate": 0.015, "beta": 1.0}
    penalised, alone, matched = (
        scores_after("rl_kl_bayes", objective, hyperparameters=changes | {"objective": objective})
        for objective in ("elbo", "reward", "forward_kl")
    )
    assert alone["entropy"] < 0.5 * penalised["entropy"]
    assert alone["expected_reward"] > penalised["expected_reward"]
    for found in (penalised, matched):
        assert found["kl_to_optimum"] < 0.5 * alone["kl_to_optimum"]
