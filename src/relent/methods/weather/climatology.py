"""Climatology: the states of the training steps as an ensemble, the same for every initial time and lead time.

Each training step is one member, whatever the number of members asked for. Consecutive states are alike, so that the
ensemble knows less of the climate than its size says, and is under-dispersed where there are few.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from relent.grid import Topology
from relent.methods.config import MethodConfig
from relent.methods.weather.base import FixedForecast


class Config(MethodConfig):
    """Nothing of its own."""


class Climatology(FixedForecast):
    """Gives all training states as members."""

    states: Tensor

    def prepare(self, datamodule: Any) -> None:
        """Keep the training states (M, C, H, W)."""
        self.register_buffer("states", self.fields.anomalies[self.fields.splits["train"]])

    def advance(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """The training states."""
        return self.states
