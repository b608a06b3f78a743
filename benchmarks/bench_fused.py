"""Forward KL from hidden states, forward and backward: time and peak memory against the plain form, TRL and Liger.

    .venv/bin/python benchmarks/bench_fused.py [--small] [--threads 1 2] [--repeats 3]

Every contender runs in a process of its own, so that its peak memory is its own; the processes of one repeat run one
after another, and times are compared within a repeat. Peers that cannot be imported are reported as such: install
``trl==1.16.0`` (with ``accelerate`` and ``datasets``) and ``liger-kernel==0.8.5`` anywhere and put them on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from common import Row, environment, forget_peak, machine, status_mb, worker, write_rows

SIZES = {"full": (4096, 512, 50_000), "small": (512, 128, 8_192)}
CONTENDERS = {
    "plain": "torch: both matrices of logits, log_softmax, kl_div",
    "fused": "relent, gradients made in the forward pass",
    "fused-per-token": "relent, reduction='none', logits computed again in the backward pass",
    "trl": "TRL 1.16 ChunkedDivergenceFunction, its torch path, its own tile sizes",
    "liger": "Liger 0.8.5 LigerFusedLinearJSDLoss(beta=0), pure torch, compiled=False, its own chunk size",
    "liger-compiled": "the same with compiled=True",
    "liger-triton": "Liger's Triton kernels",
}


def build(name: str, hidden: Any, weight: Any, target_hidden: Any, target_weight: Any) -> Callable[[], Any]:
    """Return the function that computes the loss; imports what the contender needs."""
    import torch
    from torch.nn.functional import kl_div, log_softmax

    if name == "plain":

        def plain() -> Any:
            with torch.no_grad():
                log_p = log_softmax(target_hidden @ target_weight.t(), -1)
            return kl_div(log_softmax(hidden @ weight.t(), -1), log_p, log_target=True, reduction="batchmean")

        return plain
    if name.startswith("fused"):
        from relent.divergences.fused import OutputHead, fused_forward_kl

        heads = OutputHead(target_hidden, target_weight), OutputHead(hidden, weight)
        if name == "fused":
            return lambda: fused_forward_kl(*heads)
        return lambda: fused_forward_kl(*heads, reduction="none").mean()
    if name == "trl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        return lambda: ChunkedDivergenceFunction.apply(
            hidden, weight, None, target_hidden, target_weight, None, 0.0
        )[0].mean()  # fmt: skip
    if name == "liger-triton":
        import triton  # noqa: F401

        raise ImportError("needs a GPU")
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=name == "liger-compiled"
    )
    labels = torch.zeros(len(hidden), dtype=torch.long)
    return lambda: loss(hidden, weight, target_hidden, target_weight, labels)


def contend(name: str, size: str, threads: int, runs: int) -> Row:
    """Run one contender in this process: one call to warm up, then the timed ones."""
    import torch

    torch.set_num_threads(threads)
    n, h, v = SIZES[size]
    g = torch.Generator().manual_seed(0)
    hidden, target_hidden = (torch.randn(n, h, generator=g) for _ in range(2))
    weight, target_weight = (torch.randn(v, h, generator=g).mul_(h**-0.5) for _ in range(2))
    for part in (hidden, weight):
        part.requires_grad_()
    try:
        loss = build(name, hidden, weight, target_hidden, target_weight)
    except ImportError as error:
        return {"missing": f"not run here: {error}"}
    before = status_mb("VmRSS")
    forget_peak()
    wall, cpu = [], []
    try:
        for _ in range(runs + 1):
            hidden.grad = weight.grad = None
            start, start_cpu = time.perf_counter(), time.process_time()
            value = loss()
            value.backward()
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
    except Exception as error:
        return {"missing": f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"}
    peak = status_mb("VmHWM")
    rate, cpu_rate = matmul_rates(n // 8, h, v)
    return {
        "seconds": min(wall[1:]), "cpu_seconds": min(cpu[1:]), "first_seconds": wall[0],
        "peak_mb": peak, "working_mb": peak - before, "gflops": rate / 1e9,
        "cpu_gflops": cpu_rate / 1e9,
        "loss": value.item(), "weight_grad_norm": weight.grad.norm().item(),
        "hidden_grad_norm": hidden.grad.norm().item(),
    }  # fmt: skip


def matmul_rates(n: int, h: int, v: int) -> tuple[float, float]:
    """Float32 operations per second, and per second of processor time, of a matrix product of the sizes at hand."""
    import torch

    left, right, out = torch.randn(n, h), torch.randn(v, h), torch.empty(n, v)
    wall, cpu = [], []
    for _ in range(4):
        start, start_cpu = time.perf_counter(), time.process_time()
        torch.mm(left, right.t(), out=out)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return 2 * n * h * v / min(wall), 2 * n * h * v / min(cpu)


def spawn(name: str, size: str, threads: int, runs: int) -> Row:
    command = [sys.executable, __file__, "--worker", name, "--size", size, "--threads", threads, "--runs", runs]
    # Passive: on a shared machine, threads that spin while they wait would be counted as work.
    return worker(command, environment(threads, OMP_WAIT_POLICY="passive"))


def summarise(size: str, repeats: list[dict[str, Row]], where: Row) -> list[Row]:
    n, h, v = SIZES[size]
    rows = []
    ran = [r for repeat in repeats for r in repeat.values() if "missing" not in r]
    # The best rate any process saw: on a shared machine a slow moment must not lower the bound.
    work = 4 * 2 * n * h * v
    bound, cpu_bound = (work / 1e9 / max(r[key] for r in ran) for key in ("gflops", "cpu_gflops"))
    for name, variant in CONTENDERS.items():
        runs = [repeat[name] for repeat in repeats]
        row: Row = {"name": f"forward_kl {n}x{h}x{v}", "contender": name, "variant": variant}
        row["threads"] = where["threads"]
        if any("missing" in run for run in runs):
            rows.append({**row, "note": next(run["missing"] for run in runs if "missing" in run)})
            continue
        row |= {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for key in ("seconds", "cpu_seconds", "peak_mb", "working_mb", "loss", "weight_grad_norm"):
            row[f"{key}_ratio"] = statistics.median(
                run[key] / repeat["plain"][key] for run, repeat in zip(runs, repeats, strict=True)
            )
        row |= {"bound_by": "arithmetic: four matrix products", "bound_seconds": bound, "bound_cpu_seconds": cpu_bound}
        row |= {"distance_to_bound": row["seconds"] / bound, "cpu_distance_to_bound": row["cpu_seconds"] / cpu_bound}
        rows.append({**row, "machine": where})
    return rows


def show(rows: list[Row]) -> None:
    print(f"{'contender':<16}{'s':>8}{'cpu s':>8}{'/plain':>8}{'cpu/pl.':>8}{'peak MB':>9}{'/plain':>8}"
          f"{'work MB':>9}{'/plain':>8}{'x bound':>9}{'cpu x b.':>9}")  # fmt: skip
    for row in rows:
        if "note" in row:
            print(f"{row['contender']:<16}{row['note']}")
            continue
        print(f"{row['contender']:<16}{row['seconds']:>8.2f}{row['cpu_seconds']:>8.2f}{row['seconds_ratio']:>8.2f}"
              f"{row['cpu_seconds_ratio']:>8.2f}{row['peak_mb']:>9.0f}{row['peak_mb_ratio']:>8.3f}"
              f"{row['working_mb']:>9.0f}{row['working_mb_ratio']:>8.3f}{row['distance_to_bound']:>9.2f}"
              f"{row['cpu_distance_to_bound']:>9.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="sizes for a quick check")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="interleaved rounds of all contenders")
    parser.add_argument("--runs", type=int, default=2, help="timed calls in each process, the fastest counts")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=SIZES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(contend(args.worker, args.size, args.threads[0], args.runs)))
        return
    size = "small" if args.small else "full"
    done: list[Row] = []
    for threads in args.threads:
        where = machine(threads)
        print(f"{where['cpu']}, {threads} thread(s), torch {where['torch']}, load {where['load_average'][0]:.1f}")
        repeats: list[dict[str, Row]] = []
        for _ in range(args.repeats):
            repeats.append({name: spawn(name, size, threads, args.runs) for name in CONTENDERS})
            rows = summarise(size, repeats, where)
            write_rows("fused", done + rows, args.small)  # after every round: a full run takes a while
        show(rows)
        done += rows


if __name__ == "__main__":
    main()
