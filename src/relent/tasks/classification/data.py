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
from relent.errors import DataError
from relent.models.classifiers import InputShape


@dataclass(frozen=True)
class ClassificationData:
    """A data set in memory.

    Shapes: `inputs` is either images (N, channels, H, W) float32, standardised by the student split, or token numbers
    (N, L) int64 with 0 for padding; `labels` (N,) int64; `split` and `source` (N,) int8, indices into `splits` and
    `sources`. `people` (N, C) float32 is the distribution of raters' labels, where there were several raters.
    """

    inputs: Tensor
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
        return InputShape(channels=self.inputs.shape[1], size=self.inputs.shape[2])

    def items(self, split: str) -> Tensor:
        """Indices of a split, ascending."""
        return torch.from_numpy(np.flatnonzero(self.split == self.splits.index(split)))


def read_array(group: zarr.Group, name: str, place: Path) -> NDArray[Any]:
    """One whole array of a zarr group.

    Raises:
        DataError: The array is missing, a chunk is missing or cannot be decoded, or a number is not finite.
    """
    try:
        array = group[name]
        assert isinstance(array, zarr.Array)
        if array.nchunks_initialized != array.nchunks and array.fill_value is not None and not _may_be_empty(array):
            raise DataError(
                f"{place}/{name}: {array.nchunks - array.nchunks_initialized} chunks are missing; make it again"
            )
        values = np.asarray(array[...])
    except KeyError:
        raise DataError(f"{place}: has no array {name!r}; make it again") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{place}/{name}: cannot be decoded ({error}); make it again") from None
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise DataError(f"{place}/{name}: holds NaN or infinite values where none may be")
    return values


def _may_be_empty(array: zarr.Array) -> bool:
    """Whether the store left chunks out on purpose, because they hold fill values only."""
    return not array.config.write_empty_chunks


def read_data(folder: Path | str) -> ClassificationData:
    """Read `dataset.zarr` of a prepared data set.

    Raises:
        DataError: The data set is missing, incomplete or holds labels outside its classes.
    """
    place = Path(folder) / "dataset.zarr"
    receipt = check_receipt(folder)
    group = zarr.open_group(place, mode="r")
    attributes: dict[str, Any] = dict(group.attrs)
    raw = read_array(group, "inputs", place)
    labels = read_array(group, "labels", place)
    split = read_array(group, "split", place)
    classes = list(attributes["classes"])
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{place}/labels: reach from {labels.min()} to {labels.max()}, but there are {len(classes)} classes"
        )
    splits = list(attributes["splits"])
    vocabulary = int(attributes.get("vocabulary", 0))
    if vocabulary:
        inputs, pixel_range = torch.from_numpy(raw.astype(np.int64)), (0.0, 1.0)
    else:
        inputs, pixel_range = _images(raw, split, splits)
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


def read_teacher(folder: Path | str, data: ClassificationData) -> dict[str, Tensor]:
    """A teacher's stored outputs, in the order of the data set.

    Returns:
        `logits` (N, C) and `features` (N, D), float32.

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
    return {name: torch.from_numpy(read_array(group, name, place)) for name in ("logits", "features")}
