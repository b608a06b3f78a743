"""Opens stores and files of gridded fields behind one interface: times, grid, variables, and blocks of values.

Read are zarr (v2 and v3, any fsspec address) as WeatherBench 2 and ARCO lay out ERA5, `anemoi-datasets` stores (`data`
(time, variable, ensemble, cell), `dates`, `latitudes`, `longitudes`), netCDF files, and GRIB files through cfgrib.
"""

from __future__ import annotations

import glob
import json
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import dask
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from relent.data.gridded.options import GriddedSource
from relent.errors import ConfigError, DataError, nearest

Floats = NDArray[np.float64]
Values = NDArray[np.float32]
Index = NDArray[np.int64]

TIME = ("time", "valid_time", "date")
LATITUDE = ("latitude", "lat", "y")
LONGITUDE = ("longitude", "lon", "x")
LEVEL = ("level", "pressure_level", "isobaricInhPa", "plev", "lev", "pressure", "hybrid")
MEMBER = ("number", "member", "realization", "ensemble", "sample")
Field = tuple[str, float | None]
"""A variable and its level."""
NETCDF_SUFFIXES = (".nc", ".nc4", ".cdf", ".netcdf", ".h5")
GRIB_SUFFIXES = (".grib", ".grb", ".grib2", ".grb2")
MERGING: dict[str, Any] = {"coords": "minimal", "data_vars": "minimal", "compat": "override", "join": "outer"}
"""How the variables and times of several files become one data set: by their coordinates, which are not read again."""


class Store:
    """A source of fields on a latitude–longitude grid, in the order in which it has them."""

    name: str
    time: NDArray[np.datetime64]
    latitude: Floats
    longitude: Floats
    variables: list[str]
    missing: frozenset[int] = frozenset()
    """Steps that the store itself declares missing."""
    about: dict[str, str]
    """What it says of itself: licence, history."""

    @abstractmethod
    def attributes(self, variable: str) -> dict[str, Any]:
        """Attributes of a variable."""

    @abstractmethod
    def levels(self, variable: str) -> Floats | None:
        """Levels of a variable; None where it has none."""

    @abstractmethod
    def is_static(self, variable: str) -> bool:
        """Whether a variable has no time."""

    def together(self, fields: Sequence[Field]) -> list[list[int]]:
        """Which fields are best read at once, by position: those that share the store's chunks."""
        groups: dict[str, list[int]] = {}
        for position, (variable, _) in enumerate(fields):
            groups.setdefault(variable, []).append(position)
        return list(groups.values())

    @abstractmethod
    def read(self, fields: Sequence[Field], steps: slice) -> Values:
        """Values of fields that are read together, (step, field, latitude, longitude), in the order of the store.

        A static variable has one step. NaN where missing.

        Raises:
            DataError: They cannot be read.
        """

    def check_chunks(self, variable: str) -> None:
        """Refuse a variable whose missing chunks would read as numbers, where that can be told cheaply.

        Raises:
            DataError: A chunk is missing and its fill value is not one that stands for missing.
        """

    def has(self, variable: str, level: float | None) -> None:
        """Check that a variable, and its level, is there.

        Raises:
            DataError: It is not; names the nearest one.
        """
        if variable not in self.variables:
            raise DataError(f"{self.name}: has no variable {variable!r}{nearest(variable, self.variables)}")
        levels = self.levels(variable)
        if level is None and levels is not None and levels.size > 1:
            known = ", ".join(f"{value:g}" for value in levels)
            raise DataError(f"{self.name}: {variable} has levels ({known}); say which with `levels`")
        if level is not None and levels is None:
            raise DataError(f"{self.name}: {variable} has no levels; leave `levels` out")
        if level is not None and levels is not None and not np.isclose(levels, level).any():
            known = ", ".join(f"{value:g}" for value in levels)
            raise DataError(
                f"{self.name}: {variable} has no level {level:g} (nearest: "
                f"{levels[np.abs(levels - level).argmin()]:g}; known: {known})"
            )


class XarrayStore(Store):
    """A store or files that xarray opens.

    Args:
        name: Its address, for errors.
        dataset: What xarray made of it.
        member: Which member of an ensemble.
        group: The zarr group, if it is one.
    """

    def __init__(self, name: str, dataset: xr.Dataset, member: int, group: zarr.Group | None = None):
        self.name, self.dataset, self.member, self.group = name, dataset, member, group
        self._time = self._coordinate(TIME, "time")
        self._latitude = self._coordinate(LATITUDE, "latitude")
        self._longitude = self._coordinate(LONGITUDE, "longitude")
        times = np.atleast_1d(dataset[self._time].values)
        if not np.issubdtype(times.dtype, np.datetime64):
            raise DataError(f"{name}: its times are {times.dtype}, no dates of the standard calendar")
        self.time = times.astype("datetime64[s]")
        self.latitude = dataset[self._latitude].values.astype(np.float64)
        self.longitude = dataset[self._longitude].values.astype(np.float64)
        self._level = next(
            (n for n in LEVEL if n in dataset.coords and n not in (self._latitude, self._longitude)), None
        )
        grid = {self._latitude, self._longitude}
        self.variables = [str(v) for v in dataset.data_vars if grid <= set(dataset[v].dims)]
        self.about = {
            str(k): str(v) for k, v in dataset.attrs.items() if k in ("license", "licence", "history", "source")
        }

    def _coordinate(self, names: tuple[str, ...], what: str) -> str:
        """Name of a coordinate; a dimension of one name may go with a coordinate of another (GRIB's steps)."""
        found = [n for n in names if n in self.dataset.coords or n in self.dataset.variables]
        dimensions = [n for n in found if n in self.dataset.dims]
        if what != "time" and dimensions and self.dataset[dimensions[0]].ndim == 1:
            return dimensions[0]
        if what == "time" and found:
            return (dimensions or found)[0]
        if found:
            raise DataError(f"{self.name}: {what} has two dimensions; regrid the fields to latitudes and longitudes")
        raise DataError(f"{self.name}: has no {what} coordinate (looked for {', '.join(names)})")

    def attributes(self, variable: str) -> dict[str, Any]:
        """See `Store`."""
        return dict(self.dataset[variable].attrs)

    def check_chunks(self, variable: str) -> None:
        """See `Store`; chunks are counted on this machine's disks alone, where a listing costs little."""
        array = self.group[variable] if self.group is not None else None
        if not isinstance(array, zarr.Array) or not isinstance(array.store, LocalStore) or array.shards is not None:
            return
        fill, stands = array.fill_value, self.dataset[variable].encoding.get("_FillValue")
        missing = array.nchunks - array.nchunks_initialized
        harmless = fill is not None and (np.isnan(fill) or fill == stands)
        if missing and not harmless:
            raise DataError(
                f"{self.name}: {variable}: {missing} of {array.nchunks} chunks are not there and would read as "
                f"{0 if fill is None else fill:g}; fetch them again"
            )

    def levels(self, variable: str) -> Floats | None:
        """See `Store`; a level of one value that is no dimension counts too."""
        if self._level is None or self._level not in self.dataset[variable].coords:
            return None
        return np.atleast_1d(self.dataset[self._level].values.astype(np.float64))

    def is_static(self, variable: str) -> bool:
        """See `Store`."""
        return self._time not in self.dataset[variable].dims and len(self.time) > 1

    def read(self, fields: Sequence[Field], steps: slice) -> Values:
        """See `Store`: the levels of one variable."""
        variable = fields[0][0]
        array = self.dataset[variable]
        chosen: dict[str, Any] = {name: self.member for name in MEMBER if name in array.dims}
        if self._time in array.dims:
            chosen[self._time] = steps
        level = self._level or "level"
        if level in array.dims:
            levels = self.dataset[level].values.astype(np.float64)
            chosen[level] = [0 if wanted is None else int(np.abs(levels - wanted).argmin()) for _, wanted in fields]
        try:
            selected = array.isel(chosen)
            missing = [name for name in (self._time, level) if name not in selected.dims]
            selected = selected.drop_vars(missing, errors="ignore").expand_dims(missing)
            selected = selected.transpose(self._time, level, self._latitude, self._longitude)
            # In a worker's task: dask arrays of several files must not ask for workers again.
            data = selected.data
            values = data.compute(scheduler="synchronous") if dask.is_dask_collection(data) else selected.values
        except Exception as error:
            raise unreadable(f"{self.name}: {variable}", error) from None
        return np.asarray(values, dtype=np.float32)


class AnemoiStore(Store):
    """A store that `anemoi-datasets` has made, if its cells are those of a latitude–longitude grid.

    Args:
        name: Its address, for errors.
        group: The zarr group.
        member: Which member of the ensemble.
    """

    def __init__(self, name: str, group: zarr.Group, member: int):
        self.name, self.member = name, member
        attributes: dict[str, Any] = dict(group.attrs)
        try:
            self._data = cast(Any, group["data"])
            arrays: dict[str, Any] = {key: group[key] for key in ("dates", "latitudes", "longitudes")}
            self.time = np.asarray(arrays["dates"][:]).astype("datetime64[s]")
            cells = [np.asarray(arrays[key][:], dtype=np.float64) for key in ("latitudes", "longitudes")]
            names = attributes.get("variables") or sorted(
                attributes["name_to_index"], key=attributes["name_to_index"].get
            )
        except KeyError as error:
            raise DataError(f"{name}: is no anemoi-datasets store, it lacks {error}") from None
        self.variables = [str(n) for n in names]
        self._metadata: dict[str, Any] = attributes.get("variables_metadata") or {}
        if member >= self._data.shape[2]:
            raise DataError(f"{name}: has {self._data.shape[2]} members, no member {member}")
        self.latitude, self.longitude = self._axes(*cells)
        dates = {np.datetime64(text, "s") for text in attributes.get("missing_dates") or []}
        self.missing = frozenset(n for n, moment in enumerate(self.time) if moment in dates)
        self.about = {
            k: str(attributes[k]) for k in ("licence", "attribution", "uuid", "description") if attributes.get(k)
        }

    def _axes(self, latitudes: Floats, longitudes: Floats) -> tuple[Floats, Floats]:
        """Latitudes and longitudes of the grid that the cells fill row by row."""
        width = int(np.argmax(latitudes != latitudes[0])) or latitudes.size
        if latitudes.size % width == 0:
            rows, columns = latitudes.reshape(-1, width), longitudes.reshape(-1, width)
            if np.allclose(rows, rows[:, :1]) and np.allclose(columns, columns[:1]):
                return rows[:, 0].copy(), columns[0].copy()
        raise DataError(
            f"{self.name}: its {latitudes.size} cells are no latitude–longitude grid (a reduced or icosahedral one?); "
            "regrid it first"
        )

    def attributes(self, variable: str) -> dict[str, Any]:
        """See `Store`: the format keeps no attributes but, at times, units."""
        units = self._metadata.get(variable, {}).get("units")
        return {"units": units} if isinstance(units, str) else {}

    def levels(self, variable: str) -> Floats | None:
        """See `Store`: levels are parts of the variables' names (`z_500`)."""
        found = [name.rpartition("_")[2] for name in self.variables if name.rpartition("_")[0] == variable]
        values = [float(text) for text in found if text.replace(".", "").isdigit()]
        return np.array(values) if values else None

    def has(self, variable: str, level: float | None) -> None:
        """See `Store`."""
        name = variable if level is None else f"{variable}_{level:g}"
        if name not in self.variables:
            raise DataError(f"{self.name}: has no variable {name!r}{nearest(name, self.variables)}")

    def is_static(self, variable: str) -> bool:
        """See `Store`: constant fields are repeated at every date."""
        return False

    def together(self, fields: Sequence[Field]) -> list[list[int]]:
        """See `Store`: a chunk holds all variables."""
        return [list(range(len(fields)))] if fields else []

    def read(self, fields: Sequence[Field], steps: slice) -> Values:
        """See `Store`."""
        names = [variable if level is None else f"{variable}_{level:g}" for variable, level in fields]
        positions = [self.variables.index(name) for name in names]
        try:
            values = self._data.oindex[steps, positions, self.member]
        except Exception as error:
            raise unreadable(f"{self.name}: {', '.join(names)}", error) from None
        values = np.array(values, dtype=np.float32)
        for number, step in enumerate(range(steps.start, steps.stop, steps.step or 1)):
            if step in self.missing:
                values[number] = np.nan
        return values.reshape(len(values), len(fields), self.latitude.size, self.longitude.size)


def unreadable(what: str, error: Exception) -> DataError:
    """One line for what a library says when it cannot read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{what} cannot be read ({type(error).__name__}: {reason[:300]})")


def open_store(options: GriddedSource, again: bool = False) -> Store:
    """Open the store that a manifest names; a process opens each once.

    Args:
        options: Where it is.
        again: Whether to open it even if this process has: it may have changed since.

    Raises:
        ConfigError: A library that the format needs is not installed.
        DataError: It is not there, cannot be read, or has no latitude–longitude grid.
    """
    if again:
        _open.cache_clear()
    return _open(options.model_dump_json(include={"store", "format", "storage_options", "member"}))


@lru_cache(maxsize=8)
def _open(text: str) -> Store:
    options = json.loads(text)
    store, member = options["store"], options["member"]
    kind = _kind(store, options["format"])
    try:
        if kind in ("netcdf", "grib"):
            return XarrayStore(store, _open_files(store, kind), member)
        group = zarr.open_group(store, mode="r", storage_options=options["storage_options"] or None)
        own = all(name in group for name in ("data", "dates", "latitudes", "longitudes"))
        if kind == "anemoi" or (options["format"] == "auto" and own):
            return AnemoiStore(store, group, member)
        settings: dict[str, Any] = {
            "storage_options": options["storage_options"] or None,
            "consolidated": group.metadata.consolidated_metadata is not None,
        }
        return XarrayStore(store, xr.open_zarr(store, chunks=None, **settings), member, group)
    except (ConfigError, DataError):
        raise
    except ImportError as error:
        raise ConfigError(f"{store} needs a package that is not installed ({error}); install relent[remote]") from None
    except Exception as error:
        raise unreadable(store, error) from None


def _kind(store: str, given: str) -> str:
    if given != "auto":
        return given
    suffix = Path(store).suffix.lower()
    return "netcdf" if suffix in NETCDF_SUFFIXES else "grib" if suffix in GRIB_SUFFIXES else "zarr"


def _open_files(pattern: str, kind: str) -> xr.Dataset:
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise DataError(f"{pattern}: no such file")
    settings: dict[str, Any] = {"engine": "netcdf4"}
    if kind == "grib":
        try:
            import cfgrib  # noqa: F401
        except (ImportError, RuntimeError) as error:
            raise ConfigError(f"GRIB needs cfgrib and ecCodes ({error}); install relent[grib]") from None
        settings = {"engine": "cfgrib", "backend_kwargs": {"indexpath": ""}}
    if len(paths) == 1:
        return xr.open_dataset(paths[0], chunks=None, **settings)
    return xr.open_mfdataset(paths, combine="by_coords", chunks={}, **MERGING, **settings)
