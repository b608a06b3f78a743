"""Binds gridded fields and the forecast network to a stage: tiles for training, then forecasts of the whole domain."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from relent.data.tiles import Fields, MirroredTiles, TileDataset, Windows, read_fields
from relent.errors import ConfigError
from relent.methods.base import Method
from relent.methods.config import MethodConfig
from relent.methods.weather.base import NetworkForecast
from relent.models.fuxi_ens.backbone import Backbone
from relent.models.fuxi_ens.channels import Channels
from relent.models.fuxi_ens.convolutional import ConvolutionalBackbone
from relent.models.fuxi_ens.network import ForecastNetwork
from relent.models.fuxi_ens.transformer import FUXI, TransformerBackbone, TransformerSize
from relent.runspec import RunSpec
from relent.scores.spatial import latitude_weights
from relent.tasks.base import TrainingTask
from relent.tasks.ensemble_forecast.forecasts import ForecastWriter
from relent.tasks.ensemble_forecast.options import Options
from relent.train.sampling import StepBatchSampler

LOG = logging.getLogger("relent.weather")


class TileDataModule(LightningDataModule):
    """Loaders of tiles.

    Args:
        fields: The data set.
        options: Size and stride of tiles; leads and number of tiles of a validation.
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
        length, tile, halo = 2 + n_targets, self.options.data.tile, self.options.data.halo
        try:
            windows = Windows.over(self.fields, split, length, tile, stride, halo)
        except ValueError as error:
            raise ConfigError(str(error), key="data.tile or rollout_steps") from None
        return TileDataset(self.fields, windows, length, tile, self.weights, halo)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Tiles at every position of the grid, in an order that is a function of (seed, batch)."""
        tiles = self.tiles("train", getattr(self.config, "rollout_steps", 1), self.options.data.tile_stride)
        items = MirroredTiles(tiles) if getattr(self.options.data, "mirror", False) else tiles
        sampler = StepBatchSampler.of_run(len(items), self.config, self.seed, self.start_batch, self.trainer)
        return DataLoader(items, batch_sampler=sampler, num_workers=self.options.data.loader_processes)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Tiles side by side, spread over the validation split, with as many targets as it has room for."""
        items = self._validation_tiles()
        count = min(len(items), self.options.evaluation.validation_tiles)
        chosen = [number * len(items) // count for number in range(count)]
        return DataLoader(Subset(items, chosen), batch_size=min(count, 64))

    def _validation_tiles(self) -> TileDataset:
        for leads in range(self.options.evaluation.validation_leads, 1, -1):
            try:
                return self.tiles("validation", leads, self.options.data.tile)
            except ConfigError:
                continue
        return self.tiles("validation", 1, self.options.data.tile)


class Task(TrainingTask):
    """Ensemble forecasts of gridded fields, a fixed number of hours ahead at each step."""

    def __init__(self, spec: RunSpec):
        super().__init__(spec)
        self.options = Options(data=spec.data_options, model=spec.model_options, evaluation=spec.evaluation_options)
        self.fields = read_fields(spec.inputs["data"], self.options.data.memory_mb)
        self.channels = Channels.of(self.fields.variables, self.fields.attributes)
        self.warnings: list[str] = []

    def datamodule(self, config: MethodConfig, start_batch: int) -> TileDataModule:
        return TileDataModule(self.fields, self.options, config, self.spec.seed, start_batch)

    def network(self) -> nn.Module:
        """The forecast network; the method's hyperparameters say which backbone and which latent Gaussian.

        Raises:
            ConfigError: The grid, or a tile, is no whole number of the network's cells.
        """
        fields, model, wanted = self.fields, self.options.model, self.spec.hyperparameters
        backbone = self._backbone(wanted.get("backbone", "convolutional"))
        sides = {
            "longitudes of the grid": len(fields.longitude),
            "points of a tile with its halo": self.options.data.tile + 2 * self.options.data.halo,
        }
        if fields.topology.wraps_rows:
            sides["rows of the grid"] = len(fields.latitude)
        for what, side in sides.items():
            if side % backbone.factor:
                raise ConfigError(
                    f"gives {side} {what}; the network needs a multiple of {backbone.factor}",
                    key=f"{self.spec.task}: data",
                )
        rank = wanted.get("latent_rank", 0)
        return ForecastNetwork(
            fields.damping, fields.residual_std, self.channels, backbone, model.latent_channels, rank
        )

    def _backbone(self, kind: str) -> Backbone:
        options, channels = self.options.model, (len(self.channels.inputs), len(self.channels.outputs))
        if kind == "convolutional":
            return ConvolutionalBackbone(*channels, options.width, options.blocks, options.checkpoint_activations)
        size = FUXI if options.transformer == "fuxi" else TransformerSize(**options.transformer.model_dump())
        return TransformerBackbone(*channels, size, options.checkpoint_activations)

    def write_outputs(self, module: Method, folder: Path) -> None:
        """`predictions.zarr`: forecasts of the whole domain from every initial time of the test.

        A lead is written if its truth is in the test split. Before, a network sets what it chooses on the validation,
        and is asked what a user should know of it.
        """
        if isinstance(module, NetworkForecast):
            self._look_at_validation(module)
        fields, options = self.fields, self.options.evaluation
        cases = fields.cases("test", options.lead_steps, options.initial_stride)
        with ForecastWriter(folder / "predictions.zarr", fields, [i for i, _ in cases], options.lead_steps) as writer:
            for initial, leads in cases:
                frames = fields.frames(initial - 1, 2).to(module.device)
                forcing = self.forcing(initial, max(leads)).to(module.device)
                arguments = (frames, max(leads), options.members, fields.topology, forcing)
                forecast = module.ensemble_forecast(*arguments)  # type: ignore[operator]
                for lead in leads:
                    values = fields.physical(forecast[lead - 1].float().cpu())
                    writer.write(initial, lead, values, options.keep_bits)

    def forcing(self, initial: int, leads: int) -> Tensor:
        """True values of the forced variables at leads 1, 2, … of a forecast, (leads, forced, H, W)."""
        frames = self.fields.frames(initial + 1, leads) if self.channels.forced else torch.empty(leads, 0, 1, 1)
        return frames[:, self.channels.forced]

    def _look_at_validation(self, module: NetworkForecast) -> None:
        loader = self.datamodule(module.config, 0).val_dataloader()
        batches = [{name: values.to(module.device) for name, values in batch.items()} for batch in loader]
        module.calibrate(batches)
        self.warnings = module.warnings(batches)
        for warning in self.warnings:
            LOG.warning("%s: %s", self.spec.output, warning)

    def summary(self) -> dict[str, Any]:
        """Facts about the data, and what the trained network's validation warns of."""
        fields = self.fields
        splits = {f"{name}_steps": len(steps) for name, steps in fields.splits.items()}
        warned = {"warnings": self.warnings} if self.warnings else {}
        return {"data_checksum": fields.checksum, **splits, **warned}
