"""Gridded fields read from zarr, and their tiles: windows in time and space with the longitude wrapped.

How a data set lies on disk is said in `relent.data.layout`. Networks see anomalies from the base state, divided by the
training standard deviation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset

from relent.data.frames import FrameSource, MemoryFrames, TileFrames, read_over_poles
from relent.data.layout import TILES, TileGrid
from relent.data.receipt import check_receipt
from relent.errors import DataError
from relent.grid import Topology

SPLITS = ("train", "validation", "test")
MEMORY_MB = 2000


@dataclass(frozen=True)
class Fields:
    """A gridded data set.

    Frames are anomalies from `base` (channel, latitude) or (channel, latitude, longitude), in units of `std` (channel).
    `lead_damping` and `lead_residual_std` (lead, channel) are the slope of a persistence forecast over 1, 2, … steps
    and the size of what it leaves, in units of `std`.
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
    source: FrameSource
    base: Tensor
    std: Tensor
    lead_damping: Tensor
    lead_residual_std: Tensor
    checksum: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return len(self.latitude), len(self.longitude)

    @property
    def damping(self) -> Tensor:
        """Slope of a persistence forecast over one step, (channel)."""
        return self.lead_damping[0]

    @property
    def residual_std(self) -> Tensor:
        """What a damped persistence forecast over one step leaves, in units of `std`, (channel)."""
        return self.lead_residual_std[0]

    def frames(self, start: int, length: int, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """Consecutive frames, or a tile of them, as standardised anomalies.

        On a globe rows may lie beyond a pole (below 0 or from the last on): they are those of the other side, half a
        circle further, with the sign of vector components changed.

        Args:
            start: First step.
            length: Number of steps.
            rows, columns: Indices of a tile's rows and columns (they may wrap); None: all.

        Returns:
            (length, C, h, w), float32; NaN where a variable is unknown (sea-surface temperature over land).

        Raises:
            DataError: A part of the data set is missing or broken.
        """
        chosen = [None if positions is None else positions.numpy() for positions in (rows, columns)]
        if chosen[0] is not None and self.topology is Topology.globe:
            outside = (chosen[0] < 0) | (chosen[0] >= len(self.latitude))
            if outside.any():
                every = np.arange(len(self.longitude)) if chosen[1] is None else chosen[1]
                window = (start, length, chosen[0], every)
                return read_over_poles(self.source, self.latitude, len(self.longitude), self._vectors, window)
        return self.source.read(start, length, *chosen)

    @property
    def anomalies(self) -> Tensor:
        """All frames, (time, channel, latitude, longitude); in memory, whatever their size."""
        return self.frames(0, len(self.time))

    @property
    def _vectors(self) -> Tensor:
        """Which channels are components of vectors."""
        return torch.tensor([is_vector_component(self.attributes[name]) for name in self.variables])

    def unbroken(self, start: int, length: int) -> bool:
        """Whether these steps are usable and follow one another."""
        steps = slice(start, start + length)
        return bool(self.usable[steps].all()) and len(np.unique(self.trajectory[steps])) == 1

    def physical(self, anomalies: Tensor) -> Tensor:
        """Values (…, channel, latitude, longitude) in the variables' own units."""
        base = self.base if self.base.ndim == 3 else self.base[:, :, None]
        return anomalies * self.std[:, None, None] + base

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


def is_vector_component(attributes: dict[str, str]) -> bool:
    """Whether a variable is the eastward or northward component of a vector, by its CF standard name."""
    name = attributes.get("standard_name", "")
    return name.startswith(("eastward_", "northward_")) or "_eastward_" in name or "_northward_" in name


def read_fields(folder: Path | str, memory_mb: float = MEMORY_MB) -> Fields:
    """Read a prepared data set.

    Args:
        folder: The folder that holds `dataset.zarr` and its receipt.
        memory_mb: Tiles up to this size are read into memory, larger ones stay on disk and are read as they are asked
            for. Maps are always read.

    Raises:
        DataError: A file or chunk is missing or truncated, or a value is not finite that should be.
    """
    folder = Path(folder)
    receipt = check_receipt(folder)
    store = folder / "dataset.zarr"
    try:
        with (
            xr.open_zarr(store, consolidated=False, chunks=None) as dataset,
            xr.open_zarr(store, group="statistics", consolidated=False, chunks=None) as statistics,
        ):
            statistics.load()
            read = _from_tiles if TILES in dataset else _from_maps
            return read(dataset, statistics, store, receipt["checksum"], memory_mb)
    except (KeyError, OSError, ValueError) as error:
        raise DataError(
            f"{store}: is no data set of this version ({error}); delete {folder} and prepare it again"
        ) from None


def _from_maps(dataset: xr.Dataset, statistics: xr.Dataset, store: Path, checksum: str, memory_mb: float) -> Fields:
    variables = tuple(dataset.attrs["variables"].split())
    values = np.stack([dataset[name].values for name in variables], axis=1).astype(np.float32)
    # Variables in front of grid dimensions, behind leads.
    axes = {"base": 0, "std": 0, "damping": -1, "residual_std": -1}
    rows = {key: [statistics[f"{name}_{key}"].values for name in variables] for key in STATISTICS}
    known = {key: np.stack(rows[key], axis=axis) for key, axis in axes.items()}
    tensors = _statistics(known, store)
    about = _about(dataset)
    _check_finite(values[about["usable"]], _known(dataset), store)
    anomalies = _standardised(values, tensors["base"], tensors["std"])
    attributes = {name: dict(dataset[name].attrs) for name in variables}
    return Fields(variables, attributes, **about, source=MemoryFrames(anomalies), **tensors, checksum=checksum)


def _from_tiles(dataset: xr.Dataset, statistics: xr.Dataset, store: Path, checksum: str, memory_mb: float) -> Fields:
    variables = tuple(dataset.attrs["variables"].split())
    tensors = _statistics({key: statistics[key].values for key in STATISTICS}, store)
    about = _about(dataset)
    shape = (len(about["latitude"]), len(about["longitude"]))
    grid = TileGrid(shape, dataset.attrs["core"], dataset.attrs["halo"], about["topology"])
    base = tensors["base"] if tensors["base"].ndim == 3 else tensors["base"][:, :, None]
    source: FrameSource = TileFrames(store, grid, base, tensors["std"])
    n_steps = len(about["time"])
    if 4 * n_steps * len(variables) * shape[0] * shape[1] <= memory_mb * 1e6:
        source = MemoryFrames(source.read(0, n_steps, None, None))
        _check_finite(source.anomalies[torch.from_numpy(about["usable"])].numpy(), _known(dataset), store)
    attributes = json.loads(dataset.attrs["variable_attributes"])
    return Fields(variables, attributes, **about, source=source, **tensors, checksum=checksum)


def _about(dataset: xr.Dataset) -> dict[str, Any]:
    """What both layouts say of steps and grid."""
    n_steps = dataset.sizes["time"]
    codes, longitude = dataset["split"].values, dataset["longitude"].values.astype(np.float64)
    return {
        "time": dataset["time"].values,
        "trajectory": dataset["trajectory"].values if "trajectory" in dataset else np.zeros(n_steps, dtype=int),
        "usable": dataset["usable"].values.astype(bool) if "usable" in dataset else np.ones(n_steps, dtype=bool),
        "latitude": dataset["latitude"].values.astype(np.float64),
        "longitude": longitude,
        "topology": Topology(dataset.attrs.get("topology", _topology(longitude))),
        "step_hours": int(dataset.attrs["step_hours"]),
        "splits": {name: np.flatnonzero(codes == code).tolist() for code, name in enumerate(SPLITS)},
    }


def _topology(longitude: np.ndarray) -> Topology:
    around = np.isclose(np.diff(longitude[:2])[0] * longitude.size, 360)
    return Topology.globe if around else Topology.regional


STATISTICS = ("base", "std", "damping", "residual_std")


def _statistics(known: dict[str, np.ndarray], store: Path) -> dict[str, Any]:
    """Statistics as float32; `damping` and `residual_std` may have leads in front of the channels."""
    for name, values in known.items():
        if not np.isfinite(values).all():
            raise DataError(f"{store}: {name} is not finite; delete the data set and prepare it again")
    tensors = {name: torch.from_numpy(values.astype(np.float32)) for name, values in known.items()}
    leads = {f"lead_{name}": torch.atleast_2d(tensors.pop(name)) for name in ("damping", "residual_std")}
    return tensors | leads


def _standardised(values: np.ndarray, base: Tensor, std: Tensor) -> Tensor:
    base = base if base.ndim == 3 else base[:, :, None]
    return (torch.from_numpy(values) - base) / std[:, None, None]


def _known(dataset: xr.Dataset) -> np.ndarray | None:
    """Where each variable is ever known, (channel, latitude, longitude); None: everywhere."""
    return dataset["known"].values.astype(bool) if "known" in dataset else None


def _check_finite(values: np.ndarray, known: np.ndarray | None, store: Path) -> None:
    """Refuse a value that is not finite where it should be."""
    wrong = ~np.isfinite(values)
    wrong = wrong if known is None else wrong & known
    if wrong.any():
        raise DataError(
            f"{store}: {int(wrong.sum())} values of fields are not finite; delete the data set and prepare it again"
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
    def over(cls, fields: Fields, split: str, length: int, tile: int, stride: int, halo: int = 0) -> Windows:
        """Windows whose frames are `length` consecutive steps, the last ones (all after the second) in a split.

        For training every frame lies in the split; elsewhere the inputs may be earlier steps. A halo goes around where
        the grid does and over poles; at a border it must lie on the grid.

        Raises:
            ValueError: The tile is larger than the grid, or the split is shorter than a window.
        """
        height, width = fields.shape
        wraps = fields.topology
        beyond_rows = 0 if wraps.wraps_columns else halo
        if tile + 2 * beyond_rows > min(height, width):
            around = f" with a halo of {halo}" if beyond_rows else ""
            raise ValueError(f"a tile of {tile} × {tile} points{around} does not fit the grid of {height} × {width}")
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
        last_row = height - 1 if wraps.wraps_rows else height - tile - beyond_rows
        last_column = width - 1 if wraps.wraps_columns else width - tile - halo
        first_column = 0 if wraps.wraps_columns else halo
        return cls(starts, range(beyond_rows, last_row + 1, stride), range(first_column, last_column + 1, stride))

    def __len__(self) -> int:
        return len(self.starts) * len(self.rows) * len(self.columns)

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        """First step, first row and first column of a window."""
        rest, column = divmod(index, len(self.columns))
        start, row = divmod(rest, len(self.rows))
        return self.starts[start], self.rows[row], self.columns[column]


class TileDataset(Dataset[dict[str, Any]]):
    """Tiles of consecutive frames: `frames` (time, channel, side, side) and the `weights` of its rows (side).

    Args:
        fields: The data set.
        windows: Where the tiles lie.
        length: Frames of a tile: two inputs and the targets.
        tile: Side, in grid points.
        weights: Weight of each row of the whole grid, with mean one.
        halo: Points around a tile that inputs hold too (`side` is `tile` + 2 `halo`). Targets there are NaN, as unknown
            values are: they are not part of a loss.
    """

    def __init__(self, fields: Fields, windows: Windows, length: int, tile: int, weights: Tensor, halo: int = 0):
        self.fields, self.windows, self.length, self.tile, self.weights = fields, windows, length, tile, weights
        self.halo = halo
        self._beyond = torch.ones(tile + 2 * halo, tile + 2 * halo, dtype=torch.bool)
        self._beyond[halo : halo + tile, halo : halo + tile] = False

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start, row, column = self.windows[index]
        height, width = self.fields.shape
        positions = torch.arange(-self.halo, self.tile + self.halo)
        rows = row + positions
        rows = rows % height if self.fields.topology.wraps_rows else rows
        frames = self.fields.frames(start, self.length, rows, (column + positions) % width)
        if self.halo:
            frames[2:, :, self._beyond] = torch.nan
        return {"frames": frames, "weights": self.weights[rows.clamp(0, height - 1)]}


class MirroredTiles(Dataset[dict[str, Any]]):
    """Every tile twice: as it is, and mirrored in y with the opposite sign.

    On a plane that is everywhere alike both obey the same law, for a stream function changes its sign with y
    (`relent.data.quasi_geostrophic`). On a sphere they do not.

    Args:
        tiles: The tiles.
    """

    def __init__(self, tiles: TileDataset):
        self.tiles = tiles

    def __len__(self) -> int:
        return 2 * len(self.tiles)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        mirrored, index = divmod(index, len(self.tiles))
        item = self.tiles[index]
        if not mirrored:
            return item
        return {"frames": -item["frames"].flip(-2), "weights": item["weights"].flip(-1)}
