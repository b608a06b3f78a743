"""Extreme batches on which every alignment method must stay finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from relent.tasks.preference_alignment.training import PreferenceDataModule, Task

Batch = dict[str, Tensor]
HUGE = 1e4


def batches(task: Task, datamodule: PreferenceDataModule) -> Iterator[tuple[str, Batch]]:
    """Named batches, the first one taken from the data as it is.

    Log-probabilities of the reference are made tiny on one side or on both, as those of a reference that rules out what
    the policy finds likely; and both completions of a pair are made equal.
    """
    batch: Batch = next(iter(datamodule.train_dataloader()))
    yield "data", batch
    yield "one item", {name: values[:1] for name, values in batch.items()}
    if "teacher_chosen" not in batch:
        return
    chosen, rejected = batch["teacher_chosen"], batch["teacher_rejected"]
    low = [torch.where(batch[f"{side}_loss"], -HUGE, 0.0).to(chosen) for side in ("chosen", "rejected")]
    yield "chosen ruled out", batch | {"teacher_chosen": low[0]}
    yield "rejected ruled out", batch | {"teacher_rejected": low[1]}
    yield "both ruled out", batch | {"teacher_chosen": low[0], "teacher_rejected": low[1]}
    yield (
        "certain reference",
        batch
        | {
            "teacher_chosen": torch.zeros_like(chosen),
            "teacher_rejected": torch.zeros_like(rejected),
        },
    )
    same = {f"rejected{name.removeprefix('chosen')}": v for name, v in batch.items() if name.startswith("chosen")}
    yield "equal completions", batch | same | {"teacher_rejected": chosen}
