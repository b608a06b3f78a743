"""`forecast.zarr`: forecasts of any length and size, written block by block, resumable; opens with xarray.

One array a variable, over (init_time, lead_time, member, latitude, longitude), float32 in the variable's units. A shard
(a file) holds some leads and members of one initial time, a chunk inside it four leads of a part of the map: a whole
map and the time series at a point are both read without reading everything else. Blocks are whole shards, and how they
are cut depends on the shape of the forecast alone, never on how members are batched over a device.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

from relent.data.tiles import Fields
from relent.errors import DataError
from relent.files import remove

DIMENSIONS = ("init_time", "lead_time", "member", "latitude", "longitude")
SHARD_BYTES, CHUNK_BYTES = 2**25, 2**20
SHARD_LEADS, CHUNK_LEADS = 12, 4
WRITTEN = "written"


def compressor() -> BloscCodec:
    """What forecasts are compressed with; bits that rounding has set to zero go first."""
    return BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")


@dataclass(frozen=True)
class Blocks:
    """How a forecast is cut: leads and members of a shard, and its chunk (leads, members, rows, columns)."""

    leads: int
    members: int
    chunk: tuple[int, int, int, int]

    @classmethod
    def of(cls, n_leads: int, members: int, height: int, width: int) -> Blocks:
        """Shards of at most about 32 MiB, chunks of about 1 MiB, before compression."""
        leads = min(n_leads, SHARD_LEADS)
        if leads > CHUNK_LEADS:
            leads -= leads % CHUNK_LEADS
        inner = min(leads, CHUNK_LEADS)
        in_shard = max(1, min(members, SHARD_BYTES // (4 * leads * height * width)))
        in_chunk = next(
            m
            for m in range(in_shard, 0, -1)
            if in_shard % m == 0 and (m == 1 or 4 * inner * m * height * width <= CHUNK_BYTES)
        )
        side = max(1, int((CHUNK_BYTES / (4 * inner * in_chunk)) ** 0.5))
        return cls(leads, in_shard, (inner, in_chunk, min(height, side), min(width, side)))

    def shard(self, height: int, width: int) -> tuple[int, int, int, int, int]:
        """Shape of a shard: whole chunks that cover the map."""
        rows, columns = self.chunk[2:]
        return 1, self.leads, self.members, -(-height // rows) * rows, -(-width // columns) * columns


def coordinates(fields: Fields, init_time: np.ndarray, n_leads: int, members: int, about: dict[str, Any]) -> xr.Dataset:
    """Coordinates of a forecast with CF names, and its attributes."""
    lead_time = np.arange(1, n_leads + 1) * np.timedelta64(fields.step_hours, "h").astype("timedelta64[ns]")
    init_time = init_time.astype("datetime64[ns]")
    attributes = {
        "init_time": {"standard_name": "forecast_reference_time", "long_name": "initial time"},
        "lead_time": {"standard_name": "forecast_period", "long_name": "lead time"},
        "member": {"standard_name": "realization", "long_name": "ensemble member"},
        "latitude": {"standard_name": "latitude", "units": "degrees_north"},
        "longitude": {"standard_name": "longitude", "units": "degrees_east"},
        "valid_time": {"standard_name": "time", "long_name": "valid time"},
    }
    values: dict[str, tuple[str | tuple[str, ...], np.ndarray]] = {
        "init_time": ("init_time", init_time),
        "lead_time": ("lead_time", lead_time),
        "member": ("member", np.arange(members)),
        "latitude": ("latitude", fields.latitude),
        "longitude": ("longitude", fields.longitude),
        "valid_time": (("init_time", "lead_time"), init_time[:, None] + lead_time[None]),
    }
    named = {name: (dims, data, attributes[name]) for name, (dims, data) in values.items()}
    return xr.Dataset(coords=named, attrs={"Conventions": "CF-1.11", "data_checksum": fields.checksum, **about})


def forecast_variables(fields: Fields) -> list[str]:
    """Variables that a forecast has: all but those that are only ever given."""
    return [name for name in fields.variables if fields.attributes[name].get("role") != "forced"]


class ForecastStore:
    """A forecast under way: lies beside `path` until it is whole, then takes its name.

    A process that dies leaves the part that it has written; the next one with the same plan goes on after the last
    block of members that is whole.

    Args:
        path: The store.
        fields: The data set whose grid and variables the forecast has.
        init_time: Initial times.
        n_leads: Leads, from one step on.
        members: Members.
        plan: What decides the forecast; a part with another plan is refused.

    Raises:
        DataError: What lies there has another plan.
    """

    def __init__(
        self, path: Path, fields: Fields, init_time: np.ndarray, n_leads: int, members: int, plan: dict[str, Any]
    ):
        self.path, self.fields, self.plan = path, fields, plan
        self.blocks = Blocks.of(n_leads, members, *fields.shape)
        self.partial = path.with_name(f".{path.name}.partial")
        if self._held(self.partial) is None:
            remove(self.partial)
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            self._create(init_time, n_leads, members)
        elif self._held(self.partial) != plan:
            raise DataError(
                f"{self.partial}: is a part of another forecast ({self._difference(self.partial)}); delete it, or give "
                "another --out"
            )
        self.group = zarr.open_group(self.partial, mode="r+")

    @staticmethod
    def is_whole(path: Path, plan: dict[str, Any]) -> bool:
        """Whether the store is there, whole, and of this plan."""
        return ForecastStore._held(path) == plan

    @staticmethod
    def _held(path: Path) -> dict[str, Any] | None:
        try:
            held: dict[str, Any] = json.loads(str(zarr.open_group(path, mode="r").attrs["plan"]))
        except (OSError, KeyError, ValueError):
            return None
        return held

    def _difference(self, path: Path) -> str:
        held = self._held(path) or {}
        return "; ".join(f"{k}: {held.get(k)} there, {v} now" for k, v in self.plan.items() if held.get(k) != v)

    def _create(self, init_time: np.ndarray, n_leads: int, members: int) -> None:
        fields = self.fields
        about = {"title": "Ensemble forecast", "history": f"relent forecast {self.plan.get('run', '')}".strip()}
        coordinates(fields, init_time, n_leads, members, about).to_zarr(
            self.partial, mode="w", zarr_format=3, consolidated=False
        )
        group = zarr.open_group(self.partial, mode="r+")
        shard = self.blocks.shard(*fields.shape)
        for name in forecast_variables(fields):
            group.create_array(
                name,
                shape=(len(init_time), n_leads, members, *fields.shape),
                chunks=(1, *self.blocks.chunk),
                shards=shard,
                dtype="float32",
                fill_value=float("nan"),
                compressors=compressor(),
                dimension_names=DIMENSIONS,
                attributes={**fields.attributes[name], "coordinates": "valid_time"},
            )
        n_blocks = -(-members // self.blocks.members)
        group.create_array(
            WRITTEN,
            shape=(len(init_time), n_blocks),
            chunks=(1, n_blocks),
            dtype="int8",
            fill_value=0,
            dimension_names=("init_time", "member_block"),
            attributes={"long_name": "whether the members of a block are written at all leads"},
        )
        # Last: with it the part can be gone on with.
        group.attrs["plan"] = json.dumps(self.plan)

    def missing(self, initial: int) -> list[range]:
        """Members of an initial time that are not yet written, block by block."""
        done = np.asarray(self.group[WRITTEN][initial])  # type: ignore[index]
        size, members = self.blocks.members, int(self.plan["members"])
        return [range(b * size, min(members, (b + 1) * size)) for b in np.flatnonzero(done == 0).tolist()]

    def write(self, initial: int, first_lead: int, members: range, values: dict[str, np.ndarray]) -> None:
        """Write (leads, members, H, W) of each variable, from the first lead (counted from 0): one whole shard each."""
        for name, block in values.items():
            array = self.group[name]
            assert isinstance(array, zarr.Array)
            array[initial, first_lead : first_lead + len(block), members.start : members.stop] = block

    def mark(self, initial: int, members: range) -> None:
        """Say that these members are written at all leads."""
        array = self.group[WRITTEN]
        assert isinstance(array, zarr.Array)
        array[initial, members.start // self.blocks.members] = 1

    def finish(self) -> None:
        """Drop the record of what is written, consolidate the metadata, and give the store its name."""
        del self.group[WRITTEN]
        with warnings.catch_warnings():
            # Readers that know no consolidated metadata in zarr 3 read the store all the same.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(self.partial)
        old = self.path.with_name(f".{self.path.name}.old")
        remove(old)
        if self.path.exists():
            self.path.rename(old)
        self.partial.rename(self.path)
        remove(old)


def check_shards(path: Path) -> None:
    """Check that every shard of a forecast made here is there: a missing one reads as NaN, without an error.

    Raises:
        DataError: One is missing, or the forecast is not whole.
    """
    if ForecastStore._held(path) is None:
        return
    group = zarr.open_group(path, mode="r")
    if WRITTEN in group:
        raise DataError(f"{path}: the forecast is not whole; run relent forecast again, it goes on where it stopped")
    for name, array in group.arrays():
        if array.shards is None or array.ndim != len(DIMENSIONS):
            continue
        counts = [-(-size // side) for size, side in zip(array.shape, array.shards)]
        for index in np.ndindex(*counts):
            file = path / name / "c" / "/".join(map(str, index))
            if not file.is_file():
                raise DataError(f"{file}: this shard is missing; delete {path} and make the forecast again")
