"""What flat minima cost: SGD with cross-entropy, SAF, MESA and SAM as the workflow runs them.

    python benchmarks/bench_sharpness.py [--small] [--rounds 2] [--threads 1]

The image task's student at laptop scale (a perceptron) and a convolutional network, trained by SGD with the terms of
SAF and MESA on from the first epoch that has a past. A process a contender; rounds go through all of them in turn.
Seconds are those of an epoch (median over the epochs with all terms on), ratios of processor seconds within a round.
SAF's tables of past outputs have a row for every item of the data set; lag + 1 of them are kept in memory (and the
checkpoint), and in files those that a resume from the last checkpoint may need.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import ROOT, Row, environment, forget_peak, prepare_images, print_rows, status_mb, timed, write_rows

NETWORKS = {
    "perceptron": {"network": "mlp", "hidden": [32, 64]},
    "convolutional": {"network": "convnet", "channels": [16, 32], "blocks": 1, "hidden": 64},
}
# name: (method, variant, what it is).
CONTENDERS = {
    "cross_entropy": ("cross_entropy", "default", "plain SGD"),
    "saf": ("saf", "code", "past outputs in memory"),
    "saf, disk": ("saf", "disk", "past outputs in files"),
    "mesa": ("mesa", "default", "one more forward pass, by the averaged weights"),
    "sam": ("sam", "default", "two forward and backward passes"),
}
CHECKPOINT_EPOCHS = 5
EPOCHS = {"perceptron": (30, 2), "convolutional": (4, 1)}
"""Epochs that are timed: in full, and in a quick check."""
WARM = 3
"""Epochs that are not timed: a table's past is there from the third on."""


def stage_spec(folder: Path, name: str, network: str, epochs: int) -> tuple[Any, int]:
    """The run of a contender, and its steps an epoch."""
    from relent.manifest.catalogue import Catalogue, Run
    from relent.manifest.paths import Layout
    from relent.tasks.classification.data import read_data

    layout = Layout(*(str(folder / part) for part in ("data", "teachers", "results")))
    catalogue = Catalogue.load(ROOT / "config", [], layout)
    method, variant, _ = CONTENDERS[name]
    spec = catalogue.stage_spec(Run("images", method, variant, "laptop", 0))
    steps = len(read_data(spec.inputs["data"]).items("student")) // spec.hyperparameters["batch_size"]
    changes: dict[str, Any] = {
        "max_steps": epochs * steps,
        "checkpoint_every": CHECKPOINT_EPOCHS * steps,
        "validate_every": 0,
        "optimizer": "sgd",
        "learning_rate": 0.02,
    }
    if method in ("saf", "mesa"):
        changes["start_share"] = 0.0
    spec = replace(
        spec,
        hyperparameters={**spec.hyperparameters, **changes},
        model_options=NETWORKS[network],
        evaluation_options={},
    )
    return spec, steps


def contend(name: str, network: str, folder: Path, threads: int, epochs: int) -> Row:
    """One training, in a worker."""
    from lightning.pytorch import Callback

    import relent.train.stage as stage

    spec, steps = stage_spec(folder, name, network, epochs)
    found: Row = {}
    marks: list[tuple[float, float]] = []

    class Clock(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx % steps == 0:
                marks.append((time.perf_counter(), time.process_time()))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            memory = getattr(pl_module, "memory", None)
            if memory is None or (batch_idx + 1) % steps:
                return
            if memory.folder is None:
                sizes = [table.nbytes for table in memory.tables.values()]
            else:
                sizes = [path.stat().st_size for path in memory.folder.iterdir()]
            key = "disk_table_mb" if memory.folder else "memory_table_mb"
            found[key] = max(found.get(key, 0.0), sum(sizes) / 1e6)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            marks.append((time.perf_counter(), time.process_time()))

    gc.collect()
    forget_peak()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        stage.run_stage(replace(spec, output=f"{scratch}/run"), threads=threads, callbacks=[Clock()])
    for place, key in enumerate(("seconds", "cpu_seconds")):
        found[key] = statistics.median(
            after[place] - before[place] for before, after in zip(marks[WARM:], marks[WARM + 1 :])
        )
    return found | {"peak_mb": status_mb("VmHWM")}


def spawn(folder: Path, name: str, threads: int, small: bool) -> dict[str, Row]:
    """A contender in a process of its own: network → its row."""
    command = [sys.executable, __file__, "--worker", name, "--folder", folder, "--threads", threads]
    command += ["--small"] if small else []
    rows: dict[str, Row] = json.loads(
        timed([str(part) for part in command], env=environment(threads)).stdout.splitlines()[-1]
    )
    return rows


def measure(folder: Path, small: bool, rounds: int, threads: int) -> list[Row]:
    """All contenders in turn, round after round."""
    prepare_images(folder / "data", "laptop")
    samples = [{name: spawn(folder, name, threads, small) for name in CONTENDERS} for _ in range(rounds)]
    rows = []
    for network in NETWORKS:
        for name, (_, _, words) in CONTENDERS.items():
            own = [sample[name][network] for sample in samples]
            plain = [sample["cross_entropy"][network] for sample in samples]
            ratios = [row["cpu_seconds"] / first["cpu_seconds"] for row, first in zip(own, plain)]
            row: Row = {"name": f"{network} network", "contender": name, "variant": words}
            row |= {key: statistics.median(s[key] for s in own) for key in ("seconds", "cpu_seconds", "peak_mb")}
            row |= {
                "cpu_seconds_ratio": statistics.median(ratios),
                "ratio_lowest": min(ratios),
                "ratio_highest": max(ratios),
            }
            rows.append(row | {key: own[0][key] for key in own[0] if key.endswith("table_mb")})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few epochs, one round; replaces no results")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, folder, threads = options.worker, options.folder, options.threads
        epochs = {network: WARM + timed_epochs[options.small] for network, timed_epochs in EPOCHS.items()}
        print(json.dumps({network: contend(name, network, folder, threads, epochs[network]) for network in NETWORKS}))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.small, 1 if options.small else options.rounds, options.threads)
    print_rows(
        rows, ("name", "contender", "cpu_seconds", "cpu_seconds_ratio", "peak_mb", "memory_table_mb", "disk_table_mb")
    )
    write_rows("sharpness", rows, options.small, options.threads)


if __name__ == "__main__":
    main()
