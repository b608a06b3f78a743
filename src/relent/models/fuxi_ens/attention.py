r"""Swin Transformer V2 blocks (arXiv 2111.09883) on latitude–longitude grids.

    x ← x + LN(W-MSA(x)),   x ← x + LN(MLP(x))                                              (post-norm residuals)
    attention = softmax( cos(q, k) / τ + B ) v,   B = 16 σ(MLP(sign(Δ) log₂(1 + 8 |Δ|) / 3))   (Δ: offset in the window)

Written out here, and not taken from `transformers`, for what a globe needs: its layers shift both axes alike and cut
attention at every border, where ours goes on over the date line and ends at the poles; they let the zeros that fill
up a grid to whole windows take part, where ours do not; their attention matrix is kept in memory, where ours goes
through `scaled_dot_product_attention`. On a grid without wrapping that is a whole number of windows the two are equal
(tested).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relent.grid import Topology

LARGEST_LOGIT_SCALE = math.log(100.0)
"""1/τ is at most 100 (section 3.2 of the paper)."""
BIAS_HIDDEN = 512
"""Hidden width of the MLP of the position bias, that of the authors' code."""


def window_extent(size: int, window: int, shifted: bool) -> tuple[int, int]:
    """Window and shift along an axis: a window that holds the whole axis is not shifted."""
    extent = min(size, window)
    return extent, window // 2 if shifted and size > window else 0


def to_windows(x: Tensor, extents: tuple[int, int]) -> Tensor:
    """(B, H, W, …) → (B, windows, points of a window, …); H and W whole multiples of the extents."""
    batch, height, width, *rest = x.shape
    (rows, columns), n_rest = extents, len(rest)
    x = x.reshape(batch, height // rows, rows, width // columns, columns, *rest)
    x = x.permute(0, 1, 3, 2, 4, *range(5, 5 + n_rest))
    return x.reshape(batch, -1, rows * columns, *rest)


def from_windows(windows: Tensor, extents: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """(B, windows, points, C) → (B, H, W, C), the inverse of `to_windows`."""
    (rows, columns), (height, width) = extents, shape
    x = windows.reshape(len(windows), height // rows, width // columns, rows, columns, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(len(windows), height, width, windows.shape[-1])


@lru_cache(maxsize=64)
def attention_mask(shape: tuple[int, int], window: int, shifted: bool, topology: Topology) -> Tensor | None:
    """Which points of a window see each other, (windows, N, N), bool, on the CPU; None: all do.

    A shifted window that reaches over a border holds points from both sides. Where the borders do not meet (poles,
    regional tiles) only points of one side see each other; the points that fill up the grid see only themselves.
    """
    regions = []
    for size, wraps in zip(shape, (topology.wraps_rows, topology.wraps_columns)):
        extent, shift = window_extent(size, window, shifted)
        region = torch.zeros(size + -size % extent, dtype=torch.long)
        if not wraps and shift:
            region[size - shift : size] = 1
        region[size:] = 2
        regions.append(region)
    extents = (window_extent(shape[0], window, shifted)[0], window_extent(shape[1], window, shifted)[0])
    label = to_windows((3 * regions[0][:, None] + regions[1])[None], extents)[0]
    same = label[:, :, None] == label[:, None, :]
    return None if bool(same.all()) else same


class WindowAttention(nn.Module):
    """Scaled cosine attention within (shifted) windows, with a continuous, logarithmic relative position bias.

    Args:
        width: Channels.
        heads: Heads, a divisor of `width`.
        window: Side of a window, in tokens.
        shifted: Whether windows are shifted by half their side.
    """

    def __init__(self, width: int, heads: int, window: int, shifted: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of the number of heads {heads}")
        self.heads, self.window, self.shifted = heads, window, shifted
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.position_bias = nn.Sequential(
            nn.Linear(2, BIAS_HIDDEN), nn.ReLU(), nn.Linear(BIAS_HIDDEN, heads, bias=False)
        )

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """Attend among tokens (B, H, W, C)."""
        height, width = x.shape[1:3]
        (rows, row_shift), (columns, column_shift) = (
            window_extent(size, self.window, self.shifted) for size in (height, width)
        )
        x = x.roll((-row_shift, -column_shift), (1, 2)) if row_shift or column_shift else x
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        padded = (x.shape[1], x.shape[2])
        mask = attention_mask((height, width), self.window, self.shifted, topology)
        attended = self._attend(to_windows(x, (rows, columns)), (rows, columns), mask)
        x = from_windows(attended, (rows, columns), padded)[:, :height, :width]
        return x.roll((row_shift, column_shift), (1, 2)) if row_shift or column_shift else x

    def _attend(self, windows: Tensor, extents: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Attention of (B, windows, N, C) within each window."""
        query, key, value = (
            layer(windows).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for layer in (self.query, self.key, self.value)
        )
        scale = self.logit_scale.clamp(max=LARGEST_LOGIT_SCALE).exp()
        query, key = F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1)
        bias = self.bias(extents)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None].to(bias.device), -torch.inf)
        value = F.scaled_dot_product_attention(
            query.to(value.dtype), key.to(value.dtype), value, attn_mask=bias.to(value.dtype), scale=1.0
        )
        output: Tensor = self.output(value.transpose(-2, -3).flatten(-2))
        return output

    def bias(self, extents: tuple[int, int]) -> Tensor:
        """Position bias of a window, (heads, N, N).

        Offsets are measured in the full window's side, so that a window that a small grid cuts short has the same bias.
        """
        weight = self.query.weight
        rows, columns = (torch.arange(1 - n, n, dtype=weight.dtype, device=weight.device) for n in extents)
        offsets = 8 / max(1, self.window - 1) * torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        table = self.position_bias(offsets.sign() * (offsets.abs() + 1).log2() / 3).flatten(0, 1)
        index = relative_index(extents).to(weight.device)
        bias: Tensor = 16 * table[index].permute(2, 0, 1).sigmoid()
        return bias


@lru_cache(maxsize=64)
def relative_index(extents: tuple[int, int]) -> Tensor:
    """Row of the table of offsets for each pair of points of a window, (N, N)."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in extents), indexing="ij")
    row, column = rows.flatten(), columns.flatten()
    down = row[:, None] - row[None] + extents[0] - 1
    right = column[:, None] - column[None] + extents[1] - 1
    return down * (2 * extents[1] - 1) + right


class SwinBlock(nn.Module):
    """One Swin V2 block on tokens (B, H, W, C); its branches start at zero, as in the authors' code."""

    def __init__(self, width: int, heads: int, window: int, shifted: bool, mlp_ratio: int = 4):
        super().__init__()
        self.attention = WindowAttention(width, heads, window, shifted)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))
        nn.init.zeros_(self.attention_norm.weight)
        nn.init.zeros_(self.mlp_norm.weight)

    def forward(self, x: Tensor, topology: Topology) -> Tensor:
        """Add both branches."""
        x = x + self.attention_norm(self.attention(x, topology))
        output: Tensor = x + self.mlp_norm(self.mlp(x))
        return output
