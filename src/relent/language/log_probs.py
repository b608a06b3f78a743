r"""Log-probabilities of tokens and sequences from hidden states, a chunk of tokens at a time.

The (tokens × vocabulary) matrix of logits is never whole: `relent.divergences.fused` holds a few rows of it, forward
and backward, and computes nothing for tokens that are not in the loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from relent.divergences.fused.engine import OutputHead
from relent.divergences.fused.losses import fused_token_log_probs
from relent.divergences.reduction import masked_mean, masked_sum, upcast
from relent.language.batches import TokenBatch

__all__ = ["LMOutput", "next_token_head", "sequence_log_probs", "token_log_probs"]


class LMOutput(NamedTuple):
    """What a causal language model gives for a batch.

    Attributes:
        hidden: (B, L, H) hidden states before the output layer.
        layer: The output layer, H → V. The layer and not its weight, which a sharded network gathers when it needs it.
    """

    hidden: Tensor
    layer: nn.Linear

    def head(self) -> OutputHead:
        """Hidden states and output layer, as the fused losses take them."""
        return OutputHead(self.hidden, self.layer.weight, self.layer.bias)

    def mean_state(self, mask: Tensor) -> Tensor:
        """Mean hidden state over the tokens of a mask (B, L), at least float32: (B, H)."""
        hidden = upcast(self.hidden)
        return masked_mean(hidden, mask.unsqueeze(-1).expand_as(hidden), dim=1)


def next_token_head(output: LMOutput, batch: TokenBatch) -> tuple[Tensor, OutputHead, Tensor]:
    """Targets, the states that predict them, and the mask, shifted by one token.

    Returns:
        Tokens (B, L − 1), head over hidden states (B, L − 1, H), mask (B, L − 1) of the tokens in the loss: the
        arguments of every loss of `relent.divergences.fused`.

    Raises:
        ValueError: Hidden states and batch differ in shape.
    """
    if output.hidden.shape[:2] != batch.ids.shape:
        shapes = f"{tuple(output.hidden.shape[:2])} and {tuple(batch.ids.shape)}"
        raise ValueError(f"hidden states and batch must hold the same tokens, got {shapes}")
    return batch.ids[:, 1:], output.head()._replace(hidden=output.hidden[:, :-1]), batch.loss[:, 1:]


def token_log_probs(
    output: LMOutput, batch: TokenBatch, *, temperature: float = 1.0, chunk_tokens: int | None = None
) -> Tensor:
    r"""log π(y_t | x, y_<t) of every token in the loss.

    Args:
        output: The model's output for the batch.
        batch: B rows of L tokens.
        temperature: Logits are divided by it.
        chunk_tokens: Tokens whose logits are held at a time; by default as many as make 2²³ logits.

    Returns:
        (B, L), at the token's own place, in nats, 0 where a token is not in the loss; float32 for half precision.
        Gradients reach hidden states and output layer.

    Raises:
        ValueError: Shapes that do not fit, ids outside the vocabulary, a temperature that is not positive.
    """
    tokens, head, mask = next_token_head(output, batch)
    values = fused_token_log_probs(tokens, head, temperature=temperature, mask=mask, chunk_tokens=chunk_tokens)
    return torch.nn.functional.pad(values, (1, 0))


def sequence_log_probs(
    output: LMOutput, batch: TokenBatch, *, temperature: float = 1.0, chunk_tokens: int | None = None
) -> Tensor:
    r"""log π(y | x) = Σ_t log π(y_t | x, y_<t) over the tokens in the loss, (B,); 0 for a row without any.

    Args, raises: As `token_log_probs`.
    """
    values = token_log_probs(output, batch, temperature=temperature, chunk_tokens=chunk_tokens)
    return masked_sum(values, batch.loss, dim=1)
