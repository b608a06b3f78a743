"""Options of a classification task."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model, model_validator

from relent.data.options import FolderOptions
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


class Augmentation(Strict):
    """Augmented views of the training images; validation and test images stay as they are."""

    views: int = Field(4, ge=1, le=4096, description="V, views of an image; an epoch shows one of them.")
    shift: int = Field(0, ge=0, le=4096, description="Largest shift along each side, in pixels.")
    flip: bool = Field(False, description="Whether a view may be mirrored left to right.")
    noise: float = Field(0.0, ge=0, le=1, description="Deviation of Gaussian noise, in pixels from 0 to 1.")
    border: Literal["edge", "black"] = Field("edge", description="What a shift brings in: the edge's pixels, or black.")
    least_area: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Smallest area of a random crop that is resized to the image's size, as a share; 0: no such crop.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the views, for the teacher and all students.")

    @model_validator(mode="after")
    def _changes_something(self) -> Augmentation:
        if not (self.shift or self.flip or self.noise or self.least_area):
            raise ValueError(
                "augmentation must set shift, flip, noise or least_area; all views would be the image itself"
            )
        return self


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
    label_noise: float = Field(
        0.0, ge=0, lt=1, description="Share of the student's images whose label is replaced by another class's."
    )
    augmentation: Augmentation | None = Field(
        None, description="Augmented views of the training images; the teacher's outputs are stored for all of them."
    )


class UnitOptions(Strict):
    """Images of units of near copies, which are split by unit."""

    fractions: Fractions = Field(description="Shares of each class's units by split.")
    least_units: int = Field(4, ge=4, description="Units that a class must have; those with fewer are left out.")
    per_unit: int = Field(0, ge=0, description="Images of a unit to keep, evenly spread over them; 0: all.")
    augmentation: Augmentation | None = Field(None, description="Augmented views of the training images.")


class SpriteOptions(UnitOptions):
    """Sprites of Battle for Wesnoth."""

    size: Literal[36, 72] = Field(72, description="Side of an image; 36: means over 2 × 2 pixels.")


class EmojiOptions(UnitOptions):
    """Emoji of one font."""

    size: int = Field(64, ge=16, le=136, description="Side of an image.")


class CollectionOptions(FolderOptions):
    """Images of the user's own, and how they are read."""

    loader_processes: int = Field(
        0, ge=0, le=64, description="Processes that read and augment training images ahead; 0: the training process."
    )
    augmentation: Augmentation | None = Field(None, description="Augmented views of the training images.")


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


DATA_OPTIONS: dict[str, type[BaseModel]] = {
    "relent.data.images": ImageOptions,
    "relent.data.sprites": SpriteOptions,
    "relent.data.emoji": EmojiOptions,
    "relent.data.image_folder": CollectionOptions,
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


class CifarOptions(Strict):
    """A network for images of 32 × 32 pixels, as distillation papers use them."""

    network: Literal["cifar"]
    name: Literal[
        "resnet8",
        "resnet14",
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
        "resnet110",
        "resnet8x4",
        "resnet32x4",
        "resnet18",
        "resnet34",
        "resnet50",
        "wrn_16_1",
        "wrn_16_2",
        "wrn_40_1",
        "wrn_40_2",
        "vgg8",
        "vgg13",
        "mobilenet_v2",
        "shufflenet_v1",
        "shufflenet_v2",
    ] = Field(description="Its name in the papers.")


class TimmOptions(Strict):
    """A network of the library timm, which is installed apart: it brings torchvision."""

    network: Literal["timm"]
    name: str = Field(min_length=1, description="Name in timm, with the tag of its weights (`resnet50.a1_in1k`).")
    pretrained: bool = Field(False, description="Whether its stored weights are read; they know ImageNet's classes.")
    drop_path: float = Field(0.0, ge=0, lt=1, description="Rate of stochastic depth, for networks that have it.")


class TransformersOptions(Strict):
    """An image classifier of the library transformers: from scratch, or trained weights."""

    network: Literal["transformers"]
    architecture: str = Field("", description="A model type, such as `resnet` or `vit`, built from scratch.")
    config: dict[str, Any] = Field({}, description="Its settings.")
    path: str = Field("", description="In place of both: a folder, or a hub name in the cache, of trained weights.")
    revision: str = Field("main", description="Of the hub name.")

    @model_validator(mode="after")
    def _one_kind(self) -> TransformersOptions:
        if bool(self.architecture) == bool(self.path) or (self.path and self.config):
            raise ValueError("give `architecture` (with `config`) or `path`")
        return self


ModelOptions = Annotated[
    ConvNetOptions
    | MLPOptions
    | MixerOptions
    | ViTOptions
    | CifarOptions
    | TimmOptions
    | TransformersOptions
    | BagOptions
    | TextTransformerOptions,
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

    data: (
        ImageOptions
        | SpriteOptions
        | EmojiOptions
        | CollectionOptions
        | SentimentOptions
        | GlossOptions
        | WordOptions
        | DataOptions
    ) = DataOptions()
    model: ModelOptions
    evaluation: EvaluationOptions = EvaluationOptions()

    @classmethod
    def of(cls, data_module: str) -> type[Options]:
        """With the data options of the module alone, so that an error speaks of them."""
        options = DATA_OPTIONS.get(data_module, DataOptions)
        required = any(field.is_required() for field in options.model_fields.values()) or "path" in options.model_fields
        return create_model("Options", __base__=cls, data=(options, ...) if required else (options, options()))
