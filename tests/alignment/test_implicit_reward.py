"""The module of the implicit reward: its fine-tuning on a network, and DPO from the fine-tuned model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zarr
from safetensors.torch import load_file

from relent.divergences.discrete import forward_kl
from relent.evaluate.run import evaluate_run
from relent.language.batches import TokenBatch
from relent.language.exact import optimal_log_probs
from relent.language.log_probs import sequence_log_probs
from relent.manifest.catalogue import Run
from relent.methods.alignment.dpo import dpo_loss
from relent.methods.alignment.implicit_reward import Config, bandit_form_loss, policy_form_loss, value_form_loss
from relent.tasks.preference_alignment.data import read_base
from relent.tasks.preference_alignment.laws import completion_rewards
from relent.train.stage import build, run_stage


@pytest.fixture
def stages(ratings_catalogue, base, tmp_path):
    """Give a function that makes the specifications of both stages of a variant."""

    def make(variant: str = "default", lora: dict | None = None, **hyperparameters):
        catalogue = replace(ratings_catalogue, layout=replace(ratings_catalogue.layout, results=str(tmp_path)))
        run = Run("ratings", "implicit_reward", variant, "smoke", 0)
        specs = [catalogue.stage_spec(run, stage) for stage in ("sft", "student")]
        options = specs[0].model_options | ({"lora": lora} if lora else {})
        return [
            replace(spec, hyperparameters=spec.hyperparameters | hyperparameters, model_options=options)
            for spec in specs
        ]

    return make


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("implicit_reward")


def in_float64(spec):
    module, datamodule, _ = build(replace(spec, model_options=spec.model_options | {"dtype": "float64"}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module.double(), next(iter(datamodule.train_dataloader()))


@pytest.mark.parametrize("divergence", ["pearson_chi2", "squared_hellinger"])
def test_fine_tuning_is_the_objective_on_the_tables_of_the_network(stages, whole_tables, same_step, divergence):
    module, batch = in_float64(stages(divergence=divergence, sft_beta=0.8)[0])
    rows = TokenBatch.from_tensors(batch, "chosen_")
    taken = whole_tables(module.network, rows).gather(-1, rows.ids[:, 1:, None]).squeeze(-1)
    tokens = policy_form_loss(
        taken, batch["teacher_chosen"][:, 1:], rows.loss[:, 1:], divergence=divergence, beta=0.8, reduction="none"
    )
    same_step(module, batch, tokens.sum(1).mean() / module.tokens_per_item)


@pytest.mark.parametrize("divergence", ["pearson_chi2", "squared_hellinger"])
def test_logits_are_read_as_values(stages, same_step, divergence):
    """Whatever the reference said."""
    module, batch = in_float64(stages(form="value", divergence=divergence)[0])
    rows = TokenBatch.from_tensors(batch, "chosen_")
    output = module.network(rows)
    logits = output.layer(output.hidden)[:, :-1]
    taken = logits.gather(-1, rows.ids[:, 1:, None]).squeeze(-1)
    losses = value_form_loss(taken, logits.logsumexp(-1), rows.loss[:, 1:], divergence=divergence)
    batch["teacher_chosen"].fill_(torch.nan)
    same_step(module, batch, losses.mean() / module.tokens_per_item)


@pytest.mark.parametrize("shared", [False, True])
def test_a_free_value_stands_beside_the_rewards_of_completions(stages, same_step, sequence_ratios, shared):
    settings = {"form": "bandit", "shared_value": shared, "divergence": "pearson_chi2", "sft_beta": 0.8}
    module, batch = in_float64(stages(**settings)[0])
    with torch.no_grad():
        module.values.copy_(torch.linspace(-1, 1, len(module.values)))
    assert len(module.values) == (1 if shared else len(module.task.texts.prompts))
    ratios = sequence_ratios(module, batch)[0]
    value = module.values.expand(len(ratios)) if shared else module.values[batch["prompt"]]
    losses = bandit_form_loss(ratios, value, divergence="pearson_chi2", beta=0.8)
    same_step(module, batch, losses.mean() / module.tokens_per_item)
    module.training_step(batch, 0).backward()
    expected = (value + 0.8 * ratios).detach() / 2 / len(ratios) / module.tokens_per_item
    where = torch.zeros_like(batch["prompt"]) if shared else batch["prompt"]
    torch.testing.assert_close(module.values.grad, torch.zeros_like(module.values).index_add(0, where, expected))


def test_values_have_a_learning_rate_of_their_own_in_the_first_stage_alone(stages):
    first, second = stages("chi2_bandit", learning_rate=0.01, max_steps=4, value_rate=20.0)
    (_, _, group) = build(first)[0].configure_optimizers()["optimizer"].param_groups
    assert (group["initial_lr"], group["weight_decay"]) == (pytest.approx(0.2), 0)
    run_stage(first)
    assert build(second)[0].values is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared_value": True}, "only `bandit` has a V to share"),
        ({"form": "value", "sft_beta": 0.5}, "no reference and no β"),
        ({"form": "token"}, "'policy', 'value' or 'bandit'"),
    ],
)
def test_forms_that_are_none_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


@pytest.mark.parametrize(("form", "beta"), [("policy", 0.7), ("value", 1.0), ("bandit", 0.7)])
def test_plain_fine_tuning_has_the_gradient_of_cross_entropy(stages, student, form, beta):
    """In every form."""
    module, batch = in_float64(stages(sft_beta=beta, form=form)[0])
    sft, _ = in_float64(student("sft"))
    sft.tokens_per_item = module.tokens_per_item
    for found, expected in zip(*([*m.network.parameters()] for m in (module, sft))):
        assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(m.training_step(batch, 0), [*m.network.parameters()]) for m in (module, sft)]
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, beta * expected, rtol=0, atol=1e-10)


def test_the_first_stage_alone_has_the_smaller_learning_rate(stages):
    modules = [build(stages(warmup_steps=0)[0])[0], build(stages("full_rate", warmup_steps=0)[0])[0]]
    assert [module.learning_rate_factor(0) for module in modules] == [0.25, 1.0]


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn"]}])
def test_dpo_starts_at_the_fine_tuned_model_which_is_its_reference(stages, sequence_ratios, lora):
    first, second = stages(lora=lora, max_steps=6, sft_rate=10.0)
    run_stage(first)
    module, datamodule, task = build(second)
    assert module.learning_rate_factor(0) <= 1.0
    batch = next(iter(datamodule.train_dataloader()))
    for side in module.pair(batch):
        assert float(side.log_ratio().abs().max()) < 1e-5
    rows = TokenBatch.from_tensors(batch, "chosen_")
    reference = task.reference_network()
    moved = sequence_log_probs(module.network(rows), rows) - sequence_log_probs(reference(rows), rows)
    assert float(moved.abs().max()) > 1e-3
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.01)
    expected = dpo_loss(*sequence_ratios(module, batch), 0.1).mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["chi2", "chi2_value", "chi2_bandit"])
def test_both_stages_raise_the_reward_over_the_base_model(stages, reference_reward, variant):
    first, second = stages(variant, learning_rate=0.01, max_steps=30)
    for spec in (first, second):
        run_stage(spec)
    scores = evaluate_run(Path(second.output)).scores
    assert scores["expected_reward"] > reference_reward + 0.1
    stored = zarr.open_group(Path(first.output) / "reference.zarr", mode="r")
    assert stored["train"].shape == (96, 2, 3)
    assert "train/turned_share" in (Path(first.output) / "metrics.csv").read_text()


def test_it_is_judged_by_the_fine_tuned_model_as_its_reference(stages, base):
    """Its NLL is DPO's loss of the log-ratios to that model, and its optimum π_sft·exp(r/β)."""
    first, second = stages(beta=0.5, max_steps=20, learning_rate=0.01)
    for spec in (first, second):
        run_stage(spec)
    _, _, task = build(second)
    law = task.network_law(task.reference_network())
    sft = load_file(Path(first.output) / "weights.safetensors")
    law.network.load_state_dict({name.removeprefix("network."): value for name, value in sft.items()})
    scores = evaluate_run(Path(second.output)).scores
    root = zarr.open_group(Path(second.output) / "predictions.zarr", mode="r")
    pairs = read_base(base.output, task.texts).pairs["test"]
    ratios = [
        torch.from_numpy(root[f"pairs/{side}"][...])
        - law.log_probs(pairs.prompt, pairs.tokens[:, i], pairs.lengths[:, i])
        for i, side in enumerate(("chosen", "rejected"))
    ]
    assert scores["preference_nll"] == pytest.approx(float(dpo_loss(*ratios, 0.5).mean()), abs=1e-5)
    best = optimal_log_probs(law.table(), completion_rewards(task.texts), 0.5)
    table = torch.from_numpy(root["table"][...]).double()
    assert scores["kl_to_optimum"] == pytest.approx(float(forward_kl(table, best).mean()), abs=1e-6)
    assert scores["kl_to_first"] == pytest.approx(float(forward_kl(table, law.table()).mean()), abs=1e-6)


def test_the_spread_of_the_implicit_reward_is_held_where_the_value_is_free(stages):
    """χ² of form C penalises its variance over the demonstrations of a prompt; plain fine-tuning does not."""
    spreads = {}
    for name, settings in (("sft", {"divergence": "sft"}), ("chi2", {"divergence": "pearson_chi2"})):
        spec = stages(form="bandit", sft_beta=2.0, sft_rate=1.0, learning_rate=0.02, max_steps=60, **settings)[0]
        spec = replace(spec, output=f"{spec.output}_{name}")
        run_stage(spec)
        pairs = build(spec)[2].base.pairs["train"]
        stored = torch.from_numpy(zarr.open_group(Path(spec.output) / "reference.zarr", mode="r")["train"][...])
        ratios = (stored[:, 0] - pairs.reference[:, 0]).double().sum(-1)
        prompts = pairs.prompt.unique()
        spreads[name] = torch.stack([ratios[pairs.prompt == p].var(correction=0) for p in prompts]).mean()
    assert spreads["chi2"] < 0.7 * spreads["sft"]
