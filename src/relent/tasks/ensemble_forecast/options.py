"""Options of an ensemble forecast task."""

from __future__ import annotations

from pydantic import Field

from relent.tasks.options import Strict, TaskOptions


class DataOptions(Strict):
    """Grid and tiles."""

    coarsen: int = Field(1, ge=1, le=20, description="Side of the blocks of grid points that are averaged.")
    tile: int = Field(32, ge=8, le=2048, multiple_of=4, description="Side of a training tile, in grid points.")
    tile_stride: int = Field(1, ge=1, description="Distance of neighbouring training tiles, in grid points.")


class ModelOptions(Strict):
    """The network, see `relent.models.fuxi_ens`."""

    width: int = Field(16, ge=4, le=4096, description="Channels of the finest features.")
    latent_channels: int = Field(4, ge=1, le=1024, description="Channels of the latent map.")


class EvaluationOptions(Strict):
    """The forecasts of the test times."""

    members: int = Field(20, ge=2, le=1000, description="Ensemble members; the fair CRPS needs two.")
    lead_steps: int = Field(4, ge=1, le=1000, description="Steps ahead.")
    keep_bits: int = Field(12, ge=1, le=23, description="Bits of the mantissa that are stored.")


class Options(TaskOptions):
    """Options of one scale."""

    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
