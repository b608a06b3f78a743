"""Pairs of the user's own, from the file to the scores: with a small model from scratch, and with the user's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
import zarr
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from relent.contract.check import check_method
from relent.data.preference_files import prepare, trained_tokenizer, write_rows
from relent.errors import ConfigError
from relent.evaluate.run import evaluate_run
from relent.language.batches import TokenBatch
from relent.language.log_probs import token_log_probs
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.runspec import RunSpec
from relent.tasks.preference_alignment.data import SIDES
from relent.tasks.preference_alignment.options import Options
from relent.tasks.preference_alignment.training import Task, pair_tensors
from relent.train.stage import build, run_stage

ROOT = Path(__file__).resolve().parents[2]
TOPICS = ("film", "book", "song", "play", "meal", "trip", "game", "shop")
ROWS = [
    {"prompt": f"The {topic} no {n} was", "chosen": " good" + " indeed" * (n % 3), "rejected": " bad" + " again" * n}
    for topic in TOPICS
    for n in range(4)
]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"


def as_messages(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    return {column: [{"role": "user", "content": text}] for column, text in row.items()}


@pytest.fixture(scope="module")
def catalogue_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Catalogue]:
    """Give a function that makes a task of a file of pairs, prepared, with models of its own."""
    root = tmp_path_factory.mktemp("own")
    methods = root / "config" / "methods" / "alignment"
    methods.mkdir(parents=True)
    (root / "config" / "tasks").mkdir()
    for name in ("sft", "dpo", "reward_model"):
        manifest = yaml.safe_load((ROOT / "config" / "methods" / "alignment" / f"{name}.yaml").read_text())
        (methods / f"{name}.yaml").write_text(yaml.safe_dump(manifest | {"claims": []}, sort_keys=False))

    def make(name: str, rows: list[Any], data: dict[str, Any], base: Any = None, policy: Any = None) -> Catalogue:
        path = root / f"{name}.jsonl"
        write_rows(path, rows)
        task = yaml.safe_load((ROOT / "config" / "tasks" / "own_preferences.yaml").read_text())
        smoke, teacher = task["scales"]["smoke"], task["teachers"]["base"]
        sizes = {"prompt_length": 24, "length": 20, "validation": 0.2, "test": 0.2, "row": 64}
        smoke["data"] = {"path": str(path)} | sizes | data
        smoke["model"] = policy or smoke["model"]
        teacher["model"] = {"smoke": base or teacher["model"]["smoke"]}
        teacher["training"] = {"smoke": {"max_steps": 0} if base else {"max_steps": 30, "learning_rate": 0.01}}
        task |= {"name": name, "sources": [], "scales": {"smoke": smoke}}
        (root / "config" / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
        layout = Layout(f"{root}/data", f"{root}/teachers", f"{root}/results")
        out = Path(layout.dataset(name, "smoke"))
        if not out.is_dir():
            out.mkdir(parents=True)
            prepare({}, out, smoke["data"])
        return Catalogue.load(root / "config", layout=layout)

    return make


@pytest.fixture(scope="module")
def small(catalogue_of: Callable[..., Catalogue]) -> Catalogue:
    """Pairs with a tokeniser that is trained on them, and their base model."""
    catalogue = catalogue_of("small", ROWS, {"vocabulary": 300})
    run_stage(catalogue.teacher_spec("small", "base", "smoke"))
    return catalogue


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's model: a folder with weights, more logits than tokens, and a tokeniser with a chat template."""
    place = tmp_path_factory.mktemp("model")
    tokenizer = trained_tokenizer([row["prompt"] + row[side] for row in ROWS for side in SIDES], 320)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(place)
    write_model(place, logits=328)
    return place


def write_model(folder: Path, logits: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=logits,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def run(catalogue: Catalogue, task: str, method: str, **hyperparameters: Any) -> RunSpec:
    spec = catalogue.stage_spec(Run(task, method, "default", "smoke", 0))
    spec = replace(spec, hyperparameters=spec.hyperparameters | hyperparameters)
    run_stage(spec)
    return spec


def test_stored_log_probabilities_are_those_of_the_base_model(small):
    task = Task(small.stage_spec(Run("small", "dpo", "default", "smoke", 0)))
    reference = task.reference_network()
    for split in ("train", "test"):
        batch = pair_tensors(task.texts, task._base().pairs[split])
        for side in SIDES:
            rows = TokenBatch.from_tensors(batch, f"{side}_")
            found = token_log_probs(reference(rows), rows)
            torch.testing.assert_close(batch[f"teacher_{side}"], found, rtol=0, atol=1e-5)


def test_a_batch_is_no_wider_than_its_longest_row_and_tells_no_reward(small):
    module, datamodule, _ = build(small.stage_spec(Run("small", "dpo", "default", "smoke", 0)))
    batch = next(iter(datamodule.train_dataloader()))
    assert "rewards" not in batch
    for name in ("prompt", *SIDES):
        assert int(batch[f"{name}_attention"].sum(1).max()) == batch[f"{name}_ids"].shape[1]
    chosen, rejected = module.pair(batch)
    for side in (chosen, rejected):
        assert float(side.log_ratio().detach().abs().max()) < 1e-5
    one = datamodule.train.__getitems__([3])
    assert one["chosen_ids"].shape[1] == int(one["chosen_attention"].sum())


def test_dpo_learns_what_is_preferred_and_is_scored_without_a_reward(small):
    spec = run(small, "small", "dpo", max_steps=60, learning_rate=0.01)
    evaluation = evaluate_run(Path(spec.output))
    scores = evaluation.scores
    assert scores["preference_accuracy"] > 0.9
    assert scores["preference_nll"] < 0.5
    assert scores["kl_to_reference"] > 0
    assert {"preference_ece", "entropy", "training_seconds"} <= scores.keys()
    assert not {"objective", "expected_reward", "ranking_accuracy"} & scores.keys()
    assert evaluation.tables["standard_errors"][0]["kl_to_reference"] > 0


def test_a_reward_model_learns_it_too_and_has_no_samples(small):
    spec = run(small, "small", "reward_model", max_steps=60, learning_rate=0.01)
    scores = evaluate_run(Path(spec.output)).scores
    assert scores["preference_accuracy"] > 0.9
    assert "kl_to_reference" not in scores
    assert "samples" not in zarr.open_group(Path(spec.output) / "predictions.zarr", mode="r")


def test_the_contract_is_kept(small, tmp_path):
    failed = [f"{r.check}: {r.detail}" for r in check_method(small, "dpo", "small", tmp_path) if r.outcome == "fail"]
    assert not failed


def test_there_is_no_exact_reward_and_who_asks_the_data_is_told_what_can_be_done(small):
    task = Task(small.stage_spec(Run("small", "dpo", "default", "smoke", 0)))
    assert task.reward is None
    rows = TokenBatch.from_tensors(pair_tensors(task.texts, task._base().pairs["test"]), "chosen_")
    with pytest.raises(ConfigError, match="no exact reward; choose methods that learn from pairs"):
        task.texts.reward(rows)


def test_a_model_of_ones_own_is_aligned_by_its_adapter_on_messages(catalogue_of, folder):
    """Without training its base stage has the weights of the folder; the policy is the base model and an adapter."""
    base = {"path": str(folder)}
    policy = base | {"lora": {"rank": 2, "alpha": 4.0, "target_modules": "all-linear"}}
    catalogue = catalogue_of("mine", [as_messages(row) for row in ROWS], {"tokenizer": str(folder)}, base, policy)
    teacher = catalogue.teacher_spec("mine", "base", "smoke")
    run_stage(teacher)
    stored = load_file(Path(teacher.output) / "weights.safetensors")
    given = LlamaForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(stored[f"network.model.{name}"], values) for name, values in given.items())
    spec = run(catalogue, "mine", "dpo", max_steps=80, learning_rate=0.03)
    scores = evaluate_run(Path(spec.output)).scores
    assert scores["preference_accuracy"] > 0.9
    module = build(spec)[0]
    assert all(".lora_" in name for name, p in module.named_parameters() if p.requires_grad)


def test_a_model_with_other_tokens_or_too_few_places_or_logits_is_refused(catalogue_of, small, folder, tmp_path):
    spec = small.teacher_spec("small", "base", "smoke")
    with pytest.raises(ConfigError, match=r"model.path: .*another tokeniser .* set data.tokenizer to the model"):
        Task(replace(spec, model_options={"path": str(folder)})).network()
    catalogue = catalogue_of("long", ROWS, {"tokenizer": str(folder), "prompt_length": 60}, {"path": str(folder)})
    with pytest.raises(ConfigError, match="has 64 places, and prompts and completions have up to 80 tokens"):
        Task(catalogue.teacher_spec("long", "base", "smoke")).network()
    shutil.copytree(folder, tmp_path / "narrow")
    write_model(tmp_path / "narrow", logits=300)
    narrow = replace(catalogue.teacher_spec("long", "base", "smoke"), model_options={"path": str(tmp_path / "narrow")})
    with pytest.raises(ConfigError, match="has 300 logits for 312 tokens; resize its embeddings"):
        Task(narrow).network()


def test_an_exact_evaluation_is_refused_before_any_job():
    options = Options.of("relent.data.preference_files")
    parts = {"data": {"path": "pairs.jsonl", "vocabulary": 300}, "model": {"architecture": "gpt2"}}
    with pytest.raises(ValueError, match=r"set evaluation.exact to false"):
        options(**parts, evaluation={})
    options(**parts, evaluation={"exact": False})
