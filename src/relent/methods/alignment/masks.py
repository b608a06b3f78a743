r"""Masks of tokens, m ≥ 0: learned from a model's hidden states, taken from its activations, or random.

Christopoulou, Cardenas, Lampouras, Bou-Ammar, Wang, "SparsePO: Controlling Preference Alignment of LLMs via Sparse
Token Masks", arXiv 2410.05102 (Findings of EMNLP 2025), and its code (`huawei-noah/HEBO`, SparsePO), with two
deviations: the code rescales activations in float16 and divides by zero for a constant row, here it is the input's
precision and such a row gives 0. The z-normalisation before its min-max rescaling has no effect and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import zarr
from torch import Tensor, nn

from relent.divergences.reduction import as_mask, masked_mean, upcast
from relent.files import whole
from relent.language.batches import TokenBatch

if TYPE_CHECKING:
    from relent.tasks.preference_alignment.data import Pairs, PreferenceTexts

CHUNK = 256
"""Rows whose hidden states are held at once, where masks are written."""


class TokenMask(nn.Module):
    r"""A learned mask of tokens from the hidden states of the reference, (B, L) and never negative.

    `all`: a_g = ReLU(w_g·LN(z^g) + b_g) with one layer norm shared by the layers, m = ReLU(Σ_g c_g a_g), c of either
    sign and without bias. `last`: m = ReLU(w·z + b) of the last layer. Where m = 0 its parameters get no gradient: a
    mask that is 0 everywhere freezes the training at log 2, see :func:`mask_sparsity`.

    Args:
        hidden_size: d.
        layers: G, the number of layers (the embedding layer is not one); `last` uses one.
        kind: `all` (the code's `simple_all`, default) or `last`.
        gate: `relu`, or `binary`: sign(ReLU(·)), as the code's ablation has it, whose gradient is 0, so that it keeps
            the random subset of its initialisation; `straight_through` gives it the gradient of the ReLU (ours).
        positive_start: Start with c_g > 0 (ours). By the code's default start all c_g are negative, and the mask 0
            everywhere for good, in 2^−G of the seeds: every fourth with two layers, none in practice with twelve.
        layer_norm_epsilon: That of the reference model.
    """

    def __init__(
        self,
        hidden_size: int,
        layers: int,
        *,
        kind: Literal["all", "last"] = "all",
        gate: Literal["relu", "binary", "straight_through"] = "relu",
        positive_start: bool = False,
        layer_norm_epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        if kind not in ("all", "last") or gate not in ("relu", "binary", "straight_through"):
            raise ValueError(f"unknown mask: kind={kind!r} (all, last), gate={gate!r} (relu, binary, straight_through)")
        self.gate, self.layers = gate, layers
        used = layers if kind == "all" else 1
        self.heads = nn.ModuleList(nn.Linear(hidden_size, 1) for _ in range(used))
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_epsilon) if kind == "all" else None
        self.mixer = nn.Linear(layers, 1, bias=False) if kind == "all" else None
        if positive_start and self.mixer is not None:
            self.mixer.weight.data.abs_()

    def forward(self, hidden: Tensor) -> Tensor:
        """m from z (G, B, L, d): z^g at position t is the state that predicts y_t; it gets no gradient.

        Raises:
            ValueError: Another number of layers.
        """
        if hidden.ndim != 4 or hidden.shape[0] != self.layers:
            raise ValueError(f"expected hidden states ({self.layers}, B, L, d), got {tuple(hidden.shape)}")
        hidden = hidden.detach()
        if self.norm is None or self.mixer is None:
            return self._gated(self.heads[0](hidden[-1]).squeeze(-1))
        scores = torch.cat([head(self.norm(z)).relu() for head, z in zip(self.heads, hidden)], dim=-1)
        return self._gated(self.mixer(scores).squeeze(-1))

    def _gated(self, scores: Tensor) -> Tensor:
        open_gate = scores.relu()
        if self.gate == "relu":
            return open_gate
        hard = open_gate.sign()
        return hard if self.gate == "binary" else hard.detach() + open_gate - open_gate.detach()


def activation_mask(activations: Mapping[str, Sequence[Tensor]], mask: Tensor) -> Tensor:
    r"""MaPO's mask: activations averaged over features, rescaled to [0, 1] in each answer, averaged over layers.

    Args:
        activations: For each kind (MLP, attention, residual stream, logits in the official code) the hooked tensors of
            the **reference**, (B, L, d) each with d of its own.
        mask: (B, L), True on the tokens of the answer.

    Returns:
        (B, L), in [0, 1], 0 outside the answer and where an answer's activation is constant; without gradient, and the
        same for activations that are scaled by a positive factor or shifted.

    Raises:
        ValueError: No activation, or shapes that do not fit.
    """
    if not activations or not all(activations.values()):
        raise ValueError("activation_mask needs at least one activation of each kind")
    kinds = [torch.stack([_rescaled(x, mask) for x in hooked]).mean(dim=0) for hooked in activations.values()]
    return torch.stack(kinds).mean(dim=0)


def _rescaled(activation: Tensor, mask: Tensor) -> Tensor:
    values = upcast(activation.detach()).mean(dim=-1)
    keep = as_mask(mask, values.shape)
    low = torch.where(keep, values, torch.inf).amin(dim=-1, keepdim=True)
    high = torch.where(keep, values, -torch.inf).amax(dim=-1, keepdim=True)
    return torch.where(keep, (values - low) / (high - low).clamp(min=1e-8), 0.0)


def random_mask(mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform on [0, 1) at the tokens of the answer, 0 elsewhere, (B, L): the control of the official code."""
    drawn = torch.rand(mask.shape, generator=generator, device=mask.device)
    return torch.where(mask.bool(), drawn, 0.0)


def mask_sparsity(weights: Tensor, mask: Tensor) -> Tensor:
    """Share of the answers' tokens with m = 0, a scalar in [0, 1]; padding does not count."""
    return masked_mean((weights.detach() == 0).float(), mask)


Masks = Callable[[TokenBatch], tuple[Tensor | None, Tensor | None]]
"""Gives m_u and m_d, (N, L) each, of rows; None: all 1."""


@torch.no_grad()
def write_masks(folder: Path, pairs: Pairs, texts: PreferenceTexts, masks: Masks) -> None:
    """Write `masks.zarr`: `reward` and `kl`, (N, 2, T) float32, the masks of the tokens of both completions of N pairs.

    Args:
        folder: The run's folder.
        pairs: The pairs.
        texts: The data set.
        masks: Gives both masks of some rows.
    """
    found: dict[str, list[Tensor]] = {"reward": [], "kl": []}
    inside = torch.arange(pairs.tokens.shape[2]) < pairs.lengths[..., None]
    for side in range(2):
        for part in torch.arange(len(pairs)).split(CHUNK):
            rows = texts.completed(pairs.prompt[part].tolist(), pairs.tokens[part, side], pairs.lengths[part, side])
            for name, weights in zip(found, masks(rows)):
                values = torch.ones(rows.ids.shape) if weights is None else weights.float().cpu()
                kept = torch.zeros(len(part), inside.shape[2])
                kept[inside[part, side]] = values[rows.loss]
                found[name].append(kept)
    with whole(folder / "masks.zarr") as temporary:
        group = zarr.create_group(store=temporary)
        group.attrs.update(data_checksum=texts.checksum)
        for name, parts in found.items():
            group.create_array(name, data=torch.stack(torch.cat(parts).chunk(2), 1).numpy())
