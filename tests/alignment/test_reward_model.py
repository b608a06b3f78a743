from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zarr

from relent.errors import ConfigError
from relent.evaluate.run import evaluate_run
from relent.language.batches import TokenBatch, pad
from relent.language.exact import optimal_log_probs
from relent.manifest.catalogue import Run
from relent.manifest.models import Variant
from relent.methods.alignment.reward_model import bradley_terry_loss
from relent.models.causal_lm import build_causal_lm
from relent.models.reward_network import RewardNetwork
from relent.tasks.preference_alignment.data import read_base
from relent.tasks.preference_alignment.training import Task
from relent.train.stage import build, run_stage
from tiny_models import SIZES


@pytest.fixture(scope="module")
def reward_run(ratings_catalogue, base):
    """A trained reward model."""
    spec = ratings_catalogue.stage_spec(Run("ratings", "reward_model", "default", "smoke", 0))
    run_stage(replace(spec, hyperparameters=spec.hyperparameters | {"max_steps": 60}))
    return spec


@pytest.fixture(scope="module")
def reading(ratings_catalogue, reward_run):
    """The specification of a run whose variant reads the reward model."""
    dpo = ratings_catalogue.methods["dpo"]
    learned = dpo.model_copy(update={"variants": dpo.variants | {"learned": Variant(reads=["reward_model"])}})
    catalogue = replace(ratings_catalogue, methods=ratings_catalogue.methods | {"dpo": learned})
    return catalogue.stage_spec(Run("ratings", "dpo", "learned", "smoke", 0))


def test_the_rewards_of_all_preferences_are_found_again_up_to_a_constant_of_the_prompt():
    """With every pair of 6 completions of 3 prompts, weighed by the law, the minimum is the reward itself."""
    reward = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.sigmoid(reward[:, :, None] - reward[:, None])
    found = torch.zeros_like(reward).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [found], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        left, right = torch.broadcast_tensors(found[:, :, None], found[:, None])
        loss = (weight * bradley_terry_loss(left, right)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    centred = [values - values.mean(1, keepdim=True) for values in (found.detach(), reward)]
    torch.testing.assert_close(*centred, rtol=0, atol=1e-6)


def test_a_step_is_the_loss_of_the_rewards_at_the_last_tokens(module_in_float64, same_step):
    module, batch = module_in_float64("reward_model")
    rewards = []
    for side in ("chosen", "rejected"):
        rows = TokenBatch.from_tensors(batch, f"{side}_")
        hidden = module.network.body(rows).hidden
        rewards.append(torch.stack([module.network.head(h[n - 1])[0] for h, n in zip(hidden, rows.lengths)]))
    same_step(module, batch, bradley_terry_loss(*rewards).mean())


def test_a_reward_depends_on_no_padding(module_in_float64):
    network = module_in_float64("reward_model")[0].network
    prompts, completions = [[0, 1, 2], [0, 3]], [[2, 2, 0], [4]]
    found = [
        network(pad(prompts, completions, padding=padding, side=side, length=length))
        for padding, side, length in ((0, "right", 6), (3, "right", 11), (0, "left", 9))
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_rows_continued_by_every_token_have_the_rewards_of_whole_rows(architecture):
    body = build_causal_lm({"architecture": architecture, "config": SIZES[architecture], "dtype": "float64"}, 7, 8)
    network = RewardNetwork(body)
    ids = torch.randint(0, 7, (3, 4), generator=torch.Generator().manual_seed(0))
    found = network.continued(ids, torch.tensor([2, 5, 0]))
    rows = pad([[*row, token] for row in ids.tolist() for token in (2, 5, 0)], padding=0)
    torch.testing.assert_close(found, network(rows).view(3, 3), rtol=0, atol=1e-12)


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("reward_model")


def test_with_adapters_the_head_and_they_are_trained(module_in_float64):
    lora = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn"]}
    module, batch = module_in_float64("reward_model", lora=lora)
    module.training_step(batch, 0).backward()
    trained = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert {"network.head.weight", "network.head.bias"} < trained
    assert all(".lora_" in name or ".head." in name for name in trained)


def test_it_learns_to_rank_and_is_judged_as_the_optimal_policy_of_its_reward(reward_run):
    folder = Path(reward_run.output)
    assert evaluate_run(folder).scores["ranking_accuracy"] > 0.7
    task = Task(replace(reward_run, inputs=reward_run.inputs | {"reward_model": reward_run.output}))
    reward = task.learned_reward()
    reference = read_base(reward_run.inputs["teacher"], task.texts, table=True).table
    tokens, lengths = task.texts.space.sequences()
    prompts = task.texts.items("test").tolist()
    every = [reward(task.texts.completed([prompt] * len(tokens), tokens, lengths)) for prompt in prompts]
    expected = optimal_log_probs(reference, torch.stack(every), 1.0)
    root = zarr.open_group(folder / "predictions.zarr", mode="r")
    torch.testing.assert_close(torch.from_numpy(root["table"][...]), expected, rtol=0, atol=1e-5)
    pairs = task._base().pairs["test"]
    rows = [task.texts.completed(pairs.prompt.tolist(), pairs.tokens[:, s], pairs.lengths[:, s]) for s in range(2)]
    judged = [torch.from_numpy(root[f"pairs/{side}"][...]) for side in ("chosen", "rejected")]
    ratio = [log_probs - pairs.reference[:, side].double().sum(1) for side, log_probs in enumerate(judged)]
    torch.testing.assert_close(ratio[0] - ratio[1], reward(rows[0]) - reward(rows[1]), rtol=0, atol=1e-5)


def test_a_variant_reads_the_trained_reward_of_its_seed(reading, reward_run, ratings_catalogue):
    assert reading.inputs["reward_model"] == reward_run.output
    module, datamodule, task = build(reading)
    reward = task.learned_reward("reward_model")
    rows = TokenBatch.from_tensors(next(iter(datamodule.train_dataloader())), "chosen_")
    state = {f"network.{name}": values for name, values in reward.network.state_dict().items()}
    trained = task.weights("reward_model")
    assert all(torch.equal(values, trained[name.removeprefix("network.")]) for name, values in state.items())
    assert reward(rows).dtype == torch.float64
    assert reward(rows).shape == (len(rows),)
    assert not reward(rows).requires_grad
    module.learned = reward
    assert not any("learned" in name for name in module.state_dict())


def test_who_reads_no_reward_model_is_told_how(student):
    task = build(student())[2]
    with pytest.raises(ConfigError, match=r"reads: \[reward_model\]"):
        task.learned_reward()


def test_what_cannot_be_read_is_refused(ratings_catalogue):
    dpo = ratings_catalogue.methods["dpo"]
    for name, message in (("rewardmodel", "did you mean 'reward_model'"), ("dpo", "neither the method itself")):
        wrong = dpo.model_copy(update={"variants": {"default": Variant(reads=[name])}})
        with pytest.raises(ConfigError, match=message):
            ratings_catalogue._check_reads(wrong)


def test_the_head_is_drawn_with_the_stated_variance():
    body = build_causal_lm({"architecture": "gpt2", "config": {"n_layer": 1, "n_head": 2, "n_embd": 512}}, 16, 8)
    head = RewardNetwork(body).head
    assert float(head.weight.detach().std()) == pytest.approx(513**-0.5, rel=0.15)
    assert float(head.bias.detach()) == 0
