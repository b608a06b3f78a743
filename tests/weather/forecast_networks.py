"""Small forecast networks whose every part is at work (residual blocks start as the identity; here they do not)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relent.models.fuxi_ens.backbone import Backbone
from relent.models.fuxi_ens.channels import Channels
from relent.models.fuxi_ens.convolutional import ConvolutionalBackbone
from relent.models.fuxi_ens.network import ForecastNetwork
from relent.models.fuxi_ens.transformer import TransformerBackbone, TransformerSize

SIZE = TransformerSize(width=16, blocks=2, heads=2, window=2, patch=2, groups=4)
KINDS = ("convolutional", "transformer")


def forecast_network(
    kind: str, roles: Sequence[str] = ("prognostic",) * 2, *, rank: int = 0, checkpointing: bool = False
) -> ForecastNetwork:
    """A network of float64 with latents of three channels, from a fixed seed."""
    torch.manual_seed(0)
    channels = Channels(tuple(roles))
    sizes = (len(channels.inputs), len(channels.outputs))
    backbone: Backbone
    if kind == "convolutional":
        backbone = ConvolutionalBackbone(*sizes, 6, 1, checkpointing)
    else:
        backbone = TransformerBackbone(*sizes, SIZE, checkpointing)
    damping, residual = torch.linspace(0.8, 0.9, len(roles)), torch.linspace(0.6, 0.4, len(roles))
    network = ForecastNetwork(damping, residual, channels, backbone, 3, rank).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def random_fields(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal float64 values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
