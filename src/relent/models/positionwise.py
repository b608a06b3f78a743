"""A language model without context: every token has a distribution of its own position in the text, and no other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relent.language.batches import TokenBatch
from relent.language.log_probs import LMOutput

__all__ = ["PositionwiseLM"]


class PositionwiseLM(nn.Module):
    """The smallest class of policies, one categorical distribution a position, behind the calls of a `CausalLM`.

    Args:
        log_probs: (L, V), what it starts from: the logits of a token at position t of its text.
    """

    has_adapter = False

    def __init__(self, log_probs: Tensor):
        super().__init__()
        self.logits = nn.Parameter(log_probs.clone())
        vocabulary = log_probs.shape[1]
        self.layer = nn.Linear(vocabulary, vocabulary, bias=False).requires_grad_(False)
        self.layer.weight.copy_(torch.eye(vocabulary))

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.logits.shape[1]

    def forward(self, batch: TokenBatch) -> LMOutput:
        """Hidden states (B, L, V), the logits themselves, and an output layer that changes nothing."""
        return LMOutput(self._following(batch.positions), self.layer)

    def step(self, ids: Tensor, attention: Tensor, positions: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, V) after the last of some new tokens, as `CausalLM.step`."""
        return self._following(positions[:, -1]), cache

    def _following(self, positions: Tensor) -> Tensor:
        # Nothing is predicted after the last position.
        return self.logits[(positions + 1).clamp(max=len(self.logits) - 1)]
