"""Options of a classification task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from relent.tasks.options import Strict, TaskOptions

Width = Annotated[int, Field(ge=1, le=65536)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Fractions(Strict):
    """Shares of the items by split; the rest is the test split."""

    teacher: Share
    student: Share
    validation: Share

    @model_validator(mode="after")
    def _leaves_a_test_split(self) -> Fractions:
        if self.teacher + self.student + self.validation >= 1:
            raise ValueError("teacher, student and validation must sum to less than 1: the rest is the test split")
        return self


class DataOptions(Strict):
    """How the data set is made."""

    per_class: int = Field(0, ge=0, description="Items of each class to keep; 0: all.")
    fractions: Fractions | None = Field(
        None, description="Shares of the splits, where the data have none of their own."
    )


class ModelOptions(Strict):
    """The network, see `relent.models.classifiers`."""

    network: Literal["convnet", "mlp"] = Field("convnet", description="Kind of network.")
    channels: list[Width] | None = Field(None, min_length=1, description="Channels of each stage (convnet).")
    blocks: int | None = Field(None, ge=1, le=100, description="Convolutions a stage (convnet).")
    hidden: Width | list[Width] = Field(description="Width of the hidden layer (convnet) or of each layer (mlp).")

    @model_validator(mode="after")
    def _fits_the_network(self) -> ModelOptions:
        if self.network == "convnet" and (
            self.channels is None or self.blocks is None or isinstance(self.hidden, list)
        ):
            raise ValueError("a convnet needs channels (a list), blocks and hidden (one number)")
        if self.network == "mlp" and (self.channels or self.blocks or not isinstance(self.hidden, list)):
            raise ValueError("an mlp needs hidden (a list of widths) and nothing else")
        return self


class EvaluationOptions(Strict):
    """Nothing to choose: the scores are those of the manifest's metrics."""


class Options(TaskOptions):
    """Options of one scale."""

    data: DataOptions = DataOptions()
    model: ModelOptions
    evaluation: EvaluationOptions = EvaluationOptions()
