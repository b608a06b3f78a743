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


class ConvNetOptions(Strict):
    """A convolutional network on images."""

    network: Literal["convnet"]
    channels: list[Width] = Field(min_length=2, description="Channels of each stage.")
    blocks: int = Field(ge=1, le=100, description="Convolutions a stage.")
    hidden: Width = Field(description="Width of the hidden layer: the penultimate features.")


class MLPOptions(Strict):
    """A multilayer perceptron on flattened images."""

    network: Literal["mlp"]
    hidden: list[Width] = Field(min_length=1, description="Width of each hidden layer.")


class MixerOptions(Strict):
    """An MLP-Mixer on images."""

    network: Literal["mixer"]
    patch: int = Field(ge=1, description="Side of a patch; divides the image.")
    width: Width = Field(description="Channels of a position.")
    blocks: int = Field(ge=1, le=100, description="Number of blocks.")


class ViTOptions(Strict):
    """A vision transformer on images."""

    network: Literal["vit"]
    patch: int = Field(ge=1, description="Side of a patch; divides the image.")
    width: Width = Field(description="Channels of a position.")
    blocks: int = Field(ge=1, le=100, description="Number of blocks.")
    heads: int = Field(ge=1, description="Attention heads; divide the width.")


class BagOptions(Strict):
    """Mean of token embeddings and a perceptron (`bag`), or embeddings side by side and a perceptron (`window`)."""

    network: Literal["bag", "window"]
    width: Width = Field(description="Width of a token's embedding.")
    hidden: list[Width] = Field(min_length=1, description="Width of each hidden layer.")


class TextTransformerOptions(Strict):
    """A transformer encoder on tokens."""

    network: Literal["transformer"]
    width: Width = Field(description="Width of a token's embedding.")
    blocks: int = Field(ge=1, le=100, description="Number of blocks.")
    heads: int = Field(ge=1, description="Attention heads; divide the width.")


ModelOptions = Annotated[
    ConvNetOptions | MLPOptions | MixerOptions | ViTOptions | BagOptions | TextTransformerOptions,
    Field(discriminator="network"),
]
"""The network, see `relent.models.classifiers`."""


class EvaluationOptions(Strict):
    """Nothing to choose: the scores are those of the manifest's metrics."""


class Options(TaskOptions):
    """Options of one scale."""

    data: DataOptions = DataOptions()
    model: ModelOptions
    evaluation: EvaluationOptions = EvaluationOptions()
