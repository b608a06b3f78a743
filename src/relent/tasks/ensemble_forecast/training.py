"""Binds gridded fields and the forecast network to a stage: tiles for training, then forecasts of the whole domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from relent.data.tiles import Fields, TileDataset, Windows, read_fields
from relent.errors import ConfigError, nearest
from relent.methods.base import Method
from relent.methods.config import MethodConfig
from relent.models.fuxi_ens import FACTOR, ForecastNetwork
from relent.runspec import RunSpec
from relent.scores.spatial import latitude_weights
from relent.tasks.base import TrainingTask
from relent.tasks.ensemble_forecast.forecasts import ForecastWriter
from relent.train.sampling import StepBatchSampler


class Options(BaseModel):
    """Settings of data, network and forecasts that a task manifest gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tile: int = Field(32, ge=8, le=2048, multiple_of=FACTOR)
    tile_stride: int = Field(1, ge=1)
    width: int = Field(16, ge=4, le=4096)
    latent_channels: int = Field(4, ge=1, le=1024)
    members: int = Field(20, ge=2, le=1000)
    lead_steps: int = Field(4, ge=1, le=1000)
    keep_bits: int = Field(12, ge=1, le=23)

    @classmethod
    def of(cls, spec: RunSpec) -> Options:
        """Out of a stage's specification.

        Raises:
            ConfigError: An option of model or evaluation is unknown, or a value is of the wrong type or out of range.
        """
        # What else stands in the data options is for `prepare`, which checks it.
        tiles = {name: value for name, value in spec.data_options.items() if name in cls.model_fields}
        try:
            return cls(**tiles, **spec.model_options, **spec.evaluation_options)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                message = f"unknown option{nearest(name, cls.model_fields)}"
            else:
                message = f"{first['msg']}, got {first['input']!r}"
            raise ConfigError(message, key=f"{spec.task}: {name}") from None


class TileDataModule(LightningDataModule):
    """Loaders of tiles.

    Args:
        fields: The data set.
        options: Size and stride of tiles.
        config: Hyperparameters: batch size, steps, `rollout_steps`.
        seed: Seed of the run.
        start_batch: Batches seen before a resume.
    """

    def __init__(self, fields: Fields, options: Options, config: MethodConfig, seed: int, start_batch: int):
        super().__init__()
        self.fields, self.options, self.config = fields, options, config
        self.seed, self.start_batch = seed, start_batch
        self.weights = latitude_weights(torch.from_numpy(fields.latitude)).float()

    def tiles(self, split: str, n_targets: int, stride: int) -> TileDataset:
        """Tiles of a split with two input frames and `n_targets` targets."""
        length, tile = 2 + n_targets, self.options.tile
        try:
            windows = Windows.over(self.fields, split, length, tile, stride)
        except ValueError as error:
            raise ConfigError(str(error), key="data.tile or rollout_steps") from None
        return TileDataset(self.fields, windows, length, tile, self.weights)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Tiles at every position of the grid, in an order that is a function of (seed, batch)."""
        items = self.tiles("train", getattr(self.config, "rollout_steps", 1), self.options.tile_stride)
        trainer = self.trainer
        sampler = StepBatchSampler(
            len(items),
            self.config.batch_size // self.config.accumulate or 1,
            self.config.max_steps * self.config.accumulate,
            self.seed,
            self.start_batch,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )
        return DataLoader(items, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Tiles side by side whose target is the validation step."""
        return DataLoader(self.tiles("validation", 1, self.options.tile), batch_size=64)


class Task(TrainingTask):
    """Ensemble forecasts of gridded fields, a fixed number of hours ahead at each step."""

    def __init__(self, spec: RunSpec):
        super().__init__(spec)
        self.options = Options.of(spec)
        self.fields = read_fields(spec.inputs["data"])
        if len(self.fields.longitude) % FACTOR:
            raise ConfigError(
                f"leaves {len(self.fields.longitude)} longitudes; the network needs a multiple of {FACTOR}",
                key=f"{spec.task}: data.coarsen",
            )

    def datamodule(self, config: MethodConfig, start_batch: int) -> TileDataModule:
        return TileDataModule(self.fields, self.options, config, self.spec.seed, start_batch)

    def network(self) -> nn.Module:
        fields, options = self.fields, self.options
        return ForecastNetwork(fields.damping, fields.residual_std, options.width, options.latent_channels)

    def write_outputs(self, module: Method, folder: Path) -> None:
        """`predictions.zarr`: forecasts of the whole domain from every initial time of the test.

        A lead is written if its truth is in the test split.
        """
        fields, options = self.fields, self.options
        cases = fields.cases("test", options.lead_steps)
        with ForecastWriter(folder / "predictions.zarr", fields, [i for i, _ in cases], options.lead_steps) as writer:
            for initial, leads in cases:
                frames = fields.anomalies[initial - 1 : initial + 1].to(module.device)
                forecast = module.ensemble_forecast(frames, max(leads), options.members, fields.cyclic)  # type: ignore[operator]
                for lead in leads:
                    values = fields.physical(forecast[lead - 1].float().cpu())
                    writer.write(initial, lead, values, options.keep_bits)

    def summary(self) -> dict[str, Any]:
        fields = self.fields
        splits = {f"{name}_steps": len(steps) for name, steps in fields.splits.items()}
        return {"data_checksum": fields.checksum, **splits}
