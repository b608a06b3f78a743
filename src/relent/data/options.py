"""Options of gridded data sets: what their `prepare` makes and how they are read. Free of numpy and torch.

`OPTIONS` says which model checks the `data` of a task, by its data module; the same models are used by `prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from relent.data.gridded.options import GriddedSource
from relent.errors import ConfigError
from relent.manifest.yamlfile import explain

Model = TypeVar("Model", bound=BaseModel)


class DataOptions(BaseModel):
    """How any gridded data set is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tile: int = Field(32, ge=8, le=2048, multiple_of=4, description="Side of a training tile, in grid points.")
    tile_stride: int = Field(1, ge=1, description="Distance of neighbouring training tiles, in grid points.")
    halo: int = Field(
        0, ge=0, le=512, multiple_of=4, description="Points around a training tile that are input alone, on each side."
    )
    memory_mb: float = Field(
        2000, gt=0, description="A data set laid out as tiles is read into memory up to this size, else from disk."
    )
    loader_processes: int = Field(
        0, ge=0, le=64, description="Processes that read training tiles ahead; 0: the training process reads them."
    )


class IsentropicOptions(DataOptions):
    """Fields on the 340 K isentrope."""

    coarsen: int = Field(1, ge=1, le=20, description="Side of the blocks of grid points that are averaged.")


class TwinOptions(DataOptions):
    """Two-layer quasi-geostrophic flow: trajectories that begin independently, each after its own spin-up."""

    mirror: bool = Field(True, description="Train on tiles mirrored in y with the opposite sign too: a symmetry.")
    size: int = Field(ge=16, le=2048, multiple_of=4, description="Grid points a side.")
    train_trajectories: int = Field(32, ge=1, description="Trajectories for training.")
    train_steps: int = Field(130, ge=3, description="Steps of each.")
    validation_trajectories: int = Field(6, ge=1, description="Trajectories for validation.")
    validation_steps: int = Field(100, ge=3, description="Steps of each.")
    test_trajectories: int = Field(16, ge=1, description="Trajectories for the test.")
    test_steps: int = Field(92, ge=3, description="Steps of each.")
    spin_up: int = Field(80, ge=0, description="Steps before the first one that is kept.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of initial states and heating.")
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where the flow is computed; grids from 256 want a GPU.")

    @model_validator(mode="after")
    def _tile_fits(self) -> TwinOptions:
        if self.tile > self.size:
            raise ValueError(f"a tile of {self.tile} points does not fit the grid of {self.size}; lower `tile`")
        return self


class StormOptions(DataOptions):
    """The storm of January 1996, on the rectangle that is known at every step."""

    tile: int = Field(16, ge=8, le=20, multiple_of=4, description="Side of a training tile; the grid has 20 columns.")


class GriddedOptions(DataOptions):
    """Fields of any store or files, laid out as tiles."""

    coarsen: int = Field(1, ge=1, le=64, description="Side of the blocks of grid points that are averaged.")
    source: GriddedSource = Field(description="Where the fields come from and what is taken.")


class FolderOptions(BaseModel):
    """Labelled images of the user's own: a folder or a name of a hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        None, min_length=1, description="Folder with `train/CLASS/*` and `val/CLASS/*`, or `cifar-100-python`."
    )
    hub: str | None = Field(None, min_length=1, description="In place of `path`: a name for the library `datasets`.")
    label: str = Field("label", description="With `hub`: the column of the classes.")
    side: int = Field(
        256, ge=8, le=1024, description="Side of the stored images: the shorter side is resized to it, the middle kept."
    )
    crop: int = Field(0, ge=0, le=1024, description="Side of the middle part that a network sees; 0: all of it.")
    validation: float = Field(
        0.02, gt=0, lt=1, description="Share of each class's training images that is held out; `val` is the test."
    )
    per_class: int = Field(0, ge=0, description="Images of each class and part to keep; 0: all.")
    memory_mb: float = Field(
        2000, ge=0, description="A data set up to this size, as float32, is read into memory, else from disk."
    )

    @model_validator(mode="after")
    def _one_place(self) -> FolderOptions:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give one of `path` (a folder) and `hub` (a name for the library datasets)")
        if self.crop > self.side:
            raise ValueError(f"crop {self.crop} is larger than the stored side {self.side}")
        return self


class PairFileOptions(BaseModel):
    """Preference pairs of the user's own: a prompt, a preferred completion, another one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        None,
        min_length=1,
        description="File of JSON lines (`.jsonl`) or parquet (`.parquet`), or a folder of such files, with the "
        "columns `prompt`, `chosen` and `rejected`: texts, or lists of messages (`role`, `content`).",
    )
    ratings: int | None = Field(
        None,
        ge=20,
        description="In place of `path`: so many pairs out of the source `vader_ratings`, written as `pairs.jsonl` "
        "beside the data; an example of such a file.",
    )
    tokenizer: str | None = Field(
        None, min_length=1, description="The model's tokeniser: folder, or hub name that is in the local cache."
    )
    revision: str = Field("main", description="Commit or branch of a hub name; pin a commit.")
    vocabulary: int | None = Field(
        None,
        ge=257,
        le=2**20,
        description="In place of `tokenizer`: tokens of a byte-level one that is trained on the pairs.",
    )
    prompt_length: int = Field(
        512, ge=1, le=2**20, description="Tokens of a prompt, at most; of a longer one the beginning is cut off."
    )
    length: int = Field(
        512,
        ge=1,
        le=2**20,
        description="Tokens of a completion, its end of text among them, at most; of a longer one the end is cut off.",
    )
    validation: float = Field(0.05, gt=0, lt=1, description="Share of the prompts whose pairs are for validation.")
    test: float = Field(0.05, gt=0, lt=1, description="Share of the prompts on which runs are scored.")
    row: int = Field(1024, ge=4, description="Tokens of a row of packed texts, where the base model is trained.")

    @model_validator(mode="after")
    def _one_of_each(self) -> PairFileOptions:
        if (self.path is None) == (self.ratings is None):
            raise ValueError("give one of `path` (a file of pairs) and `ratings` (a number of example pairs)")
        if (self.tokenizer is None) == (self.vocabulary is None):
            raise ValueError("give one of `tokenizer` (the model's) and `vocabulary` (for one that is trained)")
        if self.validation + self.test >= 1:
            raise ValueError("validation and test must sum to less than 1: the rest is trained on")
        return self

    def files(self) -> list[Path]:
        """The file that `path` names, or those of its folder in the order of their names; none where nothing is."""
        path = Path(self.path or "")
        found = sorted(path.iterdir()) if self.path and path.is_dir() else [path]
        return [file for file in found if file.is_file() and file.suffix in (".jsonl", ".parquet")]


class ImagePairOptions(BaseModel):
    """Captioned digits as rows of tokens, and pairs of which one image bears a planted mark or shows another digit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: Literal[7, 14, 28] = Field(description="Pixels a side of an image; digits of 28 are pooled.")
    patch: int = Field(
        4, ge=1, le=14, description="Pixels a side of the squares that are a token each; 1: tokens are grey levels."
    )
    codes: int = Field(64, ge=3, le=4096, description="Different squares (or grey levels), the nearest is taken.")
    mark: int = Field(8, ge=1, le=14, description="Pixels a side of the mark in the upper left corner.")
    marked: float = Field(0.4, ge=0, le=1, description="Share of the base model's images that bear the mark.")
    wrong_digit: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the pairs whose other image shows another digit; in the rest it bears the mark.",
    )
    per_class: int = Field(0, ge=0, description="Images of each digit; 0: all 500.")
    pairs: int = Field(4000, ge=2, description="Training pairs.")
    held_out_pairs: int = Field(500, ge=2, description="Pairs of validation and test images each.")
    validation: float = Field(0.1, gt=0, lt=1, description="Share of the images that is for validation.")
    test: float = Field(0.1, gt=0, lt=1, description="Share of the images on whose pairs runs are scored.")
    judge_steps: int = Field(400, ge=1, description="Training steps of the joint encoder, and of the classifier.")

    @property
    def prompt_length(self) -> int:
        """Tokens of a caption, the begin of text among them."""
        return 3

    @property
    def length(self) -> int:
        """Tokens of an image."""
        return (self.side // self.patch) ** 2

    @property
    def row(self) -> int:
        """Tokens of a captioned image, which the base model is trained on."""
        return self.prompt_length + self.length

    @model_validator(mode="after")
    def _fits_together(self) -> ImagePairOptions:
        if self.side % self.patch:
            raise ValueError(f"side {self.side} is no multiple of patch {self.patch}; choose a patch that divides it")
        if self.mark % self.patch or 2 * self.mark > self.side:
            raise ValueError(
                f"mark {self.mark} must be a multiple of patch {self.patch} and at most half of side {self.side}"
            )
        if self.validation + self.test >= 1:
            raise ValueError("validation and test must sum to less than 1: the rest is trained on")
        return self


OPTIONS: dict[str, type[DataOptions]] = {
    "relent.data.isentropic": IsentropicOptions,
    "relent.data.weather_twin": TwinOptions,
    "relent.data.storm96": StormOptions,
    "relent.data.gridded.prepare": GriddedOptions,
}


def checked(model: type[Model], options: Mapping[str, Any]) -> Model:
    """The options of a `prepare` that is called by hand; manifests are checked before.

    Raises:
        ConfigError: An option is unknown or out of range.
    """
    try:
        return model(**options)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ConfigError(explain(first, model), key=".".join(["data", *map(str, first["loc"])])) from None
