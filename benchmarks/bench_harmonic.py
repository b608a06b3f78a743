"""Output layers by distance: operations and processor seconds beside a linear layer with cross-entropy.

    python benchmarks/bench_harmonic.py [--small] [--rounds 7]

A layer's work is its loss of 128 random features and the gradients of features and weights. *Operations* are counted,
not estimated: every kernel that torch runs counts the numbers that it reads or writes, whichever are more; a product of
matrices its multiplications and additions; `cdist` three for each pair and dimension. They stand for the energy that
the papers measure and that no meter here can; the exponents of the task's variants are used.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench_objectives import row_of, timings
from common import Row, print_rows, write_rows
from relent.methods.representation.harmonic import Config, HarmonicHead

BATCH, WIDTH = 128, 64
SIZES = {"full": (10, 1_000), "small": (10,)}
LINEAR = "linear layer"
DISTANCES = (
    *("euclidean", "cosine", "manhattan", "minkowski", "chebyshev", "canberra", "bray_curtis", "hamming"),
    *("mahalanobis_diagonal", "mahalanobis_cholesky"),
)
RECIPE = {"max_steps": 1, "batch_size": BATCH, "learning_rate": 0.1}


class Operations(TorchDispatchMode):
    """Counts the operations of what runs inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.count += operations(func._schema.name.removeprefix("aten::"), args, found)
        return found


def operations(name: str, args: Any, found: Any) -> int:
    """Operations of one kernel; views and allocations have none."""
    given = [value for value in args if isinstance(value, Tensor)]
    made = [value for value in (found if isinstance(found, tuple) else (found,)) if isinstance(value, Tensor)]
    if name in ("mm", "addmm", "bmm"):
        return 2 * made[0].numel() * given[-2].shape[-1]
    if name in ("_cdist_forward", "cdist", "_euclidean_dist"):
        return 3 * made[0].numel() * given[0].shape[-1]
    if name in VIEWS:
        return 0
    return max((value.numel() for value in [*given, *made]), default=0)


VIEWS = {
    *("view", "_unsafe_view", "reshape", "expand", "t", "transpose", "permute", "unsqueeze", "squeeze", "detach"),
    *("alias", "select", "slice", "as_strided", "empty", "empty_like", "new_empty", "_to_copy", "clone"),
}


def layer_of(name: str, classes: int) -> nn.Module:
    """A fresh output layer, the same at every call."""
    torch.manual_seed(classes)
    if name == LINEAR:
        return nn.Linear(WIDTH, classes)
    exponent = 2.0 if name == "euclidean" else 1.0
    return HarmonicHead(WIDTH, classes, Config(distance=name, exponent=exponent, **RECIPE))  # type: ignore[arg-type]


class Work:
    """What is timed: leaves whose gradients are dropped between calls."""

    def __init__(self, classes: int):
        generator = torch.Generator().manual_seed(classes)
        self.features = torch.randn(BATCH, WIDTH, generator=generator).relu().requires_grad_()
        self.labels = torch.randint(classes, (BATCH,), generator=generator)
        self.layers = {name: layer_of(name, classes) for name in (LINEAR, *DISTANCES)}

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        return [self.features, *(weight for layer in self.layers.values() for weight in layer.parameters())]

    def loss(self, name: str) -> Tensor:
        """Loss of a layer."""
        return F.cross_entropy(self.layers[name](self.features), self.labels)


def counted(work: Work, name: str) -> int:
    """Operations of a layer's loss and gradients."""
    with Operations() as seen:
        work.loss(name).backward()
    return seen.count


def measure(classes: int, rounds: int) -> list[Row]:
    """Rows of one number of classes."""
    work = Work(classes)
    losses: dict[str, Any] = {name: lambda x, name=name: x.loss(name) for name in work.layers}
    samples = timings(losses, work, rounds)  # type: ignore[arg-type]
    linear = counted(work, LINEAR)
    rows: list[Row] = []
    for name in work.layers:
        ours = {"name": f"{classes:,} classes", "contender": name if name == LINEAR else f"harmonic, {name}"}
        found = counted(work, name)
        rows.append(ours | {"operations": found, "operations_ratio": found / linear} | row_of(samples, name, LINEAR))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few classes, one round; replaces no results")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = SIZES["small" if options.small else "full"]
    rows = [row for classes in sizes for row in measure(classes, 1 if options.small else options.rounds)]
    write_rows("harmonic", rows, options.small)
    print_rows(rows, ("name", "contender", "operations", "operations_ratio", "cpu_seconds", "cpu_seconds_ratio"))


if __name__ == "__main__":
    main()
