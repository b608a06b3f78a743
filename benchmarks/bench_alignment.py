"""Our DPO and our sampling against TRL's and transformers', on one small model, data and machine.

    python benchmarks/bench_alignment.py [--small] [--rounds 3] [--threads 1]

A folder with a GPT-2 of random weights and its tokeniser, and a file of pairs, are what both get: our workflow's stages
(`prepare`, base model, DPO) and TRL's `DPOTrainer`. Timed are a training from its first batch to its last, the pass
that computes the reference's log-probabilities, and the sampling of a batch of completions; reading, tokenising and the
start of a process are not. Every contender runs in a process of its own; rounds go through all of them in turn, ratios
are taken within a round to the first row of a table, and the tables show medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from common import ROOT, Row, environment, mark_stage, print_rows, timed, write_rows

TASK = "bench_pairs"
STEP = "A DPO training"
REFERENCE = "The reference's log-probabilities, once"
SAMPLING = "Sampling completions"
# name: (group, what it is). Ratios are within a group, to its first member.
CONTENDERS = {
    "relent": (STEP, "our training job; the reference is read from the store"),
    "TRL": (STEP, "DPOTrainer, precompute_ref_log_probs=True"),
    "relent, reference each step": (STEP, "the same job, but the reference runs on every batch"),
    "TRL, reference each step": (STEP, "DPOTrainer as it is by default"),
    "relent, storing": (REFERENCE, "all pairs, with writing the store"),
    "TRL, storing": (REFERENCE, "the training pairs, with writing its data set"),
    "relent, sampling": (SAMPLING, "relent.language.generate: every row from a seed of its own, two log-probabilities"),
    "transformers": (SAMPLING, "model.generate as TRL calls it: sampling, no log-probabilities"),
    "transformers, scores": (SAMPLING, "the same, and the scores of every step are kept"),
}
VOCABULARY, PROMPT_WORDS, COMPLETION_WORDS = 1000, 24, (8, 64)
BETA, RATE = 0.1, 1e-4


@dataclass(frozen=True)
class Size:
    """How much is done."""

    layers: int
    width: int
    pairs: int
    batch: int
    steps: int
    prompts: int
    new_tokens: int


SIZES = {
    "full": Size(layers=4, width=256, pairs=640, batch=16, steps=60, prompts=64, new_tokens=96),
    "small": Size(layers=1, width=32, pairs=80, batch=8, steps=4, prompts=4, new_tokens=8),
}


# ------------------------------------------------------------------------------------------------ what both get


def texts_of(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of random words, completions of many lengths."""
    import numpy as np

    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 7))) for _ in range(400)]

    def text(length: int) -> str:
        return "".join(f" {word}" for word in rng.choice(words, length))

    lengths = rng.integers(*COMPLETION_WORDS, size=(count, 2))
    return [
        {"prompt": text(PROMPT_WORDS).strip(), "chosen": text(chosen), "rejected": text(rejected)}
        for chosen, rejected in lengths
    ]


def make(folder: Path, size: Size) -> None:
    """In a worker: the model's folder, the file of pairs, the prepared data and the task's manifest."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from relent.data.preference_files import COLUMNS, prepare, trained_tokenizer, write_rows

    rows = texts_of(size.pairs)
    write_rows(folder / "pairs.jsonl", rows)
    tokenizer = trained_tokenizer([row[column] for row in rows for column in COLUMNS], VOCABULARY)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=1024,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    manifest = task_manifest(folder, size)
    write_manifest(folder / "config" / "tasks" / f"{TASK}.yaml", manifest)
    for name in ("sft", "dpo"):
        method = yaml.safe_load((ROOT / "config" / "methods" / "alignment" / f"{name}.yaml").read_text())
        write_manifest(folder / "config" / "methods" / "alignment" / f"{name}.yaml", method | {"claims": []})
    out = folder / "data" / TASK / "smoke"
    out.mkdir(parents=True)
    prepare({}, out, manifest["scales"]["smoke"]["data"])


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))


def task_manifest(folder: Path, size: Size) -> dict[str, Any]:
    """`own_preferences` with the file and the model, and nothing held out but what must be."""
    manifest = yaml.safe_load((ROOT / "config" / "tasks" / "own_preferences.yaml").read_text())
    path = str(folder / "model")
    scale = manifest["scales"]["smoke"] | {
        "data": {
            "path": str(folder / "pairs.jsonl"),
            "tokenizer": path,
            "prompt_length": 256,
            "length": 256,
            "validation": 2 / size.pairs,
            "test": 2 / size.pairs,
        },
        "model": {"path": path},
        "training": {
            "max_steps": size.steps,
            "batch_size": size.batch,
            "learning_rate": RATE,
            "weight_decay": 0.0,
            "schedule": "constant",
            "checkpoint_every": size.steps,
        },
        "evaluation": {"exact": False, "samples": 2},
    }
    base = {"method": "sft", "model": {"smoke": {"path": path}}, "training": {"smoke": {"max_steps": 0}}}
    return manifest | {"name": TASK, "sources": [], "teachers": {"base": base}, "scales": {"smoke": scale}}


# ---------------------------------------------------------------------------------------------------- ours


def spec_of(folder: Path, role: str) -> Any:
    """Specification of the base model's stage, or of DPO."""
    from relent.manifest.catalogue import Catalogue, Run
    from relent.manifest.paths import Layout

    layout = Layout(*(str(folder / name) for name in ("data", "teachers", "results")))
    catalogue = Catalogue.load(folder / "config", [], layout)
    if role == "teacher":
        return catalogue.teacher_spec(TASK, "base", "smoke")
    return catalogue.stage_spec(Run(TASK, "dpo", "default", "smoke", 0))


def our_stage(folder: Path, role: str, first: str, last: str, threads: int) -> Row:
    """One of our stages between two marks of `common.mark_stage`, its output in a folder of its own."""
    import relent.train.stage as stage

    spec = spec_of(folder, role)
    marks: dict[str, tuple[float, float]] = {}
    mark_stage(marks)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = spec.output if role == "teacher" else f"{scratch}/run"
        stage.run_stage(replace(spec, output=output), threads=threads)
    (began, began_cpu), (end, end_cpu) = marks[first], marks[last]
    return {"seconds": end - began, "cpu_seconds": end_cpu - began_cpu}


def recompute_reference() -> None:
    """Let DPO ask the reference on every batch, as a trainer without a store does."""
    import torch

    from relent.language.batches import TokenBatch, concatenate
    from relent.language.log_probs import token_log_probs
    from relent.methods.alignment.dpo import DPO

    stored = DPO.pair
    networks: list[Any] = []

    def pair(self: Any, batch: dict[str, Any]) -> Any:
        networks[:] = networks or [self.task.reference_network()]
        both = [TokenBatch.from_tensors(batch, f"{side}_") for side in ("chosen", "rejected")]
        rows = concatenate(both, padding=0)
        with torch.no_grad():
            values = token_log_probs(networks[0](rows), rows).chunk(2)
        fresh = {f"teacher_{s}": v[:, : b.ids.shape[1]] for s, v, b in zip(("chosen", "rejected"), values, both)}
        return stored(self, batch | fresh)

    DPO.pair = pair  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------------- the peers


def trl_trainer(folder: Path, scratch: str, size: Size, stored: bool) -> Any:
    """TRL's trainer on the same file, model and recipe; what it would write is left out."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    pairs = load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=scratch)
    settings = DPOConfig(
        output_dir=scratch,
        per_device_train_batch_size=size.batch,
        max_steps=size.steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        beta=BETA,
        precompute_ref_log_probs=stored,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_steps=max(1, size.steps // 100),
        report_to="none",
        disable_tqdm=True,
    )
    return DPOTrainer(model=str(folder / "model"), args=settings, train_dataset=pairs)


def clocked(function: Any, times: list[tuple[float, float]]) -> Any:
    """The function, with its wall and processor seconds kept."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        began, began_cpu = time.perf_counter(), time.process_time()
        result = function(*args, **kwargs)
        times.append((time.perf_counter() - began, time.process_time() - began_cpu))
        return result

    return wrapped


def trl(folder: Path, size: Size, what: str) -> Row:
    """A training of TRL's, or its pass over the reference."""
    from trl import DPOTrainer

    times: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if what == "storing":
            DPOTrainer._precompute_ref_logps = clocked(DPOTrainer._precompute_ref_logps, times)  # type: ignore[method-assign]
            trl_trainer(folder, scratch, size, stored=True)
        else:
            trainer = trl_trainer(folder, scratch, size, stored=what == "stored")
            clocked(trainer.train, times)()
    return {"seconds": times[0][0], "cpu_seconds": times[0][1]}


def sampled(folder: Path, size: Size, contender: str) -> Row:
    """One batch of completions, all of the same length, after one that warms up."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from relent.language.batches import pad
    from relent.language.generation import generate
    from relent.models.causal_lm import build_causal_lm

    path = str(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompts = pad([tokenizer(row["prompt"])["input_ids"] for row in texts_of(size.prompts)], padding=0, side="left")
    count = size.new_tokens
    if contender.startswith("relent"):
        network = build_causal_lm({"path": path}).eval()
        seeds = list(range(size.prompts))

        def sample() -> Any:
            return generate(network, prompts, max_new_tokens=count, end=None, padding=0, seeds=seeds)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
        scores = {"output_scores": True, "return_dict_in_generate": True} if "scores" in contender else {}
        settings = GenerationConfig(
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
            eos_token_id=0,
            **scores,
        )

        def sample() -> Any:
            with torch.no_grad():
                return model.generate(prompts.ids, attention_mask=prompts.attention.long(), generation_config=settings)

    times: list[tuple[float, float]] = []
    for _ in range(2):
        clocked(sample, times)()
    return {"seconds": times[1][0], "cpu_seconds": times[1][1]}


# ---------------------------------------------------------------------------------------------------- measuring


def contend(name: str, folder: Path, threads: int, size: Size) -> Row:
    """In a worker: one contender's work."""
    import torch

    torch.set_num_threads(threads)
    if name == "make":
        make(folder, size)
        return {}
    if CONTENDERS[name][0] == SAMPLING:
        return sampled(folder, size, name)
    if name.startswith("TRL"):
        return trl(folder, size, "storing" if "storing" in name else "fresh" if "each step" in name else "stored")
    if name == "relent, storing":
        return our_stage(folder, "teacher", "write", "written", threads)
    if "each step" in name:
        recompute_reference()
    return our_stage(folder, "student", "train", "write", threads)


def spawn(folder: Path, name: str, threads: int, small: bool) -> Row:
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder), "--threads", str(threads)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "TRANSFORMERS_VERBOSITY": "error"}
    done = timed([*command, *(["--small"] if small else [])], env=environment(threads, **offline))
    return json.loads(done.stdout.splitlines()[-1]) | {"peak_mb": done.peak_mb}


def measure(folder: Path, small: bool, rounds: int, threads: int) -> list[Row]:
    """Rows of all contenders: medians over rounds, and ratios within one."""
    size = SIZES["small" if small else "full"]
    spawn(folder, "make", threads, small)
    # The store is written by our base stage: it comes first in every round.
    order = sorted(CONTENDERS, key=lambda name: CONTENDERS[name][0] != REFERENCE)
    samples = [{name: spawn(folder, name, threads, small) for name in order} for _ in range(rounds)]
    done = {
        STEP: ("pairs_per_second", size.steps * size.batch),
        REFERENCE: ("pairs_per_second", size.pairs),
        SAMPLING: ("tokens_per_second", size.prompts * size.new_tokens),
    }
    rows = []
    for name, (group, words) in CONTENDERS.items():
        first = next(other for other, (its_group, _) in CONTENDERS.items() if its_group == group)
        row: Row = {"name": group, "contender": name, "variant": words}
        for key in ("seconds", "cpu_seconds", "peak_mb"):
            row[key] = statistics.median(sample[name][key] for sample in samples)
            row[f"{key}_ratio"] = statistics.median(sample[name][key] / sample[first][key] for sample in samples)
        rate, amount = done[group]
        rows.append(row | {rate: amount / row["seconds"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model, few steps, one round; replaces no results")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        size = SIZES["small" if options.small else "full"]
        print(json.dumps(contend(options.worker, options.folder, options.threads, size)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.small, 1 if options.small else options.rounds, options.threads)
    print_rows(rows, ("name", "contender", "seconds", "seconds_ratio", "cpu_seconds_ratio", "peak_mb"))
    write_rows("alignment", rows, options.small, options.threads)


if __name__ == "__main__":
    main()
