"""A training job of ours against a hand-written PyTorch loop, and stored teacher logits against a teacher run anew.

    python benchmarks/bench_training.py [--small] [--rounds 5] [--threads 1]

Knowledge distillation on images at laptop scale: same initial weights, batches, loss, optimiser and schedule for all;
the end weights are compared, so that a contender which does other work is found out. Every contender runs in a process
of its own; rounds go through all of them in turn, ratios are taken within a round, and the table shows medians. What
is timed is training alone, from the first batch to the last (validation and checkpoints included where a contender has
them), not the start of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import ROOT, Row, environment, mark_stage, prepare_images, print_rows, timed, write_rows

STEP = "a training step"
TEACHER = "an epoch with a teacher"
# name: (group, what it is). Ratios are within a group, to its first member.
CONTENDERS = {
    "loop, all duties": (STEP, "hand-written loop that logs, validates and saves as often as our job does"),
    "relent": (STEP, "our training job as the workflow runs it"),
    "loop": (STEP, "hand-written loop: batches, loss, AdamW, cosine schedule; nothing else"),
    "loop, relent's loss": (STEP, "the same loop with our loss functions"),
    "relent, lean": (STEP, "our training job; validation and checkpoint once, at the end"),
    "stored logits": (TEACHER, "our training job: the teacher's logits are read"),
    "teacher each step": (TEACHER, "the same, but the teacher runs on every batch"),
}
# Teachers only have to answer, not to be right.
TEACHER_STEPS = 30
EPOCHS = 20


def stage_spec(folder: Path, role: str, changes: dict[str, Any]) -> Any:
    """Specification of the student's (or the teacher's) stage, files in `folder`."""
    from relent.manifest.catalogue import Catalogue, Run
    from relent.manifest.paths import Layout

    layout = Layout(*(str(folder / name) for name in ("data", "teachers", "results")))
    catalogue = Catalogue.load(ROOT / "config", [], layout)
    if role == "teacher":
        spec = catalogue.teacher_spec("images", next(iter(catalogue.tasks["images"].teachers)), "laptop")
    else:
        spec = catalogue.stage_spec(Run("images", "knowledge_distillation", "default", "laptop", 0))
    return replace(spec, hyperparameters={**spec.hyperparameters, **changes})


def hand_written(spec: Any, duties: bool, our_loss: bool, scratch: Path) -> tuple[float, float, dict[str, Any]]:
    """A loop as one writes it without a framework; the data set and the initial weights are those of the stage."""
    import torch
    import torch.nn.functional as F

    from relent.methods.distillation.knowledge_distillation import knowledge_distillation_terms
    from relent.train.sampling import StepBatchSampler
    from relent.train.stage import build

    module, _, task = build(spec)
    network, config = module.network, module.config
    images, labels, logits = task.data.inputs, task.data.labels, task.teacher["logits"]
    items, validation = (task.data.items(split) for split in ("student", "validation"))
    alpha, tau = config.alpha, config.temperature
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, config.beta2))

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    sampler = StepBatchSampler(len(items), config.batch_size, config.max_steps, spec.seed)
    log_every = max(1, config.max_steps // 100)
    network.train()
    began, began_cpu = time.perf_counter(), time.process_time()
    for step, positions in enumerate(sampler, start=1):
        index = items[torch.as_tensor(positions)]
        student, teacher = network(images[index]).logits, logits[index]
        if our_loss:
            loss = sum(knowledge_distillation_terms(student, teacher, labels[index], alpha, tau).values())
        else:
            target, approx = F.softmax(teacher / tau, -1), F.log_softmax(student / tau, -1)
            distilled = tau**2 * F.kl_div(approx, target, reduction="batchmean")
            loss = alpha * F.cross_entropy(student, labels[index]) + (1 - alpha) * distilled
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if duties and step % log_every == 0:
            with (scratch / "log.csv").open("a") as handle:
                handle.write(f"{step},train/loss,{loss.item()!r}\n")
        if duties and step % config.validate_every == 0:
            network.eval()
            with torch.no_grad():
                answers = network(images[validation]).logits
                nll = F.cross_entropy(answers, labels[validation]).item()
                accuracy = (answers.argmax(-1) == labels[validation]).float().mean().item()
            with (scratch / "log.csv").open("a") as handle:
                handle.write(f"{step},validation/nll,{nll!r}\n{step},validation/accuracy,{accuracy!r}\n")
            network.train()
        if duties and step % config.checkpoint_every == 0:
            parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
            torch.save({part: stateful.state_dict() for part, stateful in parts.items()}, scratch / "last.pt")
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    return seconds, cpu_seconds, network.state_dict()


def ours(spec: Any, folder: Path, run_teacher: bool, threads: int) -> tuple[float, float, dict[str, Any]]:
    """Our training job; with `run_teacher`, its step asks the teacher instead of reading the stored logits."""
    import torch
    from safetensors.torch import load_file

    import relent.train.stage as stage
    from relent.methods.distillation.knowledge_distillation import KnowledgeDistillation

    if run_teacher:
        teacher_spec = stage_spec(folder, "teacher", {})
        teacher, _, _ = stage.build(teacher_spec)
        teacher.load_state_dict(load_file(f"{teacher_spec.output}/weights.safetensors"))
        network = teacher.network.eval().requires_grad_(False)
        stored_step = KnowledgeDistillation.training_step

        def step(self: Any, batch: dict[str, Any], batch_idx: int) -> Any:
            with torch.no_grad():
                fresh = network(batch["input"]).logits
            return stored_step(self, batch | {"teacher_logits": fresh}, batch_idx)

        KnowledgeDistillation.training_step = step  # type: ignore[method-assign]
    marks: dict[str, tuple[float, float]] = {}
    mark_stage(marks)
    stage.run_stage(spec, threads=threads)
    weights = load_file(f"{spec.output}/weights.safetensors")
    (seconds, cpu), (end, cpu_end) = marks["train"], marks["write"]
    return end - seconds, cpu_end - cpu, {name.removeprefix("network."): value for name, value in weights.items()}


def contend(name: str, folder: Path, threads: int, steps: int) -> Row:
    """In a worker: one contender's training; its end weights go to a file for the comparison."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(threads)
    group, _ = CONTENDERS[name]
    every = min(250, steps)
    changes: dict[str, Any] = {"max_steps": steps, "validate_every": every, "checkpoint_every": every}
    if group == TEACHER or name == "relent, lean":
        changes |= {"validate_every": 0, "checkpoint_every": steps}
    spec = stage_spec(folder, "student", changes)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        spec = replace(spec, output=f"{scratch}/run")
        if name.startswith("loop"):
            result = hand_written(spec, "duties" in name, "loss" in name, Path(scratch))
        else:
            result = ours(spec, folder, name == "teacher each step", threads)
    seconds, cpu_seconds, weights = result
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / f"{name}.safetensors")
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def train_teacher(folder: Path, threads: int) -> Row:
    """In a worker: a teacher with stored outputs, and what storing cost (one pass over all items, and writing)."""
    import relent.train.stage as stage
    from relent.tasks.classification.data import read_data

    marks: dict[str, tuple[float, float]] = {}
    mark_stage(marks)
    changes = {"max_steps": TEACHER_STEPS, "validate_every": 0, "checkpoint_every": TEACHER_STEPS}
    spec = stage_spec(folder, "teacher", changes)
    stage.run_stage(spec, threads=threads)
    student = stage_spec(folder, "student", {})
    items = len(read_data(spec.inputs["data"]).items("student"))
    seconds, cpu_seconds = (after - before for before, after in zip(marks["write"], marks["written"]))
    epoch_steps = items // min(student.hyperparameters["batch_size"], items)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "epoch_steps": epoch_steps}


def weight_difference(folder: Path, name: str, reference: str) -> float:
    """Largest difference of any weight between two contenders' end weights."""
    import numpy as np
    from safetensors.numpy import load_file

    one, other = (load_file(folder / f"{which}.safetensors") for which in (name, reference))
    if one.keys() != other.keys():
        raise RuntimeError(f"{name} and {reference} have different parameters")
    return max(float(np.abs(one[key] - other[key]).max()) for key in one)


def spawn(folder: Path, name: str, threads: int, steps: int) -> Row:
    command = [sys.executable, __file__, "--worker", name, "--folder", folder, "--steps", steps, "--threads", threads]
    return json.loads(timed(command, env=environment(threads)).stdout.splitlines()[-1])


def measure(folder: Path, small: bool, rounds: int, threads: int) -> list[Row]:
    prepare_images(folder / "data", "laptop")
    stored = spawn(folder, "teacher", threads, 0)
    steps = {STEP: 100 if small else 1500, TEACHER: (1 if small else EPOCHS) * stored["epoch_steps"]}
    samples: list[dict[str, Row]] = []
    for _ in range(rounds):
        samples.append({name: spawn(folder, name, threads, steps[group]) for name, (group, _) in CONTENDERS.items()})
    rows: list[Row] = []
    for name, (group, words) in CONTENDERS.items():
        first = next(other for other, (its_group, _) in CONTENDERS.items() if its_group == group)
        row: Row = {"name": group, "contender": name, "variant": words, "steps": steps[group]}
        for key in ("seconds", "cpu_seconds"):
            row[key] = statistics.median(sample[name][key] for sample in samples)
            row[f"{key}_ratio"] = statistics.median(sample[name][key] / sample[first][key] for sample in samples)
        row["steps_per_second"] = steps[group] / row["seconds"]
        row["cpu_ms_per_step"] = 1e3 * row["cpu_seconds"] / steps[group]
        if group == TEACHER:
            row["cpu_seconds_per_epoch"] = row["cpu_seconds"] / steps[group] * stored["epoch_steps"]
        row["weight_difference"] = weight_difference(folder, name, "loop, relent's loss" if group == STEP else first)
        rows.append(row)
    note = "once: the teacher's pass over all items of the data set, and writing it"
    costs = {key: stored[key] for key in ("seconds", "cpu_seconds")}
    rows.append({"name": TEACHER, "contender": "storing the logits", "variant": note, **costs})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few steps, one round; replaces no results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        teacher = options.worker == "teacher"
        work = (
            train_teacher(options.folder, options.threads)
            if teacher
            else contend(options.worker, options.folder, options.threads, options.steps)
        )
        print(json.dumps(work))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.small, 1 if options.small else options.rounds, options.threads)
    columns = ("name", "contender", "seconds", "cpu_seconds", "cpu_seconds_ratio", "seconds_ratio", "weight_difference")
    print_rows(rows, columns)
    write_rows("training", rows, options.small, options.threads)


if __name__ == "__main__":
    main()
