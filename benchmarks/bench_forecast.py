"""The forecast network of FuXi-ENS: what our training job adds to its step, and members in one pass against a loop.

    python benchmarks/bench_forecast.py [--small] [--rounds 5] [--threads 1]

On the quasi-geostrophic twin with the network of its laptop scale. *Training*: our job (Lightning, tiles out of the
data set, logging; no validation) against a hand-written loop over one batch that is in memory already: the same loss,
optimiser and clipping, nothing else. *Roll-out*: 20 members over ten steps, in one batch and one after the other.
Contenders run in turn in each round, each in a process of its own; ratios are taken within a round, the table shows
medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import BIN, ROOT, Row, environment, mark_stage, print_rows, timed, write_rows

TRAINING, ROLLOUT = "training", "roll-out"
# name: (group, backbone, what it is). Ratios are within a group and backbone, to its first row.
CONTENDERS = {
    "step alone": (TRAINING, "convolutional", "hand-written loop over one batch: forward, backward, clipping, AdamW"),
    "relent": (TRAINING, "convolutional", "our training job from the first batch to the last"),
    "step alone, transformer": (TRAINING, "transformer", "the loop with the Swin transformer"),
    "relent, transformer": (TRAINING, "transformer", "our job with the Swin transformer"),
    "one batch": (ROLLOUT, "convolutional", "all members in one forward pass a step"),
    "loop over members": (ROLLOUT, "convolutional", "one member after the other"),
    "one batch, transformer": (ROLLOUT, "transformer", "all members in one forward pass a step"),
    "loop over members, transformer": (ROLLOUT, "transformer", "one member after the other"),
}
MEMBERS, LEADS = 20, 10


def stage_spec(folder: Path, backbone: str, steps: int) -> Any:
    """A run of `fuxi_ens` on the twin, without validation before its end."""
    from relent.manifest.catalogue import Catalogue, Run
    from relent.manifest.paths import Layout

    layout = Layout(*(str(folder / name) for name in ("data", "teachers", "results")))
    catalogue = Catalogue.load(ROOT / "config", [], layout)
    spec = catalogue.stage_spec(Run("weather_twin", "fuxi_ens", "default", "laptop", 0))
    data = catalogue.layout.dataset("weather_twin", "smoke")  # only the size of the grid matters here
    changes = {"max_steps": steps, "validate_every": 0, "checkpoint_every": steps, "backbone": backbone}
    return replace(spec, hyperparameters={**spec.hyperparameters, **changes}, inputs={"data": data})


def train(spec: Any, alone: bool, threads: int) -> Row:
    """Seconds of a training."""
    import torch

    from relent.train import stage

    steps = spec.hyperparameters["max_steps"]
    if not alone:
        marks: dict[str, tuple[float, float]] = {}
        mark_stage(marks)
        stage.run_stage(spec, threads=threads)
        (began, cpu), (end, cpu_end) = marks["train"], marks["write"]
        return {"seconds": end - began, "cpu_seconds": cpu_end - cpu}
    module, datamodule, _ = stage.build(spec)
    config: Any = module.config
    batch = next(iter(datamodule.train_dataloader()))
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.learning_rate, betas=(config.momentum, config.beta2))
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        loss = module.rollout_terms(batch, 1)["loss"]  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clip)
        optimizer.step()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


def roll_out(spec: Any, loop: bool, repeats: int) -> Row:
    """Seconds of forecasts of all members, an untrained network's."""
    import torch

    from relent.train.stage import build

    module: Any = build(spec)[0].eval()
    fields = module.task.fields
    frames = fields.frames(0, 2)
    calls = [1] * MEMBERS if loop else [MEMBERS]
    with torch.no_grad():
        module.ensemble_forecast(frames, 1, calls[0], fields.topology)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            for members in calls:
                module.ensemble_forecast(frames, LEADS, members, fields.topology)
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


def contend(name: str, folder: Path, threads: int, count: int) -> Row:
    """In a worker: one contender."""
    import torch

    torch.set_num_threads(threads)
    group, backbone, _ = CONTENDERS[name]
    spec = stage_spec(folder, backbone, count)
    if group == ROLLOUT:
        return roll_out(spec, name.startswith("loop"), count)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        return train(replace(spec, output=f"{scratch}/run"), name.startswith("step"), threads)


def spawn(folder: Path, name: str, threads: int, count: int) -> Row:
    """A contender in a process of its own."""
    command = [sys.executable, __file__, "--worker", name, "--folder", folder, "--steps", count, "--threads", threads]
    row: Row = json.loads(timed([str(part) for part in command], env=environment(threads)).stdout.splitlines()[-1])
    return row


def measure(folder: Path, small: bool, rounds: int, threads: int) -> list[Row]:
    """All contenders in turn, round after round."""
    timed([BIN / "relent", "prepare", "weather_twin", "--scale", "smoke", "--data", folder / "data"])
    counts = {TRAINING: 10 if small else 200, ROLLOUT: 1 if small else 5}
    samples = [
        {name: spawn(folder, name, threads, counts[group]) for name, (group, _, _) in CONTENDERS.items()}
        for _ in range(rounds)
    ]
    rows = []
    for name, (group, backbone, words) in CONTENDERS.items():
        first = next(other for other, kind in CONTENDERS.items() if kind[:2] == (group, backbone))
        row: Row = {"name": f"{group}, {backbone}", "contender": name, "variant": words}
        for key in ("seconds", "cpu_seconds"):
            row[key] = statistics.median(sample[name][key] for sample in samples)
            row[f"{key}_ratio"] = statistics.median(sample[name][key] / sample[first][key] for sample in samples)
        done = counts[group] * (MEMBERS * LEADS if group == ROLLOUT else 1)
        row["member_steps_per_second" if group == ROLLOUT else "steps_per_second"] = done / row["seconds"]
        rows.append(row)
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
        print(json.dumps(contend(options.worker, options.folder, options.threads, options.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.small, 1 if options.small else options.rounds, options.threads)
    print_rows(rows, ("name", "contender", "seconds", "cpu_seconds", "cpu_seconds_ratio", "seconds_ratio"))
    write_rows("forecast", rows, options.small, options.threads)


if __name__ == "__main__":
    main()
