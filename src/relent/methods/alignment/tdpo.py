r"""TDPO: DPO with the sequence forward KL of each answer in the margin, token by token.

Zeng, Liu, Ma, Yang, Zhang, Wang, "Token-level Direct Preference Optimization", arXiv 2404.11999 (ICML 2024). With
ρ(y) = Σ_t log π(y_t|h_t) − log π_ref(y_t|h_t) and D(y) = Σ_t KL( π_ref(·|h_t) ‖ π(·|h_t) ) over the full vocabulary

    TDPO1   −log σ( β [ρ_w − ρ_l − (D_l − D_w)] )
    TDPO2   −log σ( β [ρ_w − ρ_l − α (D_l − sg D_w)] )

A chosen answer's divergence raises the margin; TDPO2 takes that part of the gradient away. With α = 0 it
is DPO. As the official code (`Vance0124/Token-level-Direct-Preference-Optimization`): α 0.5, β 0.1.

TDPO1 is the likelihood of preferences under the reward r = β (ρ + D) + V(x) of a policy that improves the reference one
token at a time (`relent.language.exact.token_level_optimum`), not under that of DPO's optimum, and a run is judged by
it. TDPO2 changes the loss without such a policy: its implicit reward is β (ρ + α D), and it has no optimum of its own.

[paper], [code] both losses, α, β; ours: networks and recipe.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.divergences.reduction import masked_sum, upcast
from relent.language.regulariser import ObjectiveDivergence, Regulariser
from relent.methods.alignment.distributions import ReferencedPairMethod, sides
from relent.methods.alignment.preference import positive, preference_loss, reward_diagnostics
from relent.methods.config import MethodConfig, hyperparameter


class Config(MethodConfig):
    """Hyperparameters of TDPO."""

    version: Literal[1, 2] = hyperparameter(2, "TDPO1 or TDPO2.", source="paper: the better of the two")
    beta: float = hyperparameter(
        0.1, "β, strength of the KL penalty, in the unit of the reward.", source="official code", gt=0, le=1000
    )
    alpha: float = hyperparameter(
        0.5, "α of TDPO2, weight of the difference of the KLs.", source="paper and official code", ge=0, le=100
    )


def sequence_forward_kl(policy_log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor) -> Tensor:
    r"""D(y) = Σ_t m_t KL( π_ref(·|h_t) ‖ π(·|h_t) ), (B,) nats.

    Args:
        policy_log_probs: (B, L, V), log π(·|h_t), h_t the state before token t.
        reference_log_probs: (B, L, V); gets no gradient.
        mask: (B, L), True on the tokens of the answer.
    """
    return masked_sum(forward_kl(reference_log_probs.detach(), policy_log_probs, mask=mask), mask, dim=-1)


def tdpo_loss(
    chosen_log_ratios: Tensor,
    rejected_log_ratios: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    *,
    beta: float,
    version: Literal[1, 2] = 2,
    alpha: float = 0.5,
) -> Tensor:
    r"""TDPO1 or TDPO2 of each pair, (B,) nats.

    Args:
        chosen_log_ratios: (B,), ρ_w, summed over tokens.
        rejected_log_ratios: (B,), ρ_l.
        chosen_kl: (B,), D_w.
        rejected_kl: (B,), D_l.
        beta: β > 0.
        version: 1 or 2; version 1 has no α.
        alpha: α of version 2.

    Raises:
        ValueError: β ≤ 0 or an unknown version.
    """
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2, got {version}")
    ratio_margin = upcast(chosen_log_ratios) - upcast(rejected_log_ratios)
    divergence_margin = rejected_kl - chosen_kl if version == 1 else alpha * (rejected_kl - chosen_kl.detach())
    return preference_loss(positive(beta, "beta") * (ratio_margin - divergence_margin))


def tdpo_rewards(log_ratios: Tensor, sequence_kl: Tensor, *, beta: float, weight: float = 1.0) -> Tensor:
    """β (ρ + w D) of each answer, (B,), detached; with w = 1 what the official code logs of both versions.

    Its difference is TDPO1's logit; that of TDPO2 has w = α.
    """
    return positive(beta, "beta") * (upcast(log_ratios) + weight * sequence_kl).detach()


class TDPO(ReferencedPairMethod):
    """Trains the policy with each completion's KL in the margin; without it, α = 0, it is DPO."""

    config: Config
    baseline_limit = ("dpo", {"alpha": 0.0})

    def objective_divergence(self) -> ObjectiveDivergence:
        return ObjectiveDivergence("forward_kl", "tokens")

    @property
    def kl_weight(self) -> float:
        """Of D in the logit."""
        return 1.0 if self.config.version == 1 else self.config.alpha

    def regulariser(self) -> Regulariser | None:
        """Of TDPO1 that of tokens; of TDPO2 none, unless it is DPO."""
        if self.config.version == 1:
            return Regulariser(self.config.beta, level="token")
        return None if self.kl_weight else super().regulariser()

    def implicit_rewards(self, batch: dict[str, Tensor]) -> Tensor:
        answers = zip(*self._ratios_and_kls(batch))
        return torch.stack([tdpo_rewards(*a, beta=self.config.beta, weight=self.kl_weight) for a in answers], 1)

    def _ratios_and_kls(self, batch: dict[str, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """ρ and D, (B,), of preferred completions and of the others."""
        outputs = self.outputs(batch)
        kls = masked_sum(outputs.token_kl(), outputs.rows.loss, dim=-1)
        return sides(outputs.sequence_log_ratios()), sides(kls)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, (ratios, kls) = self.config, self._ratios_and_kls(batch)
        loss = tdpo_loss(*ratios, *kls, beta=config.beta, version=config.version, alpha=config.alpha)
        rewards = (tdpo_rewards(*answer, beta=config.beta) for answer in zip(ratios, kls))
        self.log_terms(reward_diagnostics(*rewards) | {"chosen_kl": kls[0].mean(), "rejected_kl": kls[1].mean()})
        return {"preference": loss.mean()}
