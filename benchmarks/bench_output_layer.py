"""A training step of an output layer over the number of classes: the Z-loss's factored layer against softmaxes.

    python benchmarks/bench_output_layer.py [--small] [--rounds 2] [--threads 1]

A step: loss of a batch of 128 features, gradient by the features, SGD step of the layer. The factored layer does the
exact SGD step of the Z-loss (float64, which keeps its factors exact); its time holds its share of the folding, once in
1,000 steps at O(D d²), which is measured and divided. Labels follow Zipf's law, as words do, on which the adaptive
softmax (torch's, cut at 2 % and 20 % of the classes) relies; the sampled softmax has 1,024 log-uniform negatives a
batch, corrected by their expected counts (torch has none: TensorFlow's formula). One process a width; the working
memory of a contender is what a step (and a folding) takes beyond its weights. Seconds are the processor's, of one
thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from common import Row, environment, forget_peak, print_rows, status_mb, timed, write_rows

CLASSES = {"full": (1_000, 10_000, 100_000, 1_000_000), "small": (500, 2_000)}
WIDTHS = (64, 256)
BATCH, NEGATIVES, RATE, FOLD_EVERY = 128, 1024, 0.01, 1000
OURS = "relent, factored Z-loss"
CONTENDERS = {
    OURS: "exact SGD step of the Z-loss at O(B d² + d³); float64",
    "softmax cross-entropy": "torch: all outputs, their gradient, SGD",
    "Z-loss, all outputs": "relent's loss by autograd on all outputs, SGD",
    "adaptive softmax": "torch's AdaptiveLogSoftmaxWithLoss, SGD; another model",
    "sampled softmax": "1,024 negatives a batch; a biased gradient of the softmax",
}
Step = Callable[[Any, Any], None]


def layer_weight(classes: int, width: int, dtype: Any) -> Any:
    """Random class vectors; with very many classes a block of them is repeated, which changes no time."""
    import torch

    block = torch.randn(min(classes, 1_000), width, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return (width**-0.5 * block).repeat(-(-classes // len(block)), 1)[:classes].contiguous()


def zipf_labels(classes: int, count: int, seed: int) -> Any:
    """Classes drawn log-uniformly, close to Zipf's law: class k with log((k + 2)/(k + 1))/log(D + 1)."""
    import torch

    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn * math.log(classes + 1)).exp().long().sub(1).clamp(0, classes - 1)


def dense_step(classes: int, width: int, z: bool) -> Step:
    """A linear layer over all classes, with plain SGD."""
    import torch
    import torch.nn.functional as F

    from relent.methods.representation.z_loss import z_loss

    weight = layer_weight(classes, width, torch.float32).requires_grad_()
    bend = 0.5 * math.sqrt(classes - 1)

    def step(features: Any, labels: Any) -> None:
        outputs = features @ weight.T
        loss = z_loss(outputs, labels, 0.3, bend).mean() if z else F.cross_entropy(outputs, labels)
        loss.backward()
        with torch.no_grad():
            weight.sub_(weight.grad, alpha=RATE)
        weight.grad = None

    return step


def factored_step(classes: int, width: int) -> tuple[Step, Any]:
    """The factored layer, and itself."""
    import torch

    from relent.methods.representation.z_loss import FactoredOutputLayer

    layer = FactoredOutputLayer(layer_weight(classes, width, torch.float64), fold_every=sys.maxsize)
    bend = 0.5 * math.sqrt(classes - 1)

    def step(features: Any, labels: Any) -> None:
        layer.z_loss_step(features.detach().double(), labels, 0.3, bend, RATE)

    return step, layer


def adaptive_step(classes: int, width: int) -> Step:
    """Torch's adaptive softmax, with plain SGD."""
    import torch

    cutoffs = [max(1, classes // 50), max(2, classes // 5)]
    layer = torch.nn.AdaptiveLogSoftmaxWithLoss(width, classes, cutoffs)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE)

    def step(features: Any, labels: Any) -> None:
        layer(features, labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sampled_step(classes: int, width: int) -> Step:
    """Softmax over the label and sampled classes, corrected by log expected counts; SGD on the rows that took part."""
    import torch
    import torch.nn.functional as F

    weight = layer_weight(classes, width, torch.float32)
    calls = iter(range(sys.maxsize))

    def log_count(ids: Any) -> Any:
        share = torch.log1p(1 / (ids + 1.0)) / math.log(classes + 1)
        return (-torch.expm1(NEGATIVES * torch.log1p(-share))).log()

    def step(features: Any, labels: Any) -> None:
        negatives = zipf_labels(classes, NEGATIVES, next(calls))
        own, others = (weight[ids].requires_grad_() for ids in (labels, negatives))
        true = (features * own).sum(1, keepdim=True) - log_count(labels)[:, None]
        rest = (features @ others.T - log_count(negatives)).masked_fill(labels[:, None] == negatives, -torch.inf)
        F.cross_entropy(torch.cat([true, rest], 1), torch.zeros_like(labels)).backward()
        for ids, rows in ((labels, own), (negatives, others)):
            weight.index_add_(0, ids, rows.grad, alpha=-RATE)

    return step


def build(name: str, classes: int, width: int) -> tuple[Step, Any]:
    """The step of a contender, and the factored layer where it is one."""
    if name == OURS:
        return factored_step(classes, width)
    if name == "adaptive softmax":
        return adaptive_step(classes, width), None
    if name == "sampled softmax":
        return sampled_step(classes, width), None
    return dense_step(classes, width, z=name.startswith("Z")), None


def contend(name: str, classes: int, width: int, least_seconds: float) -> Row:
    """Seconds of a step, wall and processor, and memory beyond that of the weights."""
    import torch

    step, layer = build(name, classes, width)
    features = torch.randn(BATCH, width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labels = zipf_labels(classes, BATCH, 1)
    gc.collect()
    before = status_mb("VmRSS")
    forget_peak()
    step(features, labels)
    working = max(0.0, status_mb("VmHWM") - before)
    count, began, began_cpu, cpu = 0, time.perf_counter(), time.process_time(), 0.0
    while cpu < least_seconds:
        features.grad = None
        step(features, labels)
        count, cpu = count + 1, time.process_time() - began_cpu
    row: Row = {"seconds": (time.perf_counter() - began) / count, "cpu_seconds": cpu / count, "working_mb": working}
    if layer is not None:
        began, began_cpu = time.perf_counter(), time.process_time()
        layer.fold()
        row["fold_seconds"] = time.process_time() - began_cpu
        row["seconds"] += (time.perf_counter() - began) / FOLD_EVERY
        row["cpu_seconds"] += row["fold_seconds"] / FOLD_EVERY
        row["working_mb"] = max(working, status_mb("VmHWM") - before)
    return row


def worker(width: int, sizes: Sequence[int], rounds: int, least_seconds: float, threads: int) -> list[list[Any]]:
    """All contenders at all sizes, round after round: [name, classes, samples]."""
    import torch

    torch.set_num_threads(threads)
    found: dict[tuple[str, int], list[Row]] = {}
    for _ in range(rounds):
        for classes in sizes:
            for name in CONTENDERS:
                found.setdefault((name, classes), []).append(contend(name, classes, width, least_seconds))
                gc.collect()
    return [[*key, samples] for key, samples in found.items()]


def crossing(sizes: Sequence[int], ours: Sequence[float], other: Sequence[float]) -> float | None:
    """Number of classes from which on we are faster, interpolated between sizes on logarithmic scales.

    None where we are slower at the largest; 0.0 where faster at all of them.
    """
    gaps = [math.log(b / a) for a, b in zip(ours, other)]
    if gaps[-1] <= 0:
        return None
    last = next((place for place in reversed(range(len(gaps))) if gaps[place] <= 0), None)
    if last is None:
        return 0.0
    share = -gaps[last] / (gaps[last + 1] - gaps[last])
    return math.exp(math.log(sizes[last]) + share * math.log(sizes[last + 1] / sizes[last]))


def rows_of(width: int, sizes: Sequence[int], found: list[list[Any]]) -> list[Row]:
    """One row a contender: seconds at each number of classes, memory at the largest, where we begin to win."""
    medians = {
        (name, classes): {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        for name, classes, samples in found
    }
    rows = []
    for name, words in CONTENDERS.items():
        row: Row = {"name": f"width {width}, batch {BATCH}", "contender": name, "variant": words}
        row |= {f"cpu_seconds_{classes}": medians[name, classes]["cpu_seconds"] for classes in sizes}
        row |= {key: medians[name, sizes[-1]][key] for key in ("seconds", "working_mb")}
        if name == OURS:
            row["fold_seconds"] = medians[name, sizes[-1]]["fold_seconds"]
        else:
            times = [[medians[which, classes]["cpu_seconds"] for classes in sizes] for which in (OURS, name)]
            point = crossing(sizes, *times)
            words = "never" if point is None else "all sizes" if point == 0 else f"{point:,.0f}"
            row |= {"crossing": words, "crossing_classes": point}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few classes, one round; replaces no results")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = CLASSES["small" if options.small else "full"]
    rounds, least = (1, 0.01) if options.small else (options.rounds, 0.3)
    if options.worker:
        print(json.dumps(worker(options.worker, sizes, rounds, least, options.threads)))
        return
    rows = []
    for width in WIDTHS:
        command = [sys.executable, __file__, "--worker", width, "--rounds", rounds, "--threads", options.threads]
        command += ["--small"] if options.small else []
        done = timed([str(part) for part in command], env=environment(options.threads))
        rows += rows_of(width, sizes, json.loads(done.stdout.splitlines()[-1]))
    print_rows(rows, ("name", "contender", *(f"cpu_seconds_{size}" for size in sizes), "working_mb", "crossing"))
    write_rows("output_layer", rows, options.small, options.threads)


if __name__ == "__main__":
    main()
