"""The January 1996 blizzard: FuXi-ENS as it is here against GraphEFM of neural-lam, the same budget, the same scores.

    python benchmarks/bench_neural_lam.py [--small] [--seconds 120] [--seeds 2]

neural-lam has an environment of its own, `benchmarks/.venvs/neural_lam`, which this script makes (pins in
`neural_lam.txt`). All contenders get the same training triplets, validation and test initial times; each trains on one
thread for so many processor seconds, its learning rate falling as a cosine over this budget, and keeps the best of five
states by the fair CRPS of its own validation forecasts. Twenty members of each are scored by one function: fair CRPS
and spread-skill ratio, weighted with cos(latitude), in training standard deviations, mean over variables.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common import BIN, ROOT, Row, environment, fetch_sources, print_rows, timed, write_rows

HERE = Path(__file__).parent
ENVIRONMENT, PINS = HERE / ".venvs" / "neural_lam", HERE / "neural_lam.txt"
VALIDATION_MEMBERS = 5
TASK, SCALE, LEADS, MEMBERS, CHECKS = "weather_storm", "laptop", 4, 20, 5
CONTENDERS = {
    "relent, fuxi_ens": "CRPS + KL, convolutions; tiles, rate and batch of the task",
    "relent, fuxi_ens, the task's steps": "the same, ended where the task ends: longer, it learns the episode by heart",
    "neural-lam, GraphEFM": "hierarchical graph, likelihood + KL, then CRPS too; hidden size and rate of the package",
    "neural-lam, GraphEFM, no CRPS": "the same without the CRPS",
    "relent, damped_persistence": "no training: slopes and Gaussian residuals of each lead",
}
TASK_STEPS = ", the task's steps"
WEIGHTS = {"neural-lam, GraphEFM": 1.0, "neural-lam, GraphEFM, no CRPS": 0.0}


def make_environment() -> Path:
    """The interpreter of neural-lam's environment; installs it once, and again after a change of the pins."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "pins.txt"
    if not stamp.is_file() or stamp.read_text() != PINS.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", PINS], check=True)
        stamp.write_text(PINS.read_text())
    return python


def storm_spec(data: Path, name: str, seed: int) -> Any:
    """The run of a contender at the task's settings."""
    from relent.manifest.catalogue import Catalogue, Run
    from relent.manifest.paths import Layout

    method = name.removesuffix(TASK_STEPS)
    spec = Catalogue.load(ROOT / "config", [], Layout(str(data))).stage_spec(Run(TASK, method, "default", SCALE, seed))
    if name.endswith(TASK_STEPS) or not spec.hyperparameters["max_steps"]:
        return spec
    return replace(spec, hyperparameters=spec.hyperparameters | {"max_steps": 1_000_000})  # time ends the training


def storm(data: Path) -> Any:
    """The prepared fields."""
    from relent.data.tiles import read_fields

    return read_fields(data / TASK / SCALE)


def write_arrays(data: Path, folder: Path) -> None:
    """What neural-lam's process reads: standardised frames, first steps of the training triplets, pairs, cases."""
    fields = storm(data)
    train = set(fields.splits["train"])
    triplets = [s for s in sorted(train) if {s, s + 1, s + 2} <= train and fields.unbroken(s, 3)]
    pairs = [(i, lead) for i, leads in fields.cases("validation", LEADS) for lead in leads]
    cases = [initial for initial, _ in fields.cases("test", LEADS)]
    frames = np.nan_to_num(fields.anomalies.numpy())  # unknown steps are in no triplet, pair or case
    values: dict[str, Any] = {"frames": frames, "train": triplets, "validation": pairs, "test": cases}
    np.savez(folder / "arrays.npz", leads=LEADS, members=MEMBERS, **values)


def scores(fields: Any, forecast: np.ndarray) -> Row:
    """Fair CRPS and spread-skill ratio at 6 and 24 h of (case, lead, member, C, H, W), over the truths of the test."""
    import torch

    from relent.methods.weather.base import ensemble_terms
    from relent.scores.spatial import latitude_weights

    cases = fields.cases("test", LEADS)
    weights = latitude_weights(torch.from_numpy(fields.latitude)).float()
    row: Row = {}
    for lead, name in ((1, "6h"), (LEADS, "24h")):
        known = [(number, initial) for number, (initial, leads) in enumerate(cases) if lead in leads]
        members = torch.from_numpy(forecast[[number for number, _ in known], lead - 1]).transpose(0, 1)
        truth = torch.stack([fields.anomalies[initial + lead] for _, initial in known])
        by_variable = [
            ensemble_terms(members[:, :, [c]], truth[:, [c]], weights.expand(len(known), -1))
            for c in range(truth.shape[1])
        ]
        row[f"cases_{name}"] = len(known)
        for key in ("crps", "spread_skill_ratio"):
            row[f"{key}_{name}"] = statistics.fmean(float(terms[key]) for terms in by_variable)
    return row


# ---------------------------------------------------------------------------------------------- our own training


def train_ours(data: Path, name: str, seconds: float, seed: int, out: Path) -> Row:
    """In a worker: train one of our contenders for a time, forecast the test cases into `out`."""
    import torch

    from relent.train.stage import build

    torch.set_num_threads(1)
    spec = storm_spec(data, name, seed)
    module: Any
    module, datamodule, task = build(spec)
    fields, row = task.fields, {"cpu_seconds": 0.0, "steps": 0}  # type: ignore[attr-defined]
    if spec.hyperparameters["max_steps"]:
        row = fit(module, datamodule, fields, seconds)
    row["parameters"] = sum(p.numel() for p in module.parameters())
    torch.manual_seed(seed)
    cases = [initial for initial, _ in fields.cases("test", LEADS)]
    np.save(out, np.stack([forecast(module.eval(), fields, initial, MEMBERS) for initial in cases]))
    return row


def forecast(module: Any, fields: Any, initial: int, members: int) -> np.ndarray:
    """(lead, member, C, H, W) from one initial step."""
    import torch

    with torch.no_grad():
        found = module.ensemble_forecast(fields.frames(initial - 1, 2), LEADS, members, fields.topology)
    return np.asarray(found)


def fit(module: Any, datamodule: Any, fields: Any, seconds: float) -> Row:
    """Train until time or steps are over; time to read batches counts, that of the validation does not."""
    import torch

    config = module.config
    optimizer = module.configure_optimizers()["optimizer"]
    batches = iter(datamodule.train_dataloader())
    used, steps, best, kept, checked, share = 0.0, 0, math.inf, module.state_dict(), 0, 0.0
    while share < 1:
        began = time.process_time()
        warm = min(1.0, (steps + 1) / config.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * share))
        optimizer.zero_grad()
        module.rollout_terms(next(batches), 1)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clip)
        optimizer.step()
        used, steps = used + time.process_time() - began, steps + 1
        share = max(used / seconds, steps / config.max_steps)
        if share >= (checked + 1) / CHECKS:
            checked = int(share * CHECKS)
            score = statistics.fmean(validation_crps(module, fields))
            if score < best:
                best, kept = score, copy.deepcopy(module.state_dict())
    module.load_state_dict(kept)
    return {"cpu_seconds": used, "steps": steps, "validation": best}


def validation_crps(module: Any, fields: Any) -> Iterator[float]:
    """Fair CRPS of each validation pair."""
    import torch

    from relent.scores.crps import crps_ensemble

    for initial, leads in fields.cases("validation", LEADS):
        members = torch.from_numpy(forecast(module, fields, initial, VALIDATION_MEMBERS))
        for lead in leads:
            yield float(crps_ensemble(members[lead - 1], fields.anomalies[initial + lead]).mean())


# ------------------------------------------------------------------------------------------------------- contest


def contend(name: str, data: Path, folder: Path, seconds: float, seed: int) -> Row:
    """One contender in a process of its own, and its scores."""
    out = folder / "forecast.npy"
    shared = ["--seconds", seconds, "--seed", seed, "--out", out]
    if name in WEIGHTS:
        worker = [make_environment(), HERE / "neural_lam_worker.py", folder, "--crps-weight", WEIGHTS[name]]
    else:
        worker = [sys.executable, __file__, "--worker", name.removeprefix("relent, "), "--data", data]
    done = timed([str(part) for part in [*worker, *shared]], env=environment(1))
    trained: Row = json.loads(done.stdout.splitlines()[-1])
    return trained | {"seconds": done.seconds, "peak_mb": done.peak_mb} | scores(storm(data), np.load(out))


def measure(data: Path, folder: Path, seconds: float, seeds: int) -> list[Row]:
    """All contenders in turn, seed after seed; means over seeds, and their range for the scores."""
    write_arrays(data, folder)
    found = [{name: contend(name, data, folder, seconds, seed) for name in CONTENDERS} for seed in range(seeds)]
    rows = []
    for name, words in CONTENDERS.items():
        runs = [one[name] for one in found]
        row: Row = {
            "name": f"storm, {seconds:g} CPU s of training",
            "contender": name,
            "variant": words,
            "seeds": seeds,
        }
        row |= {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
        row |= {f"{key}_by_seed": [run[key] for run in runs] for key in runs[0] if key.startswith("crps")}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="seconds, one seed; replaces no results")
    parser.add_argument("--seconds", type=float, default=120, help="processor seconds of each training")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(train_ours(options.data, options.worker, options.seconds, options.seed, options.out)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        fetch_sources(data, ["storm96"])
        timed([BIN / "relent", "prepare", TASK, "--scale", SCALE, "--data", data])
        small = options.small
        rows = measure(data, folder, 3 if small else options.seconds, 1 if small else options.seeds)
    shown = (
        "contender",
        "steps",
        "parameters",
        "crps_6h",
        "crps_24h",
        "spread_skill_ratio_6h",
        "spread_skill_ratio_24h",
    )
    print_rows(rows, shown)
    write_rows("neural_lam", rows, options.small)


if __name__ == "__main__":
    main()
