"""The module of f-DPO: its loss and gradient on a network, its limit DPO, training at several divergences."""

from __future__ import annotations

import pytest
import torch

from relent.methods.alignment.f_dpo import f_dpo_divergence, f_dpo_loss

SETTINGS = [
    {"divergence": "forward_kl"},
    {"divergence": "jensen_shannon_unhalved"},
    {"divergence": "alpha", "alpha": 0.3},
    {"divergence": "alpha", "alpha": 0.7},
]


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("f_dpo")


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_is_the_objective_on_the_tables_of_the_network(module_in_float64, sequence_ratios, same_step, setting):
    module, batch = module_in_float64("f_dpo", setting | {"beta": 0.4})
    alpha = {name: value for name, value in setting.items() if name == "alpha"}
    divergence = f_dpo_divergence(setting["divergence"], **alpha)
    expected = f_dpo_loss(*sequence_ratios(module, batch), divergence, beta=0.4).mean()
    same_step(module, batch, expected)


def test_under_the_reverse_kl_it_is_dpo(module_in_float64):
    ours, batch = module_in_float64("f_dpo", {"divergence": "reverse_kl", "beta": 0.4})
    dpo, _ = module_in_float64("dpo", {"beta": 0.4})
    assert torch.equal(ours.training_step(batch, 0), dpo.training_step(batch, 0))


@pytest.mark.parametrize("setting", SETTINGS[1:3])
def test_training_raises_the_objective_over_the_base_model(scores_after, reference_reward, setting):
    scores = scores_after("f_dpo", hyperparameters=setting | {"beta": 1.0, "max_steps": 30, "learning_rate": 0.01})
    assert scores["objective"] > reference_reward + 0.01
    assert scores["kl_to_reference"] > 0


def test_forward_kl_keeps_what_the_reference_says(scores_after):
    """At β 0.1 and equal steps its policy has lost less of the reference's mass than that of DPO."""
    steps = {"max_steps": 60, "learning_rate": 0.02}
    forward = scores_after("f_dpo", hyperparameters={"divergence": "forward_kl"} | steps)
    dpo = scores_after("dpo", hyperparameters=steps)
    assert forward["kl_from_reference"] < 0.7 * dpo["kl_from_reference"]
