"""Preference pairs out of the base model: two completions of a prompt, labelled by the Bradley–Terry law."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relent.errors import DataError
from relent.language.batches import TokenBatch
from relent.language.generation import Generation, generate
from relent.language.log_probs import token_log_probs
from relent.tasks.preference_alignment.data import SIDES, OwnPairs, Pairs, PreferenceTexts
from relent.train.sampling import derive_seed

if TYPE_CHECKING:
    from relent.models.causal_lm import CausalLM
    from relent.models.positionwise import PositionwiseLM

    Network = CausalLM | PositionwiseLM

CHUNK, TOKENS = 1024, 65_536
"""Rows, and tokens, that are generated or scored at once, at most."""
ROUNDS = 20
"""How often more pairs are drawn, where too many have two equal completions."""


def _chunk(texts: PreferenceTexts) -> int:
    """Rows at once."""
    return max(1, min(CHUNK, TOKENS // texts.row_length))


def _sampled(model: Network, texts: PreferenceTexts, prompts: list[int], seed: int, what: str) -> Generation:
    return generate(
        model,
        texts.prompt_batch(prompts).to(_device(model)),
        max_new_tokens=texts.options.length,
        end=texts.end,
        padding=texts.end,
        seeds=[derive_seed(what, seed, row) for row in range(len(prompts))],
    )


@torch.no_grad()
def completion_log_probs(model: Network, texts: PreferenceTexts, batch: TokenBatch) -> Tensor:
    """Log-probabilities of the completions' tokens, (B, L) with 0 after the end, on the CPU.

    Args:
        model: The model.
        texts: The data set.
        batch: Rows of `texts.completed`.
    """

    def log_probs(rows: TokenBatch) -> Tensor:
        there = rows.to(_device(model))
        return _completions(token_log_probs(model(there), there).cpu(), rows, texts.options.length)

    return _in_chunks(log_probs, texts, batch)


@torch.no_grad()
def completion_states(model: Network, texts: PreferenceTexts, batch: TokenBatch) -> Tensor:
    """Mean hidden state over each completion, (B, H), on the CPU.

    Args:
        model: The model.
        texts: The data set.
        batch: Rows of `texts.completed`.
    """

    def states(rows: TokenBatch) -> Tensor:
        there = rows.to(_device(model))
        return model(there).mean_state(there.loss).cpu()

    return _in_chunks(states, texts, batch)


def _in_chunks(function: Callable[[TokenBatch], Tensor], texts: PreferenceTexts, batch: TokenBatch) -> Tensor:
    """The function of as many rows as go at once, one chunk after the other."""
    size = _chunk(texts)
    return torch.cat([function(batch.rows(slice(start, start + size))) for start in range(0, len(batch), size)])


def _completions(values: Tensor, batch: TokenBatch, length: int) -> Tensor:
    """Values of the tokens in the loss, (B, row) → (B, length), moved to the left."""
    start = batch.loss.int().argmax(1)
    columns = (start[:, None] + torch.arange(length)).clamp(max=values.shape[1] - 1)
    kept = torch.arange(length) < batch.loss.sum(1)[:, None]
    return values.gather(1, columns).masked_fill(~kept, 0.0)


def draw_pairs(model: Network, texts: PreferenceTexts, split: str, count: int, seed: int) -> Pairs:
    """Pairs of different completions of the prompts of a split, prompts as often as texts begin with them.

    The label is drawn: the first completion is preferred with probability σ(r₁ − r₂).

    Args:
        model: The base model.
        texts: The data set.
        split: Split of the prompts.
        count: N.
        seed: Seed of the run.

    Raises:
        DataError: The model gives nearly always the same completion.
    """
    prompts = texts.items(split)
    weights = texts.prompt_counts[prompts].double()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for number in range(ROUNDS):
        generator = torch.Generator().manual_seed(derive_seed("prompts", split, seed, number))
        drawn = prompts[torch.multinomial(weights, count, replacement=True, generator=generator)]
        sides = [sampled_rows(model, texts, drawn, seed, f"{split}/{number}/{side}") for side in range(2)]
        tokens = torch.stack([tokens for tokens, _ in sides], 1)
        lengths = torch.stack([lengths for _, lengths in sides], 1)
        differ = (tokens[:, 0] != tokens[:, 1]).any(1) | (lengths[:, 0] != lengths[:, 1])
        found.append((drawn[differ], tokens[differ], lengths[differ]))
        if sum(len(part[0]) for part in found) >= count:
            break
    else:
        raise DataError(f"{split}: the base model hardly ever gives two different completions of a prompt")
    drawn, tokens, lengths = (torch.cat(column)[:count] for column in zip(*found))
    return _labelled(model, texts, split, drawn, tokens, lengths, seed)


def own_pairs(model: Network, texts: OwnPairs, split: str) -> Pairs:
    """The user's pairs of a split with the log-probabilities of the base model.

    Args:
        model: The base model.
        texts: The data set.
        split: Which pairs.
    """
    prompts, tokens, lengths = texts.given[split]
    reference = torch.zeros(tokens.shape)
    for rows in torch.arange(len(prompts)).split(_chunk(texts)):
        for side in range(len(SIDES)):
            batch = texts.completed(prompts[rows].tolist(), tokens[rows, side], lengths[rows, side])
            reference[rows, side] = completion_log_probs(model, texts, batch).float()
    return Pairs(prompts, tokens, lengths, None, reference)


def sampled_rows(model: Network, texts: PreferenceTexts, drawn: Tensor, seed: int, what: str) -> tuple[Tensor, Tensor]:
    """One completion of each prompt, a function of `seed`, `what` and the row.

    Args:
        model: The model.
        texts: The data set.
        drawn: (N,) numbers of the prompts.
        seed: Seed of the run.
        what: What they are for.

    Returns:
        Tokens (N, L) and lengths (N,), on the CPU.
    """
    parts = []
    for number, prompts in enumerate(drawn.split(_chunk(texts))):
        found = _sampled(model, texts, prompts.tolist(), seed, f"{what}/{number}")
        parts.append((found.tokens.cpu(), found.mask.sum(1).cpu()))
    tokens, lengths = (torch.cat(column) for column in zip(*parts))
    return tokens, lengths


def _labelled(
    model: Network, texts: PreferenceTexts, split: str, drawn: Tensor, tokens: Tensor, lengths: Tensor, seed: int
) -> Pairs:
    batches = [texts.completed(drawn.tolist(), tokens[:, side], lengths[:, side]) for side in range(2)]
    rewards = torch.stack([texts.reward(batch) for batch in batches], 1)
    reference = torch.stack([completion_log_probs(model, texts, batch) for batch in batches], 1)
    generator = torch.Generator().manual_seed(derive_seed("labels", split, seed))
    uniform = torch.rand(len(drawn), generator=generator, dtype=torch.float64)
    first = uniform < torch.sigmoid(rewards[:, 0] - rewards[:, 1])
    order = torch.where(first[:, None], torch.tensor([0, 1]), torch.tensor([1, 0]))
    wide = order[:, :, None].expand_as(tokens)
    return Pairs(
        drawn, tokens.gather(1, wide), lengths.gather(1, order), rewards.gather(1, order), reference.gather(1, wide)
    )


def _device(model: Network) -> torch.device:
    return next(model.parameters()).device
