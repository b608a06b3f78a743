r"""The perfect ensemble: the true model from the true state, whose CRPS no forecast can beat on average.

    ψ_m^{t+1} = M(ψ_m^t, η_m),  ψ_m^0 the truth,

with M the flow that made the data (`relent.data.quasi_geostrophic`) and new noise η_m for every member and step. The
state alone determines the law of the next one, so that the members and the truth are draws from one law.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relent.data.quasi_geostrophic import TwoLayerFlow
from relent.data.weather_twin import read_flow
from relent.grid import Topology
from relent.methods.config import MethodConfig
from relent.methods.weather.base import FixedForecast


class Config(MethodConfig):
    """Nothing of its own."""


class PerfectEnsemble(FixedForecast):
    """Rolls the true model out with independent noise."""

    scale: Tensor

    def prepare(self, datamodule: Any) -> None:
        """Take the parameters of the flow from the data set.

        Raises:
            DataError: The data set was not made by a flow that is known.
        """
        self.flow = TwoLayerFlow(read_flow(self.spec.inputs["data"]))
        self.register_buffer("scale", self.fields.std[:, None, None], persistent=False)

    def advance(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """One step of the flow; stream functions have no base state."""
        draw = self.noise or torch.randn
        noise = draw((members, 1, *self.flow.noise_shape()))[:, 0].to(states)
        now = (states[:, 1] * self.scale).expand(members, *states.shape[2:])
        following: Tensor = self.flow(now, noise) / self.scale
        return following
