"""The whole way: base model, pairs, policies, resume, exact scores."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zarr
from lightning.pytorch import Callback
from safetensors.torch import load_file

from relent.compare.results import read_run
from relent.contract.check import check_method
from relent.errors import ConfigError, DataError
from relent.evaluate.run import evaluate_run
from relent.files import write_json
from relent.language.batches import TokenBatch
from relent.language.log_probs import sequence_log_probs
from relent.language.regulariser import Regulariser
from relent.manifest.catalogue import Run
from relent.tasks.preference_alignment.comparison import draw
from relent.tasks.preference_alignment.data import SIDES, read_base
from relent.tasks.preference_alignment.evaluation import evaluate, exact_scores, reference_and_rewards, sample_scores
from relent.tasks.preference_alignment.options import EvaluationOptions, Options
from relent.tasks.preference_alignment.training import Task, pair_tensors
from relent.train.stage import build, run_stage

FIRST = {"implicit_reward": "sft"}
"""Stage of a method whose last one reads others."""
OPTIONS = EvaluationOptions(beta=0.5)


@pytest.fixture(scope="module")
def task(trained) -> Task:
    return Task(trained)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_contract_is_kept(ratings_catalogue, method, tmp_path):
    results = check_method(ratings_catalogue, method, "ratings", tmp_path)
    failed = [f"{r.check}: {r.detail}" for r in results if r.outcome == "fail"]
    assert not failed
    assert sum(r.outcome == "pass" for r in results) >= 8


def test_pairs_differ_and_are_labelled_by_the_reward(task):
    pairs = task._base().pairs["train"]
    assert len(pairs) == 96
    assert ((pairs.tokens[:, 0] != pairs.tokens[:, 1]).any(1) | (pairs.lengths[:, 0] != pairs.lengths[:, 1])).all()
    difference = pairs.rewards[:, 0] - pairs.rewards[:, 1]
    expected = torch.sigmoid(difference.abs()).mean()
    assert abs(float((difference > 0).double().mean() - expected)) < 5 * 0.5 / 96**0.5
    for split, found in task._base().pairs.items():
        assert set(found.prompt.tolist()) <= set(task.texts.items(split).tolist())


def test_stored_log_probabilities_are_those_of_the_base_model(task):
    batch = pair_tensors(task.texts, task._base().pairs["train"])
    reference = task.reference_network()
    for side in SIDES:
        rows = TokenBatch.from_tensors(batch, f"{side}_")
        found = sequence_log_probs(reference(rows), rows)
        torch.testing.assert_close(batch[f"teacher_{side}"].sum(1), found, rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in reference.parameters())


def test_a_policy_starts_at_the_base_model(student):
    module, datamodule, _ = build(student())
    batch = next(iter(datamodule.train_dataloader()))
    chosen, rejected = module.pair(batch)
    assert float(chosen.log_ratio().abs().max()) < 1e-5
    assert float(rejected.log_ratio().abs().max()) < 1e-5


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_more_padding_changes_no_loss(student, method):
    module, datamodule, _ = build(
        replace(student(method), model_options=student().model_options | {"dtype": "float64"})
    )
    batch = next(iter(datamodule.train_dataloader()))
    rows = {name for name in batch if name.endswith(("_ids", "_attention", "_loss", "_segments", "_positions"))}
    rows |= {"teacher_chosen", "teacher_rejected"}
    wider = {n: torch.nn.functional.pad(v, (0, 3)) if n in rows else v for n, v in batch.items()}
    wider = {n: v if "prompt" not in n else batch[n] for n, v in wider.items()}
    first, second = (module.training_step(b, 0) for b in (batch, wider))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


class Dies(Callback):
    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == 6:
            raise KeyboardInterrupt


def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(student, trained):
    spec = student()
    with suppress(KeyboardInterrupt, SystemExit, Exception):
        run_stage(spec, callbacks=[Dies()])
    assert not (Path(spec.output) / "config.json").exists()
    run_stage(spec)
    first, second = (load_file(Path(s.output) / "weights.safetensors") for s in (trained, spec))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_scores_are_those_of_sums_over_all_completions(task, trained):
    folder = Path(trained.output)
    scores = evaluate_run(folder).scores
    table = torch.from_numpy(zarr.open_group(folder / "predictions.zarr", mode="r")["table"][...])
    base = read_base(trained.inputs["teacher"], task.texts, table=True)
    reference, rewards = reference_and_rewards(task.texts, base, trained.inputs["teacher"])
    probs = table.exp()
    torch.testing.assert_close(probs.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    weights = reference + rewards / 0.1
    optimum = weights - weights.logsumexp(1, keepdim=True)
    at_one = (reference + rewards).logsumexp(1)
    expected = {
        "objective": (probs * (rewards - table + reference)).sum(1).mean(),
        "regret": (probs * (table - reference - rewards + at_one[:, None])).sum(1).mean(),
        "expected_reward": (probs * rewards).sum(1).mean(),
        "kl_to_reference": (probs * (table - reference)).sum(1).mean(),
        "kl_from_reference": (reference.exp() * (reference - table)).sum(1).mean(),
        "kl_to_optimum": (probs * (table - optimum)).sum(1).mean(),
        "kl_from_optimum": (optimum.exp() * (optimum - table)).sum(1).mean(),
        "entropy": -(probs * table).sum(1).mean(),
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(float(value), abs=1e-6), name
    assert scores["frontier_gap"] >= -1e-9
    assert (folder / "figures" / "frontier.png").is_file()


def test_the_frontier_of_a_comparison_is_drawn(trained, tmp_path):
    evaluate_run(Path(trained.output))
    captions = draw([read_run(trained.output, label) for label in ("dpo", "dpo:beta_1")], tmp_path)
    assert captions.keys() == {path.name for path in tmp_path.iterdir()}


def test_the_optimum_itself_has_no_gap(task, trained):
    base = read_base(trained.inputs["teacher"], task.texts, table=True)
    reference, rewards = reference_and_rewards(task.texts, base, trained.inputs["teacher"])
    weights = reference + rewards / 0.5
    best = Regulariser(0.5).optimum(reference, rewards, task.texts.space)
    scores = exact_scores(weights - weights.logsumexp(1, keepdim=True), reference, rewards, best, OPTIONS)
    assert abs(scores["frontier_gap"]) < 1e-7
    assert abs(scores["kl_to_optimum"]) < 1e-9
    assert abs(scores["regret"]) < 1e-9


def test_estimates_from_samples_meet_the_exact_scores(task, student, trained):
    spec = student(evaluation_options={"exact": False, "samples": 1500})
    module, _, sampled = build(trained)
    sampled.spec = spec
    sampled.evaluation = sampled.evaluation.model_copy(update={"exact": False, "samples": 1500})
    state = load_file(Path(trained.output) / "weights.safetensors")
    module.load_state_dict(state)
    sampled.write_outputs(module.eval(), Path(spec.output))
    place = Path(spec.output) / "predictions.zarr"
    estimates, errors = sample_scores(zarr.open_group(place, mode="r"), place, 1.0)
    write_json(Path(spec.output) / "config.json", {})
    evaluation = evaluate(spec, Path(spec.output))
    assert {name: evaluation.scores[name] for name in estimates} == estimates
    assert evaluation.tables["standard_errors"] == [errors]
    exact = evaluate_run(Path(trained.output)).scores
    for name, value in estimates.items():
        assert abs(value - exact[name]) < 5 * errors[name] + 1e-6, name


def test_adapters_are_trained_alone_and_the_base_model_is_their_reference(student, task):
    lora = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn", "c_fc"]}
    spec = student(model_options=student().model_options | {"lora": lora})
    run_stage(spec)
    module, datamodule, _ = build(spec)
    module.load_state_dict(load_file(Path(spec.output) / "weights.safetensors"))
    batch = next(iter(datamodule.train_dataloader()))
    rows = TokenBatch.from_tensors(batch, "chosen_")
    with module.network.reference():
        reference = sequence_log_probs(module.network(rows), rows)
    torch.testing.assert_close(batch["teacher_chosen"].sum(1), reference, rtol=0, atol=1e-5)
    policy = sequence_log_probs(module.network(rows), rows)
    assert float((policy - reference).abs().max()) > 1e-4
    assert all(".lora_" in name for name, p in module.named_parameters() if p.requires_grad)


def test_outputs_of_other_data_are_refused(task, trained, tmp_path):
    other = replace(task.texts, checksum="other")
    with pytest.raises(DataError, match="another data set"):
        read_base(trained.inputs["teacher"], other)
    with pytest.raises(DataError, match="train the base model first"):
        read_base(tmp_path, task.texts)


def test_a_policy_of_another_size_than_the_base_model_is_refused(student):
    wider = {"architecture": "gpt2", "config": {"n_layer": 1, "n_head": 2, "n_embd": 24}}
    with pytest.raises(ValueError, match="another network"):
        build(student(model_options=wider))


def test_a_space_too_large_to_enumerate_is_refused_before_any_job():
    data = {"vocabulary": 1000, "length": 4}
    model = {"architecture": "gpt2"}
    with pytest.raises(ValueError, match="too many to enumerate"):
        Options(data=data, model=model, evaluation={})
    Options(data=data, model=model, evaluation={"exact": False})


def test_an_unknown_architecture_or_setting_is_named(student):
    with pytest.raises(ConfigError, match="no_such"):
        build(student(model_options={"architecture": "no_such"}))
    with pytest.raises(ConfigError, match="no setting 'layers'"):
        build(student(model_options={"architecture": "gpt2", "config": {"layers": 2}}))


def test_a_model_with_other_tokens_is_refused(student, task, tmp_path):
    build(student())[0].network.model.save_pretrained(tmp_path / "model")
    options = {"path": str(tmp_path / "model")}
    with pytest.raises(ConfigError, match="another tokeniser"):
        build(student(model_options=options))
    shutil.copy(Path(student().inputs["data"]) / "tokenizer.json", tmp_path / "model")
    build(student(model_options=options))


@pytest.mark.slow
def test_two_processes_that_share_the_weights_end_where_one_does(student):
    found = []
    for name, sharing in (("one", {}), ("two", {"devices": 2, "strategy": "fsdp"})):
        spec = student("dpo", name, hyperparameters={"max_steps": 4})
        options = spec.model_options | {"dtype": "float64"}
        run_stage(replace(spec, model_options=options, execution=spec.execution | sharing))
        found.append(load_file(Path(spec.output) / "weights.safetensors"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("method", "hyperparameters", "expected"),
    [
        ("sft", {}, None),
        ("dpo", {}, ("reverse_kl", "reference")),
        ("reinforce_kl", {}, ("reverse_kl", "reference")),
        ("f_dpo", {"divergence": "forward_kl"}, ("forward_kl", "reference")),
        ("f_dpg", {"divergence": "total_variation"}, ("total_variation", "target")),
        ("f_dpg", {"divergence": "reverse_kl"}, ("reverse_kl", "reference")),
        ("rl_kl_bayes", {}, ("reverse_kl", "reference")),
        ("rl_kl_bayes", {"objective": "forward_kl"}, ("forward_kl", "target")),
        ("rl_kl_bayes", {"objective": "reward"}, None),
        ("tdpo", {}, ("forward_kl", "tokens")),
        ("sparsepo", {}, ("forward_kl", "tokens")),
        ("dpo_kernels", {"divergence": "hellinger"}, ("squared_hellinger", "tokens")),
        ("superhf", {"direction": "reverse"}, ("reverse_kl", "tokens")),
        ("superhf", {"kl_weight": 0.0}, None),
        ("implicit_reward", {"divergence": "pearson_chi2"}, ("neyman_chi2", "demonstrations")),
        ("implicit_reward", {"divergence": "reverse_kl"}, ("reverse_kl", "demonstrations")),
        ("implicit_reward", {}, ("reverse_kl", "reference")),
    ],
)
def test_a_method_says_the_divergence_of_its_objective(ratings_catalogue, base, method, hyperparameters, expected):
    spec = ratings_catalogue.stage_spec(Run("ratings", method, "default", "smoke", 0), FIRST.get(method))
    module, _, _ = build(replace(spec, hyperparameters=spec.hyperparameters | hyperparameters))
    assert module.objective_divergence() == expected
