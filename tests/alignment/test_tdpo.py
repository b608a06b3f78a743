"""The module of TDPO, and what pair methods with a reference network share."""

from __future__ import annotations

import pytest
import torch

from relent.divergences.discrete import forward_kl
from relent.language.batches import TokenBatch
from relent.methods.alignment.tdpo import sequence_forward_kl, tdpo_loss

LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn"]}


@pytest.fixture(scope="module")
def whole_kls(whole_tables):
    """Give a function from a module and a batch to D of both completions, from whole distributions."""

    def kl(module, rows: TokenBatch) -> torch.Tensor:
        with module.reference_policy() as network:
            reference = whole_tables(network, rows)
        return sequence_forward_kl(whole_tables(module.network, rows), reference, rows.loss[:, 1:])

    def kls(module, batch) -> list[torch.Tensor]:
        return [kl(module, TokenBatch.from_tensors(batch, f"{side}_")) for side in ("chosen", "rejected")]

    return kls


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("tdpo")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("lora", [None, LORA])
def test_a_step_is_the_objective_on_the_tables_of_the_network(
    module_in_float64, sequence_ratios, whole_kls, same_step, version, lora
):
    module, batch = module_in_float64("tdpo", {"version": version, "beta": 0.7, "alpha": 0.4}, lora)
    ratios, kls = sequence_ratios(module, batch), whole_kls(module, batch)
    assert min(float(kl.detach().min()) for kl in kls) > 1e-6
    same_step(module, batch, tdpo_loss(*ratios, *kls, beta=0.7, version=version, alpha=0.4).mean())


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_reference_is_the_base_model_and_gets_no_gradient(module_in_float64, lora):
    module, batch = module_in_float64("tdpo", lora=lora)
    outputs = module.outputs(batch)
    _, reference, mask = outputs.next_token_log_probs()
    taken = reference.gather(-1, outputs.rows.ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(taken[mask].float(), outputs.stored[:, 1:][mask], rtol=0, atol=1e-5)
    module.training_step(batch, 0).backward()
    frozen = [p for network in module._reference if network is not None for p in network.parameters()]
    frozen += [p for p in module.parameters() if not p.requires_grad]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_token_kl_is_that_of_the_whole_distributions(module_in_float64):
    module, batch = module_in_float64("tdpo")
    outputs = module.outputs(batch)
    policy, reference, mask = outputs.next_token_log_probs()
    expected = forward_kl(reference, policy, mask=mask, reduction="none")
    torch.testing.assert_close(outputs.token_kl()[:, 1:], expected, rtol=0, atol=1e-12)
    assert not outputs.token_kl()[~outputs.rows.loss].any()


@pytest.mark.parametrize("method", ["tdpo", "sparsepo", "dpo_kernels"])
def test_more_padding_changes_no_loss(module_in_float64, wider, method):
    module, batch = module_in_float64(method)
    torch.testing.assert_close(
        module.training_step(wider(batch), 0), module.training_step(batch, 0), rtol=0, atol=1e-10
    )


def test_training_raises_the_objective_over_the_base_model(scores_after, reference_reward):
    scores = scores_after("tdpo", hyperparameters={"beta": 1.0, "max_steps": 30, "learning_rate": 0.01})
    assert scores["objective"] > reference_reward + 0.01
