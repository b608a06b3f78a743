"""Fair CRPS of M members on a million points, against the peers: time and peak memory, in one run on the same data.

    python benchmarks/bench_crps.py [--small]

Each measurement is a process of its own, rounds go through all contenders in turn, the table shows medians. The peers
are at their fastest with numba, which this project does not depend on: those rows are there if numba can be imported
(`make bench` sees to it); the others run without it. Forms that hold M² numbers a point run in blocks of points
(a peer's users would have to do the same) and, above M = 15, on fewer points, their time scaled up, as `note` says.
Memory is the peak resident size during the call over that before it, so that the input is not counted. On a machine
that others use too, compare CPU seconds: wall time depends on who else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from common import Row, environment, forget_peak, machine, status_mb, worker, write_rows

THREADS = len(os.sched_getaffinity(0))
BLOCK_BYTES = 2**28
# Forms that take all pairs run on as many points as hold this many pairs; their time is scaled up.
PAIR_LIMIT = 250_000_000


@dataclass(frozen=True)
class Contender:
    name: str
    variant: str
    squared: bool = False  # holds M² numbers a point
    numba: bool = False
    estimator: str = "fair"


CONTENDERS = [
    Contender("relent", "members first"),
    Contender("relent", "members last"),
    Contender("relent", "with gradient"),
    Contender("scoringrules", "numpy pwm"),
    Contender("scoringrules", "numpy qd", estimator="biased"),
    Contender("scoringrules", "numpy fair", squared=True),
    Contender("scoringrules", "torch pwm"),
    Contender("scoringrules", "numba pwm", numba=True),
    Contender("scoringrules", "numba qd", numba=True, estimator="biased"),
    Contender("scoringrules", "numba fair", numba=True),
    Contender("properscoring", "numba", numba=True, estimator="biased"),
    Contender("xskillscore", "properscoring without numba", squared=True, estimator="biased"),
    Contender("torch", "all pairs", squared=True),
]


def in_blocks(score: Callable[[Any, Any], Any], truth: Any, members: Any, dtype: Any) -> np.ndarray:
    """Score blocks of points whose M² differences fit BLOCK_BYTES."""
    count = members.shape[-1]
    width = max(BLOCK_BYTES // (count * count * 4), 1)
    out = np.empty(len(truth), dtype)
    for first in range(0, len(truth), width):
        block = slice(first, first + width)
        out[block] = score(truth[block], members[block])
    return out


def prepare(contender: Contender, members: np.ndarray, truth: np.ndarray) -> Callable[[], Any]:
    """The call to time. `members` is (M, N); peers want (N, M), which is made before the clock starts."""
    if contender.name == "relent":
        return prepare_relent(contender.variant, members, truth)
    last = np.ascontiguousarray(members.T)
    if contender.name == "scoringrules":
        import scoringrules

        backend, estimator = contender.variant.split()
        if backend == "torch":
            import torch

            tensors = torch.from_numpy(truth), torch.from_numpy(last)
            return lambda: scoringrules.crps_ensemble(*tensors, estimator=estimator, backend="torch")

        def score(y: np.ndarray, x: np.ndarray) -> np.ndarray:
            return scoringrules.crps_ensemble(y, x, estimator=estimator, backend=backend)

        return (
            (lambda: in_blocks(score, truth, last, np.float32)) if contender.squared else (lambda: score(truth, last))
        )
    if contender.name == "properscoring":
        import properscoring

        return lambda: properscoring.crps_ensemble(truth, last)
    if contender.name == "xskillscore":
        import xarray as xr
        import xskillscore

        def skill(y: np.ndarray, x: np.ndarray) -> np.ndarray:
            arrays = xr.DataArray(y, dims="point"), xr.DataArray(x, dims=("point", "member"))
            return xskillscore.crps_ensemble(*arrays, dim=[]).values

        return lambda: in_blocks(skill, truth, last, np.float32)
    import torch

    def pairs(y: Any, x: Any) -> Any:
        count = x.shape[-1]
        spread = (x[:, :, None] - x[:, None]).abs_().sum((1, 2)) / (2 * count * (count - 1))
        return ((x - y[:, None]).abs().mean(1) - spread).numpy()

    return lambda: in_blocks(pairs, torch.from_numpy(truth), torch.from_numpy(last), np.float32)


def prepare_relent(variant: str, members: np.ndarray, truth: np.ndarray) -> Callable[[], Any]:
    import torch

    from relent.scores.crps import crps_ensemble

    if variant == "members first":
        return lambda: crps_ensemble(members, truth)
    if variant == "members last":
        last = np.ascontiguousarray(members.T)
        return lambda: crps_ensemble(last, truth, member_dim=-1)
    leaf, observed = torch.from_numpy(members).requires_grad_(), torch.from_numpy(truth)
    return lambda: crps_ensemble(leaf, observed).mean().backward()


def measure(contender: Contender, folder: Path, points: int) -> dict[str, float]:
    """In the worker: warm up (compilation, threads) on a few points, then time one call and watch its memory."""
    members, truth = (np.load(folder / f"{name}.npy") for name in ("members", "truth"))
    members, truth = np.ascontiguousarray(members[:, :points]), truth[:points].copy()
    prepare(contender, members[:, :2000].copy(), truth[:2000])()
    call = prepare(contender, members, truth)
    forget_peak()
    before = status_mb("VmRSS")
    clock, cpu = time.perf_counter(), time.process_time()
    call()
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": max(status_mb("VmHWM") - before, 0.0)}


def spawn(contender: Contender, folder: Path, points: int) -> Row | None:
    """Run `measure` in a fresh process; None where the contender cannot run (the reason is printed)."""
    index = CONTENDERS.index(contender)
    env = environment(THREADS)
    if not contender.numba:
        env.pop("PYTHONPATH", None)
    found = worker([sys.executable, "-W", "ignore", __file__, "--worker", index, folder, points], env)
    if "missing" in found:
        print(f"{contender.name} {contender.variant}: {found['missing']}", file=sys.stderr)
        return None
    return found


def bounds(count: int, points: int) -> dict[str, float]:
    """Seconds that the machine needs at least: to read the input once, and to sort it, each with all threads.

    Bandwidth is measured by summing 256 MiB, sorting on a block that stays in the cache; one thread, best of ten.
    """
    from relent.scores._sorting import sort_members

    stream = np.ones(2**26, dtype=np.float32)
    block = np.random.default_rng(0).normal(size=(count, 2**15 // count)).astype(np.float32)
    times: dict[str, list[float]] = {"read": [], "sort": []}
    for _ in range(10):
        clock = time.perf_counter()
        stream.sum()
        times["read"].append(time.perf_counter() - clock)
        clock = time.perf_counter()
        sort_members(block)
        times["sort"].append(time.perf_counter() - clock)
    read = min(times["read"]) * (count + 2) * points / len(stream)
    return {"bytes": read / THREADS, "arithmetic": min(times["sort"]) * points / block.shape[1] / THREADS}


def points_used(contender: Contender, count: int, points: int) -> int:
    return min(points, PAIR_LIMIT // count**2) if contender.squared else points


def compare(count: int, points: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(count)
        np.save(folder / "members.npy", rng.standard_normal((count, points), dtype=np.float32))
        np.save(folder / "truth.npy", rng.standard_normal(points, dtype=np.float32))
        samples: dict[Contender, list[dict[str, float]]] = {}
        for turn in range(rounds):
            for contender in CONTENDERS:
                used = points_used(contender, count, points)
                if (contender.numba and find_spec("numba") is None) or (used < points and turn > 0):
                    continue
                sample = spawn(contender, folder, used)
                if sample:
                    scaled = {key: sample[key] * points / used for key in ("seconds", "cpu_seconds")}
                    samples.setdefault(contender, []).append(sample | scaled)
    limit = bounds(count, points)
    for contender, taken in samples.items():
        notes = [f"{contender.estimator} estimator"]
        notes += ["blocks of points"] if contender.squared else []
        used = points_used(contender, count, points)
        notes += [f"time scaled up from {used:,} points"] if used < points else []
        row = {key: statistics.median(sample[key] for sample in taken) for key in ("seconds", "cpu_seconds", "peak_mb")}
        rows.append(
            {"name": contender.name, "variant": contender.variant, "M": count, "points": points}
            | row
            | {"bound": max(limit, key=limit.__getitem__), "bound_seconds": max(limit.values())}
            | {"over_bound": row["seconds"] / max(limit.values()), "note": ", ".join(notes)}
        )
    ours = next(row for row in rows if row["name"] == "relent")
    return [
        row | {"ratio": row["seconds"] / ours["seconds"], "cpu_ratio": row["cpu_seconds"] / ours["cpu_seconds"]}
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="20,000 points, one round; replaces no results")
    parser.add_argument("--members", type=int, nargs="+", default=[8, 50, 200], help="ensemble sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        index, folder, points = options.worker
        print(json.dumps(measure(CONTENDERS[int(index)], Path(folder), int(points))))
        return
    points, rounds = (20_000, 1) if options.small else (1_000_000, options.rounds)
    rows: list[Row] = []
    print(f"{machine(THREADS)['cpu']}, {THREADS} threads")
    print(f"{'M':>4} {'contender':44} {'seconds':>9} {'cpu s':>9} {'peak MB':>9} {'ratio':>7} {'cpu':>7}")
    for count in options.members:
        for row in compare(count, points, rounds):
            rows.append(row)
            print(
                f"{count:4d} {row['name'] + ', ' + row['variant']:44} {row['seconds']:9.3f} {row['cpu_seconds']:9.3f} "
                f"{row['peak_mb']:9.0f} {row['ratio']:7.2f} {row['cpu_ratio']:7.2f}  {row['note']}",
                flush=True,
            )
        last = rows[-1]
        print(f"     bound by {last['bound']}: {last['bound_seconds']:.3f} s on {THREADS} threads")
        write_rows("crps", sorted(rows, key=lambda row: row["M"]), options.small, THREADS)


if __name__ == "__main__":
    main()
