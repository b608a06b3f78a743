"""The U-shaped transformer of FuXi (arXiv 2306.12873) as encoder and decoder of an ensemble forecaster.

Published for FuXi, and built so here: space-time cube embedding by a 3-D convolution with kernel and stride 2 × 4 × 4
and layer normalisation; a down block (3 × 3 convolution of stride 2, residual block of two 3 × 3 convolutions, group
normalisation, SiLU); 48 Swin V2 blocks with C = 1536 channels at an eighth of the resolution; the output of the down
block joined to theirs; an up block (2 × 2 transposed convolution, residual block); a linear layer to the fields of each
4 × 4 patch. The size of the windows and the number of heads are not told.

FuXi-ENS names an encoder, a perturbed hidden feature and a decoder (so does FuXi-S2S, Nature Communications 2024,
figure 5), but not where the hidden feature lies. Reconstruction: half of the Swin blocks stand before the
perturbation, half behind it, so that members share the first half in the first step. 721 rows are filled up to whole
cells by repeating the last one; FuXi leaves out the row at the south pole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relent.grid import Topology
from relent.models.fuxi_ens.attention import SwinBlock
from relent.models.fuxi_ens.backbone import Backbone, Features
from relent.models.fuxi_ens.layers import DownBlock, UpBlock, recomputed


@dataclass(frozen=True)
class TransformerSize:
    """Size of the transformer.

    Args:
        width: C, channels of the tokens.
        blocks: Swin blocks before the perturbation, and as many behind it.
        heads: Attention heads.
        window: Side of a window, in tokens.
        patch: Grid points a side of a patch; a token stands for twice as many.
        groups: Groups of the group normalisation.
    """

    width: int
    blocks: int
    heads: int
    window: int
    patch: int
    groups: int


FUXI = TransformerSize(width=1536, blocks=24, heads=24, window=9, patch=4, groups=32)
"""Width, number of blocks and patch of FuXi; heads (64 channels each), window and groups are reconstructions."""


class Embedding(nn.Module):
    """Fields (B, n, H, W) → (B, C, H/2p, W/2p): patches, layer normalisation, down block."""

    def __init__(self, fields: int, size: TransformerSize):
        super().__init__()
        self.patches = nn.Conv2d(fields, size.width, size.patch, stride=size.patch)
        self.norm = nn.LayerNorm(size.width)
        self.down = DownBlock(size.width, size.groups)

    def forward(self, fields: Tensor, topology: Topology) -> Tensor:
        """Embed."""
        output: Tensor = self.down(channels_first(self.norm(channels_last(self.patches(fields)))), topology)
        return output


class TransformerBackbone(Backbone):
    """Cube embedding, down block, Swin blocks, (perturbation), Swin blocks, up block, linear layer.

    Args:
        inputs, outputs: Channels read (in each of two frames) and given.
        size: Its size.
        checkpointing: Compute activations of each Swin block again in the backward pass, to save memory.
    """

    def __init__(self, inputs: int, outputs: int, size: TransformerSize, checkpointing: bool = False):
        super().__init__()
        self.factor, self.width, self.size, self.checkpointing = 2 * size.patch, size.width, size, checkpointing
        patch = (2, size.patch, size.patch)
        self.cube = nn.Conv3d(inputs, size.width, patch, stride=patch)
        self.cube_norm = nn.LayerNorm(size.width)
        self.down = DownBlock(size.width, size.groups)
        self.encoder, self.decoder = (
            nn.ModuleList(
                SwinBlock(size.width, size.heads, size.window, shifted=bool(number % 2))
                for number in range(size.blocks)
            )
            for _ in range(2)
        )
        self.up = UpBlock(2 * size.width, size.width, size.groups)
        self.out = nn.Linear(size.width, size.patch**2 * outputs)
        with torch.no_grad():
            # A small correction at first: the forecast starts near damped persistence.
            self.out.weight.mul_(0.3)

    def encode(self, frames: Tensor, topology: Topology) -> Features:
        """Two frames → output of the down block, and tokens after the first half of the Swin blocks."""
        cubes = self.cube(frames.transpose(1, 2)).squeeze(2)
        down = self.down(channels_first(self.cube_norm(channels_last(cubes))), topology)
        return Features(down, self._attend(self.encoder, down, topology))

    def decode(self, features: Features, topology: Topology) -> Tensor:
        """The second half of the Swin blocks, up block, linear layer to patches."""
        tokens = self._attend(self.decoder, features.coarse, topology)
        up = self.up(torch.cat([features.fine, tokens], dim=1), topology)
        return F.pixel_shuffle(channels_first(self.out(channels_last(up))), self.size.patch)

    def embedding(self, fields: int) -> nn.Module:
        """Patches and a down block."""
        return Embedding(fields, self.size)

    def _attend(self, blocks: nn.ModuleList, x: Tensor, topology: Topology) -> Tensor:
        x = channels_last(x)
        for block in blocks:
            x = recomputed(block, x, topology, active=self.checkpointing)
        return channels_first(x)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) → (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)
