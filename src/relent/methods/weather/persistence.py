"""Persistence: tomorrow is like now. One member, nothing trained."""

from __future__ import annotations

from torch import Tensor

from relent.grid import Topology
from relent.methods.config import MethodConfig
from relent.methods.weather.base import FixedForecast


class Config(MethodConfig):
    """Nothing of its own."""


class Persistence(FixedForecast):
    """Repeats the last input frame at every lead time."""

    def advance(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """The last frame, unchanged."""
        return states[:, 1]
