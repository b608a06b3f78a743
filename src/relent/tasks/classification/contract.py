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

    Huge images make huge student logits; equal images make equal ones in the whole batch. Where the stage reads a
    teacher, its logits become huge of either sign, all equal, and one-hot at the label and at a wrong class.
    """
    batch: Batch = next(iter(datamodule.train_dataloader()))
    image, label = batch["image"], batch["label"]
    yield "data", batch
    yield "images × 1e4", batch | {"image": HUGE * image}
    yield "images × −1e4", batch | {"image": -HUGE * image}
    yield "equal images", batch | {"image": torch.zeros_like(image)}
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
    yield "all huge", batch | {"image": HUGE * image, "teacher_logits": -HUGE * teacher}
