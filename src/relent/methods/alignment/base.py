"""The Lightning modules that methods of alignment share: a method states its loss terms from log-probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from relent.language.batches import TokenBatch, concatenate
from relent.language.log_probs import token_log_probs
from relent.language.regulariser import ObjectiveDivergence, Regulariser
from relent.methods.alignment.preference import sequence_log_ratio
from relent.methods.base import Method

if TYPE_CHECKING:
    from relent.models.causal_lm import CausalLM
    from relent.tasks.preference_alignment.laws import CompletionLaw
    from relent.tasks.preference_alignment.training import Task


class Completions(NamedTuple):
    """Log-probabilities of completions under policy and reference.

    Attributes:
        policy: (B, L) of each token at its own place, 0 outside the mask; carries the gradient.
        reference: (B, L) likewise, a constant.
        mask: (B, L) bool, tokens of the completion, the end of text among them.
    """

    policy: Tensor
    reference: Tensor
    mask: Tensor

    def log_ratio(self) -> Tensor:
        """log π(y|x) − log π_ref(y|x), (B,)."""
        return sequence_log_ratio(self.policy, self.reference, self.mask)


class PolicyMethod(Method):
    """A method that gives a policy, whether by training or not."""

    def completion_law(self) -> CompletionLaw:
        """The law of the policy's completions, which is scored; by default the network's."""
        task: Any = self.task
        law: CompletionLaw = task.network_law(self.network)
        return law

    def regulariser(self) -> Regulariser | None:
        """What the run's implicit reward and optimum are told by: β·KL(policy ‖ reference), if the method has a β.

        None: the objective is not reward less a penalty, or its optimum is not known.
        """
        beta = getattr(self.config, "beta", None)
        return None if beta is None else Regulariser(beta)

    def implicit_rewards(self, batch: dict[str, Tensor]) -> Tensor | None:
        """What the run takes for the rewards of both completions of a batch of pairs, (B, 2), up to V(x); constants.

        σ of their difference is the probability that it gives the label. None: they are the regulariser's, of the
        log-ratios of whole completions to the base model.
        """
        return None

    def objective_divergence(self) -> ObjectiveDivergence | None:
        """The divergence that tells the method from others on the comparison page; by default the regulariser's."""
        own = self.regulariser()
        return None if own is None else own.objective_divergence


class AlignmentMethod(PolicyMethod):
    """Trains a causal language model by the sum of named loss terms."""

    @abstractmethod
    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms of a batch, weighted, each a mean over its items; training minimises their sum.

        Args:
            batch: For the base model `text_…` (B, L), the fields of a `TokenBatch`. Else `prompt_…`, `chosen_…` and
                `rejected_…` likewise, `teacher_chosen` and `teacher_rejected` (B, L), log-probabilities under the
                reference, and `rewards` (B, 2), which a method that learns from preferences must not look at.
        """

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum of the terms on one batch."""
        terms = self.terms(batch)
        loss = torch.stack(list(terms.values())).sum()
        self.log_terms(terms | {"loss": loss})
        return loss

    def token_log_probs(self, rows: TokenBatch) -> Tensor:
        """log π of the tokens in the loss, (B, L)."""
        return token_log_probs(self.network(rows), rows)


class ReferencedMethod(AlignmentMethod):
    """A method that runs the reference itself: the policy with its adapter switched off, or a second, frozen network.

    Every process holds the whole of it. A subclass may have another `reference_network`.
    """

    task: Task
    network: CausalLM

    def setup_method(self) -> None:
        # In a tuple, for a frozen network is neither a part of the method's state nor sharded with it.
        self._reference = (self.reference_network(),)

    def reference_network(self) -> CausalLM | None:
        """The frozen network that the policy is held to; None: the policy with its adapter switched off."""
        return None if self.network.has_adapter else self.task.reference_network()

    @contextmanager
    def reference_policy(self) -> Iterator[CausalLM]:
        """A context that gives the reference, on the policy's device, without gradient."""
        (network,) = self._reference
        with torch.no_grad():
            if network is not None:
                yield network.to(self.device)
                return
            with self.network.reference() as policy:
                yield policy


class PairMethod(AlignmentMethod):
    """A method that learns from pairs of completions of which one was preferred."""

    def pair(self, batch: dict[str, Tensor]) -> tuple[Completions, Completions]:
        """The preferred completions and the others, in one pass through the network."""
        both = [TokenBatch.from_tensors(batch, f"{side}_") for side in ("chosen", "rejected")]
        policy = self.token_log_probs(concatenate(both, padding=0)).split([len(rows) for rows in both])
        chosen, rejected = (
            Completions(values[:, : rows.ids.shape[1]], batch[f"teacher_{side}"].detach(), rows.loss)
            for values, rows, side in zip(policy, both, ("chosen", "rejected"))
        )
        return chosen, rejected

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """How often the policy, against the reference, prefers what was preferred, and how far it has gone."""
        chosen, rejected = (side.log_ratio() for side in self.pair(batch))
        size = len(chosen)
        self.log("validation/preference_accuracy", (chosen > rejected).float().mean(), batch_size=size)
        self.log("validation/chosen_log_ratio", chosen.mean(), batch_size=size)
        self.log("validation/rejected_log_ratio", rejected.mean(), batch_size=size)
