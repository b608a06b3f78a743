r"""Supervised fine-tuning: maximum likelihood of texts, or of completions given their prompts.

    L = −(1/c)·mean_i Σ_t m_it·log π(y_it | x_i, y_i,<t)

m marks the tokens to be predicted: all but the first of a text, the completion of a prompt. c is the mean number of
such tokens an item over the *training split*, so that every token weighs the same in a whole training, and micro-
batches and processes add up to the batch exactly. (Dividing by the tokens of each micro-batch, as is often done, gives
those of short ones more weight.)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from relent.divergences.reduction import masked_sum
from relent.language.batches import TokenBatch
from relent.methods.alignment.base import AlignmentMethod
from relent.methods.config import MethodConfig


class Config(MethodConfig):
    """Hyperparameters of supervised fine-tuning: the recipe alone."""


def sft_loss(token_log_probs: Tensor, mask: Tensor, tokens_per_item: float) -> Tensor:
    """Negative log-likelihood a token, a scalar in nats.

    Args:
        token_log_probs: (B, L).
        mask: (B, L) bool, tokens to be predicted.
        tokens_per_item: c > 0.

    Raises:
        ValueError: c is not positive, or shapes differ.
    """
    if not tokens_per_item > 0:
        raise ValueError(f"tokens_per_item must be positive, got {tokens_per_item}: nothing is to be predicted")
    return -masked_sum(token_log_probs, mask, dim=1).mean() / tokens_per_item


class SFT(AlignmentMethod):
    """Trains the base model on texts, a policy on the preferred completions."""

    config: Config
    tokens_per_item = 1.0

    @property
    def rows(self) -> str:
        """Which rows of a batch are learnt from."""
        return "text" if self.spec.role == "teacher" else "chosen"

    def prepare(self, datamodule: Any) -> None:
        """Learn the mean number of tokens an item."""
        self.tokens_per_item = datamodule.tokens_per_item(self.rows)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = TokenBatch.from_tensors(batch, f"{self.rows}_")
        return {"nll": sft_loss(self.token_log_probs(rows), rows.loss, self.tokens_per_item)}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Negative log-likelihood a token of the validation split."""
        rows = TokenBatch.from_tensors(batch, f"{self.rows}_")
        tokens = int(rows.loss.sum())
        nll = -self.token_log_probs(rows).sum() / max(tokens, 1)
        self.log("validation/nll", nll, batch_size=tokens)
