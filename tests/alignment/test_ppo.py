from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from relent.contract.trained import Dies, Killed
from relent.methods.alignment.policy_gradient import token_rewards
from relent.methods.alignment.proximal import ProximalMethod, explained_variance
from relent.methods.alignment.reinforce_kl import reinforce_kl_loss
from relent.train.stage import run_stage

LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn", "c_fc"]}


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("ppo")


@pytest.fixture
def built(module_in_float64):
    """Give a function that builds the method with a critic that knows something already, and a batch."""

    def make(**hyperparameters) -> tuple[ProximalMethod, dict[str, Tensor]]:
        module, batch = module_in_float64("ppo", {"beta": 0.5, **hyperparameters})
        with torch.no_grad():
            module.value_head.weight.copy_(torch.linspace(-1, 1, module.value_head.in_features))
        return module, batch

    return make


@pytest.fixture
def at_step(monkeypatch):
    """Give a function that makes a method believe that so many optimiser steps are done."""
    return lambda module, step: monkeypatch.setattr(type(module), "global_step", step)


def test_the_first_step_is_the_policy_gradient_with_a_critic(built, same_step):
    """Advantages by their definition, row by row; ratios are 1, so that nothing is clipped."""
    module, batch = built()
    rollout = module.rollout(batch, 2)
    log_probs, values = module.evaluated(rollout.rows)
    mask = rollout.rows.loss
    rewards = token_rewards(log_probs, rollout.reference, rollout.rewards, mask, beta=0.5)
    losses = []
    for row in range(len(mask)):
        places = mask[row].nonzero().flatten().tolist()
        v = [*values[row, places].detach(), 0.0]
        deltas = [rewards[row, t] + v[i + 1] - v[i] for i, t in enumerate(places)]
        for i, t in enumerate(places):
            advantage = sum(0.95 ** (j - i) * deltas[j] for j in range(i, len(places)))
            ratio = (log_probs[row, t] - log_probs[row, t].detach()).exp()
            losses.append(-advantage * ratio + 0.1 * 0.5 * (values[row, t] - advantage - v[i]).square())
    same_step(module, batch, torch.stack(losses).sum() / len(mask))


def test_without_a_critic_the_first_step_is_reinforce(module_in_float64):
    module, batch = module_in_float64("ppo", {"beta": 0.5, "trace": 1.0})
    rollout = module.rollout(batch, 2)
    parameters = list(module.network.parameters())
    log_probs = module.token_log_probs(rollout.rows)
    pair = log_probs, rollout.reference
    expected = reinforce_kl_loss(*pair, rollout.rewards, rollout.rows.loss, beta=0.5, level="token").mean()
    wanted = torch.autograd.grad(expected, parameters)
    for found, gradient in zip(torch.autograd.grad(module.terms(batch)["policy"], parameters), wanted):
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("value_clip", [0.0, 0.01])
def test_later_epochs_go_over_the_same_rollout(built, at_step, value_clip):
    """Another batch is passed over; ratios and values are those of the moved network against the old one."""
    module, batch = built(value_clip=value_clip)
    module.terms(batch)
    old = module.experience[0]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.3)
    at_step(module, 1)
    found = module.terms({name: values.flip(0) for name, values in batch.items()})
    assert module.experience[0] is old
    log_probs, values = module.evaluated(old.rows)
    mask = old.rows.loss
    ratio, advantages = (log_probs - old.log_probs)[mask].exp(), old.advantages[mask]
    assert float(((ratio - 1).abs() > 0.2).double().mean()) > 0.05
    policy = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum() / len(mask)
    torch.testing.assert_close(found["policy"], policy, rtol=0, atol=1e-10)
    errors = (values - old.returns)[mask].square()
    if value_clip:
        kept = old.values + (values - old.values).clamp(-value_clip, value_clip)
        errors = torch.maximum(errors, (kept - old.returns)[mask].square())
    torch.testing.assert_close(found["value"], 0.1 * 0.5 * errors.sum() / len(mask), rtol=0, atol=1e-10)
    at_step(module, 4)
    module.terms(batch)
    assert module.experience[0] is not old


def test_experience_is_constant_and_whitened_where_asked(built):
    module, batch = built(whiten=True)
    found = module.collect(batch)
    assert not any(values.requires_grad for values in found.tensors().values())
    kept = found.advantages[found.rows.loss]
    assert abs(float(kept.mean())) < 1e-10
    assert float(kept.std()) == pytest.approx(1.0, abs=1e-6)
    again = type(found).from_tensors(found.tensors())
    assert torch.equal(again.returns, found.returns)
    assert torch.equal(again.rows.loss, found.rows.loss)


def test_the_critic_learns_beside_an_adapter(module_in_float64):
    module, batch = module_in_float64("ppo", lora=LORA)
    module.training_step(batch, 0).backward()
    trained = {name for name, p in module.named_parameters() if p.grad is not None}
    assert {"value_head.weight", "value_head.bias"} < trained
    assert all(".lora_" in name or name.startswith("value_head") for name in trained)


def test_variance_that_a_critic_explains():
    returns, mask = torch.tensor([[1.0, 2.0, 9.0, 3.0]]), torch.tensor([[True, True, False, True]])
    assert float(explained_variance(returns, returns, mask)) == 1.0
    assert float(explained_variance(torch.full((1, 4), 7.0), returns, mask)) == 0.0
    assert float(explained_variance(2 * returns, returns, mask)) == 0.0


def test_training_raises_the_objective(scores_after, reference_reward):
    changes = {"beta": 1.0, "max_steps": 60, "learning_rate": 0.01}
    scores = scores_after("ppo", hyperparameters=changes)
    gained = scores["objective"] - reference_reward
    assert gained > 0.1
    assert scores["regret"] < gained


def test_a_training_in_micro_batches_ends_with_the_same_weights(micro_batches_change_nothing):
    micro_batches_change_nothing("ppo", steps=6)


@pytest.mark.slow
def test_two_processes_killed_within_a_round_end_where_one_does(student):
    found = []
    for name, sharing in (("one", {}), ("two", {"devices": 2, "strategy": "ddp"})):
        spec = student("ppo", name, hyperparameters={"max_steps": 8, "checkpoint_every": 2})
        options = spec.model_options | {"dtype": "float64"}
        spec = replace(spec, model_options=options, execution=spec.execution | sharing)
        if sharing:
            with suppress(Killed):
                run_stage(spec, callbacks=[Dies(7)])
        run_stage(spec)
        found.append(load_file(f"{spec.output}/weights.safetensors"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-9, msg=name)
