from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zarr
from safetensors.torch import load_file
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.evaluate.run import evaluate_run
from relent.language.batches import TokenBatch
from relent.language.exact import optimal_log_probs
from relent.language.log_probs import token_log_probs
from relent.manifest.catalogue import Catalogue, Run
from relent.methods.alignment.dpo import dpo_loss
from relent.methods.alignment.salsa import SALSA, soup
from relent.runspec import RunSpec
from relent.tasks.preference_alignment.laws import completion_rewards
from relent.train.stage import build, run_stage

LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn", "c_fc"]}
STAGES = ("sft_1", "sft_2", "soup", "student")
SHORT = {"max_steps": 8, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def stages(ratings_catalogue: Catalogue, base: RunSpec, tmp_path_factory: pytest.TempPathFactory):
    """Give a function that makes the specifications of all stages in one folder; not to be changed once trained."""
    root = tmp_path_factory.mktemp("salsa")

    def make(name: str = "run", model: dict | None = None, **hyperparameters) -> dict[str, RunSpec]:
        found = {}
        for stage in STAGES:
            spec = ratings_catalogue.stage_spec(Run("ratings", "salsa", "default", "smoke", 0), stage)
            values = spec.hyperparameters | (SHORT if spec.hyperparameters["max_steps"] else {}) | hyperparameters
            inputs = {k: str(root / name / k) if k in STAGES else v for k, v in spec.inputs.items()}
            options = spec.model_options | (model or {})
            found[stage] = replace(
                spec, output=str(root / name / stage), inputs=inputs, hyperparameters=values, model_options=options
            )
        return found

    return make


@pytest.fixture(scope="module")
def souped(stages) -> dict[str, RunSpec]:
    """Both fine-tuned models and their soup."""
    specs = stages()
    for stage in STAGES[:3]:
        run_stage(specs[stage])
    return specs


def weights(spec: RunSpec) -> dict[str, Tensor]:
    return load_file(Path(spec.output) / "weights.safetensors")


def first_batch(spec: RunSpec) -> tuple[SALSA, dict[str, Tensor]]:
    module, datamodule, _ = build(spec)
    return module, next(iter(datamodule.train_dataloader()))


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("salsa")


def test_the_soup_is_the_average_of_two_different_models(souped):
    first, second, mixed = (weights(souped[stage]) for stage in STAGES[:3])
    assert any(not torch.equal(first[name], second[name]) for name in first)
    expected = soup([first, second], [0.5, 0.5])
    assert all(torch.equal(mixed[name], expected[name]) for name in expected)


def test_an_sft_model_learns_the_preferred_completions_as_sft_does(souped, student):
    """The first step's loss on the same batch, and a lower loss at the end."""
    module, batch = first_batch(souped["sft_1"])
    other, _, _ = build(student("sft"))
    other.tokens_per_item = module.tokens_per_item
    torch.testing.assert_close(module.training_step(batch, 0), other.training_step(batch, 0))
    before = float(module.terms(batch)["nll"].detach())
    module.load_state_dict(weights(souped["sft_1"]))
    assert float(module.terms(batch)["nll"].detach()) < before


def test_the_way_between_the_models_is_told(souped):
    with (Path(souped["soup"].output) / "soup.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [float(row["alpha"]) for row in rows] == [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]
    module, datamodule, _ = build(souped["sft_1"])
    module.load_state_dict(weights(souped["sft_1"]))
    batches = [TokenBatch.from_tensors(b, "chosen_") for b in datamodule.val_dataloader()]
    nll = torch.cat([-module.token_log_probs(batch)[batch.loss] for batch in batches]).mean()
    assert float(rows[-1]["nll"]) == pytest.approx(float(nll), abs=1e-5)


def test_the_policy_starts_at_the_first_model_and_is_held_to_the_soup(souped):
    """So that the penalty is not zero at the start, as it is in PPO."""
    module, batch = first_batch(souped["student"])
    first = weights(souped["sft_1"])
    assert all(torch.equal(module.state_dict()[name], value) for name, value in first.items())
    rollout = module.rollout(batch, 2)
    reference = module.task.reference_network()
    mixed = {name.removeprefix("network."): value for name, value in weights(souped["soup"]).items()}
    reference.load_base(mixed)
    expected = token_log_probs(reference(rollout.rows), rollout.rows)
    torch.testing.assert_close(rollout.reference, expected, rtol=0, atol=1e-5)
    assert float(module.completions(rollout).log_ratio().detach().abs().mean()) > 1e-3


def test_alpha_one_is_ppo_from_the_first_model_bit_for_bit(stages, souped, student):
    """PPO whose base model is the first fine-tuned one: steps, critic and policy are the same."""
    specs = stages(alpha=1.0)
    moved = {stage: replace(spec, output=spec.output + "_one") for stage, spec in specs.items()}
    run_stage(moved["soup"])
    limit = replace(moved["student"], inputs=specs["student"].inputs | {"soup": moved["soup"].output})
    run_stage(limit)
    ppo = student("ppo", hyperparameters=SHORT)
    base = Path(ppo.output).parent / "base"
    shutil.copytree(ppo.inputs["teacher"], base)
    shutil.copy(Path(souped["sft_1"].output) / "weights.safetensors", base)
    ppo = replace(ppo, inputs=ppo.inputs | {"teacher": str(base)})
    run_stage(ppo)
    found, expected = weights(limit), weights(ppo)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_control_is_the_mean_of_two_kls(stages, souped):
    module, batch = first_batch(
        replace(souped["student"], hyperparameters=stages(penalty="mean_kl")["student"].hyperparameters)
    )
    rollout = module.rollout(batch, 2)
    values = []
    for stage in STAGES[:2]:
        network = module.task.reference_network()
        network.load_base({n.removeprefix("network."): v for n, v in weights(souped[stage]).items()})
        values.append(token_log_probs(network(rollout.rows), rollout.rows))
    torch.testing.assert_close(rollout.reference, (values[0] + values[1]) / 2)


def test_training_raises_the_reward_and_all_references_are_told(souped):
    """At β 0.05, far beyond what fine-tuning has reached."""
    spec = replace(souped["student"], hyperparameters=souped["student"].hyperparameters | {"max_steps": 40})
    run_stage(spec)
    evaluation = evaluate_run(Path(spec.output))
    scores = evaluation.scores
    assert scores["expected_reward"] > evaluation.settings["reference_reward"] + 0.3
    assert scores["kl_to_first"] > 0.05
    assert scores["kl_to_soup"] > 0.05


def test_it_is_judged_by_the_soup_as_its_reference(souped):
    """Implicit reward β log π/π_soup, optimum π_soup·exp(r/β); of the mean of two KLs no optimum is told."""
    spec = replace(souped["student"], hyperparameters=souped["student"].hyperparameters | {"beta": 0.5})
    run_stage(spec)
    scores = evaluate_run(Path(spec.output)).scores
    _, _, task = build(spec)
    law = task.network_law(task.reference_network())
    law.network.load_base(task.weights("soup"))
    root = zarr.open_group(Path(spec.output) / "predictions.zarr", mode="r")
    table = torch.from_numpy(root["table"][...]).double()
    best = optimal_log_probs(law.table(), completion_rewards(task.texts), 0.5)
    assert scores["kl_to_optimum"] == pytest.approx(float(forward_kl(table, best).mean()), abs=1e-6)
    pairs = task._base().pairs["test"]
    ratios = [
        torch.from_numpy(root[f"pairs/{side}"][...])
        - law.log_probs(pairs.prompt, pairs.tokens[:, i], pairs.lengths[:, i])
        for i, side in enumerate(("chosen", "rejected"))
    ]
    assert scores["preference_nll"] == pytest.approx(float(dpo_loss(*ratios, 0.5).mean()), abs=1e-5)
    control = replace(spec, hyperparameters=spec.hyperparameters | {"penalty": "mean_kl"}, output=spec.output + "_mean")
    run_stage(control)
    scores = evaluate_run(Path(control.output)).scores
    assert "kl_to_optimum" not in scores
    assert "preference_nll" in scores


def test_adapters_are_merged_before_they_are_averaged(stages):
    specs = stages("lora", {"lora": LORA, "dtype": "float64"})
    for stage in STAGES[:3]:
        run_stage(specs[stage])
    module, batch = first_batch(specs["student"])
    rollout = module.rollout(batch, 1)
    merged = weights(specs["soup"])
    assert not any("lora" in name for name in merged)
    name = "network.model.transformer.h.0.attn.c_attn"
    states = [weights(specs[stage]) for stage in STAGES[:2]]
    inner = "network.model.base_model.model.transformer.h.0.attn.c_attn"
    both = [
        s[f"{inner}.base_layer.weight"]
        + 2.0 * (s[f"{inner}.lora_B.default.weight"] @ s[f"{inner}.lora_A.default.weight"]).T
        for s in states
    ]
    torch.testing.assert_close(merged[f"{name}.weight"], (both[0] + both[1]) / 2, rtol=0, atol=1e-12)
    module.training_step(batch, 0).backward()
    assert all(p.grad is None for p in module.parameters() if not p.requires_grad)
    assert torch.isfinite(rollout.reference).all()
