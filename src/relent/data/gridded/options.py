"""What a task manifest says of a gridded source, under `data: {source: …}`; checked when the catalogue is read."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

PROTOCOLS = ("file", "http", "https", "gs", "gcs", "s3", "memory")
SECRETS = ("key", "secret", "token", "password", "access_key", "secret_key", "session_token")
PUBLIC_TOKENS = ("anon", "google_default", "cloud", "browser", "cache")
Role = Literal["prognostic", "forced", "diagnostic", "accumulated"]
SPLITS = ("train", "validation", "test")


class Strict(BaseModel):
    """Options that refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _moment(value: Any) -> Any:
    """A bare date is that day's midnight."""
    return f"{value}T00:00:00" if isinstance(value, str) and len(value) == 10 else value


def _end(value: Any) -> Any:
    """A bare date as an end is that day's last moment."""
    return f"{value}T23:59:59" if len(str(value)) == 10 else value


Period = tuple[Annotated[datetime, BeforeValidator(_moment)], Annotated[datetime, BeforeValidator(_end)]]


class VariableOptions(Strict):
    """One variable of the source, at the surface or on some levels."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.+-]*$", description="Its name in the store.")
    levels: list[float] | None = Field(
        None, min_length=1, description="Levels, in the unit of the store's level coordinate; none: it has no level."
    )
    role: Role = Field(
        "prognostic",
        description="`prognostic`: input and output; `forced`: input alone, known at every step; `diagnostic`: output "
        "alone; `accumulated`: output over the step (a sum of the source's steps).",
    )
    units: str | None = Field(None, description="Units of the source, where it says none or wrong ones.")
    gaps: Literal["fixed", "moving"] = Field(
        "fixed",
        description="`fixed`: the same cells are missing at all times (sea-surface temperature over land), a step with "
        "more is not used; `moving`: cells may be missing that are known at other times (sea ice).",
    )

    @field_validator("levels")
    @classmethod
    def _distinct(cls, levels: list[float] | None) -> list[float] | None:
        if levels and len(set(levels)) < len(levels):
            raise ValueError(f"a level stands twice in {levels}")
        return levels

    @property
    def channels(self) -> list[tuple[str, float | None]]:
        """Name of each channel and its level."""
        if self.levels is None:
            return [(self.name, None)]
        return [(f"{self.name}_{level:g}", level) for level in self.levels]


class Region(Strict):
    """A box of latitude and longitude; `west` may be the larger longitude: the box then crosses the date line."""

    south: float = Field(-90, ge=-90, le=90, description="Southern border, degrees north.")
    north: float = Field(90, ge=-90, le=90, description="Northern border, degrees north.")
    west: float = Field(ge=-360, le=360, description="Western border, degrees east.")
    east: float = Field(ge=-360, le=360, description="Eastern border, degrees east.")

    @model_validator(mode="after")
    def _ordered(self) -> Region:
        if self.south >= self.north:
            raise ValueError(f"south ({self.south:g}) must be less than north ({self.north:g})")
        return self


class Splits(Strict):
    """Periods of training, validation and test: first and last time of each, both included."""

    train: Period = Field(description="Training period.")
    validation: Period = Field(description="Validation period.")
    test: Period = Field(description="Test period.")

    @model_validator(mode="after")
    def _apart(self) -> Splits:
        parts = sorted(((*getattr(self, name), name) for name in SPLITS), key=lambda part: part[0])
        for begin, end, name in parts:
            if begin >= end:
                raise ValueError(f"{name} ends ({end}) before it begins ({begin})")
        for (_, end, first), (begin, _, second) in pairwise(parts):
            if begin <= end:
                raise ValueError(f"{second} begins ({begin}) before {first} has ended ({end}): splits must be apart")
        return self


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class GriddedSource(Strict):
    """Where the fields come from, what is taken, and how it lies on disk."""

    store: str = Field(
        min_length=1,
        description="A zarr store (folder, `https://`, `gs://`, `s3://`), or netCDF or GRIB files (`*` allowed).",
    )
    format: Literal["auto", "zarr", "anemoi", "netcdf", "grib"] = Field(
        "auto", description="What the store is; `auto` tells by its name and content."
    )
    storage_options: dict[str, Any] = Field(
        {}, description="Options of fsspec, such as `{token: anon}`; secrets belong in the environment."
    )
    variables: list[Annotated[VariableOptions, BeforeValidator(_named)]] = Field(
        min_length=1, description="Variables, in the order of the channels; a bare name is one without levels."
    )
    region: Region | None = Field(None, description="A part of the grid; none: all of it.")
    period: Period | None = Field(None, description="First and last time; none: from the first to the last split.")
    step: int = Field(6, ge=1, le=24 * 31, description="Hours between frames.")
    splits: Splits = Field(description="Periods of training, validation and test.")
    member: int = Field(0, ge=0, description="Which member, where the store holds an ensemble.")
    leads: int = Field(4, ge=1, le=240, description="Longest lead, in steps, whose residual scale is measured.")
    core: int | None = Field(None, ge=8, le=4096, description="Side of the stored tiles; none: the training tile.")
    halo: int | None = Field(
        None,
        ge=0,
        le=2048,
        description="Points around a stored tile that are stored with it; none: a quarter of it. A training window "
        "shifted by no more is one read; disk space grows by (1 + 2 halo/core)².",
    )
    block_mb: float = Field(
        256,
        ge=0.1,
        le=1e6,
        description="Largest block of steps that a worker holds, in MB; it needs about three times as much.",
    )
    licence: str = Field("", description="Licence of the data, kept with them.")

    @field_validator("store")
    @classmethod
    def _known_protocol(cls, store: str) -> str:
        protocol = store.partition("://")[0] if "://" in store else "file"
        if protocol not in PROTOCOLS or "::" in store:
            raise ValueError(
                f"{protocol!r} is none of {', '.join(PROTOCOLS)}; give a path or an address of one of them"
            )
        if "@" in store.partition("://")[2].partition("/")[0]:
            raise ValueError("holds a user or password; keep them in the environment, not in a manifest")
        return store

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if name.lower() in SECRETS and value not in PUBLIC_TOKENS:
                raise ValueError(f"{name!r} looks like a secret; keep it in the environment, not in a manifest")
        return options

    @model_validator(mode="after")
    def _consistent(self) -> GriddedSource:
        names = [name for variable in self.variables for name, _ in variable.channels]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"variable {twice[0]!r} stands twice")
        begin, end = self.span
        for name in SPLITS:
            first, last = getattr(self.splits, name)
            if first < begin or last > end:
                raise ValueError(f"{name} ({first} to {last}) does not lie within the period ({begin} to {end})")
            if last - first < timedelta(hours=2 * self.step):
                raise ValueError(f"{name} ({first} to {last}) has fewer than three steps of {self.step} h")
        return self

    @property
    def span(self) -> Period:
        """First and last time that are read."""
        if self.period is not None:
            return self.period
        periods = [getattr(self.splits, name) for name in SPLITS]
        return min(first for first, _ in periods), max(last for _, last in periods)
