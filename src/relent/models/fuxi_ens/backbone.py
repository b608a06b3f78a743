"""What a backbone gives to the forecast network."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from relent.grid import Topology


class Features(NamedTuple):
    """What the encoder knows of the state.

    `coarse` (B, width, H/f, W/f) is what latents perturb and what prior and posterior see; `fine` (B, C', 2H/f, 2W/f)
    or (B, C', H/f, W/f) goes past the perturbation to the decoder.
    """

    fine: Tensor
    coarse: Tensor


class Backbone(nn.Module):
    """Encoder and decoder; the perturbation happens between the two.

    `factor` f is the number of grid points a side of one cell of the coarse features, `width` their channels. Heights
    and widths of what it is given are multiples of f.
    """

    factor: int
    width: int

    @abstractmethod
    def encode(self, frames: Tensor, topology: Topology) -> Features:
        """h of two frames (B, 2, inputs, H, W)."""

    @abstractmethod
    def decode(self, features: Features, topology: Topology) -> Tensor:
        """Features, perturbed or not, → (B, outputs, H, W)."""

    @abstractmethod
    def embedding(self, fields: int) -> nn.Module:
        """A new, small encoder of its own: fields (B, fields, H, W), topology → (B, width, H/f, W/f)."""
