"""What embeds prompts and completions for methods that compare them: the data set says which encoder it is.

An embedder is frozen: methods read it by `Task.embedder()`, move it to their device, and take no gradient through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from relent.language.batches import TokenBatch

__all__ = ["Embedder"]


class Embedder(nn.Module, ABC):
    """Embeddings of length 1 in one space for prompts and completions."""

    @abstractmethod
    def prompts(self, rows: TokenBatch) -> Tensor:
        """Embeddings of B prompts, (B, D)."""

    @abstractmethod
    def completions(self, rows: TokenBatch) -> Tensor:
        """Embeddings of the completions of B rows, the tokens in the loss: (B, D)."""
