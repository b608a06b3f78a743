from __future__ import annotations

import pytest
import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.language.batches import TokenBatch
from relent.language.log_probs import sequence_log_probs
from relent.methods.alignment.rl_kl_bayes import kl_regularised_objective


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("reinforce_kl")


def test_the_step_is_the_objective_on_the_same_completions(module_in_float64, same_step):
    module, batch = module_in_float64("reinforce_kl", {"beta": 0.7})
    rollout = module.rollout(batch, 2)
    log_probs = sequence_log_probs(module.network(rollout.rows), rollout.rows)
    returns = (rollout.rewards - 0.7 * (log_probs - rollout.reference.sum(1))).detach().view(-1, 2)
    advantages = (returns - returns.flip(1)).flatten()
    same_step(module, batch, -(advantages * log_probs).mean())


@pytest.mark.parametrize("estimator", ["sequence", "token", "exact"])
def test_the_expected_step_is_the_exact_gradient(module_in_float64, one_prompt, expected_step, estimator):
    """Through the network, against the sum over all completions."""
    module, _ = module_in_float64("reinforce_kl", {"beta": 0.7, "estimator": estimator, "samples": 4})
    known = one_prompt(module, 32)
    policy = sequence_log_probs(module.network(known.rows), known.rows)
    objective = kl_regularised_objective(policy, known.reference, known.rewards, beta=0.7)
    expected_step(module, known.batch, -objective)


def test_the_exact_form_sums_over_the_vocabulary(module_in_float64, same_step):
    module, batch = module_in_float64("reinforce_kl", {"beta": 0.7, "estimator": "exact"})
    rollout = module.rollout(batch, 2)
    rows: TokenBatch = rollout.rows

    def next_log_probs(network) -> Tensor:
        output = network(rows)
        return output.layer(output.hidden)[:, :-1].log_softmax(-1)

    kl = forward_kl(next_log_probs(module.network), next_log_probs(module.task.reference_network()).detach())
    kl = torch.nn.functional.pad(kl, (1, 0)) * rows.loss
    log_probs = module.token_log_probs(rows)
    later = kl.sum(1, keepdim=True) - kl.cumsum(1)
    grouped = rollout.rewards.view(-1, 2)
    advantages = (grouped - grouped.flip(1)).flatten()
    penalty = (kl + log_probs * later.detach()).sum(1)
    same_step(module, batch, (-advantages * log_probs.sum(1) + 0.7 * penalty).mean())


def test_training_raises_the_objective(scores_after, reference_reward):
    changes = {"beta": 1.0, "samples": 4, "max_steps": 40, "learning_rate": 0.01}
    scores = scores_after("reinforce_kl", hyperparameters=changes)
    gained = scores["objective"] - reference_reward
    assert gained > 0.1
    assert scores["regret"] < gained


def test_a_training_in_micro_batches_ends_with_the_same_weights(micro_batches_change_nothing):
    micro_batches_change_nothing("reinforce_kl", steps=5)
