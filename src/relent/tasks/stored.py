"""What runs and teachers have stored, read by the evaluations of all kinds of task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from relent.errors import DataError
from relent.files import read_json


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


def open_predictions(folder: Path, data_checksum: str) -> zarr.Group:
    """A run's predictions, made from the data set of that checksum.

    Raises:
        DataError: They are missing, or of another data set.
    """
    place = folder / "predictions.zarr"
    root = open_extras(place, data_checksum)
    if root is None:
        raise DataError(f"{place}: does not exist; train the run first")
    return root


def open_extras(place: Path, data_checksum: str) -> zarr.Group | None:
    """What a run may have written beside its predictions, from the data set of that checksum; None: it did not.

    Raises:
        DataError: It is of another data set.
    """
    if not place.is_dir():
        return None
    group = zarr.open_group(place, mode="r")
    if group.attrs["data_checksum"] != data_checksum:
        raise DataError(f"{place}: was made from another data set; train the run again")
    return group


def training_costs(folder: Path) -> dict[str, float]:
    """What a training cost: `training_seconds` and `peak_memory_mb` of the run's facts."""
    facts = read_json(folder / "config.json").get("facts", {})
    return {key: float(facts[key]) for key in ("training_seconds", "peak_memory_mb") if key in facts}
