"""Batched sampling from a causal language model: left-padded prompts, a cache of keys and values, a seed a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from relent.divergences.logits import tempered_log_probs
from relent.language.batches import TokenBatch

__all__ = ["Generation", "NextToken", "filtered_log_probs", "generate", "row_uniforms"]


class NextToken(Protocol):
    """What generation asks of a model; see `relent.models.causal_lm.CausalLM.step`."""

    def step(self, ids: Tensor, attention: Tensor, positions: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, V) after the last new token, and the cache."""


@dataclass(frozen=True)
class Generation:
    """Completions of B prompts, of at most T tokens.

    Attributes:
        tokens: (B, T) int64; padding after the end.
        mask: (B, T) bool, True for sampled tokens, the end-of-text token among them.
        log_probs: (B, T) log-probabilities under the model (temperature 1, nothing cut off), 0 where the mask is False.
        sampling_log_probs: (B, T) log-probabilities under the distribution that was sampled from, 0 likewise: an
            importance weight is the ratio of the two.
        prompts: The prompts, left-padded.
    """

    tokens: Tensor
    mask: Tensor
    log_probs: Tensor
    sampling_log_probs: Tensor
    prompts: TokenBatch

    def batch(self) -> TokenBatch:
        """Prompts and completions in rows, completions in the loss; padded on both sides as they were generated."""
        prompts = self.prompts
        ids, attention = torch.cat([prompts.ids, self.tokens], 1), torch.cat([prompts.attention, self.mask], 1)
        return TokenBatch.of(ids, attention, torch.cat([torch.zeros_like(prompts.loss), self.mask], 1))


def row_uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """Numbers of (0, 1), float64 (B, steps), each a function of its row's seed and its step alone."""
    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    return torch.stack(rows) if rows else torch.empty(0, steps, dtype=torch.float64)


def filtered_log_probs(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Log-probabilities of the sampling distribution; −inf for tokens that are cut off.

    In this order: logits are divided by the temperature; the `top_k` most probable tokens are kept (ties with the last
    of them too); the most probable tokens are kept whose mass first reaches `top_p`; what is left is renormalised.

    Args:
        logits: (B, V).
        temperature: Positive; 0 keeps the most probable token alone.
        top_k: 0: all.
        top_p: In (0, 1]; 1: all.

    Raises:
        ValueError: A setting is out of range.
    """
    if not temperature >= 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature and top_k may not be negative and top_p lies in (0, 1], got {temperature}, {top_k}, {top_p}"
        )
    if temperature == 0:
        best = torch.full_like(logits, -torch.inf)
        return best.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    values = tempered_log_probs(logits, temperature)
    if 0 < top_k < values.shape[-1]:
        values = values.masked_fill(values < values.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        probs, order = torch.sort(values.softmax(-1), stable=True, dim=-1, descending=True)
        beyond = probs.cumsum(-1) - probs >= top_p
        values = values.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return values.log_softmax(-1)


def _draw(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Token at which the cumulated probability passes a number of (0, 1): (B, V), (B,) → (B,)."""
    mass = log_probs.double().exp()
    total = mass.cumsum(-1)
    found = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True).squeeze(-1)
    # A number that rounding has brought to the very end means the last token that can be drawn.
    last = mass.shape[-1] - 1 - (mass.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(found, last)


@torch.no_grad()
def generate(
    model: NextToken,
    prompts: TokenBatch,
    *,
    max_new_tokens: int,
    end: int | None,
    padding: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Generation:
    """Sample a completion of each prompt, in the model's mode of the moment (no unit drops out in a `CausalLM`).

    Each row is drawn by inversion from numbers that its own seed gives, so that a completion depends on its prompt and
    seed, and on which rows share a batch only as far as the rounding of logits does.

    Args:
        model: The model.
        prompts: B prompts, padded on the left, on the model's device.
        max_new_tokens: T, at least 1.
        end: End-of-text token, after which a row is over; None: all rows have T tokens.
        padding: Id after the end.
        seeds: B numbers, one a row.
        temperature, top_k, top_p: See `filtered_log_probs`.

    Raises:
        ValueError: Prompts padded on the right, a wrong number of seeds, or settings out of range.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"there are {len(prompts)} prompts and {len(seeds)} seeds; give one a row")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not bool(prompts.attention[:, -1].all()):
        raise ValueError("prompts must be padded on the left: pad(..., side='left')")
    device = prompts.ids.device
    uniforms = row_uniforms(seeds, max_new_tokens).to(device)
    ids, attention = prompts.ids, prompts.attention
    positions, position, cache = prompts.positions, prompts.lengths, None
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    columns: list[tuple[Tensor, ...]] = []
    for step in range(max_new_tokens):
        logits, cache = model.step(ids, attention, positions, cache)
        sampling = filtered_log_probs(logits, temperature, top_k, top_p)
        drawn = torch.where(alive, _draw(sampling, uniforms[:, step]), padding)
        chosen = torch.stack([tempered_log_probs(logits), sampling], -1)
        own = chosen.gather(1, drawn[:, None, None].expand(-1, 1, 2)).squeeze(1).masked_fill(~alive[:, None], 0.0)
        columns.append((drawn, alive, own[:, 0], own[:, 1]))
        ids, positions = drawn[:, None], position[:, None]
        # What follows an end is never looked at by a row that is alive; it may count as attended.
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], 1)
        position = position + 1
        if end is not None:
            alive = alive & (drawn != end)
        if not bool(alive.any()):
            break
    missing = max_new_tokens - len(columns)
    stacked = [torch.stack(values, 1) for values in zip(*columns)]
    filled = [
        torch.nn.functional.pad(values, (0, missing), value=fill)
        for values, fill in zip(stacked, (padding, False, 0.0, 0.0))
    ]
    return Generation(filled[0], filled[1], filled[2], filled[3], prompts)
