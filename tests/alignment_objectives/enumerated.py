"""Small spaces in which every expectation is a sum: categorical policies, and all sequences of a tiny language."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)

BASE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
POLICY = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
REWARD = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Gradient of a scalar function of a tensor."""
    leaf = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


class Language(NamedTuple):
    """All sequences of a fixed length over a vocabulary, under a policy with a table of logits per prefix.

    Attributes:
        tokens: (Y, L).
        prefixes: (Y, L), the row of the table that predicts each token.
    """

    tokens: Tensor
    prefixes: Tensor

    def next_log_probs(self, table: Tensor) -> Tensor:
        """(Y, L, V)."""
        return table.log_softmax(-1)[self.prefixes]

    def token_log_probs(self, table: Tensor) -> Tensor:
        """(Y, L)."""
        return self.next_log_probs(table).gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)

    def log_probs(self, table: Tensor) -> Tensor:
        """(Y,), which sum to one."""
        return self.token_log_probs(table).sum(-1)


def language(vocabulary: int = 3, length: int = 3) -> Language:
    sequences = list(product(range(vocabulary), repeat=length))
    rows: dict[tuple[int, ...], int] = {}
    prefixes = [[rows.setdefault(s[:t], len(rows)) for t in range(length)] for s in sequences]
    return Language(torch.tensor(sequences), torch.tensor(prefixes))


def table(space: Language, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Random logits, one row a prefix."""
    return draw(int(space.prefixes.max()) + 1, int(space.tokens.max()) + 1, seed=seed, scale=scale)
