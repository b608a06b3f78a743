r"""SparsePO and MaPO: token masks on the reward and on the KL of token-level preference optimisation.

Christopoulou, Cardenas, Lampouras, Bou-Ammar, Wang, "SparsePO: Controlling Preference Alignment of LLMs via Sparse
Token Masks", arXiv 2410.05102 (Findings of EMNLP 2025). With m_u, m_d ≥ 0 on the tokens of an answer

    u(y) = Σ_t m_u(t) [log π(y_t|h_t) − log π_ref(y_t|h_t)],   D(y) = Σ_t m_d(t) KL( π_ref(·|h_t) ‖ π(·|h_t) )
    L = −log σ( β [u(y_w) − u(y_l) − (D(y_l) − D(y_w))] ) + λ_u Σ_t m_u(t) + λ_d Σ_t m_d(t)

Masks multiply and are not renormalised. With both masks 1 it is TDPO1, with m_u = 1 and m_d = 0 DPO. A learned mask
(:class:`TokenMask`) reads the reference's hidden states **before** y_t and is trained with the policy by this loss; its
ReLU gives exact zeros, and weight decay on the mask's own parameter group drives sparsity (0.01 in the official code).
A mask from activations (:func:`activation_mask`, MaPO) has no parameters.

As the official code (`huawei-noah/HEBO`, SparsePO) has it; two deviations: it rescales activations in float16 and
divides by zero for a constant row, here it is the input's precision and such a row gives 0. The z-normalisation before
its min-max rescaling has no effect and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from relent.divergences.reduction import as_mask, masked_mean, masked_sum, upcast
from relent.methods.alignment.preference import positive, preference_loss


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


class TokenMask(nn.Module):
    r"""A learned mask of tokens from the hidden states of the reference, (B, L) and never negative.

    `all`: a_g = ReLU(w_g·LN(z^g) + b_g) with one layer norm shared by the layers, m = ReLU(Σ_g c_g a_g), c of either
    sign and without bias. `last`: m = ReLU(w·z + b) of the last layer. Where m = 0 its parameters get no gradient: a
    mask that is 0 everywhere freezes the training at log 2, see :func:`mask_sparsity`.

    Args:
        hidden_size: d.
        layers: G, the number of layers (the embedding layer is not one); `last` uses one.
        kind: `all` (the code's `simple_all`, default) or `last`.
        gate: `relu`, or `binary`: sign(ReLU(·)), as the code's ablation has it, whose gradient is 0, so that it keeps
            the random subset of its initialisation; `straight_through` gives it the gradient of the ReLU (ours).
        positive_start: Start with c_g > 0 (ours). By the code's default start all c_g are negative, and the mask 0
            everywhere for good, in 2^−G of the seeds: every fourth with two layers, none in practice with twelve.
        layer_norm_epsilon: That of the reference model.
    """

    def __init__(
        self,
        hidden_size: int,
        layers: int,
        *,
        kind: Literal["all", "last"] = "all",
        gate: Literal["relu", "binary", "straight_through"] = "relu",
        positive_start: bool = False,
        layer_norm_epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        if kind not in ("all", "last") or gate not in ("relu", "binary", "straight_through"):
            raise ValueError(f"unknown mask: kind={kind!r} (all, last), gate={gate!r} (relu, binary, straight_through)")
        self.gate, self.layers = gate, layers
        used = layers if kind == "all" else 1
        self.heads = nn.ModuleList(nn.Linear(hidden_size, 1) for _ in range(used))
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_epsilon) if kind == "all" else None
        self.mixer = nn.Linear(layers, 1, bias=False) if kind == "all" else None
        if positive_start and self.mixer is not None:
            self.mixer.weight.data.abs_()

    def forward(self, hidden: Tensor) -> Tensor:
        """m from z (G, B, L, d): z^g at position t is the state that predicts y_t; it gets no gradient.

        Raises:
            ValueError: Another number of layers.
        """
        if hidden.ndim != 4 or hidden.shape[0] != self.layers:
            raise ValueError(f"expected hidden states ({self.layers}, B, L, d), got {tuple(hidden.shape)}")
        hidden = hidden.detach()
        if self.norm is None or self.mixer is None:
            return self._gated(self.heads[0](hidden[-1]).squeeze(-1))
        scores = torch.cat([head(self.norm(z)).relu() for head, z in zip(self.heads, hidden)], dim=-1)
        return self._gated(self.mixer(scores).squeeze(-1))

    def _gated(self, scores: Tensor) -> Tensor:
        open_gate = scores.relu()
        if self.gate == "relu":
            return open_gate
        hard = open_gate.sign()
        return hard if self.gate == "binary" else hard.detach() + open_gate - open_gate.detach()


def activation_mask(activations: Mapping[str, Sequence[Tensor]], mask: Tensor) -> Tensor:
    r"""MaPO's mask: activations averaged over features, rescaled to [0, 1] in each answer, averaged over layers.

    Args:
        activations: For each kind (MLP, attention, residual stream, logits in the official code) the hooked tensors of
            the **reference**, (B, L, d) each with d of its own.
        mask: (B, L), True on the tokens of the answer.

    Returns:
        (B, L), in [0, 1], 0 outside the answer and where an answer's activation is constant; without gradient, and the
        same for activations that are scaled by a positive factor or shifted.

    Raises:
        ValueError: No activation, or shapes that do not fit.
    """
    if not activations or not all(activations.values()):
        raise ValueError("activation_mask needs at least one activation of each kind")
    kinds = [torch.stack([_rescaled(x, mask) for x in hooked]).mean(dim=0) for hooked in activations.values()]
    return torch.stack(kinds).mean(dim=0)


def _rescaled(activation: Tensor, mask: Tensor) -> Tensor:
    values = upcast(activation.detach()).mean(dim=-1)
    keep = as_mask(mask, values.shape)
    low = torch.where(keep, values, torch.inf).amin(dim=-1, keepdim=True)
    high = torch.where(keep, values, -torch.inf).amax(dim=-1, keepdim=True)
    return torch.where(keep, (values - low) / (high - low).clamp(min=1e-8), 0.0)


def random_mask(mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform on [0, 1) at the tokens of the answer, 0 elsewhere, (B, L): the control of the official code."""
    drawn = torch.rand(mask.shape, generator=generator, device=mask.device)
    return torch.where(mask.bool(), drawn, 0.0)


def mask_sparsity(weights: Tensor, mask: Tensor) -> Tensor:
    """Share of the answers' tokens with m = 0, a scalar in [0, 1]; padding does not count."""
    return masked_mean((weights.detach() == 0).float(), mask)
