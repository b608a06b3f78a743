"""Gridded fields read from zarr, and their tiles: windows in time and space with the longitude wrapped.

A data set is a zarr group with arrays (time, latitude, longitude), a `split` by time and a group `statistics` (see
`relent.data.isentropic`); `trajectory` and `usable` by time are optional. Networks see anomalies from the base state,
divided by the training standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset

from relent.data.receipt import check_receipt
from relent.errors import DataError
from relent.grid import Topology

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Fields:
    """A gridded data set in memory.

    `anomalies` is (time, channel, latitude, longitude), float32, from `base` (channel, latitude), in units of `std`
    (channel). `damping` and `residual_std` (channel) are the slope of a persistence forecast over one step and the size
    of what it leaves, in units of `std`.
    """

    variables: tuple[str, ...]
    attributes: dict[str, dict[str, str]]
    """By variable: `long_name`, `standard_name`, `units`, `role`."""
    time: np.ndarray
    trajectory: np.ndarray
    """By step: number of the unbroken sequence that it belongs to (one, for a reanalysis)."""
    usable: np.ndarray
    """By step: whether all variables are known."""
    latitude: np.ndarray
    longitude: np.ndarray
    step_hours: int
    topology: Topology
    splits: dict[str, list[int]]
    anomalies: Tensor
    base: Tensor
    std: Tensor
    damping: Tensor
    residual_std: Tensor
    checksum: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return len(self.latitude), len(self.longitude)

    def frames(self, start: int, length: int, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """Consecutive frames, or a tile of them, as standardised anomalies.

        Args:
            start: First step.
            length: Number of steps.
            rows, columns: Indices of a tile's rows and columns (they may wrap); None: all.

        Returns:
            (length, C, h, w), float32.
        """
        frames = self.anomalies[start : start + length]
        frames = frames if rows is None else frames[:, :, rows]
        return frames if columns is None else frames[..., columns]

    def unbroken(self, start: int, length: int) -> bool:
        """Whether these steps are usable and follow one another."""
        steps = slice(start, start + length)
        return bool(self.usable[steps].all()) and len(np.unique(self.trajectory[steps])) == 1

    def physical(self, anomalies: Tensor) -> Tensor:
        """Values (…, channel, latitude, longitude) in the variables' own units."""
        return anomalies * self.std[:, None, None] + self.base[:, :, None]

    def cases(self, split: str, n_leads: int, stride: int = 1) -> list[tuple[int, list[int]]]:
        """Initial steps and the leads (in steps, from 1 to `n_leads`) whose valid time lies in a split.

        A forecast may start from training steps (its two input frames), but starts at the last of them at the earliest,
        so that no step on the way to its target has been a target in training.

        Args:
            split: Where the targets lie.
            n_leads: Longest lead.
            stride: Take every such initial step of a trajectory.
        """
        targets = set(self.splits[split])
        cases = []
        for number in np.unique(self.trajectory):
            steps = np.flatnonzero(self.trajectory == number)
            trained = [step for step in self.splits["train"] if self.trajectory[step] == number]
            first = trained[-1] if trained else int(steps[0]) + 1
            found = [(i, self._leads(i, int(steps[-1]), n_leads, targets)) for i in range(first, int(steps[-1]))]
            cases += [(i, leads) for i, leads in found if leads and self.unbroken(i - 1, 2)][::stride]
        return cases

    def _leads(self, initial: int, last: int, n_leads: int, targets: set[int]) -> list[int]:
        longest = min(n_leads, last - initial)
        return [k for k in range(1, longest + 1) if initial + k in targets and self.usable[initial + k]]


def read_fields(folder: Path | str) -> Fields:
    """Read a prepared data set (its `dataset.zarr`), which must fit in memory.

    Raises:
        DataError: A file or chunk is missing or truncated, or a value is not finite.
    """
    folder = Path(folder)
    receipt = check_receipt(folder)
    store = folder / "dataset.zarr"
    try:
        with (
            xr.open_zarr(store, consolidated=False, chunks=None) as dataset,
            xr.open_zarr(store, group="statistics", consolidated=False, chunks=None) as statistics,
        ):
            dataset.load()
            statistics.load()
        return _fields(dataset, statistics, store, receipt["checksum"])
    except (KeyError, OSError, ValueError) as error:
        raise DataError(
            f"{store}: is no data set of this version ({error}); delete {folder} and prepare it again"
        ) from None


def _fields(dataset: xr.Dataset, statistics: xr.Dataset, store: Path, checksum: str) -> Fields:
    variables = tuple(dataset.attrs["variables"].split())
    values = torch.from_numpy(np.stack([dataset[name].values for name in variables], axis=1).astype(np.float32))
    known = {key: [statistics[f"{name}_{key}"].values for name in variables] for key in _STATISTICS}
    tensors = {key: torch.from_numpy(np.stack(rows).astype(np.float32)) for key, rows in known.items()}
    codes, n_steps = dataset["split"].values, dataset.sizes["time"]
    usable = dataset["usable"].values.astype(bool) if "usable" in dataset else np.ones(n_steps, dtype=bool)
    _check_finite({"fields": values[torch.from_numpy(usable)], **tensors}, store)
    longitude = dataset["longitude"].values.astype(np.float64)
    return Fields(
        variables=variables,
        attributes={name: dict(dataset[name].attrs) for name in variables},
        time=dataset["time"].values,
        trajectory=dataset["trajectory"].values if "trajectory" in dataset else np.zeros(n_steps, dtype=int),
        usable=usable,
        latitude=dataset["latitude"].values.astype(np.float64),
        longitude=longitude,
        topology=Topology(dataset.attrs.get("topology", _topology(longitude))),
        step_hours=int(dataset.attrs["step_hours"]),
        splits={name: np.flatnonzero(codes == code).tolist() for code, name in enumerate(SPLITS)},
        anomalies=(values - tensors["base"][:, :, None]) / tensors["std"][:, None, None],
        checksum=checksum,
        **tensors,
    )


def _topology(longitude: np.ndarray) -> Topology:
    around = np.isclose(np.diff(longitude[:2])[0] * longitude.size, 360)
    return Topology.globe if around else Topology.regional


_STATISTICS = ("base", "std", "damping", "residual_std")


def _check_finite(tensors: dict[str, Tensor], store: Path) -> None:
    for name, tensor in tensors.items():
        wrong = int((~tensor.isfinite()).sum())
        if wrong:
            raise DataError(
                f"{store}: {wrong} values of {name} are not finite; delete the data set and prepare it again"
            )


@dataclass(frozen=True)
class Windows:
    """Every position of a window in time and space, by number.

    Args:
        starts: First time steps.
        rows: First rows.
        columns: First columns.
    """

    starts: Sequence[int]
    rows: Sequence[int]
    columns: Sequence[int]

    @classmethod
    def over(cls, fields: Fields, split: str, length: int, tile: int, stride: int) -> Windows:
        """Windows whose frames are `length` consecutive steps, the last ones (all after the second) in a split.

        For training every frame lies in the split; elsewhere the inputs may be earlier steps.

        Raises:
            ValueError: The tile is larger than the grid, or the split is shorter than a window.
        """
        height, width = fields.shape
        if tile > height or tile > width:
            raise ValueError(f"a tile of {tile} × {tile} points does not fit the grid of {height} × {width}")
        steps = set(fields.splits[split])
        first_target = 0 if split == "train" else 2
        last = len(fields.time) - length
        starts = [
            s
            for s in range(last + 1)
            if all(s + k in steps for k in range(first_target, length)) and fields.unbroken(s, length)
        ]
        if not starts:
            raise ValueError(f"the {split} split ({len(steps)} steps) has no {length} consecutive steps")
        wraps = fields.topology
        last_row = height - 1 if wraps.wraps_rows else height - tile
        last_column = width - 1 if wraps.wraps_columns else width - tile
        return cls(starts, range(0, last_row + 1, stride), range(0, last_column + 1, stride))

    def __len__(self) -> int:
        return len(self.starts) * len(self.rows) * len(self.columns)

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        """First step, first row and first column of a window."""
        rest, column = divmod(index, len(self.columns))
        start, row = divmod(rest, len(self.rows))
        return self.starts[start], self.rows[row], self.columns[column]


class TileDataset(Dataset[dict[str, Any]]):
    """Tiles of consecutive frames: `frames` (time, channel, tile, tile) and the `weights` of its rows (tile).

    Args:
        fields: The data set.
        windows: Where the tiles lie.
        length: Frames of a tile: two inputs and the targets.
        tile: Side, in grid points.
        weights: Weight of each row of the whole grid, with mean one.
    """

    def __init__(self, fields: Fields, windows: Windows, length: int, tile: int, weights: Tensor):
        self.fields, self.windows, self.length, self.tile, self.weights = fields, windows, length, tile, weights

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start, row, column = self.windows[index]
        height, width = self.fields.shape
        rows = (row + torch.arange(self.tile)) % height
        columns = (column + torch.arange(self.tile)) % width
        frames = self.fields.frames(start, self.length, rows, columns)
        return {"frames": frames, "weights": self.weights[rows]}
