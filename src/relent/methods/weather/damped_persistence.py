r"""Damped persistence with Gaussian residuals, the least that an ensemble forecast must beat.

    X̂_m^{t+k} = d_k X^t + r_k ε_m,  ε ~ N(0, 1) at every point,

with the slope d_k of the regression on the state k steps before and the standard deviation r_k of what it leaves, of
each variable and lead, from the training steps. Members are drawn anew at each lead and point: they are good for scores
of single values, and have no structure in space or time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from relent.errors import ConfigError
from relent.grid import Topology
from relent.methods.config import MethodConfig
from relent.methods.weather.base import FixedForecast


class Config(MethodConfig):
    """Nothing of its own."""


class DampedPersistence(FixedForecast):
    """Draws from a Gaussian about the damped last frame."""

    damping: Tensor
    residual_std: Tensor

    def setup_method(self) -> None:
        """Take slopes and residuals of all leads from the data set's statistics."""
        super().setup_method()
        self.register_buffer("damping", self.fields.lead_damping, persistent=False)
        self.register_buffer("residual_std", self.fields.lead_residual_std, persistent=False)

    def roll_out(
        self, frames: Tensor, steps: int, members: int, topology: Topology, forcing: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Every lead straight from the last frame; see `ForecastMethod.roll_out`.

        Raises:
            ConfigError: The statistics do not reach that far.
        """
        known = len(self.damping)
        if steps > known:
            raise ConfigError(
                f"the data set's statistics reach {known} steps ahead, not {steps}; ask for fewer, or prepare the data "
                "with more leads",
                key="lead_steps",
            )
        for damping, residual_std in zip(self.damping[:steps], self.residual_std[:steps]):
            draw = self.noise or torch.randn
            noise = draw((members, 1, *frames.shape[1:]))[:, 0].to(frames)
            yield damping[:, None, None] * frames[1] + residual_std[:, None, None] * noise
