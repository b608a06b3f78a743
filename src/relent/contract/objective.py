"""Checks of a stage's objective: finite on extreme batches, moved by the parameters, blind to the teacher's gradient.

A method may say about itself, as class attributes:

- `batch_order_matters = True`: the loss depends on which item stands where in the batch (a queue of negatives, pairs
  of neighbours); the check of batch order is then left out. Objectives that draw random numbers are found out.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from relent.contract.result import CheckResult, failed, not_applicable, passed
from relent.contract.subject import Subject
from relent.methods.base import Method
from relent.runspec import RunSpec
from relent.tasks.base import TrainingTask
from relent.train.stage import build

Batch = dict[str, Tensor]
ORDER_TOLERANCE = 1e-5
CHECKS = ("finite objective", "gradient", "teacher is constant", "batch order")


def check_objective(subject: Subject, stage: str) -> list[CheckResult]:
    """All checks of one stage's training step."""
    spec = prepared(subject, "first", stage)
    names = [f"{check} ({stage})" if len(subject.method.stages) > 1 else check for check in CHECKS]
    if not spec.hyperparameters["max_steps"]:
        return [not_applicable(name, "nothing is trained") for name in names]
    module, datamodule, task = build(spec)
    if not module.automatic_optimization:
        return [not_applicable(name, "the method drives its optimisers itself") for name in names]
    batches = dict(extreme_batches(spec.kind, task, datamodule))
    first = next(iter(batches.values()))
    return [
        _finite(names[0], module, batches),
        _moved(names[1], module, first),
        _teacher(names[2], module, first),
        _order(names[3], module, first),
    ]


def prepared(subject: Subject, place: str, stage: str) -> RunSpec:
    """Specification of a stage whose inputs (teacher, earlier stages, runs of other methods) are there."""
    specs = subject.specs(place)
    for name, spec in specs.items():
        if name == stage:
            break
        subject.train(spec)
    subject.prepare_inputs(spec)
    return spec


def extreme_batches(kind: str, task: TrainingTask, datamodule: Any) -> Iterator[tuple[str, Batch]]:
    """Named batches, the first one of the data: those of `relent.tasks.<kind>.contract`, else the data's alone."""
    name = f"relent.tasks.{kind}.contract"
    if importlib.util.find_spec(name) is None:
        yield "data", next(iter(datamodule.train_dataloader()))
    else:
        yield from importlib.import_module(name).batches(task, datamodule)


def loss_of(module: Method, batch: Batch, seed: int = 0) -> Tensor:
    """The training loss of a batch, with the generator seeded as the training does before each batch."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*trainer. reference is not registered.*")
        loss: Any = module.training_step(batch, 0)
    return loss["loss"] if isinstance(loss, dict) else loss


def _gradients(module: Method, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad(set_to_none=True)
    loss = loss_of(module, batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _finite(name: str, module: Method, batches: dict[str, Batch]) -> CheckResult:
    for kind, batch in batches.items():
        loss, gradients = _gradients(module, batch)
        broken = [parameter for parameter, gradient in gradients.items() if not gradient.isfinite().all()]
        if not loss.isfinite() or broken:
            what = f"the gradient of {broken[0]}" if loss.isfinite() else f"the loss ({float(loss)})"
            return failed(
                name,
                f"{what} is not finite on the batch {kind!r}",
                "stay in log space: log_softmax in place of log(softmax), relent.divergences in place of own formulas; "
                "never 0 · log 0, no square root at 0",
            )
    return passed(name, f"loss and gradients finite on: {', '.join(batches)}")


def _moved(name: str, module: Method, batch: Batch) -> CheckResult:
    _, gradients = _gradients(module, batch)
    moved = [parameter for parameter, gradient in gradients.items() if gradient.any()]
    if not moved:
        return failed(
            name,
            "no parameter gets a gradient",
            "compute the loss from the network's output without .detach(), .item() or torch.no_grad()",
        )
    total = sum(1 for _ in module.parameters())
    return passed(name, f"{len(moved)} of {total} parameter tensors get a gradient")


def _teacher(name: str, module: Method, batch: Batch) -> CheckResult:
    watched = {key: value for key, value in batch.items() if key.startswith("teacher") and value.is_floating_point()}
    if not watched:
        return not_applicable(name, "the stage reads no teacher")
    leaves = {key: value.clone().requires_grad_() for key, value in watched.items()}
    loss = loss_of(module, batch | leaves)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    reached = [key for key, gradient in zip(leaves, gradients) if gradient is not None and gradient.any()]
    if reached:
        return failed(
            name, f"the gradient reaches {', '.join(reached)}", "detach what comes from the teacher: t = t.detach()"
        )
    return passed(name, "no gradient reaches the teacher's outputs")


def _order(name: str, module: Method, batch: Batch) -> CheckResult:
    if getattr(module, "batch_order_matters", False):
        return not_applicable(name, "the method says that the order of a batch matters")
    with torch.no_grad():
        loss, redrawn = loss_of(module, batch), loss_of(module, batch, seed=1)
        if not torch.equal(loss, redrawn):
            return not_applicable(name, "the objective draws random numbers for each item")
        size = len(next(iter(batch.values())))
        reversed_batch = {key: value.flip(0) if len(value) == size else value for key, value in batch.items()}
        permuted = loss_of(module, reversed_batch)
    error = float((permuted - loss).abs() / loss.abs().clamp_min(1e-12))
    if error > ORDER_TOLERANCE:
        return failed(
            name,
            f"the loss changes by {error:.1e} (relative) when the items of a batch are reversed",
            "pair each item with its own label and teacher output; if the order is meant to matter, set "
            "`batch_order_matters = True` in the class and say why",
        )
    return passed(name, f"items reversed, the loss changes by {error:.1e} (relative)")
