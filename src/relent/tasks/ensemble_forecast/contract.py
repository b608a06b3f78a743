"""Extreme batches on which every forecast method must stay finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from relent.tasks.ensemble_forecast.training import Task, TileDataModule

Batch = dict[str, Tensor]
HUGE = 1e3
"""Size of extreme anomalies, in standard deviations: no field of the atmosphere comes near it."""


def batches(task: Task, datamodule: TileDataModule) -> Iterator[tuple[str, Batch]]:
    """Named batches, the first one taken from the data as it is.

    Fields become huge, constant, equal from step to step (nothing to forecast), and partly or wholly unknown (NaN:
    now and then in the targets, or always, as sea-surface temperature over land is).
    """
    batch: Batch = next(iter(datamodule.train_dataloader()))
    frames = batch["frames"]
    yield "data", batch
    yield "fields × 1e3", batch | {"frames": HUGE * frames}
    yield "zero fields", batch | {"frames": torch.zeros_like(frames)}
    yield "no change", batch | {"frames": frames[:, :1].expand_as(frames)}
    yield "huge targets", batch | {"frames": torch.cat([frames[:, :2], HUGE * frames[:, 2:]], dim=1)}
    yield "one tile", {name: values[:1] for name, values in batch.items()}
    gaps = frames.clone()
    gaps[:, 2:, :, ::2] = torch.nan
    yield "targets with gaps", batch | {"frames": gaps}
    land = frames.clone()
    land[..., :2, :3] = torch.nan
    yield "cells that are never known", batch | {"frames": land}
    yield "nothing known", batch | {"frames": torch.full_like(frames, torch.nan)}
