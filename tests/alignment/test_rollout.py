"""What on-policy methods share: what is drawn, from what, and how it is scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from relent.errors import ConfigError
from relent.language.exact import expected_reward
from relent.language.log_probs import sequence_log_probs
from relent.manifest.catalogue import Run
from relent.methods.alignment.rollout import OnPolicyMethod
from relent.train.sharding import Sharded
from relent.train.stage import build, run_stage

LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn", "c_fc"]}


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.fixture
def moved(module_in_float64) -> tuple[OnPolicyMethod, dict[str, Tensor]]:
    return module_in_float64("reinforce_kl")


def test_completions_of_a_prompt_stand_together_and_are_scored(moved):
    module, batch = moved
    rollout = module.rollout(batch, 3)
    size = len(batch["prompt"])
    assert torch.equal(rollout.prompts, batch["prompt"].repeat_interleave(3))
    assert rollout.grouped(rollout.rewards).shape == (size, 3)
    same(rollout.rewards, module.task.reward(rollout.rows))
    reference = module.task.reference_network()
    same(rollout.reference.sum(1), sequence_log_probs(reference(rollout.rows), rollout.rows))
    same(rollout.sampled, module.completions(rollout).policy.detach())
    assert not rollout.reference[~rollout.rows.loss].any()


def test_micro_batches_and_processes_draw_what_the_whole_batch_does(moved):
    module, batch = moved
    whole = module.rollout(batch, 2)
    parts = [{name: values[part::2] for name, values in batch.items()} for part in range(2)]
    found = [module.draw(p, module.seeds("policy", range(k, len(batch["prompt"]), 2), 2)) for k, p in enumerate(parts)]
    for k, part in enumerate(found):
        assert torch.equal(part.rows.ids, whole.rows.ids.unflatten(0, (-1, 2))[k::2].flatten(0, 1))
    half = len(batch["prompt"]) // 2
    module.micro_batch = 1
    later = module.rollout({name: values[half:] for name, values in batch.items()}, 2)
    assert torch.equal(later.rows.ids, whole.rows.ids[2 * half :])


def test_other_steps_and_purposes_draw_otherwise(moved):
    module, batch = moved
    ids = [module.draw(batch, module.seeds(what, range(len(batch["prompt"])), 1)).rows.ids for what in ("a", "b", "a")]
    assert torch.equal(ids[0], ids[2])
    assert not torch.equal(ids[0], ids[1])


def test_the_reference_can_be_sampled_from(moved):
    module, batch = moved
    rollout = module.rollout(batch, 2, of="reference")
    same(rollout.sampled, rollout.reference)
    assert float(module.completions(rollout).log_ratio().detach().abs().max()) > 1e-3


def test_samples_follow_the_exact_law(moved, one_prompt):
    """Mean reward of 3,200 completions of one prompt, against the sum over all completions."""
    module, _ = moved
    known = one_prompt(module, 64)
    rewards = module.rollout(known.batch, 50).rewards
    table = sequence_log_probs(module.network(known.rows), known.rows).detach()
    exact = expected_reward(table, known.rewards)
    assert abs(float(rewards.mean() - exact)) < 5 * float(rewards.std()) / len(rewards) ** 0.5


def test_an_adapter_switched_off_is_the_reference(module_in_float64, moved):
    module, batch = module_in_float64("reinforce_kl", lora=LORA)
    rollout = module.rollout(batch, 2)
    same(rollout.reference, moved[0].reference_log_probs(rollout.rows))
    module.training_step(batch, 0).backward()
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(p.grad is None for p in frozen.values())


def test_the_reference_is_no_part_of_the_method(moved):
    module, batch = moved
    module.training_step(batch, 0).backward()
    (reference,) = module._reference
    assert all(p.grad is None and not p.requires_grad for p in reference.parameters())
    assert len(list(module.parameters())) == len(list(module.network.parameters()))
    assert all(name.startswith("network.") for name in module.state_dict())


def test_recomputed_activations_do_not_hinder_sampling(student):
    options = student("reinforce_kl").model_options
    spec = student("reinforce_kl", model_options=options | {"checkpoint_activations": True})
    module, datamodule, _ = build(spec)
    batch = next(iter(datamodule.train_dataloader()))
    plain, _, _ = build(student("reinforce_kl"))
    assert torch.equal(module.train().rollout(batch, 2).rows.ids, plain.rollout(batch, 2).rows.ids)
    assert module.network.training


def test_shards_of_weights_are_refused(student, monkeypatch):
    module, _, _ = build(student("reinforce_kl"))
    monkeypatch.setattr(type(module), "trainer", type("", (), {"strategy": Sharded(2)}))
    with pytest.raises(ConfigError, match=r"ratings: scales.smoke.execution.strategy.*auto or ddp"):
        module.configure_model()


def test_validation_tells_reward_and_kl(student):
    spec = student("reinforce_kl", hyperparameters={"max_steps": 2})
    run_stage(spec)
    lines = Path(spec.output, "metrics.csv").read_text()
    assert "validation/reward" in lines
    assert "validation/kl" in lines
    assert "rollout/entropy" in lines


@pytest.mark.slow
def test_two_processes_end_where_one_does(student):
    found = []
    for name, sharing in (("one", {}), ("two", {"devices": 2, "strategy": "ddp"})):
        spec = student("reinforce_kl", name, hyperparameters={"max_steps": 4})
        spec = replace(spec, model_options=spec.model_options | {"dtype": "float64"})
        run_stage(replace(spec, execution=spec.execution | sharing))
        found.append(load_file(f"{spec.output}/weights.safetensors"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("method", ["reinforce_kl", "superhf"])
def test_a_variant_that_reads_a_reward_model_is_scored_by_it(ratings_catalogue, base, tmp_path, method):
    def spec(method: str, variant: str):
        return replace(
            ratings_catalogue.stage_spec(Run("ratings", method, variant, "smoke", 0)), output=str(tmp_path / method)
        )

    reward_model = spec("reward_model", "default")
    run_stage(reward_model)
    reader = spec(method, "learned")
    module, datamodule, _ = build(replace(reader, inputs=reader.inputs | {"reward_model": reward_model.output}))
    rollout = module.rollout(next(iter(datamodule.train_dataloader())), 2)
    torch.testing.assert_close(rollout.rewards, module.task.learned_reward()(rollout.rows).float())
    assert not torch.allclose(rollout.rewards, module.task.reward(rollout.rows).float())


def test_data_without_a_reward_need_a_reward_model(moved, monkeypatch):
    module, _ = moved
    monkeypatch.setattr(type(module.task), "reward", None)
    with pytest.raises(ConfigError, match=r"reinforce_kl: variants.default.reads.*no reward; .*`learned`"):
        module.find_reward()
