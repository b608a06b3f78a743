"""The module of SparsePO: its loss on a network, its limits, masks that find planted tokens, what is told of masks."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from scipy.stats import mannwhitneyu

from relent.evaluate.run import evaluate_run
from relent.language.batches import TokenBatch
from relent.language.log_probs import token_log_probs
from relent.manifest.catalogue import Run
from relent.methods.alignment.distributions import sides
from relent.methods.alignment.sparsepo import MaskedAnswer, SparsePO, sparsepo_loss
from relent.models.causal_lm import build_causal_lm
from relent.tasks.preference_alignment.masks import reward_of_tokens
from relent.tasks.preference_alignment.training import Task
from relent.train.stage import build, run_stage

OPEN = {"positive_start": True}
LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn"]}
MAPO = {"reward_mask": "activation", "kl_mask": "activation"}


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("sparsepo")


def gradients(module, batch) -> list[torch.Tensor]:
    return list(torch.autograd.grad(module.training_step(batch, 0), list(module.network.parameters())))


def test_with_masks_of_one_it_is_the_first_tdpo(module_in_float64):
    ours, batch = module_in_float64("sparsepo", {"reward_mask": "unit", "kl_mask": "unit", "beta": 0.4})
    tdpo, _ = module_in_float64("tdpo", {"version": 1, "beta": 0.4})
    torch.testing.assert_close(ours.training_step(batch, 0), tdpo.training_step(batch, 0), rtol=0, atol=1e-10)
    for found, expected in zip(gradients(ours, batch), gradients(tdpo, batch)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("common", "lora"), [(True, None), (False, LORA)])
def test_a_step_is_the_objective_with_masks_of_the_reference_states(module_in_float64, same_step, common, lora):
    """The states are those that `transformers` gives; a mask at a token is of the state before it."""
    module, batch = module_in_float64("sparsepo", OPEN | {"common": common, "reward_l1": 0.02, "kl_l1": 0.01}, lora)
    outputs = module.outputs(batch)
    rows = outputs.rows
    with module.reference_policy() as network:
        states = network.model(
            rows.ids, attention_mask=rows.attention.long(), position_ids=rows.positions, output_hidden_states=True
        ).hidden_states[1:]
    before = torch.stack([state[:, :-1] for state in states])
    weights = [sides(torch.nn.functional.pad(module.reward_mask(before), (1, 0)))]
    weights.append(weights[0] if common else sides(torch.nn.functional.pad(module.kl_mask(before), (1, 0))))
    assert any(bool((w > 0).any()) for pair in weights for w in pair)
    columns = map(sides, (outputs.log_ratios(), outputs.token_kl(), rows.loss))
    answers = map(MaskedAnswer, *columns, *weights)
    same_step(module, batch, sparsepo_loss(*answers, beta=0.8, reward_l1=0.02, kl_l1=0.01).mean())


def test_learned_masks_have_a_weight_decay_of_their_own(student):
    settings = {"common": False, "mask_weight_decay": 0.3, "weight_decay": 0.2}
    module, *_ = build(student("sparsepo", hyperparameters=settings))
    groups = module.parameter_groups()
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(names)
    for name, decay in found.items():
        matrix = name.endswith("weight") and "norm" not in name and "ln_" not in name
        assert decay == (0.3 if "_mask." in name else 0.2) * matrix, name


def test_masks_of_the_reference_are_constant_and_differ_by_answer(module_in_float64):
    module, batch = module_in_float64("sparsepo", MAPO)
    rows = module.outputs(batch).rows
    _, reward, kl = module.reference_and_masks(rows)
    assert reward is kl
    assert not reward.requires_grad
    assert float(reward[~rows.loss].abs().max()) == 0
    assert 0 <= float(reward.min()) < float(reward.max()) <= 1
    assert {name for name, p in module.named_parameters() if p.grad is not None} == set()


@pytest.mark.parametrize("setting", [OPEN, MAPO])
def test_training_raises_the_objective_over_the_base_model(scores_after, reference_reward, setting):
    scores = scores_after("sparsepo", hyperparameters=setting | {"max_steps": 30, "learning_rate": 0.01})
    assert scores["objective"] > reference_reward + 0.01


# ------------------------------------------------------------------------------------------ planted tokens

END, MARKER, GOOD, BAD = range(4)
LENGTH = 8


def planted_pairs(module: SparsePO, count: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Completions of neutral words with one marker at a random place and a word after it that decides the preference.

    Returns the batch, and where those words stand, (2B, 1 + LENGTH) bool.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 6, (2, count, 1 + LENGTH), generator=generator)
    ids[..., 0] = END
    slot = torch.randint(2, 1 + LENGTH, (2, count, 1), generator=generator)
    good = torch.rand(count, generator=generator) < 0.5
    words = torch.stack([torch.where(good, GOOD, BAD), torch.where(good, BAD, GOOD)])[..., None]
    # The label is drawn by the Bradley–Terry law with a difference of rewards of 2.
    right = (torch.rand(count, generator=generator) < torch.sigmoid(torch.tensor(2.0)))[:, None]
    words = torch.where(right == good[:, None], words, words.flip(0))
    ids = ids.scatter(2, slot - 1, MARKER).scatter(2, slot, words)
    batch: dict[str, torch.Tensor] = {}
    for name, side in zip(("chosen", "rejected"), ids):
        loss = torch.ones_like(side, dtype=torch.bool)
        loss[:, 0] = False
        rows = TokenBatch.of(side, torch.ones_like(loss), loss)
        with module.reference_policy() as network:
            batch |= rows.tensors(f"{name}_") | {f"teacher_{name}": token_log_probs(network(rows), rows)}
    where = torch.zeros(ids.shape, dtype=torch.bool).scatter(2, slot, True)
    return batch, where.flatten(0, 1)


def slot_auc(module: SparsePO, batch, where: torch.Tensor) -> float:
    """Chance that the reward's mask is larger at a planted word than elsewhere, ties counted half."""
    rows = module.outputs(batch).rows
    weights = module.reference_and_masks(rows)[1].detach()
    planted, others = weights[where].numpy(), weights[rows.loss & ~where].numpy()
    return float(mannwhitneyu(planted, others).statistic / (len(planted) * len(others)))


@pytest.mark.parametrize(("kind", "least", "most"), [("learned", 0.8, 1.0), ("random", 0.4, 0.6)])
def test_a_learned_mask_finds_planted_tokens(student, kind, least, most):
    module, *_ = build(student("sparsepo", hyperparameters=OPEN | {"reward_mask": kind, "kl_mask": kind}))
    wider = {"architecture": "gpt2", "config": {"n_layer": 3, "n_head": 2, "n_embd": 32}}
    module.network = build_causal_lm(wider, 6, 12)
    module._reference = (copy.deepcopy(module.network).requires_grad_(False),)
    module.reward_mask = module._new_mask() if kind == "learned" else None
    optimiser = torch.optim.AdamW(module.parameter_groups(), lr=0.003)
    for step in range(60):
        batch, _ = planted_pairs(module, 32, step)
        optimiser.zero_grad()
        module.training_step(batch, 0).backward()
        optimiser.step()
    found = slot_auc(module, *planted_pairs(module, 200, 10_000))
    assert least <= found <= most, found


# ------------------------------------------------------------------------------------------ what is told of masks


@pytest.mark.parametrize("name", ["independent", "random"])
def test_masks_are_written_scored_and_drawn(ratings_catalogue, base, tmp_path, name):
    spec = ratings_catalogue.stage_spec(Run("ratings", "sparsepo", name, "smoke", 0))
    spec = replace(spec, output=str(tmp_path / name), hyperparameters=spec.hyperparameters | {"max_steps": 3})
    run_stage(spec)
    folder = Path(spec.output)
    evaluation = evaluate_run(folder)
    group = zarr.open_group(folder / "masks.zarr", mode="r")
    reward, kl = group["reward"][...], group["kl"][...]
    assert reward.shape == (24, 2, 3)
    assert np.array_equal(reward, kl) == (name == "random")
    rows = evaluation.tables["masks"]
    for row in rows[:20]:
        assert row["reward_mask"] == pytest.approx(reward[row["pair"], int(row["side"] == "rejected"), row["place"]])
    assert 0 <= evaluation.scores["mask_zero_share"] <= 1
    assert abs(evaluation.scores["mask_reward_correlation"]) <= 1
    assert (folder / "figures" / "masks.png").is_file()
    assert "train/reward_mask_zeros" in (folder / "metrics.csv").read_text()


def test_what_a_token_adds_to_the_reward_sums_to_it(trained):
    task = Task(trained)
    pairs = task.base.pairs["test"]
    added = reward_of_tokens(task.texts, task.texts.reward, pairs)
    inside = torch.arange(3) < pairs.lengths[..., None]
    total = torch.where(inside, added, 0.0).sum(-1)
    prompts = task.texts.reward(task.texts.prompt_batch(pairs.prompt.tolist()))
    torch.testing.assert_close(total + prompts[:, None], pairs.rewards, rtol=0, atol=1e-9)
