"""Layers on latitude–longitude grids: convolutions whose borders meet as the grid does; residual, down, up blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from relent.grid import Topology


def pad_borders(x: Tensor, points: int, topology: Topology) -> Tensor:
    """Pad rows and columns of (B, C, H, W) by `points`: wrapped where borders meet, replicated elsewhere."""
    x = F.pad(x, (points, points, 0, 0), mode="circular" if topology.wraps_columns else "replicate")
    return F.pad(x, (0, 0, points, points), mode="circular" if topology.wraps_rows else "replicate")


def recomputed(block: Callable[..., Tensor], *arguments: Any, active: bool) -> Tensor:
    """Run a block; if `active`, keep its input alone and compute its activations again in the backward pass.

    The blocks draw no random numbers, so that no generator state is kept.
    """
    if not (active and torch.is_grad_enabled()):
        return block(*arguments)
    output: Tensor = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return output


class GridConvolution(nn.Module):
    """3 × 3 convolution on a latitude–longitude grid: borders wrap as its topology says, else are replicated."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride=stride)

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """Convolve (B, C, H, W)."""
        output: Tensor = self.convolution(pad_borders(x, 1, topology))
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


class NormedResidualBlock(nn.Module):
    """x + SiLU(GN(conv(SiLU(GN(conv(x)))))), the residual block of FuXi's down- and up-sampling (arXiv 2306.12873).

    FuXi names two 3 × 3 convolutions with group normalisation and SiLU; where the sum stands is a reconstruction.
    """

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.convolutions = nn.ModuleList([GridConvolution(width, width) for _ in range(2)])
        self.norms = nn.ModuleList([nn.GroupNorm(groups, width) for _ in range(2)])

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """Add the branch."""
        branch = x
        for convolution, norm in zip(self.convolutions, self.norms):
            branch = F.silu(norm(convolution(branch, topology)))
        return x + branch


class DownBlock(nn.Module):
    """3 × 3 convolution of stride 2 and a residual block: (B, C, H, W) → (B, C, H/2, W/2)."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.convolution = GridConvolution(width, width, stride=2)
        self.block = NormedResidualBlock(width, groups)

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """Halve the resolution."""
        output: Tensor = self.block(self.convolution(x, topology), topology)
        return output


class UpBlock(nn.Module):
    """2 × 2 transposed convolution of stride 2 and a residual block: (B, C', h, w) → (B, C, 2h, 2w)."""

    def __init__(self, inputs: int, width: int, groups: int):
        super().__init__()
        self.convolution = nn.ConvTranspose2d(inputs, width, 2, stride=2)
        self.block = NormedResidualBlock(width, groups)

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """Double the resolution."""
        output: Tensor = self.block(self.convolution(x), topology)
        return output


def pad_rows(fields: Tensor, factor: int) -> Tensor:
    """Replicate the last row until the number of rows of (…, H, W) is a multiple of `factor`."""
    missing = -fields.shape[-2] % factor
    if not missing:
        return fields
    return torch.cat([fields, fields[..., -1:, :].expand(*fields.shape[:-2], missing, fields.shape[-1])], dim=-2)
