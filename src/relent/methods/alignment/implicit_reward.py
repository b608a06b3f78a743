r"""Implicit reward: SFT and DPO learn the same object, and f-divergence losses of SFT that keep the reference.

Wang et al., "Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections", arXiv 2507.00018 (NeurIPS
2025). For every reward the KL-regularised optimum is π ∝ π_ref exp(r/β), so a policy *is* a reward up to V(x): r = β ρ
+ V, ρ = log π/π_ref. Distribution matching of demonstrations μ with that regulariser, in its dual (IQ-Learn, Garg et
al., arXiv 2106.12142), φ(x) = −f*(−x):

    min_π D_f(π‖μ) + β KL(π‖π_ref) = max_r E_μ φ(r) − V_r,   V_r(x) = β log Σ_y π_ref(y|x) exp(r(y)/β)
    r = β ρ + V:   J = E_μ φ(β ρ + V) − V

Plain SFT is φ(x) = x (total variation with its bound dropped): V and π_ref cancel, J = β E_μ ρ, and the KL term is
constant in π: β is then no more than a factor of the learning rate, so the paper lowers that rate (2e-5 to 5e-6). With
other f the reference stays; its per-token factor φ′(β ρ) is :func:`update_weight`, the rate that SFT would need.

The method fine-tunes on the preferred completions by form A (stage `sft`), then trains by DPO from there with the fine-
tuned model as the reference (stage `student`), as the paper judges both remedies after a DPO stage.

[paper] (abstract) the frame, the smaller learning rate, the other divergences, the DPO stage after them; ours: the
exact forms, β of φ, networks and recipe. The paper's body was not available: the equations are derived from its
abstract and from IQ-Learn, and were checked by duality on enumerated problems. Three forms: **A** `policy_form_loss`
(V = 0, tokens), **B** `value_form_loss` (logits as Q-values, no reference), **C** `exact_objective` (enumerated
answers, V free). B and C are not trained with: B reads a base model's logits, whose normaliser nothing fixes, and C
with one demonstration of a prompt is plain SFT.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import zarr
from torch import Tensor

from relent.divergences.f_divergence import get_f_divergence
from relent.divergences.f_generator import FDivergence
from relent.divergences.logits import log_sum_exp
from relent.divergences.reduction import Reduction, as_mask, masked_mean, masked_sum, reduce, upcast
from relent.errors import DataError
from relent.files import whole
from relent.language.batches import TokenBatch
from relent.methods.alignment.base import PairMethod
from relent.methods.alignment.preference import (
    positive,
    preference_loss,
    reward_diagnostics,
    sequence_log_ratio,
    token_log_ratios,
)
from relent.methods.config import MethodConfig, hyperparameter
from relent.tasks.preference_alignment.sampling import completion_log_probs
from relent.tasks.stored import read_array

if TYPE_CHECKING:
    from relent.models.causal_lm import CausalLM
    from relent.tasks.preference_alignment.training import Task

Divergence = Literal["sft", "pearson_chi2", "squared_hellinger", "forward_kl"]

HELLINGER_EDGE = -0.9
"""φ of the squared Hellinger divergence exists for x > −1; below this it goes on along its tangent."""

LEARNING_RATE_FACTOR = 0.25
"""What the paper multiplies the learning rate of SFT by: 2e-5 to 5e-6."""

LEARNT_FROM = ("train", "validation")
"""Splits whose pairs are scored by the fine-tuned model."""


class Config(MethodConfig):
    """Hyperparameters of fine-tuning and of DPO after it."""

    divergence: Literal["sft", "pearson_chi2", "squared_hellinger", "forward_kl"] = hyperparameter(
        "sft", "D_f of the fine-tuning; `sft`: cross-entropy, in which the reference cancels.", source="paper, abstract"
    )
    sft_beta: float = hyperparameter(
        1.0, "β of φ, at the level of tokens; for `sft` a factor of the learning rate.", source="ours", gt=0, le=1000
    )
    sft_rate: float = hyperparameter(
        LEARNING_RATE_FACTOR,
        "Share of the learning rate that the fine-tuning has.",
        source="paper: 2e-5 to 5e-6 (from memory, not verified)",
        gt=0,
        le=100,
    )
    beta: float = hyperparameter(0.1, "β of DPO, in the unit of the reward.", source="ours: that of DPO", gt=0, le=1000)


def _conjugate(name: Divergence) -> FDivergence:
    if name == "pearson_chi2":
        return get_f_divergence("pearson_chi2_on_reals")
    if name == "squared_hellinger":
        return get_f_divergence("squared_hellinger").scaled(2.0, "squared_hellinger_unhalved")
    if name == "forward_kl":
        return get_f_divergence("forward_kl")
    raise ValueError(f"divergence={name!r} is unknown; use 'sft', 'pearson_chi2', 'squared_hellinger' or 'forward_kl'")


def conjugate_reward(values: Tensor, divergence: Divergence) -> Tensor:
    r"""φ(x) = −f*(−x), concave, with φ(0) = 0 and φ′(0) = 1 but for `forward_kl`.

    =====================  ===============  ==================================================
    `sft`                  x                plain SFT
    `pearson_chi2`         x − x²/4         falls beyond x = 2
    `squared_hellinger`    x/(1 + x)        x > −0.9; below on the tangent, so that it is finite
    `forward_kl`           −exp(−x − 1)     φ′(0) = 1/e
    =====================  ===============  ==================================================

    Args:
        values: x, any shape.
        divergence: Its name.

    Raises:
        ValueError: An unknown name.
    """
    values = upcast(values)
    if divergence == "sft":
        return values
    entry = _conjugate(divergence)
    if divergence != "squared_hellinger":
        return -entry.conjugate(-values)
    inside = values.clamp(min=HELLINGER_EDGE)
    # φ′ at the edge is 1/(1 + x)² = 100; the difference is 0 inside.
    return -entry.conjugate(-inside) + (values - inside) / (1.0 + HELLINGER_EDGE) ** 2


def update_weight(log_ratios: Tensor, divergence: Divergence, *, beta: float) -> Tensor:
    r"""φ′(β ρ), detached: by what factor form A scales SFT's step on a token, 1 for `sft` whatever β and π_ref.

    χ² turns the step round beyond ρ = 2/β: no token's likelihood rises by more than exp(2/β). It binds only on tokens
    with π_ref < exp(−2/β).
    """
    x = positive(beta, "beta") * upcast(log_ratios.detach())
    return torch.func.grad(lambda v: conjugate_reward(v, divergence).sum())(x)


def edge_share(log_ratios: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Share of tokens beyond the edge of the Hellinger form, a scalar to log."""
    return masked_mean((beta * upcast(log_ratios.detach()) < HELLINGER_EDGE).float(), mask)


def policy_form_loss(
    policy_log_probs: Tensor,
    reference_log_probs: Tensor,
    mask: Tensor,
    *,
    divergence: Divergence,
    beta: float,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Form A: −mean_t φ(β ρ_t), ρ_t = log π(y_t|h_t) − log π_ref(y_t|h_t) of demonstrated tokens.

    With `sft` the gradient is β times that of the cross-entropy, for any reference.

    Args:
        policy_log_probs: (B, L), log π of the demonstration's tokens.
        reference_log_probs: (B, L), of the base model; no gradient.
        mask: (B, L), True on completion tokens.
        divergence: Of :func:`conjugate_reward`.
        beta: β > 0, at the level of tokens.
        reduction: As of `divergences.reduction.reduce`; `mean` is over tokens.

    Raises:
        ValueError: β ≤ 0, an unknown divergence, shapes that differ.
    """
    keep = as_mask(mask, policy_log_probs.shape)
    # Cleared before φ, whose slope at NaN or at a padding's log-probability need not be finite.
    log_ratios = torch.where(keep, token_log_ratios(policy_log_probs, reference_log_probs), 0.0)
    return reduce(-conjugate_reward(positive(beta, "beta") * log_ratios, divergence), keep, reduction)


def token_values(logits: Tensor) -> Tensor:
    """V_t = log Σ_a exp Q_t(a) of logits read as Q-values, (…, V) to (…): a state's soft value at temperature 1."""
    return log_sum_exp(upcast(logits))


def token_rewards_from_logits(logits: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
    r"""r_t = Q_t(y_t) − V_{t+1}, with V = 0 after the last token: the inverse soft Bellman equation at γ = 1.

    Args:
        logits: (B, L, V), Q of the state before token t.
        actions: (B, L), y_t; anything where masked.
        mask: (B, L), one run a row.

    Returns:
        (B, L), 0 where masked. Σ_t r_t − V_1 = Σ_t log π(y_t|h_t).

    Raises:
        ValueError: Shapes that do not fit.
    """
    keep = as_mask(mask, actions.shape)
    if logits.shape[:-1] != actions.shape:
        raise ValueError(f"logits (B, L, V) do not fit actions (B, L): {tuple(logits.shape)}, {tuple(actions.shape)}")
    q = torch.where(keep.unsqueeze(-1), upcast(logits), 0.0)
    taken = q.gather(-1, torch.where(keep, actions, 0).unsqueeze(-1)).squeeze(-1)
    values = torch.where(keep, token_values(q), 0.0)
    following = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
    return torch.where(keep, taken - following, 0.0)


def value_form_loss(logits: Tensor, actions: Tensor, mask: Tensor, *, divergence: Divergence) -> Tensor:
    r"""Form B of each demonstration: −Σ_t φ(r_t) + V_1, (B,). With `sft` it is the sum of the token cross-entropies.

    Arguments and errors as of :func:`token_rewards_from_logits`; V_1 is the value at the first token of the mask.
    """
    keep = as_mask(mask, actions.shape)
    rewards = token_rewards_from_logits(logits, actions, mask)
    first = keep & (keep.cumsum(dim=-1) == 1)
    start = masked_sum(
        torch.where(first, token_values(torch.where(keep.unsqueeze(-1), logits, 0.0)), 0.0), first, dim=-1
    )
    return start - masked_sum(conjugate_reward(rewards, divergence), keep, dim=-1)


def exact_objective(
    policy_log_probs: Tensor,
    reference_log_probs: Tensor,
    demonstrations: Tensor,
    value: Tensor,
    *,
    divergence: Divergence,
    beta: float,
) -> Tensor:
    r"""Form C: J = Σ_y μ(y) φ(β ρ(y) + V) − V over Y enumerated answers, (…); maximise over π **and** V.

    Its maximum is the minimum of D_f(π‖μ) + β KL(π‖π_ref), f = (u − 1)² for χ², (√u − 1)² for Hellinger. With one
    demonstration a prompt it is SFT for every f.

    Args:
        policy_log_probs: (…, Y).
        reference_log_probs: (…, Y).
        demonstrations: (…, Y), probabilities μ.
        value: (…), V.
        divergence: Of :func:`conjugate_reward`.
        beta: β > 0.
    """
    log_ratios = token_log_ratios(policy_log_probs, reference_log_probs)
    rewards = positive(beta, "beta") * log_ratios + value.unsqueeze(-1)
    return (demonstrations * conjugate_reward(rewards, divergence)).sum(dim=-1) - value


def chi2_variance_objective(
    policy_log_probs: Tensor, reference_log_probs: Tensor, demonstrations: Tensor, *, beta: float
) -> Tensor:
    r"""Form C of χ² with its best V = −β E_μ ρ put in: β E_μ ρ − (β²/4) Var_μ ρ, (…), to maximise.

    SFT less a penalty on the spread of the implicit reward over the demonstrations of a prompt.
    """
    log_ratios = token_log_ratios(policy_log_probs, reference_log_probs)
    mean = (demonstrations * log_ratios).sum(dim=-1)
    spread = (demonstrations * (log_ratios - mean.unsqueeze(-1)).square()).sum(dim=-1)
    return positive(beta, "beta") * mean - 0.25 * beta**2 * spread


def implicit_reward(policy_log_probs: Tensor, base_log_probs: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """β Σ_t log π_sft/π_base of each answer, (B,), detached: the reward that SFT has learned, up to V(x)."""
    return positive(beta, "beta") * sequence_log_ratio(policy_log_probs, base_log_probs, mask).detach()


class ImplicitReward(PairMethod):
    """Fine-tunes on the preferred completions (stage `sft`), then trains by DPO against the result."""

    config: Config
    task: Task
    network: CausalLM
    tokens_per_item = 1.0

    @property
    def fine_tunes(self) -> bool:
        """Whether this is the first stage."""
        return self.spec.stage == "sft"

    def setup_method(self) -> None:
        """The second stage starts from the fine-tuned model and has its log-probabilities for a reference."""
        if self.fine_tunes or self.task.base is None:
            return
        self.network.load_state_dict(self.task.weights("sft"))
        place = Path(self.spec.inputs["sft"]) / "reference.zarr"
        if not place.is_dir():
            raise DataError(f"{place}: does not exist; train the stage sft first")
        group = zarr.open_group(place, mode="r")
        for split in LEARNT_FROM:
            stored = torch.from_numpy(read_array(group, split, place))
            self.task.base.pairs[split] = replace(self.task.base.pairs[split], reference=stored)

    def prepare(self, datamodule: Any) -> None:
        """Learn the mean number of tokens of a preferred completion."""
        self.tokens_per_item = datamodule.tokens_per_item("chosen")

    def learning_rate_factor(self, step: int) -> float:
        """The recipe's, and the paper's share of it in the first stage."""
        return super().learning_rate_factor(step) * (self.config.sft_rate if self.fine_tunes else 1.0)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.fine_tunes:
            return {"demonstrations": self._demonstrations(batch)}
        chosen, rejected = (side.log_ratio() for side in self.pair(batch))
        beta = self.config.beta
        self.log_terms(reward_diagnostics(beta * chosen, beta * rejected))
        return {"preference": preference_loss(beta * (chosen - rejected)).mean()}

    def _demonstrations(self, batch: dict[str, Tensor]) -> Tensor:
        config, rows = self.config, TokenBatch.from_tensors(batch, "chosen_")
        policy, reference = self.token_log_probs(rows), batch["teacher_chosen"]
        settings: dict[str, Any] = {"divergence": config.divergence, "beta": config.sft_beta}
        loss = policy_form_loss(policy, reference, rows.loss, reduction="none", **settings).sum(-1)
        ratios = token_log_ratios(policy, reference)
        weights = update_weight(ratios, config.divergence, beta=config.sft_beta)
        found = {
            "log_ratio": masked_mean(ratios, rows.loss),
            "update_weight": masked_mean(weights, rows.loss),
            "turned_share": masked_mean((weights < 0).float(), rows.loss),
        }
        if config.divergence == "squared_hellinger":
            found["edge_share"] = edge_share(ratios, rows.loss, beta=config.sft_beta)
        self.log_terms(found)
        return loss.mean() / self.tokens_per_item

    def write_extras(self, folder: Path) -> None:
        """`reference.zarr` of the first stage: log-probabilities of the pairs' tokens, (N, 2, T), by split."""
        if not self.fine_tunes or self.task.base is None:
            return
        texts = self.task.texts
        with whole(folder / "reference.zarr") as temporary:
            group = zarr.create_group(store=temporary)
            for split in LEARNT_FROM:
                pairs = self.task.base.pairs[split]
                sides = [
                    completion_log_probs(
                        self.network, texts, texts.completed(pairs.prompt.tolist(), pairs.tokens[:, i], lengths)
                    )
                    for i, lengths in enumerate(pairs.lengths.unbind(1))
                ]
                group.create_array(split, data=torch.stack(sides, 1).numpy())
