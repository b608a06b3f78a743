"""Losses of classifiers, forward and backward, against cross-entropy and against peers on the same tensors.

    python benchmarks/bench_objectives.py [--small] [--rounds 7] [--threads 1]

Each loss is the whole that its method minimises, labels' part included, of random logits (and features of width 64);
the gradient goes to the student's logits (features, output layer). One process; rounds go through all contenders in
turn, ratios (of processor seconds) are taken within a round. Peers: torchdistill 1.1.5 for knowledge distillation and
DIST, put on PYTHONPATH (`make bench` does); for DKD, which it has not, the form of mdistiller's `DKD.py` (commit
e8c5bb331e78: softmax, masks, −1000 at the target), written anew here, for the project is no package. Values and
gradients of ours and the peer's are compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common import Row, print_rows, write_rows
from relent.divergences.discrete import cross_entropy as soft_cross_entropy
from relent.divergences.discrete import forward_kl
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.distillation.bd_kd import bd_kd_student_loss
from relent.methods.distillation.dist import dist_loss
from relent.methods.distillation.dkd import dkd_loss
from relent.methods.distillation.knowledge_distillation import knowledge_distillation_terms
from relent.methods.distillation.lelp import Projections, subclass_log_targets
from relent.methods.distillation.nd_loss import nd_loss
from relent.methods.distillation.nkd import nkd_loss
from relent.methods.distillation.pld import pld_loss
from relent.methods.distillation.sinkd import sinkhorn_distance
from relent.methods.distillation.uskd import uskd_loss
from relent.methods.representation.harmonic import distances, harmonic_logits
from relent.methods.representation.opl import opl_loss
from relent.methods.representation.z_loss import (
    spherical_softmax_loss,
    squared_error_loss,
    taylor_softmax_loss,
    z_loss,
)
from relent.methods.robustness.done_at import example_weights
from relent.methods.robustness.saf import trajectory_loss

SIZES = {"full": {10: 256, 1_000: 128, 100_000: 16}, "small": {10: 16, 100: 8}}
"""Classes → batch."""
WIDTH = 64
SUBCLASSES = 5
LEAST_SECONDS = 0.02
"""A contender's calls in a round take at least that long together."""


@dataclass(frozen=True)
class Tensors:
    """What losses are computed from."""

    logits: Tensor
    teacher: Tensor
    weak: Tensor
    """Logits of a second head, or of the same network some epochs ago."""
    labels: Tensor
    features: Tensor
    teacher_features: Tensor
    head: Tensor
    """Output layer, or prototypes (C, D)."""
    subclass_logits: Tensor
    """(B, S·C); empty where there are too many classes for it."""
    projections: Projections | None

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        return [self.logits, self.weak, self.features, self.head, self.subclass_logits]


Loss = Callable[[Tensors], Tensor]
Cost = tuple[float, float]


def tensors(classes: int, batch: int, dtype: torch.dtype = torch.float32) -> Tensors:
    """Random tensors, the same at every call."""
    generator = torch.Generator().manual_seed(classes)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=dtype)

    few = classes <= 1_000
    projections = None
    if few:
        directions, centres = normal(classes, SUBCLASSES, WIDTH, scale=WIDTH**-0.5), normal(classes, WIDTH)
        projections = Projections(directions, centres, torch.ones(classes, dtype=dtype))
    values = Tensors(
        logits=normal(batch, classes, scale=2.0),
        teacher=normal(batch, classes, scale=3.0),
        weak=normal(batch, classes, scale=2.0),
        labels=torch.randint(classes, (batch,), generator=generator),
        features=normal(batch, WIDTH).relu(),
        teacher_features=normal(batch, WIDTH).relu(),
        head=normal(classes, WIDTH, scale=WIDTH**-0.5),
        subclass_logits=normal(batch, SUBCLASSES * classes if few else 0),
        projections=projections,
    )
    for leaf in values.leaves:
        leaf.requires_grad_()
    return values


def labelled(x: Tensors, logits: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels."""
    return label_cross_entropy(x.labels, tempered_log_probs(x.logits if logits is None else logits), reduction="mean")


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([term.mean() for term in terms.values()]).sum()


def both_networks(x: Tensors, student_part: Tensor, temperature: float) -> Tensor:
    """Losses of two networks that learn from each other, the student's part given."""
    ours, theirs = (tempered_log_probs(logits, temperature) for logits in (x.logits, x.weak))
    peer_part = temperature**2 * forward_kl(ours.detach(), theirs, reduction="mean")
    return labelled(x) + student_part + labelled(x, x.weak) + peer_part


def deep_mutual_learning(x: Tensors) -> Tensor:
    ours, theirs = tempered_log_probs(x.logits), tempered_log_probs(x.weak)
    return both_networks(x, forward_kl(theirs.detach(), ours, reduction="mean"), 1.0)


def sinkd(x: Tensors, form: Any) -> Tensor:
    soft = soft_cross_entropy(tempered_log_probs(x.teacher, 2.0), tempered_log_probs(x.logits, 2.0), reduction="mean")
    return 0.2 * labelled(x) + 0.8 * soft + 8e-4 * sinkhorn_distance(x.logits, x.teacher, form=form)


def lelp(x: Tensors) -> Tensor:
    assert x.projections is not None
    target = subclass_log_targets(x.projections.log_shares(x.teacher_features, 1.0), x.teacher, 2.0)
    return 4.0 * forward_kl(target, tempered_log_probs(x.subclass_logits, 2.0), reduction="mean")


def nd(x: Tensors) -> Tensor:
    soft = forward_kl(tempered_log_probs(x.teacher, 4.0), tempered_log_probs(x.logits, 4.0), reduction="mean")
    regulariser = nd_loss(x.features, x.teacher_features, x.head.detach(), x.labels).mean()
    return labelled(x) + 16.0 * soft + 2.0 * regulariser


def fitnet(x: Tensors) -> Tensor:
    return labelled(x) + (x.features - x.teacher_features).square().mean()


def weighted(x: Tensors) -> Tensor:
    """DONE's weights on the losses of the batch."""
    losses = label_cross_entropy(x.labels, tempered_log_probs(x.logits))
    return (example_weights(losses, 10.0) * losses).sum()


def trades(x: Tensors) -> Tensor:
    return labelled(x) + 6.0 * forward_kl(tempered_log_probs(x.logits), tempered_log_probs(x.weak), reduction="mean")


def harmonic(x: Tensors) -> Tensor:
    return labelled(x, harmonic_logits(distances(x.features, x.head, "euclidean"), 2.0))


REFERENCE, WITH_LAYER = "cross_entropy", "linear layer, cross_entropy"
# name: (what it is, loss, most classes).
OBJECTIVES: dict[str, tuple[str, Loss, float]] = {
    REFERENCE: ("labels alone", labelled, math.inf),
    "label_smoothing": (
        "ε 0.1",
        lambda x: label_cross_entropy(x.labels, tempered_log_probs(x.logits), label_smoothing=0.1, reduction="mean"),
        math.inf,
    ),
    "knowledge_distillation": (
        "α 0.1, τ 2",
        lambda x: total(knowledge_distillation_terms(x.logits, x.teacher, x.labels, 0.1, 2.0)),
        math.inf,
    ),
    "dkd": ("T 4", lambda x: labelled(x) + total(dkd_loss(x.logits, x.teacher, x.labels)), math.inf),
    "dist": ("τ 4", lambda x: labelled(x) + total(dist_loss(x.logits, x.teacher)), math.inf),
    "pld": ("sorts the classes", lambda x: pld_loss(x.logits, x.teacher, x.labels).mean(), math.inf),
    "nkd": ("λ 1", lambda x: labelled(x) + total(nkd_loss(x.logits, x.teacher, x.labels)), math.inf),
    "uskd": (
        "two heads, sorts the classes",
        lambda x: labelled(x) + total(uskd_loss(x.logits, x.weak, x.labels)),
        math.inf,
    ),
    "sinkd": ("batch-wise: B² distances of C numbers", lambda x: sinkd(x, "batch"), math.inf),
    "sinkd, sample-wise": ("B transports of C × C", lambda x: sinkd(x, "sample"), 100),
    "nd_loss": ("KD++: soft labels and features", nd, math.inf),
    "fitnet": ("labels and features", fitnet, math.inf),
    "lelp": ("5 outputs a class, subclasses computed anew", lelp, 1_000),
    "deep_mutual_learning": ("losses of both networks", deep_mutual_learning, math.inf),
    "bd_kd": (
        "losses of both networks",
        lambda x: both_networks(x, bd_kd_student_loss(x.logits, x.weak).mean(), 2.0),
        math.inf,
    ),
    "opl": (
        "labels, and cosines of features",
        lambda x: labelled(x) + opl_loss(x.features, x.labels),
        math.inf,
    ),
    "z_loss": ("of outputs that are there", lambda x: z_loss(x.logits, x.labels, 0.3, 1.0).mean(), math.inf),
    "z_loss, taylor_softmax": ("", lambda x: taylor_softmax_loss(x.logits, x.labels).mean(), math.inf),
    "z_loss, spherical_softmax": ("", lambda x: spherical_softmax_loss(x.logits, x.labels).mean(), math.inf),
    "z_loss, squared_error": ("", lambda x: squared_error_loss(x.logits, x.labels).mean(), math.inf),
    "saf, mesa": (
        "labels, and past outputs that are there",
        lambda x: labelled(x) + 0.3 * trajectory_loss(x.weak, x.logits).mean(),
        math.inf,
    ),
    "trades": ("outputs on clean and attacked images are there", trades, math.inf),
    "done_at": ("weights of the items; losses are there", weighted, math.inf),
    WITH_LAYER: ("features of width 64", lambda x: labelled(x, x.features @ x.head.T), math.inf),
    "harmonic": ("features of width 64, distances included; ratio to the row above", harmonic, math.inf),
}


def mdistiller_dkd(x: Tensors) -> Tensor:
    """DKD in mdistiller's form (see the module), with torch's cross-entropy."""
    temperature, batch = 4.0, len(x.labels)
    own = torch.zeros_like(x.logits).scatter_(1, x.labels[:, None], 1).bool()
    other = torch.ones_like(x.logits).scatter_(1, x.labels[:, None], 0).bool()
    student, teacher = (F.softmax(logits / temperature, dim=1) for logits in (x.logits, x.teacher))
    pairs = [torch.cat([(p * mask).sum(1, keepdim=True) for mask in (own, other)], dim=1) for p in (student, teacher)]
    target = F.kl_div(pairs[0].log(), pairs[1], reduction="sum") * temperature**2 / batch
    rest = F.kl_div(
        F.log_softmax(x.logits / temperature - 1000.0 * own, dim=1),
        F.softmax(x.teacher / temperature - 1000.0 * own, dim=1),
        reduction="sum",
    )
    return F.cross_entropy(x.logits, x.labels) + target + 8.0 * rest * temperature**2 / batch


def peers() -> dict[str, tuple[str, Loss | str]]:
    """Of an objective of ours: the peer's name, and its loss or why there is none here."""
    found: dict[str, tuple[str, Loss | str]] = {
        REFERENCE: ("torch", lambda x: F.cross_entropy(x.logits, x.labels)),
        "label_smoothing": ("torch", lambda x: F.cross_entropy(x.logits, x.labels, label_smoothing=0.1)),
        "dkd": ("mdistiller's form", mdistiller_dkd),
    }
    name, missing = "torchdistill 1.1.5", "torchdistill is not on PYTHONPATH; `make bench` puts it there"
    try:
        from torchdistill.losses.mid_level import DISTLoss, KDLoss
    except ImportError:
        return found | {"knowledge_distillation": (name, missing), "dist": (name, missing)}
    place: Any = {f"{who}_module_{what}": value for who in ("student", "teacher") for what, value in PLACE.items()}
    soft, relations = KDLoss(**place, temperature=2.0, alpha=0.1), DISTLoss(**place, beta=2.0, gamma=2.0, tau=4.0)

    def outputs(x: Tensors) -> tuple[Any, Any]:
        return {".": {"output": x.logits}}, {".": {"output": x.teacher}}

    return found | {
        "knowledge_distillation": (name, lambda x: soft(*outputs(x), x.labels)),
        "dist": (name, lambda x: F.cross_entropy(x.logits, x.labels) + relations(*outputs(x))),
    }


PLACE = {"path": ".", "io": "output"}


def gradients(loss: Loss, x: Tensors) -> tuple[Tensor, Tensor]:
    """Value, and gradient by the student's logits."""
    value = loss(x)
    (gradient,) = torch.autograd.grad(value, x.logits)
    return value.detach(), gradient


def difference(one: Loss, other: Loss, x: Tensors) -> float:
    """Largest relative difference of two losses' values and gradients."""
    pairs = zip(gradients(one, x), gradients(other, x))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def cost(loss: Loss, x: Tensors, calls: int) -> Cost:
    """Wall and processor seconds of a forward and backward pass."""
    began, began_cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        for leaf in x.leaves:
            leaf.grad = None
        loss(x).backward()
    return (time.perf_counter() - began) / calls, (time.process_time() - began_cpu) / calls


def timings(losses: dict[str, Loss], x: Tensors, rounds: int) -> list[dict[str, Cost]]:
    """Cost of each loss in each round, after one that is not counted and sets the number of calls."""
    first = {name: cost(loss, x, 2) for name, loss in losses.items()}
    calls = {name: max(1, round(LEAST_SECONDS / cpu)) for name, (_, cpu) in first.items()}
    return [{name: cost(loss, x, calls[name]) for name, loss in losses.items()} for _ in range(rounds)]


def row_of(samples: list[dict[str, Cost]], name: str, reference: str) -> Row:
    """Median seconds; median, lowest and highest ratio of processor seconds, which other work on the machine spares."""
    ratios = [sample[name][1] / sample[reference][1] for sample in samples]
    return {
        "seconds": statistics.median(sample[name][0] for sample in samples),
        "cpu_seconds": statistics.median(sample[name][1] for sample in samples),
        "cpu_seconds_ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
    }


def measure(classes: int, batch: int, rounds: int) -> list[Row]:
    """Rows of one number of classes: all objectives, then each peer beside ours."""
    x = tensors(classes, batch)
    losses = {name: loss for name, (_, loss, most) in OBJECTIVES.items() if classes <= most}
    others = peers()
    named = {f"peer of {name}": loss for name, (_, loss) in others.items() if not isinstance(loss, str)}
    samples = timings(losses | named, x, rounds)
    size = f"{classes:,} classes, batch {batch}"
    rows: list[Row] = []
    for name in losses:
        reference = WITH_LAYER if name == "harmonic" else REFERENCE
        rows.append(
            {"name": size, "contender": name, "variant": OBJECTIVES[name][0]} | row_of(samples, name, reference)
        )
    for name, (peer, loss) in others.items():
        group = f"Peer of `{name}`, {size}"
        rows.append({"name": group, "contender": "relent"} | row_of(samples, name, name))
        if isinstance(loss, str):
            rows.append({"name": group, "contender": peer, "note": f"not run here: {loss}"})
            continue
        exact = tensors(classes, batch, torch.float64)
        found = {"value_and_gradient_difference": difference(loss, losses[name], exact)}
        rows.append({"name": group, "contender": peer} | row_of(samples, f"peer of {name}", name) | found)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few classes, two rounds; replaces no results")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = SIZES["small" if options.small else "full"]
    rows = [row for size in sizes.items() for row in measure(*size, 2 if options.small else options.rounds)]
    print_rows(rows, ("name", "contender", "cpu_seconds", "cpu_seconds_ratio", "ratio_lowest", "ratio_highest", "note"))
    write_rows("objectives", rows, options.small, options.threads)


if __name__ == "__main__":
    main()
