r"""Completions of the base model, out of the stored pairs, and the constraint that a completion contains a word.

A pair is two independent completions y of a prompt that are not equal, so that each of them has the law
q(y|x) ∝ a(y|x)·(1 − a(y|x)). With weights a/q ∝ 1/(1 − a) they are samples of the base model a, exactly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from relent.divergences.logits import renormalised
from relent.language.batches import TokenBatch

if TYPE_CHECKING:
    from relent.tasks.preference_alignment.data import Pairs


class BaseSamples(NamedTuple):
    """Completions of C prompts, at most M of each.

    Attributes:
        prompts: (C,) numbers of the prompts, ascending.
        tokens: (C, M, L).
        inside: (C, M, L) bool, True up to the end of a completion.
        log_weights: (C, M) float64, log a/q, normalised for each prompt; −inf where there is no completion.
    """

    prompts: Tensor
    tokens: Tensor
    inside: Tensor
    log_weights: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the prompts of the expectation under the base model, (C, M, …) → (…)."""
        weights = self.log_weights.exp()
        return torch.einsum("cm,cm...->c...", weights, values.to(weights)).mean(0)


def base_samples(pairs: Pairs) -> BaseSamples:
    """The completions of all pairs by prompt."""
    flat = pairs.prompt.repeat_interleave(2)
    prompts, which, counts = flat.unique(return_inverse=True, return_counts=True)
    order = which.argsort(stable=True)
    place = torch.empty_like(which)
    place[order] = torch.cat([torch.arange(count) for count in counts.tolist()])
    shape = (len(prompts), int(counts.max()))
    tokens = torch.zeros(*shape, pairs.tokens.shape[-1], dtype=torch.int64)
    lengths = torch.zeros(shape, dtype=torch.int64)
    log_weights = torch.full(shape, -math.inf, dtype=torch.float64)
    tokens[which, place], lengths[which, place] = pairs.tokens.flatten(0, 1), pairs.lengths.flatten()
    log_base = pairs.reference.double().sum(-1).flatten().clamp(max=-1e-6)
    log_weights[which, place] = -torch.log(-log_base.expm1())
    inside = torch.arange(tokens.shape[-1]) < lengths.unsqueeze(-1)
    return BaseSamples(prompts, tokens, inside, renormalised(log_weights))


def contains(tokens: Tensor, inside: Tensor, word: int) -> Tensor:
    """b(y): whether a completion contains a word, (…, L) and (…, L) → (…) bool."""
    return ((tokens == word) & inside).any(-1)


def word_nearest(samples: BaseSamples, rate: float, vocabulary: int, end: int) -> int:
    """The word whose share of the base model's completions is nearest to `rate`, the end of text aside."""
    rates = torch.stack([samples.mean(contains(samples.tokens, samples.inside, word)) for word in range(vocabulary)])
    distance = (rates.clamp(min=1e-12).log() - math.log(rate)).abs()
    distance[end] = math.inf
    return int(distance.argmin())


def position_log_probs(rows: TokenBatch, vocabulary: int, row_length: int) -> Tensor:
    """Log of the share of each token at each position of a text, of those in the loss: (row_length, V).

    Half a token is added to every count, so that none is impossible.
    """
    counts = torch.full((row_length, vocabulary), 0.5)
    places = rows.positions[rows.loss], rows.ids[rows.loss]
    counts.index_put_(places, torch.ones(len(places[0])), accumulate=True)
    return (counts / counts.sum(1, keepdim=True)).log()
