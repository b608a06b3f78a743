"""Extreme batches on which every classification method must stay finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from relent.tasks.classification.training import ClassificationDataModule, Task

Batch = dict[str, Tensor]
HUGE = 1e4
"""Size of extreme inputs and logits: far beyond where exp overflows in float32, far below where squares do."""


def batches(task: Task, datamodule: ClassificationDataModule) -> Iterator[tuple[str, Batch]]:
    """Named batches, the first one taken from the data as it is.

    Huge images make huge student logits; equal inputs (black images, texts without a known word) make equal ones in
    the whole batch. Where the stage reads a
    teacher, its logits become huge of either sign, all equal, and one-hot at the label and at a wrong class.
    """
    batch: Batch = next(iter(datamodule.train_dataloader()))
    inputs, label = batch["input"], batch["label"]
    yield "data", batch
    if inputs.is_floating_point():
        yield "images × 1e4", batch | {"input": HUGE * inputs}
        yield "images × −1e4", batch | {"input": -HUGE * inputs}
    yield "equal inputs", batch | {"input": torch.zeros_like(inputs)}
    yield "one class", batch | {"label": torch.zeros_like(label)}
    yield "one item", {name: values[:1] for name, values in batch.items()}
    if "teacher_logits" not in batch:
        return
    teacher = batch["teacher_logits"]
    hot = torch.zeros_like(teacher).scatter(-1, label[:, None], HUGE)
    signs = torch.where(torch.arange(task.classes) % 2 == 0, HUGE, -HUGE).to(teacher)
    yield "teacher ±1e4", batch | {"teacher_logits": signs.expand_as(teacher)}
    yield "teacher × 1e4", batch | {"teacher_logits": HUGE * teacher}
    yield "equal teacher", batch | {"teacher_logits": torch.zeros_like(teacher)}
    yield "one-hot teacher", batch | {"teacher_logits": hot}
    yield "one-hot teacher, wrong", batch | {"teacher_logits": hot.roll(1, dims=-1)}
    if inputs.is_floating_point():
        yield "all huge", batch | {"input": HUGE * inputs, "teacher_logits": -HUGE * teacher}
