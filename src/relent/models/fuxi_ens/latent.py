"""The latent Gaussian of a forecast step: diagonal, or low-rank as that of FuXi-S2S."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relent.divergences.gaussian import diagonal_gaussian_kl, low_rank_gaussian_kl
from relent.divergences.reduction import upcast
from relent.grid import Topology
from relent.models.fuxi_ens.layers import GridConvolution

LOG_STD_BOUNDS = (-5.0, 2.0)
Noise = Callable[[tuple[int, ...]], Tensor]
"""Standard normal draws of a shape whose first two dimensions, draws and states, together number the members."""


class LatentGaussian(NamedTuple):
    r"""A Gaussian on the latent map: N(μ, diag σ²), or N(μ, diag σ² + U Uᵀ) where `factor` is given.

    `mean` and `log_std` are (B, D, h, w), `factor` U is (B, R, D, h, w): R patterns over the whole map, each moved by
    one number. Low-rank: FuXi-S2S, Nature Communications 2024, figure 5; which of the two FuXi-ENS has is not public.
    """

    mean: Tensor
    log_std: Tensor
    factor: Tensor | None = None

    def sample(self, draws: int, noise: Noise | None = None) -> Tensor:
        """Reparameterised draws (M, B, D, h, w) of each of B Gaussians.

        Args:
            draws: M.
            noise: Where standard normal numbers come from; default: torch's global generator.
        """
        source = noise or self._noise
        drawn = self.mean + self.log_std.exp() * source((draws, *self.mean.shape)).to(self.mean)
        if self.factor is None:
            return drawn
        weights = source((draws, *self.factor.shape[:2])).to(self.factor)
        return drawn + torch.einsum("mbr,brdhw->mbdhw", weights, self.factor)

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device)

    def log_variance(self) -> Tensor:
        """Logarithm of the variance of each latent dimension by itself, (B, D, h, w)."""
        if self.factor is None:
            return 2 * self.log_std
        return torch.logaddexp(2 * self.log_std, self.factor.square().sum(1).clamp(min=1e-30).log())

    def marginal_kl(self, other: LatentGaussian) -> Tensor:
        """KL(self‖other) of each latent dimension by itself, (B, D, h, w), in nats."""
        return diagonal_gaussian_kl(self.mean, self.log_variance(), other.mean, other.log_variance(), dim=None)

    def kl(self, other: LatentGaussian) -> Tensor:
        """KL(self‖other) of the whole latent map, (B,), in nats; closed form."""
        if self.factor is None or other.factor is None:
            return self.marginal_kl(other).flatten(1).sum(1)
        return low_rank_gaussian_kl(*self._flat(), *other._flat())

    def _flat(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.factor is not None
        return self.mean.flatten(1), 2 * self.log_std.flatten(1), self.factor.flatten(2).mT


class GaussianHead(nn.Module):
    """Two convolutions to the parameters of a latent Gaussian, which are float32 at least.

    Args:
        inputs: Channels of the features.
        hidden: Channels between the convolutions.
        latent_channels: D.
        rank: R of the low-rank part; 0: diagonal.
    """

    def __init__(self, inputs: int, hidden: int, latent_channels: int, rank: int = 0):
        super().__init__()
        self.rank = rank
        self.hidden = GridConvolution(inputs, hidden)
        self.head = GridConvolution(hidden, (2 + rank) * latent_channels)
        with torch.no_grad():
            # The Gaussian is nearly diagonal at first; the R patterns differ, so that each learns.
            self.head.convolution.weight[2 * latent_channels :].mul_(0.1)

    def forward(self, features: Tensor, topology: Topology) -> LatentGaussian:
        """Gaussian of the latent map from features (B, inputs, h, w)."""
        output = upcast(self.head(F.silu(self.hidden(F.silu(features), topology)), topology))
        mean, log_std, *factors = output.chunk(2 + self.rank, dim=1)
        return LatentGaussian(mean, log_std.clamp(*LOG_STD_BOUNDS), torch.stack(factors, 1) if factors else None)
