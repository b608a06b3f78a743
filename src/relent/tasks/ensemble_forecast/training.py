"""Binds gridded fields and the forecast network to a stage: tiles for training, then forecasts of the whole domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from relent.data.tiles import Fields, TileDataset, Windows, read_fields
from relent.errors import ConfigError
from relent.methods.base import Method
from relent.methods.config import MethodConfig
from relent.models.fuxi_ens import FACTOR, ForecastNetwork
from relent.runspec import RunSpec
from relent.scores.spatial import latitude_weights
from relent.tasks.base import TrainingTask
from relent.tasks.ensemble_forecast.forecasts import ForecastWriter
from relent.tasks.ensemble_forecast.options import DataOptions, Options
from relent.train.sampling import StepBatchSampler


class TileDataModule(LightningDataModule):
    """Loaders of tiles.

    Args:
        fields: The data set.
        options: Size and stride of tiles.
        config: Hyperparameters: batch size, steps, `rollout_steps`.
        seed: Seed of the run.
        start_batch: Batches seen before a resume.
    """

    def __init__(self, fields: Fields, options: DataOptions, config: MethodConfig, seed: int, start_batch: int):
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
        sampler = StepBatchSampler.of_run(len(items), self.config, self.seed, self.start_batch, self.trainer)
        return DataLoader(items, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Tiles side by side whose target is the validation step."""
        return DataLoader(self.tiles("validation", 1, self.options.tile), batch_size=64)


class Task(TrainingTask):
    """Ensemble forecasts of gridded fields, a fixed number of hours ahead at each step."""

    def __init__(self, spec: RunSpec):
        super().__init__(spec)
        self.options = Options(data=spec.data_options, model=spec.model_options, evaluation=spec.evaluation_options)
        self.fields = read_fields(spec.inputs["data"])
        if len(self.fields.longitude) % FACTOR:
            raise ConfigError(
                f"leaves {len(self.fields.longitude)} longitudes; the network needs a multiple of {FACTOR}",
                key=f"{spec.task}: data.coarsen",
            )

    def datamodule(self, config: MethodConfig, start_batch: int) -> TileDataModule:
        return TileDataModule(self.fields, self.options.data, config, self.spec.seed, start_batch)

    def network(self) -> nn.Module:
        fields, options = self.fields, self.options.model
        return ForecastNetwork(fields.damping, fields.residual_std, options.width, options.latent_channels)

    def write_outputs(self, module: Method, folder: Path) -> None:
        """`predictions.zarr`: forecasts of the whole domain from every initial time of the test.

        A lead is written if its truth is in the test split.
        """
        fields, options = self.fields, self.options.evaluation
        cases = fields.cases("test", options.lead_steps)
        with ForecastWriter(folder / "predictions.zarr", fields, [i for i, _ in cases], options.lead_steps) as writer:
            for initial, leads in cases:
                frames = fields.frames(initial - 1, 2).to(module.device)
                forecast = module.ensemble_forecast(frames, max(leads), options.members, fields.topology)  # type: ignore[operator]
                for lead in leads:
                    values = fields.physical(forecast[lead - 1].float().cpu())
                    writer.write(initial, lead, values, options.keep_bits)

    def summary(self) -> dict[str, Any]:
        fields = self.fields
        splits = {f"{name}_steps": len(steps) for name, steps in fields.splits.items()}
        return {"data_checksum": fields.checksum, **splits}
