"""Reads prepared classification data and a teacher's stored outputs, checked; loads no Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from relent.data.receipt import check_receipt
from relent.data.rows import StoredRows
from relent.errors import DataError
from relent.models.classifiers import InputShape
from relent.tasks.stored import read_array


class StoredImages:
    """Images on disk, read where they are asked for: `images[index]` gives the middle part that a network sees.

    Args:
        rows: Images (N, side, side, 3) uint8.
        mean: Of the student split's pixels, 0..255.
        std: Their deviation.
        crop: Side of the middle part.
    """

    def __init__(self, rows: StoredRows, mean: float, std: float, crop: int):
        self.rows, self.mean, self.std, self.crop = rows, mean, std, crop

    @property
    def shape(self) -> torch.Size:
        """(N, 3, crop, crop)."""
        return torch.Size((len(self.rows), 3, self.crop, self.crop))

    def is_floating_point(self) -> bool:
        """Images are, tokens are not."""
        return True

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        return middle(self.whole(index), self.crop)

    def whole(self, index: Tensor) -> Tensor:
        """Whole stored images, standardised, (B, 3, side, side) float32."""
        values = (self.rows[index].float() - self.mean) / self.std
        return values.permute(0, 3, 1, 2).contiguous()


def middle(images: Tensor, side: int) -> Tensor:
    """The middle `side` × `side` of images (B, channels, H, W)."""
    top, left = ((length - side) // 2 for length in images.shape[2:])
    return images[:, :, top : top + side, left : left + side]


@dataclass(frozen=True)
class ClassificationData:
    """A data set in memory, or its images on disk where they are too many.

    Shapes: `inputs` is either images (N, channels, H, W) float32, standardised by the student split, or token numbers
    (N, L) int64 with 0 for padding; `labels` (N,) int64; `split` and `source` (N,) int8, indices into `splits` and
    `sources`. `people` (N, C) float32 is the distribution of raters' labels, where there were several raters.
    """

    inputs: Tensor | StoredImages
    labels: Tensor
    split: NDArray[np.int8]
    source: NDArray[np.int8]
    classes: list[str]
    splits: list[str]
    sources: list[str]
    checksum: str
    counts: dict[str, int]
    vocabulary: int = 0
    """Number of tokens, padding included; 0 for images."""
    pixel_range: tuple[float, float] = (0.0, 1.0)
    """Standardised values of black (0) and white (1): the size of an attack is stated for pixels from 0 to 1."""
    people: Tensor | None = None
    shown: Tensor | None = None
    """What an image shows (N,), where the labels are coarser."""

    @property
    def shape(self) -> InputShape:
        """What a network must know of the inputs."""
        if self.vocabulary:
            return InputShape(length=self.inputs.shape[1], vocabulary=self.vocabulary)
        return InputShape(channels=self.inputs.shape[1], size=self.inputs.shape[2], pixels=self.pixel_range)

    def whole(self, index: Tensor) -> Tensor:
        """Inputs of items before the middle part is taken, where the stored images are larger than what is seen."""
        return self.inputs.whole(index) if isinstance(self.inputs, StoredImages) else self.inputs[index]

    def items(self, split: str) -> Tensor:
        """Indices of a split, ascending; without a `teacher` split the teacher learns from the students' items."""
        if split == "teacher" and split not in self.splits:
            split = "student"
        return torch.from_numpy(np.flatnonzero(self.split == self.splits.index(split)))


def read_data(folder: Path | str) -> ClassificationData:
    """Read `dataset.zarr` of a prepared data set.

    Raises:
        DataError: The data set is missing, incomplete or holds labels outside its classes.
    """
    place = Path(folder) / "dataset.zarr"
    receipt = check_receipt(folder)
    group = zarr.open_group(place, mode="r")
    attributes: dict[str, Any] = dict(group.attrs)
    labels = read_array(group, "labels", place)
    split = read_array(group, "split", place)
    classes = list(attributes["classes"])
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{place}/labels: reach from {labels.min()} to {labels.max()}, but there are {len(classes)} classes"
        )
    splits = list(attributes["splits"])
    vocabulary = int(attributes.get("vocabulary", 0))
    inputs: Tensor | StoredImages
    if vocabulary:
        inputs, pixel_range = torch.from_numpy(read_array(group, "inputs", place).astype(np.int64)), (0.0, 1.0)
    elif "rows" in attributes:
        inputs, pixel_range = _rows(place / "inputs", attributes["rows"])
    else:
        inputs, pixel_range = _images(read_array(group, "inputs", place), split, splits)
    return ClassificationData(
        inputs,
        torch.from_numpy(labels),
        split,
        read_array(group, "source", place),
        classes,
        splits,
        list(attributes["sources"]),
        receipt["checksum"],
        receipt["counts"],
        vocabulary,
        pixel_range,
        torch.from_numpy(read_array(group, "people", place)).float() if "people" in group else None,
        torch.from_numpy(read_array(group, "shown", place)) if "shown" in group else None,
    )


def _images(raw: NDArray[np.uint8], split: NDArray[np.int8], splits: list[str]) -> tuple[Tensor, tuple[float, float]]:
    """Images (N, H, W) or (N, H, W, channels), 0..255, standardised by one mean and deviation of the student split."""
    student = raw[split == splits.index("student")].astype(np.float32)
    mean, std = student.mean(), student.std()
    values = torch.from_numpy((raw.astype(np.float32) - mean) / std)
    images = values.unsqueeze(1) if values.ndim == 3 else values.permute(0, 3, 1, 2).contiguous()
    return images, (float(-mean / std), float((255 - mean) / std))


def _rows(path: Path, settings: dict[str, Any]) -> tuple[Tensor | StoredImages, tuple[float, float]]:
    """Images of the user's own: in memory where they are not too many and are seen whole, else on disk."""
    rows, mean, std = StoredRows(path), float(settings["mean"]), float(settings["std"])
    stored, pixel_range = StoredImages(rows, mean, std, int(settings["crop"])), (-mean / std, (255 - mean) / std)
    fits = 4 * np.prod(rows.shape) <= settings["memory_mb"] * 1e6
    if fits and stored.crop == rows.shape[1]:
        return stored.whole(torch.arange(len(rows))), pixel_range
    return stored, pixel_range


Outputs = dict[str, Tensor | StoredRows]
"""Stored outputs by name; `values[index]` is a tensor in either case."""


def read_teacher(folder: Path | str, data: ClassificationData) -> Outputs:
    """A teacher's stored outputs, in the order of the data set.

    Returns:
        `logits` (N, C) and `features` (N, D), float32; on disk where the data set is.

    Raises:
        DataError: They are missing or incomplete, or the teacher has other classes or another data set.
    """
    place = Path(folder) / "outputs.zarr"
    if not place.is_dir():
        raise DataError(f"{place}: does not exist; train the teacher first")
    group = zarr.open_group(place, mode="r")
    attributes: dict[str, Any] = dict(group.attrs)
    classes = list(attributes["classes"])
    if classes != data.classes:
        raise DataError(
            f"{place}: the teacher knows {len(classes)} classes ({', '.join(map(str, classes[:4]))} …), the student's"
            f" task has {len(data.classes)} ({', '.join(data.classes[:4])} …); train a teacher on the same classes"
        )
    if attributes["data_checksum"] != data.checksum:
        raise DataError(f"{place}: was made from another data set; train the teacher again")
    return {name: _outputs(group, name, place) for name in ("logits", "features")}


def _outputs(group: zarr.Group, name: str, place: Path) -> Tensor | StoredRows:
    """One array of outputs: in memory, or on disk where it was stored by row."""
    array = group.get(name)
    if isinstance(array, zarr.Array) and array.shards is not None:
        return StoredRows(place / name)
    return torch.from_numpy(read_array(group, name, place))


def read_teacher_views(folder: Path | str, augmentation: dict[str, Any]) -> Outputs:
    """A teacher's stored outputs on all augmented views, in the order of the data set.

    Args:
        folder: The teacher.
        augmentation: The options of the views that are wanted, all of them.

    Returns:
        `logits` (V, N, C) and `features` (V, N, D), float32.

    Raises:
        DataError: They are missing or incomplete, or of other views.
    """
    place = Path(folder) / "outputs.zarr"
    group = zarr.open_group(place, mode="r")
    if "views" not in group:
        raise DataError(f"{place}: has no outputs on augmented views; train the teacher again with `augmentation`")
    attributes: dict[str, Any] = dict(group["views"].attrs)
    stored: dict[str, Any] = attributes["augmentation"]
    if stored != augmentation:
        other = [f"{key}: {stored.get(key)} there, {augmentation[key]} here" for key in augmentation]
        differing = [words for key, words in zip(augmentation, other) if stored.get(key) != augmentation[key]]
        raise DataError(f"{place}: holds outputs on other views ({'; '.join(differing)}); train the teacher again")
    return {name: _outputs(group, f"views/{name}", place) for name in ("logits", "features")}
