"""A deterministic forecast from perturbed initial states: the ensemble that needs no training of its own.

    x_m^t = X^t + a r n_m,   n_m = G_ℓ * N(0, 1), unit variance;   X̂_m = f(x_m^{t−1}, x_m^t)

Both input frames get the same perturbation, smooth over ℓ grid points, in proportion to the residual of damped
persistence r of each variable. Its size a is the one of a grid with the lowest fair CRPS over the leads of the
validation, chosen after training. The perturbations know nothing of the flow: that is what learned ones are compared
with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from relent.grid import Topology
from relent.methods.config import hyperparameter
from relent.methods.weather.base import Batch
from relent.methods.weather.config import ForecastConfig
from relent.methods.weather.deterministic import DeterministicForecast
from relent.models.fuxi_ens.layers import pad_borders

SIZES = (0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)
"""Sizes a that are tried."""
TUNING_MEMBERS = 8


class Config(ForecastConfig):
    """Hyperparameters."""

    smoothing: float = hyperparameter(
        1.5, "ℓ: standard deviation of the smoothing kernel, in grid points.", source="ours", ge=0, le=20
    )


def smooth(noise: Tensor, length: float, topology: Topology) -> Tensor:
    """White noise (N, C, H, W) smoothed by a Gaussian of `length` grid points; unit variance away from borders."""
    radius = min(math.ceil(3 * length), *(size - 1 for size in noise.shape[-2:]))
    if radius == 0:
        return noise
    offsets = torch.arange(-radius, radius + 1, dtype=noise.dtype, device=noise.device)
    kernel = torch.exp(-0.5 * (offsets / length).square())
    kernel = kernel / kernel.square().sum().sqrt()
    fields = pad_borders(noise, radius, topology).flatten(0, 1).unsqueeze(1)
    fields = F.conv2d(F.conv2d(fields, kernel[None, None, :, None]), kernel[None, None, None])
    return fields.reshape_as(noise)


class GaussianPerturbations(DeterministicForecast):
    """Trains as `deterministic_l1` does, and chooses the size of the perturbations on the validation."""

    config: Config
    size: Tensor

    def setup_method(self) -> None:
        """Add the size of the perturbations to what is stored."""
        super().setup_method()
        self.register_buffer("size", torch.zeros(()))

    def initial(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """Perturbed states (M, N, 2, C, H, W) of states (N, 2, C, H, W); forced variables stay as they are."""
        shape = (members, len(states), *states.shape[2:])
        noise = (self.noise or torch.randn)(shape).to(states).flatten(0, 1)
        perturbation = smooth(noise, self.config.smoothing, topology).reshape(shape)
        scale = torch.zeros_like(states[0, 0, :, :1, :1])
        scale[self.network.channels.outputs] = self.size.to(states) * self.network.scale
        return states + (scale * perturbation).unsqueeze(2)

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Choose the size with the lowest mean CRPS over all validation batches and leads."""
        batches = list(batches)
        scores = []
        for size in SIZES:
            self.size.fill_(size)
            leads = [self.rollout_scores(batch, TUNING_MEMBERS) for batch in batches]
            crps = [value for scored in leads for name, value in scored.items() if name.startswith("crps")]
            scores.append(float(torch.stack(crps).mean()) if crps else 0.0)
        self.size.fill_(SIZES[scores.index(min(scores))])
