"""Pair methods that need the reference itself beside its stored log-probabilities: whole next-token distributions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from relent.divergences.fused.losses import fused_forward_kl
from relent.divergences.logits import tempered_log_probs
from relent.divergences.reduction import masked_sum
from relent.language.batches import TokenBatch, concatenate
from relent.language.log_probs import LMOutput, next_token_head, token_log_probs
from relent.methods.alignment.base import PairMethod, ReferencedMethod
from relent.methods.alignment.preference import token_log_ratios


class PairOutputs(NamedTuple):
    """Both completions of B pairs under policy and reference, the preferred ones in the first B rows.

    Attributes:
        rows: 2B rows of L tokens, completions in the loss.
        policy: The policy's output; carries the gradient.
        reference: The reference's, a constant.
        stored: (2B, L) log π_ref of each token at its own place, as the pairs were stored with; a constant.
    """

    rows: TokenBatch
    policy: LMOutput
    reference: LMOutput
    stored: Tensor

    def log_ratios(self) -> Tensor:
        """log π(y_t|h_t) − log π_ref(y_t|h_t) of each token at its own place, (2B, L)."""
        return token_log_ratios(token_log_probs(self.policy, self.rows), self.stored)

    def sequence_log_ratios(self) -> Tensor:
        """Their sums, ρ of each completion, (2B,)."""
        return masked_sum(self.log_ratios(), self.rows.loss, dim=-1)

    def token_kl(self) -> Tensor:
        """KL(π_ref(·|h_t) ‖ π(·|h_t)) of the state before each token, at the token's place, (2B, L), 0 elsewhere.

        Over the full vocabulary, without holding its logits for more than a chunk of tokens.
        """
        (_, policy, mask), (_, reference, _) = (next_token_head(o, self.rows) for o in (self.policy, self.reference))
        return pad(fused_forward_kl(reference, policy, mask=mask, reduction="none"), (1, 0))

    def next_token_log_probs(self) -> tuple[Tensor, Tensor, Tensor]:
        """log π(·|h_t) and log π_ref(·|h_t) of the states before tokens, (2B, L − 1, V), held whole: for divergences
        without a fused form. And the mask (2B, L − 1) of the tokens in the loss.
        """
        policy, reference = (tempered_log_probs(o.layer(o.hidden[:, :-1])) for o in (self.policy, self.reference))
        return policy, reference.detach(), self.rows.loss[:, 1:]


def pair_rows(batch: dict[str, Tensor]) -> tuple[TokenBatch, Tensor]:
    """Both completions of a batch of pairs below each other, and their stored log-probabilities, (2B, L)."""
    names = ("chosen", "rejected")
    rows = concatenate([TokenBatch.from_tensors(batch, f"{name}_") for name in names], padding=0)
    stored = [batch[f"teacher_{name}"].detach() for name in names]
    return rows, torch.cat([pad(values, (0, rows.ids.shape[1] - values.shape[1])) for values in stored])


def sides(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values of the preferred completions and of the others, (2B, …) → (B, …) each."""
    chosen, rejected = values.chunk(2)
    return chosen, rejected


class ReferencedPairMethod(ReferencedMethod, PairMethod):
    """A pair method that runs the reference on its batches."""

    def outputs(self, batch: dict[str, Tensor]) -> PairOutputs:
        """One pass of each model through both completions of a batch of pairs."""
        rows, stored = pair_rows(batch)
        with self.reference_policy() as network:
            reference = network(rows)
        return PairOutputs(rows, self.network(rows), reference, stored)
