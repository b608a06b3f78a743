"""The forecast network of FuXi-ENS (arXiv 2405.05925) at small scale: encoder, prior P, posterior Q, perturbed decoder.

The paper's training code and architecture are not public. From its abstract and from its sibling FuXi-S2S (Nature
Communications 2024, figure 5) come: two input frames, a Gaussian predicted from the state (P) and one that also sees
the next frame (Q), a sample that perturbs the hidden features, and a decoder to the next frame. Everything else is
ours: convolutions in place of attention, a diagonal Gaussian on a coarse map, the perturbation as a linear map that is
added, and an output that corrects damped persistence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relent.grid import Topology

FACTOR = 4
"""Grid points a side of one cell of the latent map."""
LOG_STD_BOUNDS = (-5.0, 2.0)


class LatentGaussian(NamedTuple):
    """A diagonal Gaussian on the latent map: `mean` and `log_std`, both (B, D, H/4, W/4)."""

    mean: Tensor
    log_std: Tensor

    def sample(self, members: int) -> Tensor:
        """Reparameterised draws (M, B, D, H/4, W/4), from torch's global generator."""
        noise = torch.randn((members, *self.mean.shape), dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.log_std.exp() * noise


class Features(NamedTuple):
    """What the encoder knows of the state: `fine` (B, w, H/2, W/2) and `coarse` (B, 2w, H/4, W/4)."""

    fine: Tensor
    coarse: Tensor


class GridConvolution(nn.Module):
    """3 × 3 convolution on a latitude–longitude grid: borders wrap as its topology says, else are replicated."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride=stride)

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """Convolve (B, C, H, W)."""
        x = F.pad(x, (1, 1, 0, 0), mode="circular" if topology.wraps_columns else "replicate")
        output: Tensor = self.convolution(
            F.pad(x, (0, 0, 1, 1), mode="circular" if topology.wraps_rows else "replicate")
        )
        return output


class ResidualBlock(nn.Module):
    """x + conv(SiLU(conv(SiLU(x)))), the identity at the start of training."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = GridConvolution(width, width), GridConvolution(width, width)
        nn.init.zeros_(self.second.convolution.weight)
        nn.init.zeros_(self.second.convolution.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """Add the branch."""
        branch: Tensor = self.second(F.silu(self.first(F.silu(x), topology)), topology)
        return x + branch


class Encoder(nn.Module):
    """Two frames (B, 2, C, H, W) → features at half and quarter resolution."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.stem = GridConvolution(2 * channels * 4, width)
        self.fine = ResidualBlock(width)
        self.down = GridConvolution(width, 2 * width, stride=2)
        self.coarse = ResidualBlock(2 * width)

    def forward(self, frames: Tensor, topology: Topology) -> Features:
        """Encode frames whose height and width are multiples of four."""
        fine = self.fine(self.stem(F.pixel_unshuffle(frames.flatten(1, 2), 2), topology), topology)
        return Features(fine, self.coarse(self.down(F.silu(fine), topology), topology))


class Prior(nn.Module):
    """P(X^{t−1}, X^t): features → latent Gaussian."""

    def __init__(self, width: int, latent_channels: int):
        super().__init__()
        self.hidden = GridConvolution(2 * width, 2 * width)
        self.head = GridConvolution(2 * width, 2 * latent_channels)

    def forward(self, coarse: Tensor, topology: Topology) -> LatentGaussian:
        """Gaussian of the latent map."""
        return _gaussian(self.head(F.silu(self.hidden(F.silu(coarse), topology)), topology))


class Posterior(nn.Module):
    """Q(X^{t−1}, X^t, X^{t+1}): features, frames and the increment to the target → latent Gaussian."""

    def __init__(self, channels: int, width: int, latent_channels: int):
        super().__init__()
        self.stem = GridConvolution(3 * channels * 4, width)
        self.down = GridConvolution(width, 2 * width, stride=2)
        self.hidden = GridConvolution(4 * width, 2 * width)
        self.head = GridConvolution(2 * width, 2 * latent_channels)

    def forward(self, frames: Tensor, increment: Tensor, coarse: Tensor, topology: Topology) -> LatentGaussian:
        """Gaussian of the latent map."""
        seen = torch.cat([frames, increment.unsqueeze(1)], dim=1).flatten(1, 2)
        own = self.down(F.silu(self.stem(F.pixel_unshuffle(seen, 2), topology)), topology)
        hidden = self.hidden(F.silu(torch.cat([own, coarse], dim=1)), topology)
        return _gaussian(self.head(F.silu(hidden), topology))


def _gaussian(output: Tensor) -> LatentGaussian:
    mean, log_std = output.chunk(2, dim=1)
    return LatentGaussian(mean, log_std.clamp(*LOG_STD_BOUNDS))


class Decoder(nn.Module):
    """Features (perturbed) → correction of the base forecast (B, C, H, W)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.coarse = ResidualBlock(2 * width)
        self.up = GridConvolution(2 * width, 4 * width)
        self.fine = ResidualBlock(width)
        self.out = GridConvolution(width, 4 * channels)
        with torch.no_grad():
            # A small correction at first: the forecast starts near damped persistence.
            self.out.convolution.weight.mul_(0.3)

    def forward(self, features: Features, topology: Topology) -> Tensor:
        """Decode."""
        up = F.pixel_shuffle(self.up(F.silu(self.coarse(features.coarse, topology)), topology), 2)
        hidden = self.fine(up + features.fine, topology)
        return F.pixel_shuffle(self.out(F.silu(hidden), topology), 2)


class ForecastNetwork(nn.Module):
    """One step of every member: X̂_m = d X^t + r Dec(h + A z_m), h = Enc(X^{t−1}, X^t), in standardised anomalies.

    Args:
        damping: d, (C,): slope of the damped-persistence base of each channel.
        residual_std: r, (C,): size of what the base leaves, in standard deviations.
        width: w, channels at half resolution.
        latent_channels: D, channels of the latent map.

    The width of the grid must be a multiple of four; rows are padded to one (on a torus they must be
    one). `topology` says how the borders meet.
    """

    damping: Tensor
    residual_std: Tensor

    def __init__(self, damping: Tensor, residual_std: Tensor, width: int = 16, latent_channels: int = 4):
        super().__init__()
        channels = len(damping)
        self.register_buffer("damping", damping.clone()[:, None, None])
        self.register_buffer("residual_std", residual_std.clone()[:, None, None])
        self.encoder = Encoder(channels, width)
        self.decoder = Decoder(channels, width)
        self.prior_head = Prior(width, latent_channels)
        self.posterior_head = Posterior(channels, width, latent_channels)
        # A linear map without bias: z = 0 is the unperturbed forecast.
        self.perturbation = nn.Conv2d(latent_channels, 2 * width, 1, bias=False)

    def encode(self, frames: Tensor, topology: Topology) -> Features:
        """h of frames (B, 2, C, H, W).

        Raises:
            ValueError: The grid's width is no multiple of four.
        """
        if frames.shape[-1] % FACTOR:
            raise ValueError(f"the number of longitudes must be a multiple of {FACTOR}, got {frames.shape[-1]}")
        features: Features = self.encoder(pad_rows(frames), topology)
        return features

    def prior(self, features: Features, topology: Topology) -> LatentGaussian:
        """Θ_p of the latent map, from the state alone."""
        gaussian: LatentGaussian = self.prior_head(features.coarse, topology)
        return gaussian

    def posterior(self, frames: Tensor, truth: Tensor, features: Features, topology: Topology) -> LatentGaussian:
        """Θ_q of the latent map, from the state and the true next frame (B, C, H, W)."""
        increment = (truth - self.damping * frames[:, -1]) / self.residual_std
        gaussian: LatentGaussian = self.posterior_head(pad_rows(frames), pad_rows(increment), features.coarse, topology)
        return gaussian

    def decode(self, frames: Tensor, features: Features, latent: Tensor | None, topology: Topology) -> Tensor:
        """Next frame of every member in one pass.

        Args:
            frames: (B, 2, C, H, W).
            features: Of these frames.
            latent: (M, B, D, H/4, W/4); None: z = 0 and M = 1.
            topology: How the borders meet.

        Returns:
            (M, B, C, H, W), standardised.
        """
        members = 1 if latent is None else len(latent)
        coarse = features.coarse.expand(members, *features.coarse.shape).flatten(0, 1)
        fine = features.fine.expand(members, *features.fine.shape).flatten(0, 1)
        if latent is not None:
            coarse = coarse + self.perturbation(latent.flatten(0, 1))
        height = frames.shape[-2]
        output: Tensor = self.decoder(Features(fine, coarse), topology)[..., :height, :]
        output = output.reshape(members, len(frames), *output.shape[1:])
        return self.damping * frames[:, -1] + self.residual_std * output


def pad_rows(fields: Tensor) -> Tensor:
    """Replicate the last row until the number of rows of (B, …, H, W) is a multiple of four."""
    missing = -fields.shape[-2] % FACTOR
    if not missing:
        return fields
    return torch.cat([fields, fields[..., -1:, :].expand(*fields.shape[:-2], missing, fields.shape[-1])], dim=-2)
