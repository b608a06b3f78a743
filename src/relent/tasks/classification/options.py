"""Options of a classification task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, create_model, model_validator

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
    """How a data set is made: by default for a data module that is not ours."""

    per_class: int = Field(0, ge=0, description="Items of each class to keep; 0: all.")
    fractions: Fractions | None = Field(
        None, description="Shares of the splits, where the data have none of their own."
    )


class ImageOptions(DataOptions):
    """Digits and animal silhouettes."""

    parts: list[Literal["digits", "animals"]] = Field(
        ["digits", "animals"], min_length=1, description="Which of the two sources."
    )
    grouping: Literal["none", "parity"] = Field(
        "none", description="`parity`: two classes, of even and odd numbers; what an image shows is kept aside."
    )
    thin: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        {}, description="Share of a class's training images to keep, by class: makes the student's split uneven."
    )


class SentimentOptions(DataOptions):
    """Texts with raters' sentiment."""

    fractions: Fractions = Field(description="Shares of the splits.")
    vocabulary: int = Field(4000, ge=3, description="Words that are told apart, padding and unknown among them.")
    length: int = Field(40, ge=1, description="Words of a text that are read.")


class GlossOptions(SentimentOptions):
    """Definitions of WordNet nouns."""

    classes: list[str] = Field(min_length=2, description="Lexicographer's files that are the classes.")


class WordOptions(Strict):
    """Windows of words and the word that follows."""

    context: int = Field(4, ge=1, description="Words of a window.")
    least_count: int = Field(2, ge=1, description="How often a word must stand in the training works to be a class.")
    train_items: int = Field(0, ge=0, description="Training windows to keep; 0: all.")
    test_items: int = Field(20000, ge=0, description="Windows of validation and test each to keep; 0: all.")


DATA_OPTIONS: dict[str, type[Strict]] = {
    "relent.data.images": ImageOptions,
    "relent.data.sentiment": SentimentOptions,
    "relent.data.glosses": GlossOptions,
    "relent.data.shakespeare": WordOptions,
}
"""Options of the data modules that we have."""


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


class Attack(Strict):
    """An attack on the test images, in pixel units (pixels from 0 to 1)."""

    norm: Literal["linf", "l2"] = Field("linf", description="Norm of the ball.")
    radius: float = Field(gt=0, description="Radius of the ball.")
    steps: int = Field(20, ge=1, le=1000, description="Steps of projected gradient ascent.")
    step_size: float = Field(gt=0, description="Length of a step.")
    restarts: int = Field(1, ge=1, le=100, description="Starts; the one with the largest loss counts.")


class EvaluationOptions(Strict):
    """What is measured beside the predictions."""

    attacks: dict[str, Attack] = Field({}, description="Attacks by name; the first gives the robust scores.")
    attacked_items: int = Field(1000, ge=1, description="Test images that are attacked, the first ones.")
    sharpness: bool = Field(False, description="Whether the sharpness of the training loss is measured.")


class Options(TaskOptions):
    """Options of one scale."""

    data: ImageOptions | SentimentOptions | GlossOptions | WordOptions | DataOptions = DataOptions()
    model: ModelOptions
    evaluation: EvaluationOptions = EvaluationOptions()

    @classmethod
    def of(cls, data_module: str) -> type[Options]:
        """With the data options of the module alone, so that an error speaks of them."""
        options = DATA_OPTIONS.get(data_module, DataOptions)
        required = any(field.is_required() for field in options.model_fields.values())
        return create_model("Options", __base__=cls, data=(options, ...) if required else (options, options()))
