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

The method fine-tunes on the preferred completions (stage `sft`), then trains by DPO from there with the fine-tuned
model as the reference (stage `student`), as the paper judges both remedies after a DPO stage. The fine-tuning has one
of three forms, which are one for φ(x) = x, up to the factor β:

- `policy` (A, the default): V = 0 and r = β ρ of each token.
- `value` (B): the logits are Q-values, r_t = Q_t(y_t) − V_{t+1} with V_t = log Σ_a exp Q_t(a), and V_1 is taken off;
  no reference and no β. A constant that all logits of a state have in common, which no softmax sees, counts here: other
  φ than x draw it to where the rewards are small.
- `bandit` (C): r = β ρ(y) + V(x) of whole answers, V maximised over too: the regularised problem itself. V is a
  parameter of each training prompt, or with `shared_value` one of all. For χ² the best V leaves β E ρ − (β²/4) Var ρ,
  the spread being over the demonstrations of a prompt (or over all). With one demonstration of a prompt and a V of its
  own every f is SFT.

[paper] (abstract) the frame, the smaller learning rate, the other divergences, logits as Q-values, the DPO stage after
them; ours: the exact losses of all forms, V as a parameter with a learning rate of its own, β of φ, networks and
recipe. The paper's body was not available: the equations are derived from its abstract and from IQ-Learn, and were
checked by duality on enumerated problems.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import zarr
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from relent.divergences.f_divergence import get_f_divergence
from relent.divergences.f_generator import FDivergence
from relent.divergences.reduction import Reduction, as_mask, masked_mean, masked_sum, reduce, upcast
from relent.errors import DataError
from relent.files import whole
from relent.language.batches import TokenBatch
from relent.language.log_probs import LMOutput, next_token_head, token_log_probs
from relent.language.regulariser import ObjectiveDivergence, Regulariser
from relent.methods.alignment.base import PairMethod
from relent.methods.alignment.preference import (
    positive,
    preference_loss,
    reward_diagnostics,
    sequence_log_ratio,
    token_log_ratios,
)
from relent.methods.config import MethodConfig, hyperparameter
from relent.tasks.preference_alignment.references import write_references
from relent.tasks.preference_alignment.sampling import completion_log_probs
from relent.tasks.stored import read_array

if TYPE_CHECKING:
    from relent.models.causal_lm import CausalLM
    from relent.tasks.preference_alignment.training import Task

Divergence = Literal["sft", "pearson_chi2", "squared_hellinger", "reverse_kl"]

HELLINGER_EDGE = -0.9
"""φ of the squared Hellinger divergence exists for x > −1; below this it goes on along its tangent."""

LEARNING_RATE_FACTOR = 0.25
"""What the paper multiplies the learning rate of SFT by: 2e-5 to 5e-6."""

FIRST_VALUE = {"reverse_kl": -1.0}
"""V of form C at the start, where φ′(V) = 1 and the step is SFT's; 0 for all others."""


class Config(MethodConfig):
    """Hyperparameters of fine-tuning and of DPO after it."""

    divergence: Literal["sft", "pearson_chi2", "squared_hellinger", "reverse_kl"] = hyperparameter(
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
    form: Literal["policy", "value", "bandit"] = hyperparameter(
        "policy",
        "What is a reward: β·log-ratios of tokens, logits as Q-values, or β·log-ratios of answers with V free.",
        source="ours; paper, abstract: logits as Q-values",
        omit_default=True,
    )
    shared_value: bool = hyperparameter(
        False, "Of `bandit`: one V for all prompts, in place of one for each.", source="ours", omit_default=True
    )
    value_rate: float = hyperparameter(
        10.0,
        "Of `bandit`: learning rate of V over that of the policy.",
        source="ours",
        omit_default=True,
        gt=0,
        le=1e6,
    )
    beta: float = hyperparameter(0.1, "β of DPO, in the unit of the reward.", source="ours: that of DPO", gt=0, le=1000)

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.shared_value and self.form != "bandit":
            raise ValueError(f"shared_value with form {self.form!r}: only `bandit` has a V to share; set it to false")
        if self.form == "value" and self.sft_beta != 1:
            raise ValueError(
                f"sft_beta {self.sft_beta:g} with form 'value', which has no reference and no β; set it to 1"
            )
        return self


def _conjugate(name: Divergence) -> FDivergence:
    if name == "pearson_chi2":
        return get_f_divergence("pearson_chi2_on_reals")
    if name == "squared_hellinger":
        return get_f_divergence("squared_hellinger").scaled(2.0, "squared_hellinger_unhalved")
    if name == "reverse_kl":
        # KL(π‖μ): the registry's forward KL with the policy in the first place, as in all of this method.
        return get_f_divergence("forward_kl")
    raise ValueError(f"divergence={name!r} is unknown; use 'sft', 'pearson_chi2', 'squared_hellinger' or 'reverse_kl'")


def conjugate_reward(values: Tensor, divergence: Divergence) -> Tensor:
    r"""φ(x) = −f*(−x), concave, with φ(0) = 0 and φ′(0) = 1 but for `reverse_kl`.

    =====================  ===============  ==================================================
    `sft`                  x                plain SFT
    `pearson_chi2`         x − x²/4         falls beyond x = 2
    `squared_hellinger`    x/(1 + x)        x > −0.9; below on the tangent, so that it is finite
    `reverse_kl`           −exp(−x − 1)     KL(π‖μ); φ′(0) = 1/e
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


def update_weight(rewards: Tensor, divergence: Divergence) -> Tensor:
    r"""φ′(r), detached: by what factor a form scales SFT's step on a token or an answer, 1 for `sft`.

    χ² turns the step round beyond r = 2. In form A, r = β ρ, no token's likelihood thus rises by more than exp(2/β); it
    binds only on tokens with π_ref < exp(−2/β).
    """
    return torch.func.grad(lambda v: conjugate_reward(v, divergence).sum())(upcast(rewards.detach()))


def edge_share(rewards: Tensor, mask: Tensor | None) -> Tensor:
    """Share of rewards beyond the edge of the Hellinger form, a scalar to log."""
    return masked_mean((rewards.detach() < HELLINGER_EDGE).float(), mask)


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


def taken_logits(output: LMOutput, rows: TokenBatch) -> Tensor:
    """Q_t(y_t) of the tokens in the loss, at their own places, (B, L), 0 elsewhere; less log π it is V_t."""
    tokens, head, mask = next_token_head(output, rows)
    logits = (upcast(head.hidden) * upcast(head.weight[tokens])).sum(-1)
    if head.bias is not None:
        logits = logits + upcast(head.bias[tokens])
    return pad(torch.where(mask, logits, 0.0), (1, 0))


def token_rewards(taken: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    r"""r_t = Q_t(y_t) − V_{t+1}, with V = 0 after the last token: the inverse soft Bellman equation at γ = 1.

    Args:
        taken: (B, L), Q_t(y_t) of the state before token t; anything where masked.
        values: (B, L), V_t = log Σ_a exp Q_t(a) of the same states: soft values at temperature 1.
        mask: (B, L), one run a row.

    Returns:
        (B, L), 0 where masked. Σ_t r_t − V_1 = Σ_t log π(y_t|h_t).

    Raises:
        ValueError: Shapes that differ.
    """
    if taken.shape != values.shape:
        raise ValueError(f"taken and values must have one shape, got {tuple(taken.shape)} and {tuple(values.shape)}")
    keep = as_mask(mask, taken.shape)
    following = pad(torch.where(keep, upcast(values), 0.0)[:, 1:], (0, 1))
    return torch.where(keep, upcast(taken) - following, 0.0)


def value_form_loss(taken: Tensor, values: Tensor, mask: Tensor, *, divergence: Divergence) -> Tensor:
    r"""Form B of each demonstration: −Σ_t φ(r_t) + V_1, (B,). With `sft` it is the sum of the token cross-entropies.

    Arguments and errors as of :func:`token_rewards`; V_1 is the value at the first token of the mask.
    """
    keep = as_mask(mask, taken.shape)
    gained = conjugate_reward(token_rewards(taken, values, mask), divergence)
    first = keep & (keep.cumsum(dim=-1) == 1)
    return masked_sum(upcast(values), first, dim=-1) - masked_sum(gained, keep, dim=-1)


def bandit_form_loss(log_ratios: Tensor, value: Tensor, *, divergence: Divergence, beta: float) -> Tensor:
    r"""Form C of each demonstration: −φ(β ρ(y) + V(x)) + V(x), to be minimised over π **and** V.

    Args:
        log_ratios: (…), ρ of whole answers, summed over tokens.
        value: V of each answer's prompt; a shape that broadcasts.
        divergence: Of :func:`conjugate_reward`.
        beta: β > 0, at the level of answers.

    Raises:
        ValueError: β ≤ 0 or an unknown divergence.
    """
    return value - conjugate_reward(positive(beta, "beta") * upcast(log_ratios) + value, divergence)


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
    losses = bandit_form_loss(log_ratios, value.unsqueeze(-1), divergence=divergence, beta=beta)
    return -(demonstrations * losses).sum(dim=-1)


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
    values: nn.Parameter | None
    """V of each prompt of the data set, or one V, while the form `bandit` fine-tunes."""

    @property
    def fine_tunes(self) -> bool:
        """Whether this is the first stage."""
        return self.spec.stage == "sft"

    def setup_method(self) -> None:
        """The second stage starts from the fine-tuned model and has its log-probabilities for a reference."""
        self.values = None
        if self.fine_tunes and self.config.form == "bandit":
            count = 1 if self.config.shared_value else len(self.task.texts.prompts)
            self.values = nn.Parameter(torch.full((count,), FIRST_VALUE.get(self.config.divergence, 0.0)))
        if self.fine_tunes or self.task.base is None:
            return
        self.network.load_state_dict(self.task.weights("sft"))
        place = Path(self.spec.inputs["sft"]) / "reference.zarr"
        if not place.is_dir():
            raise DataError(f"{place}: does not exist; train the stage sft first")
        group = zarr.open_group(place, mode="r")
        for split, pairs in self.task.base.pairs.items():
            stored = torch.from_numpy(read_array(group, split, place))
            self.task.base.pairs[split] = replace(pairs, reference=stored)

    def regulariser(self) -> Regulariser:
        """β·KL(policy ‖ fine-tuned model)."""
        return Regulariser(self.config.beta, reference="first")

    def implicit_rewards(self, batch: dict[str, Tensor]) -> Tensor:
        """β log π/π_sft of both completions."""
        return self.config.beta * torch.stack([side.log_ratio() for side in self.pair(batch)], 1)

    def objective_divergence(self) -> ObjectiveDivergence | None:
        """That of the fine-tuning, where it has one."""
        if self.config.divergence == "sft":
            return super().objective_divergence()
        # In the paper's χ² the policy comes first, in the registry's the target.
        name = "neyman_chi2" if self.config.divergence == "pearson_chi2" else self.config.divergence
        return ObjectiveDivergence(name, "demonstrations")

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

    def parameter_groups(self) -> list[dict[str, Any]]:
        """V has a learning rate of its own and no weight decay."""
        groups = super().parameter_groups()
        if self.values is None:
            return groups
        groups = [{**g, "params": [p for p in g["params"] if p is not self.values]} for g in groups]
        rate = self.config.learning_rate * self.config.value_rate
        return [*groups, {"params": [self.values], "lr": rate, "weight_decay": 0.0}]

    def _demonstrations(self, batch: dict[str, Tensor]) -> Tensor:
        divergence, rows = self.config.divergence, TokenBatch.from_tensors(batch, "chosen_")
        losses, rewards, mask = self._form(rows, batch)
        weights = update_weight(rewards, divergence)
        found = {
            "reward": masked_mean(rewards, mask),
            "update_weight": masked_mean(weights, mask),
            "turned_share": masked_mean((weights < 0).float(), mask),
        }
        if divergence == "squared_hellinger":
            found["edge_share"] = edge_share(rewards, mask)
        self.log_terms(found)
        return losses.mean() / self.tokens_per_item

    def _form(self, rows: TokenBatch, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses (B,) of demonstrations in the form of the run; their rewards, of tokens or answers, and the mask of
        these."""
        config, reference, output = self.config, batch["teacher_chosen"], self.network(rows)
        policy = token_log_probs(output, rows)
        if config.form == "value":
            taken = taken_logits(output, rows)
            states = (taken, taken - policy, rows.loss)
            return value_form_loss(*states, divergence=config.divergence), token_rewards(*states), rows.loss
        settings: dict[str, Any] = {"divergence": config.divergence, "beta": config.sft_beta}
        if self.values is not None:
            value = self.values if config.shared_value else self.values[batch["prompt"]]
            ratios = sequence_log_ratio(policy, reference, rows.loss)
            return bandit_form_loss(ratios, value, **settings), config.sft_beta * ratios + value, None
        losses = policy_form_loss(policy, reference, rows.loss, reduction="none", **settings).sum(-1)
        return losses, config.sft_beta * token_log_ratios(policy, reference), rows.loss

    def write_extras(self, folder: Path) -> None:
        """`reference.zarr` of the first stage: log-probabilities of the pairs' tokens, (N, 2, T), by split.

        Of the second `references.zarr`: the fine-tuned model's of all completions, where they are few.
        """
        if self.fine_tunes:
            self._write_pairs(folder)
        elif self.task.evaluation.exact:
            first = copy.deepcopy(self.network)
            first.load_state_dict(self.task.weights("sft"))
            write_references(folder, self.task, {"first": first})

    def _write_pairs(self, folder: Path) -> None:
        if self.task.base is None:
            return
        texts = self.task.texts
        with whole(folder / "reference.zarr") as temporary:
            group = zarr.create_group(store=temporary)
            for split, pairs in self.task.base.pairs.items():
                sides = [
                    completion_log_probs(
                        self.network, texts, texts.completed(pairs.prompt.tolist(), pairs.tokens[:, i], lengths)
                    )
                    for i, lengths in enumerate(pairs.lengths.unbind(1))
                ]
                group.create_array(split, data=torch.stack(sides, 1).numpy())
