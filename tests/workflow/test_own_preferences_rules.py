"""A model of one's own is aligned on pairs of one's own by the workflow: from the file to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from relent.data.preference_files import trained_tokenizer, write_rows

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"prompt": f"number {n} is", "chosen": " good", "rejected": f" bad {n}"} for n in range(30)]


def write_model(folder: Path) -> None:
    """A small GPT-2 with a tokeniser of its own."""
    tokenizer = trained_tokenizer([row["prompt"] + row["chosen"] + row["rejected"] for row in ROWS], 290)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=290, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)


def test_a_users_model_and_pairs_go_through_the_workflow(project):
    write_model(project.folder / "model")
    write_rows(project.folder / "pairs.jsonl", ROWS)
    methods = project.folder / "config" / "methods" / "alignment"
    methods.mkdir()
    for name in ("sft", "dpo"):
        manifest = yaml.safe_load((ROOT / "config" / "methods" / "alignment" / f"{name}.yaml").read_text())
        project.write(f"config/methods/alignment/{name}.yaml", manifest | {"claims": []})
    task = yaml.safe_load((ROOT / "config" / "tasks" / "own_preferences.yaml").read_text())
    smoke, base = task["scales"]["smoke"], task["teachers"]["base"]
    shares = {"validation": 0.2, "test": 0.2}
    smoke["data"] = {"path": "pairs.jsonl", "tokenizer": "model", "prompt_length": 16, "length": 12, **shares}
    smoke["training"] |= {"max_steps": 60, "learning_rate": 0.01}
    smoke["model"] = {"path": "model"}
    base |= {"model": {"smoke": {"path": "model"}}, "training": {"smoke": {"max_steps": 0}}}
    project.write("config/tasks/own.yaml", task | {"name": "own", "sources": [], "scales": {"smoke": smoke}})
    comparisons = [{"task": "own", "methods": ["dpo"]}]
    project.write("config/config.yaml", {"scale": "smoke", "seeds": [0], "comparisons": comparisons})
    project.snakemake("--quiet", "all", "--", "results/own/comparison.json")
    run = project.folder / "results" / "own" / "dpo" / "default" / "smoke" / "seed0"
    scores = json.loads((run / "scores.json").read_text())["scores"]
    assert scores["preference_accuracy"] > 0.9
    assert scores["kl_to_reference"] > 0
    assert not project.planned("results/own/comparison.json")
    write_rows(project.folder / "pairs.jsonl", ROWS[:-1])
    jobs = project.planned("results/own/comparison.json")
    assert jobs["prepare"] == jobs["teacher"] == jobs["student"] == jobs["evaluate"] == 1
