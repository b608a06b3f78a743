"""Options of an ensemble forecast task."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, create_model, model_validator

from relent.data.options import (
    OPTIONS,
    DataOptions,
    GriddedOptions,
    IsentropicOptions,
    StormOptions,
    TwinOptions,
)
from relent.tasks.options import Strict, TaskOptions


class TransformerOptions(Strict):
    """Size of the transformer, see `relent.models.fuxi_ens.transformer`."""

    width: int = Field(64, ge=8, le=8192, description="Channels of the tokens.")
    blocks: int = Field(2, ge=1, le=96, description="Swin blocks before the perturbation, and as many behind it.")
    heads: int = Field(4, ge=1, le=128, description="Attention heads; a divisor of the width.")
    window: int = Field(4, ge=1, le=64, description="Side of an attention window, in tokens.")
    patch: int = Field(2, ge=1, le=16, description="Grid points a side of a patch; a token has twice as many.")
    groups: int = Field(8, ge=1, le=256, description="Groups of the group normalisation; a divisor of the width.")

    @model_validator(mode="after")
    def _divides(self) -> TransformerOptions:
        for name, parts in (("heads", self.heads), ("groups", self.groups)):
            if self.width % parts:
                raise ValueError(f"{name} {parts} must divide the width {self.width}")
        return self


class ModelOptions(Strict):
    """The network, see `relent.models.fuxi_ens`. Which backbone it has is a method's hyperparameter."""

    width: int = Field(16, ge=4, le=4096, description="Convolutional backbone: channels of the finest features.")
    blocks: int = Field(1, ge=1, le=32, description="Convolutional backbone: residual blocks at each resolution.")
    transformer: TransformerOptions | Literal["fuxi"] = Field(
        TransformerOptions(), description="Size of the transformer; `fuxi`: that of FuXi (1536 channels, 48 blocks)."
    )
    latent_channels: int = Field(4, ge=1, le=1024, description="Channels of the latent map.")
    checkpoint_activations: bool = Field(
        False, description="Compute activations of the blocks again in the backward pass: less memory, more time."
    )


class EvaluationOptions(Strict):
    """The forecasts of the test times."""

    members: int = Field(20, ge=2, le=1000, description="Ensemble members; the fair CRPS needs two.")
    lead_steps: int = Field(4, ge=1, le=1000, description="Steps ahead.")
    initial_stride: int = Field(1, ge=1, description="Every such initial time of a trajectory is forecast from.")
    report_leads: list[int] = Field(
        [1, 4], min_length=1, description="Leads, in steps, whose scores are among the task's metrics."
    )
    keep_bits: int = Field(12, ge=1, le=23, description="Bits of the mantissa that are stored.")
    validation_leads: int = Field(
        4, ge=1, le=100, description="Steps of the roll-outs that a validation scores, at most."
    )
    validation_tiles: int = Field(64, ge=1, description="Tiles of a validation, spread over its split.")


class Options(TaskOptions):
    """Options of one scale."""

    data: IsentropicOptions | TwinOptions | StormOptions | GriddedOptions = IsentropicOptions()
    model: ModelOptions = ModelOptions()
    evaluation: EvaluationOptions = EvaluationOptions()

    @classmethod
    def of(cls, data_module: str) -> type[Options]:
        """With the data options of the module alone, so that an error speaks of them."""
        options = OPTIONS.get(data_module, DataOptions)
        required = any(field.is_required() for field in options.model_fields.values())
        return create_model("Options", __base__=cls, data=(options, ...) if required else (options, options()))
