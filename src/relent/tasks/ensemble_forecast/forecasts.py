"""`predictions.zarr` of an ensemble forecast: written chunk by chunk, read lazily; opens with xarray."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import torch
import xarray as xr
import zarr
from torch import Tensor

from relent.data.tiles import Fields, read_fields
from relent.errors import DataError
from relent.files import whole
from relent.tasks.ensemble_forecast.store import DIMENSIONS, compressor, coordinates, forecast_variables
from relent.verify.layout import as_forecast
from relent.verify.maps import Case, window


class ForecastWriter:
    """Writes forecasts under a temporary name; leaving the block without an error renames the store.

    One array a variable, with dimensions `DIMENSIONS`, float32, in the variable's units; one chunk holds all members of
    one initial time and lead. Pairs that are not written are NaN.

    Args:
        path: The store.
        fields: The data set whose grid, times and variables the forecast has.
        initials: Initial steps, in the order of time.
        n_leads: Leads, from one step on.
    """

    def __init__(self, path: Path, fields: Fields, initials: list[int], n_leads: int):
        self.fields, self.initials, self.n_leads = fields, initials, n_leads
        self._whole = whole(path)
        self._path = path
        self._group: zarr.Group | None = None

    def __enter__(self) -> ForecastWriter:
        self._path = self._whole.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._whole.__exit__(kind, error, trace)

    def write(self, initial: int, lead: int, values: Tensor, keep_bits: int) -> None:
        """Write all members of one initial step and lead (in steps).

        Args:
            initial: Initial step of the data set.
            lead: Lead, in steps from 1.
            values: (M, C, H, W), in the variables' units.
            keep_bits: Bits of the mantissa that are kept (relative error 2^-(keep_bits + 1)); 23 keeps all.
        """
        group = self._create(len(values)) if self._group is None else self._group
        rounded = round_mantissa(values.numpy(), keep_bits)
        for name in forecast_variables(self.fields):
            array = group[name]
            assert isinstance(array, zarr.Array)
            array[self.initials.index(initial), lead - 1] = rounded[:, self.fields.variables.index(name)]

    def _create(self, members: int) -> zarr.Group:
        fields = self.fields
        about = {"title": "Ensemble forecasts; NaN where the truth is not in the test split"}
        layout = coordinates(fields, fields.time[self.initials], self.n_leads, members, about)
        layout.to_zarr(self._path, mode="w", zarr_format=3, consolidated=False)
        group = zarr.open_group(self._path, mode="r+")
        grid = (members, len(fields.latitude), len(fields.longitude))
        for name in forecast_variables(fields):
            group.create_array(
                name,
                shape=(len(self.initials), self.n_leads, *grid),
                chunks=(1, 1, *grid),
                dtype="float32",
                fill_value=float("nan"),
                compressors=compressor(),
                dimension_names=DIMENSIONS,
                attributes={**fields.attributes[name], "coordinates": "valid_time"},
            )
        self._group = group
        return group


def round_mantissa(values: np.ndarray, keep_bits: int) -> np.ndarray:
    """Round float32 to `keep_bits` bits of the mantissa, half to even: what is dropped is zero and compresses well.

    The relative error is at most 2^-(keep_bits + 1). Source: Klöwer et al. 2021, doi 10.1038/s43588-021-00156-2 (there
    applied to CAMS data).

    Args:
        values: Finite float32.
        keep_bits: From 1 to 23.
    """
    drop = 23 - keep_bits
    if drop == 0:
        return values
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1)
    rounded = bits + half + ((bits >> np.uint32(drop)) & np.uint32(1))
    return (rounded & np.uint32(~((1 << drop) - 1) & 0xFFFFFFFF)).view(np.float32)


class Forecasts:
    """Forecasts of a run, read pair by pair.

    Args:
        path: `predictions.zarr`.
        fields: The data set that the forecasts are scored with, or its folder.

    Raises:
        DataError: The store is missing or broken, or comes from other data.
    """

    def __init__(self, path: Path, fields: Fields | str):
        self.path, self.fields = path, read_fields(fields) if isinstance(fields, str) else fields
        try:
            self.dataset = xr.open_zarr(path, consolidated=False, chunks=None, decode_timedelta=True)
            own = self.dataset.attrs["data_checksum"]
            self.members = self.dataset.sizes["member"]
        except (KeyError, OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); train the run again") from None
        if own != self.fields.checksum:
            raise DataError(f"{path}: was made from other data (checksum {own}); train the run again")

    @property
    def variables(self) -> list[str]:
        """Variables that are forecast."""
        return forecast_variables(self.fields)

    @property
    def estimator(self) -> str:
        """CRPS estimator: `fair`, or `absolute error` of a single member."""
        return "fair" if self.members > 1 else "absolute error (one member)"

    def layout(self) -> xr.Dataset:
        """All forecasts, lazily, as `relent.verify` wants them."""
        return as_forecast(self.dataset, str(self.path))

    def pair(self, variable: str, initial: int, lead: int) -> tuple[Tensor, Tensor]:
        """Members (M, H, W) and truth (H, W) of one initial step and lead, in the variable's units.

        Raises:
            DataError: There is no such forecast.
        """
        fields = self.fields
        time = fields.time[initial]
        try:
            selected = self.dataset[variable].sel(init_time=time).isel(lead_time=lead - 1)
        except (KeyError, IndexError):
            raise DataError(
                f"{self.path}: has no {variable} from {time} at lead step {lead}; train the run again"
            ) from None
        truth = fields.physical(fields.frames(initial + lead, 1)[0])[fields.variables.index(variable)]
        return torch.from_numpy(selected.values), truth

    def case(self, variable: str, initial: int, lead: int) -> Case:
        """One forecast to be drawn."""
        members, truth = self.pair(variable, initial, lead)
        fields, attributes = self.fields, self.fields.attributes[variable]
        return Case(
            variable,
            attributes.get("long_name", variable),
            attributes.get("units", ""),
            window(fields.time[initial + lead], lead * fields.step_hours),
            fields.latitude,
            fields.longitude,
            fields.topology,
            members.numpy(),
            truth.numpy(),
        )
