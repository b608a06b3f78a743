r"""A reward that is exact and cheap: a linear function of the words and pairs of neighbours of a text.

    r(t) = b + Σ_i u[t_i] + Σ_i w[t_i, t_{i+1}]

u, w and b are those of a classifier of real texts, brought to the scale on which differences of rewards are log-odds of
people's preferences (Bradley, Terry, "Rank Analysis of Incomplete Block Designs", Biometrika 39, 1952). The sum is over
the words of prompt and completion; the end of text counts as none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relent.language.batches import TokenBatch

__all__ = ["NgramReward"]


@dataclass(frozen=True)
class NgramReward:
    """A reward of texts over V tokens.

    Attributes:
        unigram: (V,) float64, 0 for the end of text.
        bigram: (V, V) float64, first word and second; 0 where one of them is the end of text.
        bias: b.
        end: The end of text.
    """

    unigram: Tensor
    bigram: Tensor
    bias: float
    end: int

    def __post_init__(self) -> None:
        size = len(self.unigram)
        if self.bigram.shape != (size, size):
            raise ValueError(f"bigram must have shape ({size}, {size}), got {tuple(self.bigram.shape)}")
        if self.unigram[self.end] or self.bigram[self.end].any() or self.bigram[:, self.end].any():
            raise ValueError("the end of text is no word: its weights must be 0")

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Reward of each row, prompt and completion together: (B,) float64."""
        return self.of(batch.ids, batch.attention)

    def of(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Reward of rows of tokens (..., L), True where a token is: (...) float64."""
        unigram, bigram = self.unigram.to(ids.device), self.bigram.to(ids.device)
        ids = torch.where(attention, ids, self.end)
        single = unigram[ids].sum(-1)
        return self.bias + single + bigram[ids[..., :-1], ids[..., 1:]].sum(-1)
