"""Entropic transport of 256 × 256 points: time, memory and error against POT and geomloss, same ε, same iterations.

    .venv/bin/python benchmarks/bench_sinkhorn.py [--small] [--threads 1] [--rounds 3]

Every contender runs in a process of its own; the rounds are interleaved, and times are compared within a round. The
error is that of the dual objective and of the marginals, against a solution converged to 1e-13 by two codes that agree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from common import Row, environment, forget_peak, machine, status_mb, worker, write_rows

warnings.filterwarnings("ignore")
EPSILON = 0.02
ITERATIONS = 101
# name: (group, what it is). Ratios are within a group, to its first member.
CONTENDERS = {
    "pot-log": ("iterations", "POT ot.sinkhorn(method='sinkhorn_log'), numpy"),
    "pot-log-torch": ("iterations", "the same on torch tensors"),
    "pot-stabilized": ("iterations", "POT ot.sinkhorn(method='sinkhorn_stabilized'), numpy"),
    "pot-plain": ("iterations", "POT ot.sinkhorn(method='sinkhorn'), kernel exp(-C/eps), not safe at small eps"),
    "relent": ("iterations", "relent sinkhorn, envelope: scaling with absorption"),
    "relent-log": ("iterations", "relent sinkhorn, unrolled: log domain, recorded for the gradient"),
    "geomloss": ("iterations", "geomloss SamplesLoss tensorized, scaling=0.95, its own falling eps"),
    "pot-log-tolerance": ("tolerance", "POT sinkhorn_log to a marginal error (2-norm) of 1e-6"),
    "pot-stabilized-tolerance": ("tolerance", "POT sinkhorn_stabilized to 1e-6"),
    "relent-tolerance": ("tolerance", "relent sinkhorn to a marginal error (1-norm) of 1e-6"),
    "relent-anneal-tolerance": ("tolerance", "the same with anneal=True"),
    "relent-unrolled-gradient": ("gradient", "relent <P,C>, 101 iterations and backward through them"),
    "pot-torch-gradient": ("gradient", "POT sinkhorn_log on torch, <P,C>, and backward through it"),
    "relent-envelope-gradient": ("gradient", "relent objective, 101 iterations, backward by envelope"),
}


def problem(size: int) -> tuple[Any, ...]:
    """Points, squared half distances and marginals, float64."""
    import torch

    g = torch.Generator().manual_seed(0)
    x, y = (torch.rand(size, 2, generator=g, dtype=torch.float64) for _ in range(2))
    a, b = ((0.5 * torch.randn(size, generator=g, dtype=torch.float64)).softmax(-1) for _ in range(2))
    return x, y, torch.cdist(x, y).square() / 2, a, b


def build(name: str, x: Any, y: Any, cost: Any, a: Any, b: Any) -> Callable[[], tuple[Any, Any, int]]:
    """Return a function that yields the potentials f and g (or a loss and None) and the number of iterations."""
    import numpy as np
    import torch

    from relent.divergences.transport import sinkhorn, sinkhorn_loss

    tolerance = name.endswith("tolerance")
    if name.endswith("gradient"):
        c = cost.clone().requires_grad_()
        options = {"epsilon": EPSILON, "max_iterations": ITERATIONS, "tolerance": 0.0}

        def loss() -> Any:
            if name.startswith("pot"):
                import ot

                return (ot.sinkhorn(a, b, c, EPSILON, "sinkhorn_log", ITERATIONS, 0.0) * c).sum()
            if name == "relent-unrolled-gradient":
                return sinkhorn_loss(c, a, b, value="cost", gradient="unrolled", **options)
            return sinkhorn_loss(c, a, b, value="objective", gradient="envelope", **options)

        def both() -> tuple[Any, Any, int]:
            c.grad = None
            loss().backward()
            return c.grad, None, ITERATIONS

        return both
    if name.startswith("relent"):
        options = {"tolerance": 1e-6 if tolerance else 0.0, "max_iterations": 50_000 if tolerance else ITERATIONS}
        recorded = cost.clone().requires_grad_(name == "relent-log")
        gradient = "unrolled" if name == "relent-log" else "envelope"
        anneal = name == "relent-anneal-tolerance"

        def ours() -> tuple[Any, Any, int]:
            found = sinkhorn(recorded, a, b, epsilon=EPSILON, anneal=anneal, gradient=gradient, **options)
            return found.source_potential.detach(), found.target_potential.detach(), found.iterations

        return ours
    if name == "geomloss":
        import geomloss

        loss = geomloss.SamplesLoss(
            "sinkhorn", p=2, blur=EPSILON**0.5, scaling=0.95, debias=False, potentials=True, backend="tensorized"
        )
        diameter = float((torch.cat((x, y)).amax(0) - torch.cat((x, y)).amin(0)).norm())
        steps = len(np.arange(2 * np.log(diameter), np.log(EPSILON), 2 * np.log(0.95))) + 2
        return lambda: (*(p.squeeze() for p in loss(a, x, b, y)), steps)
    import ot

    method = {"pot-stabilized": "sinkhorn_stabilized", "pot-plain": "sinkhorn"}.get(
        name.removesuffix("-tolerance"), "sinkhorn_log"
    )
    tensors = (a, b, cost) if name == "pot-log-torch" else (a.numpy(), b.numpy(), cost.numpy())
    options = {"stopThr": 1e-6, "numItermax": 50_000} if tolerance else {"stopThr": 0.0, "numItermax": ITERATIONS}

    def pot() -> tuple[Any, Any, int]:
        _, log = ot.sinkhorn(*tensors, EPSILON, method=method, log=True, warn=False, **options)
        if "logu" in log:
            u, v = log["logu"], log["logv"]
        elif "log_u" in log:
            u, v = log["log_u"], log["log_v"]
        elif "alpha" in log:
            u, v = log["alpha"] / EPSILON, log["beta"] / EPSILON
        else:
            u, v = np.log(log["u"]), np.log(log["v"])
        u, v = torch.as_tensor(u), torch.as_tensor(v)
        return EPSILON * (u - a.log()), EPSILON * (v - b.log()), log.get("niter", log.get("n_iter", ITERATIONS))

    return pot


def errors(f: Any, g: Any, cost: Any, a: Any, b: Any, reference: float) -> dict[str, float]:
    plan = a[:, None] * b * ((f[:, None] + g - cost) / EPSILON).exp()
    dual = (a * f).sum() + (b * g).sum() - EPSILON * (plan.sum() - 1)
    marginal = (plan.sum(1) - a).abs().sum() + (plan.sum(0) - b).abs().sum()
    return {"objective_error": abs(dual.item() / reference - 1), "marginal_error": marginal.item()}


def reference_objective(cost: Any, a: Any, b: Any) -> float:
    """Converged dual value, confirmed by POT."""
    import numpy as np
    import ot

    from relent.divergences.transport import sinkhorn

    found = sinkhorn(cost, a, b, epsilon=EPSILON, max_iterations=200_000, tolerance=1e-13)
    value = ((a * found.source_potential).sum() + (b * found.target_potential).sum()).item()
    plan = ot.sinkhorn(a.numpy(), b.numpy(), cost.numpy(), EPSILON, "sinkhorn_log", 100_000, 1e-13, warn=False)
    peer = (plan * cost.numpy()).sum() + EPSILON * (plan * np.log(plan / np.outer(a, b))).sum()
    if abs(peer / value - 1) > 1e-9:
        raise RuntimeError(f"the references disagree: {value} and {peer}")
    return value


def contend(name: str, size: int, threads: int, reference: float) -> Row:
    """Time one contender in this process, after a call to warm up."""
    import torch

    torch.set_num_threads(threads)
    x, y, cost, a, b = problem(size)
    try:
        call = build(name, x, y, cost, a, b)
        f, g, iterations = call()
    except ImportError as error:
        return {"missing": f"not run here: {error}"}
    before = status_mb("VmRSS")
    forget_peak()
    wall, cpu = [], []
    budget = time.perf_counter() + 3.0
    while len(wall) < 3 or (time.perf_counter() < budget and len(wall) < 30):
        start, start_cpu = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    result = {
        "seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu), "fastest_seconds": min(wall),
        "iterations": int(iterations), "peak_mb": status_mb("VmHWM"), "working_mb": status_mb("VmHWM") - before,
        "read_rate": read_rate(size),
    }  # fmt: skip
    return result if g is None else result | errors(f, g, cost, a, b, reference)


def read_rate(size: int) -> float:
    """Bytes per second that a sum over a matrix of the problem's size reads, from the cache it fits in."""
    import torch

    matrix = torch.rand(size, size, dtype=torch.float64)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        matrix.sum()
        times.append(time.perf_counter() - start)
    return 8 * size**2 / min(times)


def spawn(name: str, size: int, threads: int, reference: float) -> Row:
    command = [sys.executable, __file__, "--worker", name, "--size", size, "--threads", threads]
    return worker([*command, "--reference", repr(reference)], environment(threads))


def summarise(size: int, rounds: list[dict[str, Row]], where: Row) -> list[Row]:
    rows = []
    rate = max(r["read_rate"] for each in rounds for r in each.values() if "missing" not in r)
    for name, (group, variant) in CONTENDERS.items():
        runs = [each[name] for each in rounds]
        row: Row = {"name": f"sinkhorn {size}x{size} eps={EPSILON}, same {group}", "contender": name}
        row["variant"] = variant
        if any("missing" in run for run in runs):
            rows.append({**row, "note": next(run["missing"] for run in runs if "missing" in run)})
            continue
        row |= {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        row["iterations"] = int(row["iterations"])
        first = next(key for key, (other, _) in CONTENDERS.items() if other == group)
        for key in ("seconds", "cpu_seconds"):
            pairs = [(run[key], each[first]) for run, each in zip(runs, rounds, strict=True)]
            row[f"{key}_ratio"] = statistics.median(mine / peer.get(key, float("nan")) for mine, peer in pairs)
        # Each iteration must read the kernel twice; log-domain codes also take two exponentials an entry.
        bound = row["iterations"] * 2 * 8 * size**2 / rate
        row |= {"bound_by": "bytes: the kernel read twice an iteration, from cache", "bound_seconds": bound}
        row |= {"distance_to_bound": row["seconds"] / bound, "cpu_distance_to_bound": row["cpu_seconds"] / bound}
        rows.append({**row, "machine": where})
    return rows


def show(rows: list[Row]) -> None:
    header = ("contender", "ms", "cpu ms", "/first", "cpu/fst", "iterations", "objective", "marginals", "cpu x b.")
    print("{:<26}{:>9}{:>9}{:>8}{:>8}{:>12}{:>11}{:>11}{:>9}".format(*header))
    group = ""
    for row in rows:
        if row["name"] != group:
            group = row["name"]
            print(f"-- {group}")
        if "note" in row:
            print(f"{row['contender']:<26}{row['note']}")
            continue
        error = [f"{row[key]:.1e}" if key in row else "-" for key in ("objective_error", "marginal_error")]
        print(f"{row['contender']:<26}{1e3 * row['seconds']:>9.2f}{1e3 * row['cpu_seconds']:>9.2f}"
              f"{row['seconds_ratio']:>8.2f}{row['cpu_seconds_ratio']:>8.2f}{row['iterations']:>12}{error[0]:>11}{error[1]:>11}"
              f"{row['cpu_distance_to_bound']:>9.1f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="64 x 64 points and one round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of all contenders")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--reference", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(contend(args.worker, args.size, args.threads, args.reference)))
        return
    size, count = (64, 1) if args.small else (256, args.rounds)
    where = machine(args.threads)
    reference = reference_objective(*problem(size)[2:])
    rounds = [{name: spawn(name, size, args.threads, reference) for name in CONTENDERS} for _ in range(count)]
    rows = summarise(size, rounds, where)
    show(rows)
    write_rows("sinkhorn", rows, args.small)
    print(f"{where['cpu']}, {where['threads']} thread(s), load {where['load_average'][0]:.1f}")


if __name__ == "__main__":
    main()
