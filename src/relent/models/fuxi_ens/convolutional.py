"""A convolutional backbone for a laptop: two resolutions, residual blocks; ours in all its parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relent.grid import Topology
from relent.models.fuxi_ens.backbone import Backbone, Features
from relent.models.fuxi_ens.layers import GridConvolution, ResidualBlock, recomputed


class Embedding(nn.Module):
    """Fields (B, n, H, W) → (B, 2w, H/4, W/4)."""

    def __init__(self, fields: int, width: int):
        super().__init__()
        self.stem = GridConvolution(4 * fields, width)
        self.down = GridConvolution(width, 2 * width, stride=2)

    def forward(self, fields: Tensor, topology: Topology) -> Tensor:
        """Embed."""
        output: Tensor = self.down(F.silu(self.stem(F.pixel_unshuffle(fields, 2), topology)), topology)
        return output


class ConvolutionalBackbone(Backbone):
    """Half resolution with w channels, quarter resolution with 2w, residual blocks at both, a skip between them.

    Args:
        inputs, outputs: Channels read (in each of two frames) and given.
        width: w.
        blocks: Residual blocks at each resolution of the encoder and of the decoder.
        checkpointing: Compute activations of the blocks again in the backward pass, to save memory.
    """

    factor = 4

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int = 1, checkpointing: bool = False):
        super().__init__()
        self.width, self.checkpointing, self._narrow = 2 * width, checkpointing, width
        self.stem = GridConvolution(2 * inputs * 4, width)
        self.encoder_fine = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.down = GridConvolution(width, 2 * width, stride=2)
        self.encoder_coarse = nn.ModuleList(ResidualBlock(2 * width) for _ in range(blocks))
        self.decoder_coarse = nn.ModuleList(ResidualBlock(2 * width) for _ in range(blocks))
        self.up = GridConvolution(2 * width, 4 * width)
        self.decoder_fine = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.out = GridConvolution(width, 4 * outputs)
        with torch.no_grad():
            # A small correction at first: the forecast starts near damped persistence.
            self.out.convolution.weight.mul_(0.3)

    def encode(self, frames: Tensor, topology: Topology) -> Features:
        """Two frames → features at half and quarter resolution."""
        fine = self.stem(F.pixel_unshuffle(frames.flatten(1, 2), 2), topology)
        fine = self._run(self.encoder_fine, fine, topology)
        return Features(fine, self._run(self.encoder_coarse, self.down(F.silu(fine), topology), topology))

    def decode(self, features: Features, topology: Topology) -> Tensor:
        """Features → fields."""
        coarse = self._run(self.decoder_coarse, features.coarse, topology)
        fine = F.pixel_shuffle(self.up(F.silu(coarse), topology), 2) + features.fine
        return F.pixel_shuffle(self.out(F.silu(self._run(self.decoder_fine, fine, topology)), topology), 2)

    def embedding(self, fields: int) -> nn.Module:
        """A stem and a strided convolution."""
        return Embedding(fields, self._narrow)

    def _run(self, blocks: nn.ModuleList, x: Tensor, topology: Topology) -> Tensor:
        for block in blocks:
            x = recomputed(block, x, topology, active=self.checkpointing)
        return x
