"""Roles of variables: which channels of the data a forecast network reads, and which it gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from relent.errors import ConfigError

ROLES = ("prognostic", "forced", "diagnostic", "accumulated")
"""`prognostic`: read and given. `forced`: read, taken from the data at every step of a forecast. `diagnostic`: given,
never read. `accumulated`: given (over the step), and zero where it is read, as the official inference code of FuXi-ENS
does with its radiation and precipitation."""


@dataclass(frozen=True)
class Channels:
    """The role of each channel, in the order of the data.

    Raises:
        ConfigError: An unknown role, or no channel that is given.
    """

    roles: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = [role for role in self.roles if role not in ROLES]
        if unknown:
            raise ConfigError(f"role {unknown[0]!r} of a variable is none of {', '.join(ROLES)}")
        if not self.outputs:
            raise ConfigError("all variables are forced: there is nothing to forecast")

    @classmethod
    def of(cls, variables: Iterable[str], attributes: Mapping[str, Mapping[str, str]]) -> Channels:
        """Roles as the attribute `role` of each variable says; prognostic where it says nothing."""
        return cls(tuple(attributes[name].get("role", "prognostic") for name in variables))

    def where(self, *roles: str) -> list[int]:
        """Positions of the channels with one of these roles."""
        return [position for position, role in enumerate(self.roles) if role in roles]

    @property
    def inputs(self) -> list[int]:
        """Channels that are read."""
        return self.where("prognostic", "forced", "accumulated")

    @property
    def outputs(self) -> list[int]:
        """Channels that are given."""
        return self.where("prognostic", "diagnostic", "accumulated")

    @property
    def forced(self) -> list[int]:
        """Channels that a forecast takes from the data."""
        return self.where("forced")

    def read(self, frames: Tensor) -> Tensor:
        """What the network sees of frames (…, C, H, W): accumulated channels and unknown (NaN) cells are zero."""
        frames = frames.nan_to_num(nan=0.0)
        accumulated = self.where("accumulated")
        if accumulated:
            frames = frames.index_fill(-3, torch.tensor(accumulated, device=frames.device), 0.0)
        return frames if len(self.inputs) == len(self.roles) else frames[..., self.inputs, :, :]

    def given(self, frames: Tensor) -> Tensor:
        """The channels of frames (…, C, H, W) that the network forecasts."""
        return frames if len(self.outputs) == len(self.roles) else frames[..., self.outputs, :, :]

    def complete(self, forecast: Tensor, forcing: Tensor | None) -> Tensor:
        """All channels of a state, from those that are given and those that are forced.

        Args:
            forecast: (…, outputs, H, W).
            forcing: (…, forced, H, W), the true values at the time of the forecast; broadcast over members.

        Returns:
            (…, C, H, W).

        Raises:
            ValueError: There are forced channels, but no forcing.
        """
        if not self.forced:
            return forecast
        if forcing is None:
            raise ValueError(
                f"{len(self.forced)} variables are forced: give their values at every step of the forecast"
            )
        known = forcing.expand(*forecast.shape[:-3], *forcing.shape[-3:]).to(forecast.dtype)
        order = torch.tensor([*self.outputs, *self.forced], device=forecast.device).argsort()
        return torch.cat([forecast, known], dim=-3).index_select(-3, order)
