"""Swin V2 blocks on grids: what may see what, and equality with full attention and with `transformers`."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from forecast_networks import random_fields
from torch import Tensor

from relent.grid import Topology
from relent.models.fuxi_ens.attention import (
    SwinBlock,
    WindowAttention,
    attention_mask,
    from_windows,
    to_windows,
    window_extent,
)

GLOBE, TORUS, REGIONAL = Topology.globe, Topology.torus, Topology.regional


def attention(window: int, shifted: bool, width: int = 8) -> WindowAttention:
    torch.manual_seed(0)
    return WindowAttention(width, 2, window, shifted).double()


def influence(layer: WindowAttention, shape: tuple[int, int], point: tuple[int, int], topology: Topology) -> Tensor:
    """Which tokens the output at a point depends on, (H, W), bool."""
    x = random_fields(1, *shape, 8).requires_grad_()
    layer(x, topology)[0, point[0], point[1]].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().amax(-1) > 0


def test_windows_are_taken_apart_and_put_together() -> None:
    x = random_fields(2, 6, 8, 3)
    windows = to_windows(x, (3, 4))
    assert windows.shape == (2, 4, 12, 3)
    torch.testing.assert_close(windows[0, 1], x[0, :3, 4:].reshape(12, 3), rtol=0, atol=0)
    torch.testing.assert_close(from_windows(windows, (3, 4), (6, 8)), x, rtol=0, atol=0)


def test_a_window_that_holds_the_grid_is_full_attention() -> None:
    layer, x = attention(6, shifted=True), random_fields(2, 5, 6, 8)
    assert [window_extent(size, 6, True) for size in (5, 6)] == [(5, 0), (6, 0)]
    tokens = x.flatten(1, 2)
    query, key, value = (
        part(tokens).unflatten(-1, (2, 4)).transpose(1, 2) for part in (layer.query, layer.key, layer.value)
    )
    cosine = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT
    place = torch.stack(torch.meshgrid(torch.arange(5), torch.arange(6), indexing="ij"), -1).flatten(0, 1).double()
    offset = 8 / 5 * (place[:, None] - place[None])
    bias = 16 * layer.position_bias(offset.sign() * torch.log2(offset.abs() + 1) / math.log2(8)).sigmoid()
    weights = (layer.logit_scale.exp() * cosine + bias.permute(2, 0, 1)).softmax(-1)
    expected = layer.output((weights @ value).transpose(1, 2).flatten(-2)).reshape(x.shape)
    torch.testing.assert_close(layer(x, REGIONAL), expected, rtol=1e-10, atol=1e-10)


def test_shifted_windows_go_over_the_date_line_and_end_at_the_poles() -> None:
    layer = attention(4, shifted=True)
    seen = influence(layer, (8, 8), (0, 0), GLOBE)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, [0, 1, 6, 7]] = True
    assert torch.equal(seen, expected)
    seen = influence(layer, (8, 8), (0, 0), TORUS)
    expected[[6, 7]] = expected[0].clone()
    assert torch.equal(seen, expected)
    seen = influence(layer, (8, 8), (0, 0), REGIONAL)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("topology", [GLOBE, TORUS, REGIONAL])
@pytest.mark.parametrize("shifted", [False, True])
def test_no_window_sees_what_fills_up_the_grid(shifted: bool, topology: Topology) -> None:
    """Of constant tokens every weighted mean is the same, unless the zeros that fill up the grid take part."""
    layer = attention(4, shifted)
    x = random_fields(1, 1, 1, 8).expand(1, 6, 10, 8)
    output = layer(x, topology)
    torch.testing.assert_close(output, output[:, :1, :1].expand_as(output), rtol=1e-10, atol=1e-10)


def test_masks_of_whole_wrapping_grids_are_empty() -> None:
    assert attention_mask((8, 8), 4, True, TORUS) is None
    assert attention_mask((8, 8), 4, False, REGIONAL) is None
    mask = attention_mask((8, 8), 4, True, GLOBE)
    assert mask is not None
    assert [bool(window.all()) for window in mask] == [True, True, False, False]


def test_branches_start_at_zero_and_get_gradients() -> None:
    torch.manual_seed(0)
    block, x = SwinBlock(8, 2, 4, shifted=True).double(), random_fields(1, 8, 8, 8)
    torch.testing.assert_close(block(x, GLOBE), x, rtol=0, atol=0)
    block(x, GLOBE).square().mean().backward()
    assert float(block.attention_norm.weight.grad.abs().max()) > 0
    assert float(block.mlp_norm.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("shifted", [False, True])
def test_a_block_equals_that_of_transformers(shifted: bool) -> None:
    swin = pytest.importorskip("transformers.models.swinv2.modeling_swinv2")
    from transformers import Swinv2Config

    torch.manual_seed(0)
    ours = SwinBlock(16, 4, 4, shifted).double()
    config = Swinv2Config(embed_dim=16, num_heads=[4], depths=[1], window_size=4, drop_path_rate=0.0)
    theirs = swin.Swinv2Layer(config, 16, (8, 12), 4, shift_size=2 if shifted else 0).double().eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    own, names = (
        ours.state_dict(),
        {
            "attention.self.query": "attention.query",
            "attention.self.key": "attention.key",
            "attention.self.value": "attention.value",
            "attention.self.continuous_position_bias_mlp": "attention.position_bias",
            "attention.output.dense": "attention.output",
            "attention.self.logit_scale": "attention.logit_scale",
            "layernorm_before": "attention_norm",
            "layernorm_after": "mlp_norm",
            "intermediate.dense": "mlp.0",
            "output.dense": "mlp.2",
        },
    )
    state = {}
    for name in theirs.state_dict():
        prefix = max((key for key in names if name.startswith(key)), key=len)
        state[name] = own[names[prefix] + name.removeprefix(prefix)]
    theirs.load_state_dict(state)
    x = random_fields(2, 8, 12, 16)
    # Their table of offsets is made in float32.
    expected = theirs(x.flatten(1, 2), (8, 12))[0].reshape(x.shape)
    torch.testing.assert_close(ours(x, REGIONAL), expected, rtol=1e-5, atol=1e-5)
