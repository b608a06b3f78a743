"""Our DPO and our sampling against TRL's and transformers', on one small model, data and machine.

    python benchmarks/bench_alignment.py [--small] [--only speed|memory] [--rounds 3] [--threads 1]

A folder with a network of random weights and its tokeniser, and a file of pairs, are what both get: our workflow's
stages (`prepare`, base model, DPO) and TRL's `DPOTrainer`. Timed are a training from its first batch to its last, the
pass that computes the reference's log-probabilities, and the sampling of a batch of completions, all with a small
GPT-2; reading, tokenising and the start of a process are not. Memory is that of two steps with Qwen2's network of half
a billion parameters. Every contender has a process of its own that ends with what is measured; rounds go through all
of them in turn (the large network: one round), ratios are taken within a round to the first row of a table, and the
tables show medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from common import ROOT, Row, environment, mark_stage, print_rows, results_path, timed, write_rows

TASK = "bench_pairs"
STEP = "A DPO training"
REFERENCE = "The reference's log-probabilities, once"
SAMPLING = "Sampling completions"
MEMORY = "DPO of half a billion parameters"
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
    "relent, all weights": (MEMORY, "float32, activations recomputed, the reference from the store"),
    "TRL, all weights": (MEMORY, "the same; precompute_ref_log_probs=True, gradient_checkpointing=True"),
    "relent, LoRA": (MEMORY, "adapters of rank 16 on all linear layers"),
    "TRL, LoRA": (MEMORY, "the same"),
}
VOCABULARY = 1000
BETA, RATE = 0.1, 1e-4
ADAPTERS = {"rank": 16, "alpha": 32, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Size:
    """How much is done."""

    network: dict[str, Any]
    """Configuration of `transformers`."""
    pairs: int
    batch: int
    steps: int
    prompt_words: int = 24
    completion_words: tuple[int, int] = (8, 64)
    held_out: int = 2
    """Pairs of validation and of test."""
    recompute: bool = False
    """Activations in the backward pass."""
    prompts: int = 0
    new_tokens: int = 0


def gpt2(layers: int, width: int) -> dict[str, Any]:
    """GPT-2 without dropout."""
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    shape = {"n_layer": layers, "n_embd": width, "n_head": 4, "n_positions": 2048, "vocab_size": VOCABULARY}
    return {"model_type": "gpt2", **shape, **rates}


def qwen2(layers: int, width: int, vocabulary: int) -> dict[str, Any]:
    """Qwen2 in the proportions of its smallest network (24 layers, width 896, 151,936 tokens: 494 million)."""
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": max(1, width // 448)}
    shape = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": width * 38 // 7}
    return {"model_type": "qwen2", **shape, **heads, "vocab_size": vocabulary, "tie_word_embeddings": True}


LONG = {"prompt_words": 384, "completion_words": (500, 600), "held_out": 1, "recompute": True}
SIZES = {
    "full": Size(gpt2(4, 256), pairs=640, batch=16, steps=60, prompts=64, new_tokens=96),
    "small": Size(gpt2(1, 32), pairs=80, batch=8, steps=4, prompts=4, new_tokens=8),
    "memory": Size(qwen2(24, 896, 151_936), pairs=4, batch=1, steps=2, **LONG),
    "memory_small": Size(qwen2(1, 64, 2_000), pairs=4, batch=1, steps=2, **LONG),
}


# ------------------------------------------------------------------------------------------------ what both get


def texts_of(size: Size, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of random words, completions of many lengths."""
    import numpy as np

    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 7))) for _ in range(400)]

    def text(length: int) -> str:
        return "".join(f" {word}" for word in rng.choice(words, length))

    lengths = rng.integers(*size.completion_words, size=(count, 2))
    return [
        {"prompt": text(size.prompt_words).strip(), "chosen": text(chosen), "rejected": text(rejected)}
        for chosen, rejected in lengths
    ]


def make(folder: Path, size: Size) -> None:
    """In a worker: the model's folder, the file of pairs, the prepared data and the task's manifest."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from relent.data.preference_files import COLUMNS, prepare, trained_tokenizer, write_rows

    rows = texts_of(size, size.pairs)
    write_rows(folder / "pairs.jsonl", rows)
    tokenizer = trained_tokenizer([row[column] for row in rows for column in COLUMNS], VOCABULARY)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = AutoConfig.for_model(**size.network, bos_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
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
            "prompt_length": 512,
            "length": 1024,
            "validation": size.held_out / size.pairs,
            "test": size.held_out / size.pairs,
        },
        "model": {"path": path, "checkpoint_activations": size.recompute},
        "training": {
            "max_steps": size.steps,
            "batch_size": size.batch,
            "learning_rate": RATE,
            "weight_decay": 0.0,
            "schedule": "constant",
            "checkpoint_every": size.steps + 1,
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


class TrainingOver(BaseException):
    """Ends a job where its training does."""


def store_reference(folder: Path, threads: int) -> Row:
    """Our base stage: what it takes to write the pairs with the reference's log-probabilities."""
    import relent.train.stage as stage

    marks: dict[str, tuple[float, float]] = {}
    mark_stage(marks)
    stage.run_stage(spec_of(folder, "teacher"), threads=threads)
    return between(marks, "write", "written")


def train_ours(folder: Path, threads: int, lora: bool) -> Row:
    """Our training job from its first batch to its last."""
    import relent.train.stage as stage

    def end(*_: Any) -> None:
        raise TrainingOver

    spec = spec_of(folder, "student")
    if lora:
        spec = replace(spec, model_options=spec.model_options | {"lora": ADAPTERS})
    marks: dict[str, tuple[float, float]] = {}
    stage._write = end  # type: ignore[assignment]
    mark_stage(marks)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, suppress(TrainingOver):
        stage.run_stage(replace(spec, output=f"{scratch}/run"), threads=threads)
    return between(marks, "train", "write")


def between(marks: dict[str, tuple[float, float]], first: str, last: str) -> Row:
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


def trl_trainer(folder: Path, scratch: str, size: Size, stored: bool, lora: bool = False) -> Any:
    """TRL's trainer on the same file, model and recipe; what it would write is left out."""
    from datasets import load_dataset
    from peft import LoraConfig
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
        gradient_checkpointing=size.recompute,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_steps=max(1, size.steps // 100),
        report_to="none",
        disable_tqdm=True,
    )
    adapters = LoraConfig(r=ADAPTERS["rank"], lora_alpha=ADAPTERS["alpha"], target_modules=ADAPTERS["target_modules"])
    model = str(folder / "model")
    return DPOTrainer(model=model, args=settings, train_dataset=pairs, peft_config=adapters if lora else None)


def clocked(function: Any, times: list[tuple[float, float]]) -> Any:
    """The function, with its wall and processor seconds kept."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        began, began_cpu = time.perf_counter(), time.process_time()
        result = function(*args, **kwargs)
        times.append((time.perf_counter() - began, time.process_time() - began_cpu))
        return result

    return wrapped


def trl(folder: Path, size: Size, name: str) -> Row:
    """A training of TRL's, or its pass over the reference."""
    from trl import DPOTrainer

    times: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if name == "TRL, storing":
            DPOTrainer._precompute_ref_logps = clocked(DPOTrainer._precompute_ref_logps, times)  # type: ignore[method-assign]
            trl_trainer(folder, scratch, size, stored=True)
        else:
            trainer = trl_trainer(folder, scratch, size, stored="each step" not in name, lora="LoRA" in name)
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
    prompts = pad(
        [tokenizer(row["prompt"])["input_ids"] for row in texts_of(size, size.prompts)], padding=0, side="left"
    )
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
        return trl(folder, size, name)
    if name == "relent, storing":
        return store_reference(folder, threads)
    if "each step" in name:
        recompute_reference()
    return train_ours(folder, threads, lora="LoRA" in name)


def spawn(folder: Path, name: str, threads: int, size: str) -> Row:
    command = [sys.executable, __file__, "--worker", name, "--size", size, "--folder", str(folder)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "TRANSFORMERS_VERBOSITY": "error"}
    done = timed([*command, "--threads", str(threads)], env=environment(threads, **offline))
    return json.loads(done.stdout.splitlines()[-1]) | {"peak_mb": done.peak_mb}


def members(*groups: str) -> list[str]:
    """Contenders; the store is written by our base stage, which comes first."""
    names = [name for name, (group, _) in CONTENDERS.items() if group in groups]
    return sorted(names, key=lambda name: CONTENDERS[name][0] != REFERENCE)


def measure_speed(small: bool, rounds: int, threads: int) -> list[Row]:
    """Rows of all contenders with the small network: medians over rounds, and ratios within one."""
    size = "small" if small else "full"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spawn(folder, "make", threads, size)
        order = members(STEP, REFERENCE, SAMPLING)
        samples = [{name: spawn(folder, name, threads, size) for name in order} for _ in range(rounds)]
    return table(samples, SIZES[size])


def measure_memory(small: bool, threads: int) -> list[Row]:
    """Rows of those with the large one."""
    large = "memory_small" if small else "memory"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spawn(folder, "make", threads, large)
        spawn(folder, "relent, storing", threads, large)
        samples = [{name: spawn(folder, name, threads, large) for name in members(MEMORY)}]
    return table(samples, SIZES[large])


def table(samples: Sequence[dict[str, Row]], size: Size) -> list[Row]:
    """A row a contender."""
    pairs = size.steps * size.batch
    done = {
        STEP: ("pairs_per_second", pairs),
        REFERENCE: ("pairs_per_second", size.pairs),
        SAMPLING: ("tokens_per_second", size.prompts * size.new_tokens),
    }
    rows = []
    for name, (group, words) in CONTENDERS.items():
        if name not in samples[0]:
            continue
        first = members(group)[0]
        row: Row = {"name": group, "contender": name, "variant": words}
        # Two steps of one round say nothing of speed.
        for key in ("cpu_seconds", "peak_mb") if group == MEMORY else ("seconds", "cpu_seconds", "peak_mb"):
            row[key] = statistics.median(sample[name][key] for sample in samples)
            row[f"{key}_ratio"] = statistics.median(sample[name][key] / sample[first][key] for sample in samples)
        if group in done:
            rate, amount = done[group]
            row[rate] = amount / row["seconds"]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny networks, few steps, one round; replaces no results")
    parser.add_argument("--only", choices=("speed", "memory"), help="one part; the other's results stay")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(contend(options.worker, options.folder, options.threads, SIZES[options.size])))
        return
    stored = results_path("alignment", options.small)
    kept = json.loads(stored.read_text()) if options.only and stored.is_file() else []
    rows = [row for row in kept if (row["name"] == MEMORY) != (options.only == "memory")]
    if options.only != "memory":
        rows = measure_speed(options.small, 1 if options.small else options.rounds, options.threads) + rows
    if options.only != "speed":
        rows += measure_memory(options.small, options.threads)
    print_rows(rows, ("name", "contender", "seconds", "seconds_ratio", "cpu_seconds_ratio", "peak_mb"))
    write_rows("alignment", rows, options.small, options.threads)


if __name__ == "__main__":
    main()
