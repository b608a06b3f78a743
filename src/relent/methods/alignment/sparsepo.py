r"""SparsePO and MaPO: token masks on the reward and on the KL of token-level preference optimisation.

Christopoulou, Cardenas, Lampouras, Bou-Ammar, Wang, "SparsePO: Controlling Preference Alignment of LLMs via Sparse
Token Masks", arXiv 2410.05102 (Findings of EMNLP 2025). With m_u, m_d ≥ 0 on the tokens of an answer

    u(y) = Σ_t m_u(t) [log π(y_t|h_t) − log π_ref(y_t|h_t)],   D(y) = Σ_t m_d(t) KL( π_ref(·|h_t) ‖ π(·|h_t) )
    L = −log σ( β [u(y_w) − u(y_l) − (D(y_l) − D(y_w))] ) + λ_u Σ_t m_u(t) + λ_d Σ_t m_d(t)

Masks multiply and are not renormalised. With both masks 1 it is TDPO1, with m_u = 1 and m_d = 0 DPO. A learned mask
(`masks.TokenMask`) reads the reference's hidden states **before** y_t and is trained with the policy by this loss; its
ReLU gives exact zeros, and weight decay on the mask's own parameter group drives sparsity (0.01 in the official code).
A mask from activations (`masks.activation_mask`, MaPO) has no parameters.

[paper], [code] (`huawei-noah/HEBO`, SparsePO) loss, masks, their places, β, weight decay; ours: networks and recipe. A
learned mask starts as the code's does, 0 everywhere for good in 2^−G of the seeds (G blocks): the share of zeros is
logged and scored, and `positive_start` (ours) is the remedy. After a rotary embedding, where the code reads queries and
keys once more, nothing is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from relent.divergences.reduction import as_mask, masked_mean, masked_sum, upcast
from relent.language.batches import TokenBatch
from relent.language.layers import ActivationKind, activation_means, hidden_states
from relent.language.log_probs import LMOutput
from relent.language.regulariser import ObjectiveDivergence, Regulariser
from relent.methods.alignment.distributions import PairOutputs, ReferencedPairMethod, pair_rows, sides
from relent.methods.alignment.masks import TokenMask, activation_mask, mask_sparsity, random_mask, write_masks
from relent.methods.alignment.preference import positive, preference_loss, reward_diagnostics
from relent.methods.alignment.tdpo import tdpo_rewards
from relent.methods.config import MethodConfig, hyperparameter


class Config(MethodConfig):
    """Hyperparameters of SparsePO."""

    beta: float = hyperparameter(
        0.8,
        "β, strength of the KL penalty, in the unit of the reward.",
        source="official code: 0.8 on IMDB and TL;DR, 0.1 on HH",
        gt=0,
        le=1000,
    )
    reward_mask: Literal["learned", "activation", "random", "unit", "zero"] = hyperparameter(
        "learned",
        "Mask of the log-ratios: m_u.",
        source="paper; `zero` is ours",
    )
    kl_mask: Literal["learned", "activation", "random", "unit", "zero"] = hyperparameter(
        "learned", "Mask of the KLs: m_d.", source="paper; `zero` is ours: no KL, as DPO"
    )
    common: bool = hyperparameter(
        True, "One mask for both, where both are of one kind; else each its own.", source="official code, its default"
    )
    layers: Literal["all", "last"] = hyperparameter(
        "all", "Hidden states that a learned mask reads.", source="official code: simple_all"
    )
    gate: Literal["relu", "binary", "straight_through"] = hyperparameter(
        "relu", "Last step of a learned mask.", source="paper; `binary`: the code's ablation; `straight_through`: ours"
    )
    positive_start: bool = hyperparameter(
        False, "Start a learned mask with positive weights of the layers.", source="official code: no; `true` is ours"
    )
    mask_weight_decay: float = hyperparameter(
        0.01, "Weight decay of learned masks.", source="official code", ge=0, le=10
    )
    reward_l1: float = hyperparameter(
        0.0, "λ_u, weight of the size of m_u.", source="official code: 0; 0.001 on HH with a common mask", ge=0
    )
    kl_l1: float = hyperparameter(0.0, "λ_d, weight of the size of m_d.", source="official code, as λ_u", ge=0)


class MaskedAnswer(NamedTuple):
    """What the loss needs of the chosen or the rejected answers, each (B, L).

    Attributes:
        log_ratios: log π(y_t|h_t) − log π_ref(y_t|h_t) (`preference.token_log_ratios`).
        token_kl: KL(π_ref(·|h_t)‖π(·|h_t)) (`discrete.forward_kl(reference, policy)`), gradient through π.
        mask: True on the tokens of the answer.
        reward_weights: m_u ≥ 0; None is 1 everywhere, without an L1 term.
        kl_weights: m_d; the **same tensor** as `reward_weights` for a common mask.
    """

    log_ratios: Tensor
    token_kl: Tensor
    mask: Tensor
    reward_weights: Tensor | None = None
    kl_weights: Tensor | None = None

    def weighted(self) -> tuple[Tensor, Tensor]:
        """u and D of each answer, (B,)."""
        return self._total(self.log_ratios, self.reward_weights), self._total(self.token_kl, self.kl_weights)

    def sizes(self) -> tuple[Tensor, Tensor]:
        """L1 norms of both masks over the tokens of each answer, (B,); a common mask is counted once in total."""
        share = 0.5 if self.reward_weights is not None and self.reward_weights is self.kl_weights else 1.0
        none = torch.zeros_like(self.log_ratios[:, 0])
        reward, kl = (
            none if weights is None else share * masked_sum(upcast(weights).abs(), self.mask, dim=-1)
            for weights in (self.reward_weights, self.kl_weights)
        )
        return reward, kl

    def _total(self, values: Tensor, weights: Tensor | None) -> Tensor:
        # Both factors are cleared where masked: 0 · NaN in the product would reach the gradient of the other.
        keep = as_mask(self.mask, values.shape)
        values = torch.where(keep, upcast(values), 0.0)
        return (values if weights is None else values * torch.where(keep, upcast(weights), 0.0)).sum(dim=-1)


def sparsepo_loss(
    chosen: MaskedAnswer,
    rejected: MaskedAnswer,
    *,
    beta: float,
    reward_l1: float = 0.0,
    kl_l1: float = 0.0,
) -> Tensor:
    r"""Loss of each pair, (B,) nats; take the plain mean over pairs.

    Args:
        chosen: Terms of y_w.
        rejected: Terms of y_l; may have another length.
        beta: β > 0.
        reward_l1: λ_u ≥ 0, on both answers.
        kl_l1: λ_d ≥ 0.

    Raises:
        ValueError: β ≤ 0, a negative λ, shapes that differ.
    """
    if reward_l1 < 0 or kl_l1 < 0:
        raise ValueError(f"reward_l1 and kl_l1 must not be negative, got {reward_l1} and {kl_l1}")
    (chosen_reward, chosen_kl), (rejected_reward, rejected_kl) = chosen.weighted(), rejected.weighted()
    margin = chosen_reward - rejected_reward - (rejected_kl - chosen_kl)
    loss = preference_loss(positive(beta, "beta") * margin)
    for answer in (chosen, rejected):
        reward_size, kl_size = answer.sizes()
        loss = loss + reward_l1 * reward_size if reward_l1 > 0 else loss
        loss = loss + kl_l1 * kl_size if kl_l1 > 0 else loss
    return loss


def sparsepo_rewards(answer: MaskedAnswer, *, beta: float) -> Tensor:
    """β (u − D) of each answer, (B,), detached: what the official code logs as the reward."""
    reward, kl = answer.weighted()
    return positive(beta, "beta") * (reward - kl).detach()


class SparsePO(ReferencedPairMethod):
    """Trains the policy, and masks that say which tokens count, by one loss."""

    config: Config
    baseline_limit = ("dpo", {"reward_mask": "unit", "kl_mask": "zero", "beta": 0.1})

    def objective_divergence(self) -> ObjectiveDivergence:
        return ObjectiveDivergence("forward_kl", "tokens")

    def regulariser(self) -> Regulariser | None:
        """None where tokens have weights; with masks of 1 that of TDPO1, without KLs that of DPO."""
        kinds = (self.config.reward_mask, self.config.kl_mask)
        if kinds == ("unit", "unit"):
            return Regulariser(self.config.beta, level="token")
        return super().regulariser() if kinds == ("unit", "zero") else None

    def implicit_rewards(self, batch: dict[str, Tensor]) -> Tensor:
        """β (u + D), whose difference is the logit of the loss: TDPO1's, of terms with weights."""
        answers, _ = self._answers(batch)
        return torch.stack([tdpo_rewards(*answer.weighted(), beta=self.config.beta) for answer in answers], 1)

    def setup_method(self) -> None:
        """Add the learned masks; a common one is that of the reward."""
        super().setup_method()
        self.reward_mask = self._new_mask() if self.config.reward_mask == "learned" else None
        self.kl_mask = self._new_mask() if self.config.kl_mask == "learned" and not self.one_mask else None

    @property
    def one_mask(self) -> bool:
        """Whether log-ratios and KLs have the very same mask."""
        return self.config.common and self.config.reward_mask == self.config.kl_mask

    def _new_mask(self) -> TokenMask:
        settings, config = self.network.config, self.config
        names = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps")
        return TokenMask(
            settings.hidden_size,
            settings.num_hidden_layers,
            kind=config.layers,
            gate=config.gate,
            positive_start=config.positive_start,
            layer_norm_epsilon=next((getattr(settings, name) for name in names if hasattr(settings, name)), 1e-5),
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights of masks have a weight decay of their own; their biases and norms have none."""
        masks = [mask for mask in (self.reward_mask, self.kl_mask) if mask is not None]
        weights = [p for mask in masks for p in mask.parameters() if p.ndim > 1]
        own = set(weights)
        groups = [{**g, "params": [p for p in g["params"] if p not in own]} for g in super().parameter_groups()]
        return [*groups, {"params": weights, "weight_decay": self.config.mask_weight_decay}] if weights else groups

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        (chosen, rejected), masks = self._answers(batch)
        loss = sparsepo_loss(chosen, rejected, beta=config.beta, reward_l1=config.reward_l1, kl_l1=config.kl_l1)
        self._log(chosen, rejected, masks)
        return {"preference": loss.mean()}

    def _answers(self, batch: dict[str, Tensor]) -> tuple[list[MaskedAnswer], dict[str, Tensor | None]]:
        """Preferred completions and others, and the masks of both."""
        rows, stored = pair_rows(batch)
        reference, reward, kl = self.reference_and_masks(rows)
        outputs = PairOutputs(rows, self.network(rows), reference, stored)
        columns = [outputs.log_ratios(), outputs.token_kl(), rows.loss]
        # A common mask stays one tensor, by which the loss knows that it is to be counted once.
        reward_sides, kl_sides = (_sides(reward), _sides(kl))
        kl_sides = reward_sides if self.one_mask else kl_sides
        return list(map(MaskedAnswer, *map(sides, columns), reward_sides, kl_sides)), {"reward": reward, "kl": kl}

    def _log(self, chosen: MaskedAnswer, rejected: MaskedAnswer, masks: dict[str, Tensor | None]) -> None:
        mask = torch.cat([chosen.mask, rejected.mask])
        rewards = (sparsepo_rewards(answer, beta=self.config.beta) for answer in (chosen, rejected))
        found = reward_diagnostics(*rewards)
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            found[f"{name}_kl"] = masked_sum(answer.token_kl, answer.mask, dim=-1).mean()
        for name, weights in masks.items():
            if weights is not None:
                found[f"{name}_mask_zeros"] = mask_sparsity(weights, mask)
                found[f"{name}_mask_mean"] = masked_mean(weights, mask)
        self.log_terms(found)

    def reference_and_masks(self, rows: TokenBatch) -> tuple[LMOutput, Tensor | None, Tensor | None]:
        """The reference's output for N rows, m_u and m_d, (N, L) each at the places of their tokens; None: all 1."""
        kinds = {self.config.reward_mask, self.config.kl_mask}
        states: Tensor | None = None
        activations: dict[ActivationKind, list[Tensor]] = {}
        with self.reference_policy() as network:
            if "activation" in kinds:
                output, activations = activation_means(network, rows)
            if "learned" in kinds:
                output, states = hidden_states(network, rows)
            if not kinds & {"activation", "learned"}:
                output = network(rows)
        reward = self._mask(self.config.reward_mask, self.reward_mask, rows, states, activations)
        if self.one_mask:
            return output, reward, reward
        return output, reward, self._mask(self.config.kl_mask, self.kl_mask, rows, states, activations)

    def _mask(
        self,
        kind: str,
        learned: TokenMask | None,
        rows: TokenBatch,
        states: Tensor | None,
        activations: dict[ActivationKind, list[Tensor]],
    ) -> Tensor | None:
        """One mask; a token is weighed by what the reference was at the place before it, where it was predicted."""
        if kind == "unit":
            return None
        if kind == "zero":
            return torch.zeros(rows.ids.shape, device=rows.ids.device)
        if kind == "random":
            return random_mask(rows.loss)
        if learned is not None and states is not None:
            return pad(learned(states[:, :, :-1].to(next(learned.parameters()).dtype)), (1, 0))
        before: dict[str, Sequence[Tensor]] = {
            name: [values[:, :-1] for values in found] for name, found in activations.items()
        }
        return pad(activation_mask(before, rows.loss[:, 1:]), (1, 0))

    def write_extras(self, folder: Path) -> None:
        """`masks.zarr`: the masks of the test pairs' completions."""
        task = self.task
        pairs = task.base.pairs["test"] if task.base else None
        if pairs is None or {self.config.reward_mask, self.config.kl_mask} <= {"unit", "zero"}:
            return
        write_masks(folder, pairs, task.texts, lambda rows: self.reference_and_masks(rows.to(self.device))[1:])


def _sides(values: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if values is None else sides(values)
