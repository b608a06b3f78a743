r"""SuperHF: iterated best-of-n distillation with a KL penalty to the initial model.

Mukobi, Chatain, Fong, Windesheim, Kutyniok, Bhatia, Alberti, "SuperHF: Supervised Iterative Learning from Human
Feedback", arXiv 2310.16763. For each prompt n completions are sampled from the current policy, the k best under a
frozen reward model are kept, and one supervised step is taken on them:

    L = CE(a, π_θ) + λ·KL,   CE a mean over completion tokens,   KL_i = mean_t KL( π_0(·|h_t) ‖ π_θ(·|h_t) )

The minimiser of CE to a distribution q plus λ·KL(π_0‖π) is the mixture (q + λ π_0)/(1 + λ).

The released code (`openfeedback/superhf`) penalises the **forward** KL as above (`forward`, the default; `reverse` is
the penalty of RLHF), sums it over the examples of a minibatch of two (`sum`; `mean` with λ·2 is the same and does not
change with the batch), and takes the positions whose own label is in the completion on logits that are not shifted
(`code`): it leaves out the prediction of the first token and adds that of the one after the last. `paper` is the mask
of the positions that predict a completion token. The paper's λ is 0.35 with `sum`.

The released configuration has as many completions in a superbatch as in a minibatch (two), so that every optimiser step
has samples of its own, as here; the "single pass" of its ablation samples from the initial model throughout. Ours: the
exact reward in the place of a reward model (which the variant `learned` has), the KL as a mean over completions, and a
cross-entropy that is divided by the mean number of tokens of the training split's completions instead of the
minibatch's, so that micro-batches add up (`sft`). Left out: the length penalty and λ_inv of the code, both off there;
text is not cut at a delimiter, for a completion has none.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl, reverse_kl
from relent.divergences.fused.losses import fused_forward_kl, fused_reverse_kl
from relent.divergences.logits import label_cross_entropy
from relent.divergences.reduction import as_mask, masked_mean, masked_sum, upcast
from relent.language.batches import TokenBatch
from relent.language.log_probs import LMOutput, token_log_probs
from relent.language.regulariser import ObjectiveDivergence
from relent.methods.alignment.rollout import OnPolicyMethod, Rollout
from relent.methods.config import MethodConfig, hyperparameter

IGNORED = -100
"""Label of positions outside the completion."""


class Config(MethodConfig):
    """Hyperparameters of SuperHF."""

    samples: int = hyperparameter(16, "n, completions of a prompt.", source="code: superbatch_size", ge=1, le=4096)
    keep: int = hyperparameter(1, "k, how many of them are learnt from.", source="code", ge=1, le=4096)
    kl_weight: float = hyperparameter(
        0.35, "λ, weight of the KL to the initial model; 0: it is only measured.", source="code", ge=0, le=1e4
    )
    direction: Literal["forward", "reverse"] = hyperparameter(
        "forward", "KL(initial ‖ policy), or KL(policy ‖ initial).", source="code"
    )
    mask_rule: Literal["paper", "code"] = hyperparameter(
        "paper", "Positions of the KL; `code` is shifted by one.", source="ours: the positions that the policy decides"
    )
    samples_from: Literal["policy", "initial"] = hyperparameter(
        "policy",
        "Who is sampled from; `initial`: a single pass of best-of-n.",
        source="paper; `initial`: its ablation",
    )
    temperature: float = hyperparameter(1.0, "Of the samples.", source="code", gt=0, le=100)
    top_p: float = hyperparameter(0.95, "Mass of the likeliest tokens that are drawn from.", source="code", gt=0, le=1)
    drop_empty: bool = hyperparameter(True, "Never keep a completion without a word.", source="code")


def keep_best(scores: Tensor, k: int = 1, *, valid: Tensor | None = None) -> Tensor:
    """Indices of the k best completions of each prompt, best first; ties keep the order of sampling.

    Args:
        scores: (P, n), the reward of n completions of each of P prompts: ranked within a prompt, never across.
        k: How many to keep.
        valid: (P, n) boolean; completions left out (empty ones) are never kept.

    Returns:
        (P, min(k, n)) indices into the completions; −1 where fewer than k are valid.

    Raises:
        ValueError: k < 1, a wrong shape, or NaN among valid scores.
    """
    if k < 1 or scores.ndim != 2:
        raise ValueError(f"expected scores (prompts, completions) and k >= 1, got {tuple(scores.shape)} and k = {k}")
    keep = torch.ones_like(scores, dtype=torch.bool) if valid is None else as_mask(valid, scores.shape)
    if bool((scores.isnan() & keep).any()):
        raise ValueError("a completion has the score NaN: it cannot be ranked; check the reward model's input")
    by_score = scores.argsort(dim=-1, descending=True, stable=True)
    # A second stable sort brings the valid ones forward, so that −inf remains a score like any other.
    order = by_score.gather(-1, (~keep).gather(-1, by_score).to(torch.int8).argsort(dim=-1, stable=True))
    return torch.where(keep.gather(-1, order), order, -1)[:, :k]


def length_penalised(scores: Tensor, characters: Tensor, *, weight: float) -> Tensor:
    """R − w·log(characters): the code's penalty of long completions (its docstring says the length itself), off by 0.

    Raises:
        ValueError: A completion without characters, which is to be left out before.
    """
    if bool((characters < 1).any()):
        raise ValueError("an empty completion has no length penalty; leave it out of the filter")
    return scores - weight * characters.to(scores).log()


def prediction_mask(labels: Tensor, rule: Literal["paper", "code"] = "paper") -> Tensor:
    """Positions of the unshifted logits that the KL is taken over, (B, T) boolean.

    Args:
        labels: (B, T), the token at each position, −100 outside the completion (prompt and padding).
        rule: `paper`: position t predicts a completion token, label t + 1. `code`: label t itself is in the completion.

    Raises:
        ValueError: An unknown rule.
    """
    inside = labels != IGNORED
    if rule == "code":
        return inside
    if rule != "paper":
        raise ValueError(f"rule={rule!r} is unknown; use 'paper' or 'code'")
    return torch.cat((inside[:, 1:], torch.zeros_like(inside[:, :1])), dim=1)


def prior_kl(
    policy_log_probs: Tensor,
    initial_log_probs: Tensor,
    mask: Tensor,
    *,
    direction: Literal["forward", "reverse"] = "forward",
) -> Tensor:
    r"""KL_i of each example: the mean over its positions of the KL between next-token distributions.

    Args:
        policy_log_probs: (B, T, V), log π_θ.
        initial_log_probs: (B, T, V), log π_0; gets no gradient.
        mask: (B, T).
        direction: `forward` KL(π_0‖π_θ), or `reverse` KL(π_θ‖π_0).

    Returns:
        (B,) nats, never below 0 (rounding), 0 for an example without a position.

    Raises:
        ValueError: An unknown direction or shapes that differ.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction={direction!r} is unknown; use 'forward' or 'reverse'")
    divergence = forward_kl if direction == "forward" else reverse_kl
    values = divergence(initial_log_probs.detach(), policy_log_probs, mask=mask)
    return masked_mean(values, mask, dim=-1, empty="zero").clamp(min=0.0)


class SuperHFLoss(NamedTuple):
    """The loss, its cross-entropy and the KL term before λ: scalars in nats."""

    loss: Tensor
    cross_entropy: Tensor
    kl: Tensor


def superhf_loss(
    policy_log_probs: Tensor,
    initial_log_probs: Tensor,
    labels: Tensor,
    *,
    kl_weight: float,
    direction: Literal["forward", "reverse"] = "forward",
    mask_rule: Literal["paper", "code"] = "paper",
    kl_reduction: Literal["mean", "sum"] = "mean",
    inverse_weight: float = 0.0,
) -> SuperHFLoss:
    r"""CE + λ·KL [+ λ_inv/CE] of a minibatch of kept completions.

    Args:
        policy_log_probs: (B, T, V), log π_θ at every position, unshifted: position t predicts label t + 1.
        initial_log_probs: (B, T, V), log π_0.
        labels: (B, T), −100 on prompt and padding.
        kl_weight: λ; 0 measures the KL and does not add it, below 0 it is not computed and reported as 0.
        direction: As in :func:`prior_kl`.
        mask_rule: As in :func:`prediction_mask`.
        kl_reduction: Over the examples.
        inverse_weight: λ_inv, off by default; undefined at a cross-entropy of 0.

    Raises:
        ValueError: No completion token at all, an unknown option, shapes that differ.
    """
    if kl_reduction not in ("mean", "sum"):
        raise ValueError(f"kl_reduction={kl_reduction!r} is unknown; use 'mean' or 'sum'")
    targets = labels[:, 1:]
    cross_entropy = label_cross_entropy(
        targets, upcast(policy_log_probs)[:, :-1], mask=targets != IGNORED, reduction="mean"
    )
    loss = cross_entropy + inverse_weight / cross_entropy if inverse_weight > 0 else cross_entropy
    if kl_weight < 0:
        return SuperHFLoss(loss, cross_entropy, torch.zeros_like(cross_entropy))
    mask = prediction_mask(labels, mask_rule)
    kl = prior_kl(policy_log_probs, initial_log_probs, mask, direction=direction)
    kl = kl.mean() if kl_reduction == "mean" else kl.sum()
    return SuperHFLoss(loss + kl_weight * kl if kl_weight > 0 else loss, cross_entropy, kl)


def regularised_target(kept_log_probs: Tensor, initial_log_probs: Tensor, *, kl_weight: float) -> Tensor:
    r"""log of (q + λ π_0)/(1 + λ), (…, Y): what the forward form converges to in a rich family.

    Args:
        kept_log_probs: (…, Y), log q of the distribution of kept completions (`best_of_n.best_of_n_log_probs`).
        initial_log_probs: (…, Y), log π_0.
        kl_weight: λ ≥ 0.

    Raises:
        ValueError: λ < 0.
    """
    if not kl_weight >= 0:
        raise ValueError(f"kl_weight must not be negative, got {kl_weight}")
    if kl_weight == 0:
        return upcast(kept_log_probs)
    mixed = torch.logaddexp(upcast(kept_log_probs), upcast(initial_log_probs) + math.log(kl_weight))
    return mixed - math.log1p(kl_weight)


class SuperHF(OnPolicyMethod):
    """Trains the policy on the best of its own samples, held to the initial model by the KL of whole distributions."""

    config: Config
    tokens_per_item = 1.0

    def objective_divergence(self) -> ObjectiveDivergence | None:
        """Without its weight it is only measured."""
        return ObjectiveDivergence(f"{self.config.direction}_kl", "tokens") if self.config.kl_weight else None

    def prepare(self, datamodule: Any) -> None:
        """Learn the mean number of tokens of a completion."""
        self.tokens_per_item = datamodule.tokens_per_item("chosen")

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        rollout = self.rollout(
            batch,
            config.samples,
            of="policy" if config.samples_from == "policy" else "reference",
            temperature=config.temperature,
            top_p=config.top_p,
        )
        best, kept = self.best(rollout)
        rows = rollout.rows.rows(best)
        output = self.network(rows)
        nll = -masked_sum(token_log_probs(output, rows), rows.loss, dim=1) / self.tokens_per_item
        kl = self.prior_kl(output, rows)
        self._log_filter(rollout, best[kept], kl)
        return {name: torch.where(kept, v, 0.0).mean() for name, v in (("nll", nll), ("kl", config.kl_weight * kl))}

    def best(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Rows of the k best completions of each prompt, and which of them are there: (B·k) each."""
        config = self.config
        words = rollout.rows.loss & (rollout.rows.ids != self.task.texts.end)
        valid = rollout.grouped(words.any(-1)) if config.drop_empty else None
        places = keep_best(rollout.grouped(rollout.rewards), config.keep, valid=valid)
        first = torch.arange(len(places), device=places.device).unsqueeze(-1) * rollout.samples
        return (places.clamp(min=0) + first).flatten(), (places >= 0).flatten()

    def prior_kl(self, output: LMOutput, rows: TokenBatch) -> Tensor:
        """KL_i of the policy to the initial model, (B·k), as :func:`prior_kl`, a chunk of tokens at a time."""
        mask = prediction_mask(torch.where(rows.loss, rows.ids, IGNORED), self.config.mask_rule)
        with torch.no_grad(), self.reference_policy() as network:
            initial = network(rows)
        divergence = fused_forward_kl if self.config.direction == "forward" else fused_reverse_kl
        values = divergence(initial.head(), output.head(), mask=mask, reduction="none")
        return masked_mean(values, mask, dim=-1, empty="zero").clamp(min=0.0)

    def _log_filter(self, rollout: Rollout, best: Tensor, kl: Tensor) -> None:
        """Log the rewards before and after the filter, the KL of the kept completions, and how many of them differ."""
        kept = rollout.rows.rows(best)
        found = {
            "reward": rollout.rewards.mean(),
            "kept_reward": rollout.rewards[best].mean(),
            "kept_kl": kl.mean(),
            "kept_distinct": kl.new_tensor(len(kept.ids.unique(dim=0)) / max(len(kept), 1)),
            "length": rollout.rows.loss.sum(-1).float().mean(),
        }
        self.log_terms(found, "rollout")
