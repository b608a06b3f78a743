"""The forecast network of FuXi-ENS (arXiv 2405.05925): encoder, prior P, posterior Q, perturbed decoder.

The paper's training code and architecture are not public. From its abstract and from its sibling FuXi-S2S (Nature
Communications 2024, figure 5) come: two input frames, a Gaussian predicted from the state (P) and one that also sees
the next frame (Q), a sample that perturbs the hidden features, and a decoder to the next frame. In the first step of a
forecast the sample perturbs the initial condition, in every later one the forecast: it is one module, and nothing is
added to the fields themselves (as in the official inference code, where members run from the same input).
Reconstructions: the perturbation as a linear map that is added, what Q sees beside the frames (the scaled increment),
the heads of P and Q, and an output that corrects damped persistence. The backbones tell their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relent.grid import Topology
from relent.models.fuxi_ens.backbone import Backbone, Features
from relent.models.fuxi_ens.channels import Channels
from relent.models.fuxi_ens.latent import GaussianHead, LatentGaussian
from relent.models.fuxi_ens.layers import pad_rows


class Posterior(nn.Module):
    """Q(X^{t−1}, X^t, X^{t+1}): an own encoder of frames and increment, beside the features → latent Gaussian."""

    def __init__(self, backbone: Backbone, fields: int, latent_channels: int, rank: int):
        super().__init__()
        self.embedding = backbone.embedding(fields)
        self.head = GaussianHead(2 * backbone.width, backbone.width, latent_channels, rank)

    def forward(self, seen: Tensor, coarse: Tensor, topology: Topology) -> LatentGaussian:
        """Gaussian from fields (B, n, H, W) and coarse features."""
        gaussian: LatentGaussian = self.head(torch.cat([self.embedding(seen, topology), coarse], dim=1), topology)
        return gaussian


class ForecastNetwork(nn.Module):
    """One step of every member: X̂_m = d X^t + r Dec(h + A z_m), h = Enc(X^{t−1}, X^t), in standardised anomalies.

    Enc sees X^t and the scaled increment (X^t − X^{t−1}) / r, which is the same information better conditioned.

    Args:
        damping: d, (C,): slope of the damped-persistence base of each channel of the data.
        residual_std: r, (C,): size of what the base leaves, in standard deviations.
        channels: Roles of the C channels. Only prognostic ones have a base: of diagnostic and accumulated ones the
            network gives the whole anomaly (d = 0, r = 1).
        backbone: Encoder and decoder, for `channels.inputs` and `channels.outputs`.
        latent_channels: D, channels of the latent map.
        latent_rank: R of a low-rank Gaussian; 0: diagonal.

    The width of the grid must be a multiple of `factor`, the number of grid points a side of a latent cell; rows are
    filled up to one (on a torus they must be one). `topology` says how the borders meet. Unknown (NaN) cells are read
    as zero.
    """

    base: Tensor
    scale: Tensor
    increment_scale: Tensor
    prognostic: Tensor

    def __init__(
        self,
        damping: Tensor,
        residual_std: Tensor,
        channels: Channels,
        backbone: Backbone,
        latent_channels: int,
        latent_rank: int = 0,
    ):
        super().__init__()
        self.channels, self.backbone, self.latent_channels = channels, backbone, latent_channels
        prognostic = torch.zeros_like(damping, dtype=torch.bool)
        prognostic[channels.where("prognostic")] = True
        base, scale = damping * prognostic, torch.where(prognostic, residual_std, 1.0)
        self.register_buffer("prognostic", prognostic[channels.outputs, None, None], persistent=False)
        self.register_buffer("base", base[channels.outputs, None, None])
        self.register_buffer("scale", scale[channels.outputs, None, None])
        self.register_buffer("increment_scale", scale[channels.inputs, None, None])
        seen = 2 * len(channels.inputs) + len(channels.outputs)
        self.prior_head = GaussianHead(backbone.width, backbone.width, latent_channels, latent_rank)
        self.posterior_head = Posterior(backbone, seen, latent_channels, latent_rank)
        # A linear map without bias: z = 0 is the unperturbed forecast.
        self.perturbation = nn.Conv2d(latent_channels, backbone.width, 1, bias=False)

    @property
    def factor(self) -> int:
        """Grid points a side of a latent cell."""
        return self.backbone.factor

    def encode(self, frames: Tensor, topology: Topology) -> Features:
        """h of frames (B, 2, C, H, W).

        Raises:
            ValueError: The grid's width, or on a torus its height, is no multiple of `factor`.
        """
        height, width = frames.shape[-2:]
        if width % self.factor:
            raise ValueError(f"the number of longitudes must be a multiple of {self.factor}, got {width}")
        if topology.wraps_rows and height % self.factor:
            raise ValueError(f"the number of rows of a torus must be a multiple of {self.factor}, got {height}")
        return self.backbone.encode(pad_rows(self._read(frames), self.factor), topology)

    def prior(self, features: Features, topology: Topology) -> LatentGaussian:
        """Θ_p of the latent map, from the state alone."""
        gaussian: LatentGaussian = self.prior_head(features.coarse, topology)
        return gaussian

    def posterior(self, frames: Tensor, truth: Tensor, features: Features, topology: Topology) -> LatentGaussian:
        """Θ_q of the latent map, from the state and the true next frame (B, C, H, W).

        Unknown cells of the truth count as forecast by the base, without an increment.
        """
        increment = ((self.channels.given(truth) - self._base(frames)) / self.scale).nan_to_num(nan=0.0)
        seen = torch.cat([self._read(frames).flatten(1, 2), increment], dim=1)
        gaussian: LatentGaussian = self.posterior_head(pad_rows(seen, self.factor), features.coarse, topology)
        return gaussian

    def decode(self, frames: Tensor, features: Features, latent: Tensor | None, topology: Topology) -> Tensor:
        """Next frame of every member in one pass.

        Args:
            frames: (B, 2, C, H, W).
            features: Of these frames.
            latent: (M, B, D, H/f, W/f); None: z = 0 and M = 1.
            topology: How the borders meet.

        Returns:
            (M, B, outputs, H, W), standardised, float32 at least. Cells of prognostic channels that are unknown in both
            frames (sea-surface temperature over land) stay unknown.
        """
        members = 1 if latent is None else len(latent)
        fine, coarse = (part.expand(members, *part.shape).flatten(0, 1) for part in features)
        if latent is not None:
            coarse = coarse + self.perturbation(latent.flatten(0, 1))
        output = self.backbone.decode(Features(fine, coarse), topology)[..., : frames.shape[-2], :]
        forecast = self._base(frames) + self.scale * output.reshape(members, len(frames), *output.shape[1:])
        return forecast.masked_fill(self._unknown(frames), torch.nan)

    def scored(self, frames: Tensor, truth: Tensor) -> Tensor:
        """The truth (B, C, H, W), NaN wherever a forecast from these frames is."""
        unknown = torch.zeros_like(truth, dtype=torch.bool)
        unknown[:, self.channels.outputs] = self._unknown(frames)
        return truth.masked_fill(unknown, torch.nan)

    def _unknown(self, frames: Tensor) -> Tensor:
        """Cells (B, outputs, H, W) of prognostic channels that are unknown in both frames."""
        return self.channels.given(frames).isnan().all(1) & self.prognostic

    def _read(self, frames: Tensor) -> Tensor:
        """(B, 2, inputs, H, W): the last frame and the scaled increment to it."""
        earlier, last = self.channels.read(frames).unbind(1)
        return torch.stack([last, (last - earlier) / self.increment_scale], dim=1)

    def _base(self, frames: Tensor) -> Tensor:
        return self.base * self.channels.given(frames[:, -1]).nan_to_num(nan=0.0)
