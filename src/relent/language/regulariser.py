r"""The penalty β·D_f(π‖π_ref) of a run's objective, and what it makes of policies: an implicit reward, and an optimum.

π_ref is the base model, or another that the run is held to: what it was fine-tuned to, a soup. The penalty is on whole
completions, or on one token at a time (TDPO), where the optimum is another.

Of a policy that maximises E_π r − β D_f(π‖π_ref) the reward can be read off, r(x, y) = β f′(π(y|x)/π_ref(y|x)) + V(x):
for the reverse KL β·log π/π_ref (Rafailov et al., arXiv 2305.18290), for others Wang et al., arXiv 2309.16240, theorem
1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

from relent.divergences.f_divergence import get_f_divergence
from relent.divergences.f_generator import FDivergence
from relent.language.exact import SequenceSpace, optimal_log_probs, regularised_optimum, token_level_optimum


class ObjectiveDivergence(NamedTuple):
    """The divergence that a method's objective has, by which a comparison says what to choose when."""

    name: str
    """As in the registry, the other distribution being the target and the policy the approximation."""
    to: Literal["reference", "tokens", "target", "demonstrations"]
    """The other: the reference, its next-token distributions, a target of the run's own, or what is imitated."""


@dataclass(frozen=True)
class Regulariser:
    """β·D_f(π‖π_ref); a run's predictions hold it, so that it is judged by its own."""

    beta: float
    """β > 0, in the unit of the reward."""
    divergence: str = "reverse_kl"
    """Name in the registry, the reference being the target; admissible for f-DPO."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Of a family of divergences: `alpha`."""
    exponent_ceiling: float | None = None
    """Beyond it implicit rewards are constant, as in training (`FDivergence.score`)."""
    reference: str = "base"
    """The model that the policy is held to: the base model, or by its name one in the run's `references.zarr`."""
    level: Literal["completion", "token"] = "completion"
    """Whether whole completions are chosen for their reward, or a token for what the reference makes of it."""

    @classmethod
    def of(cls, stored: dict[str, Any] | None) -> Regulariser | None:
        """From what `stored` gave."""
        return None if stored is None else cls(**stored)

    def stored(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def implicit_reward(self, log_ratios: Tensor) -> Tensor:
        """β [f′(e^ρ) − f′(1)] of ρ = log π(y|x) − log π_ref(y|x), any shape; at the level of completions."""
        return self.beta * self._divergence.score(log_ratios, exponent_ceiling=self.exponent_ceiling)

    def optimum(self, reference_log_probs: Tensor, rewards: Tensor, space: SequenceSpace | None = None) -> Tensor:
        """log π*(y|x) of the objective, (…, N) float64.

        Args:
            reference_log_probs: (…, N), log π_ref of all N completions.
            rewards: (…, N).
            space: The completions; needed at the level of tokens.

        Raises:
            ValueError: It is missing there.
        """
        if self.level == "token":
            if space is None:
                raise ValueError("the optimum at the level of tokens needs the space of completions")
            return token_level_optimum(reference_log_probs, rewards, self.beta, space)
        if self.divergence == "reverse_kl":
            return optimal_log_probs(reference_log_probs, rewards, self.beta)
        return regularised_optimum(reference_log_probs, rewards, self.beta, self._divergence).log_probs

    @property
    def _divergence(self) -> FDivergence:
        return get_f_divergence(self.divergence, **self.parameters)

    @property
    def objective_divergence(self) -> ObjectiveDivergence:
        """As the comparison is told."""
        return ObjectiveDivergence(self._divergence.name, "reference")
