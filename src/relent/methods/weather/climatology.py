"""Climatology: states of training steps as an ensemble, the same for every initial time and lead time.

Each member is the state of one training step; the steps lie at equal distances over the training period, as many as the
task's forecasts have members. Where there are fewer steps, each is one member: consecutive states are alike, so that
such an ensemble knows less of the climate than its size says, and is under-dispersed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relent.grid import Topology
from relent.methods.config import MethodConfig
from relent.methods.weather.base import FixedForecast


class Config(MethodConfig):
    """Nothing of its own."""


class Climatology(FixedForecast):
    """Gives training states as members."""

    states: Tensor

    def prepare(self, datamodule: Any) -> None:
        """Keep training states (M, C, H, W)."""
        steps = [step for step in self.fields.splits["train"] if self.fields.usable[step]]
        wanted: int = self.task.options.evaluation.members  # type: ignore[attr-defined]
        chosen = [steps[number] for number in spaced(len(steps), wanted)]
        self.register_buffer("states", torch.cat([self.fields.frames(step, 1) for step in chosen]))

    def advance(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """Training states."""
        return self.states


def spaced(length: int, count: int) -> list[int]:
    """`count` positions of a sequence at equal distances, or all if there are fewer."""
    number = min(length, count)
    return [position * length // number for position in range(number)]
