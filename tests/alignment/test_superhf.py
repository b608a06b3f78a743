"""SuperHF as a method: its step is the objective on its own samples, and training does what the paper says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad

from conftest import next_token_log_probs
from relent.methods.alignment.superhf import IGNORED, superhf_loss

LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn", "c_fc"]}


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("superhf")


@pytest.mark.parametrize(
    "changes",
    [
        {"keep": 2},
        {"direction": "reverse", "mask_rule": "code", "samples_from": "initial"},
        {"top_p": 1.0, "temperature": 0.7},
    ],
)
def test_a_step_is_the_objective_on_the_best_samples(module_in_float64, same_step, changes):
    module, batch = module_in_float64("superhf", {"samples": 5, "drop_empty": False} | changes)
    config = module.config
    of = "policy" if config.samples_from == "policy" else "reference"
    rollout = module.rollout(batch, 5, of=of, temperature=config.temperature, top_p=config.top_p)
    # By hand: of the rows of each prompt those with the highest rewards, the earlier one of two equal ones first.
    best = [
        5 * prompt + place
        for prompt, rewards in enumerate(rollout.grouped(rollout.rewards).tolist())
        for place in sorted(range(5), key=lambda i, r=rewards: -r[i])[: config.keep]
    ]
    rows = rollout.rows.rows(torch.tensor(best))
    with module.reference_policy() as network:
        initial = pad(next_token_log_probs(network, rows), (0, 0, 0, 1)).detach()
    if config.mask_rule == "code":
        initial = network_log_probs(network, rows).detach()
    policy = network_log_probs(module.network, rows)
    labels = torch.where(rows.loss, rows.ids, IGNORED)
    found = superhf_loss(
        policy, initial, labels, kl_weight=0.35, direction=config.direction, mask_rule=config.mask_rule
    )
    tokens_per_item = rows.loss.sum() / len(rows)
    same_step(module, batch, found.cross_entropy * tokens_per_item / module.tokens_per_item + 0.35 * found.kl)


def network_log_probs(network, rows):
    """log π(·|h_t) after every token, (B, L, V)."""
    output = network(rows)
    return output.layer(output.hidden).log_softmax(-1)


def test_the_single_pass_has_the_samples_of_the_initial_model_whatever_the_policy(module_in_float64):
    module, batch = module_in_float64("superhf", {"samples": 3, "top_p": 1.0})

    def drawn(of: str) -> torch.Tensor:
        return module.rollout(batch, 3, of=of).rows.ids

    before = {of: drawn(of) for of in ("policy", "reference")}
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter *= -2
    assert torch.equal(drawn("reference"), before["reference"])
    assert not torch.equal(drawn("policy"), before["policy"])


def test_only_the_adapter_is_trained_and_it_is_held_to_the_network_without_it(module_in_float64):
    module, batch = module_in_float64("superhf", {"samples": 3}, lora=LORA)
    module.training_step(batch, 0).backward()
    moved = [name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()]
    assert moved
    assert all(".lora_" in name for name in moved)


def test_padding_changes_nothing(module_in_float64):
    module, batch = module_in_float64("superhf", {"samples": 3})
    wider = {n: pad(v, (3, 0)) if n.startswith("prompt_") else v for n, v in batch.items()}
    first, second = (module.training_step(b, 0) for b in (batch, wider))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


def test_a_prompt_without_a_word_in_any_completion_is_left_out(module_in_float64):
    module, batch = module_in_float64("superhf", {"samples": 2, "top_p": 1.0})
    rollout = module.rollout(batch, 2)
    end = module.task.texts.end
    silent = rollout.rows.ids.clone()
    silent[:2] = torch.where(rollout.rows.loss[:2], end, silent[:2])
    best, kept = module.best(rollout._replace(rows=replace(rollout.rows, ids=silent)))
    assert kept.tolist() == [False] + [True] * (len(kept) - 1)
    assert (best[1:] >= 2).all()
    module.network.model.transformer.wpe.weight.data.zero_()
    module.network.model.transformer.wte.weight.data[end] *= 1e3
    assert module.training_step(batch, 0).isfinite()


def test_a_training_in_micro_batches_ends_with_the_same_weights(micro_batches_change_nothing):
    micro_batches_change_nothing("superhf", steps=3)


def test_training_has_more_reward_and_the_prior_holds_it_near_the_initial_model(scores_after, reference_reward):
    free, held = (
        scores_after("superhf", f"lambda{weight}", hyperparameters={"kl_weight": weight, "samples": 8})
        for weight in (0.0, 3.0)
    )
    assert free["expected_reward"] > held["expected_reward"] > reference_reward + 0.1
    assert held["kl_from_reference"] < 0.5 * free["kl_from_reference"]
