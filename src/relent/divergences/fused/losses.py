r"""Losses of large vocabularies straight from hidden states and output embeddings, without the matrix of logits.

With N tokens and V vocabulary entries the plain form holds several N × V matrices; these functions hold one chunk of
rows (2²³ logits unless ``chunk_tokens`` says otherwise), forward and backward. They share these rules.

- An :class:`OutputHead` is (hidden (..., H), weight (V, H), bias (V,) or None). P, the target, comes from
  ``target_head`` and is constant; Q from ``approx_head``, whose hidden states, embedding and bias receive gradients
  where they require them. H may differ between the two, V and the tokens (...) may not. Logits must be finite.
- ``temperature`` τ > 0 divides the logits of both; ``scale`` multiplies the result by 1 (``"none"``) or τ²
  (``"tau_squared"``, arXiv 1503.02531, section 2.1).
- ``mask`` (...) is boolean or 0/1 integer, True = kept; left-out tokens are not computed at all and may hold NaN.
- ``reduction`` is one of :func:`relent.divergences.reduction.reduce`. Here the default is ``"mean"``: a reduced loss
  makes its gradients in the forward pass, ``"none"`` has to compute the logits again in the backward pass.
- Results are in nats, float64 for float64 and float32 otherwise. Half-precision hidden states and embeddings are
  multiplied into float32 logits, and everything after that, the sums over tokens of the gradients included, is float32;
  gradients are rounded once, at the end. Under autocast the heads are cast as a linear layer casts them.
- Gradients are of first order only, and ``torch.func`` transforms are not supported.
- ``ValueError`` names shapes that do not fit, tokens outside the vocabulary, a temperature or ``chunk_tokens`` that is
  not positive, and a mask that keeps nothing; ``TypeError`` names dtypes that do not fit.
"""

from __future__ import annotations

from functools import partial
from typing import get_args

import torch
from torch import Tensor

from relent.divergences.discrete import Rest
from relent.divergences.fused.engine import OutputHead, chunked_loss
from relent.divergences.fused.rows import (
    cross_entropy_rows,
    forward_kl_rows,
    jensen_shannon_rows,
    reverse_kl_rows,
    top_k_rows,
)
from relent.divergences.logits import TemperatureScale
from relent.divergences.reduction import Reduction, as_mask, upcast

__all__ = [
    "fused_cross_entropy",
    "fused_forward_kl",
    "fused_jensen_shannon",
    "fused_reverse_kl",
    "fused_token_log_probs",
    "fused_top_k_forward_kl",
]


def _check_tokens(tokens: Tensor, name: str, head: OutputHead, mask: Tensor | None, *, lists: bool) -> None:
    """Refuse token ids of the wrong dtype or shape ((...), or (..., k) for lists), or outside the vocabulary."""
    if tokens.dtype.is_floating_point or tokens.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise TypeError(f"{name} must be token ids of an integer dtype, got {tokens.dtype}")
    shape, expected = tokens.shape[:-1] if lists else tokens.shape, head.hidden.shape[:-1]
    if shape != expected:
        wanted = f"{tuple(expected)}{' + (k,)' if lists else ''}"
        raise ValueError(f"{name} have shape {tuple(tokens.shape)}, expected {wanted}: one for each hidden state")
    kept = tokens if mask is None else tokens[as_mask(mask, expected)]
    if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < head.weight.shape[0]:
        worst = int(kept.min()) if int(kept.min()) < 0 else int(kept.max())
        raise ValueError(
            f"{name} hold {worst}, outside a vocabulary of {head.weight.shape[0]}; mask out positions to be ignored"
        )


def fused_cross_entropy(
    labels: Tensor,
    approx_head: OutputHead,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    scale: TemperatureScale = "none",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    chunk_tokens: int | None = None,
) -> Tensor:
    r"""Cross-entropy against integer labels, with :math:`\log Z = \log \sum_v e^{z_v}`,

    .. math:: -(1-\epsilon) \log q_y - \frac{\epsilon}{V} \sum_v \log q_v + c\,(\log Z)^2 .

    Args:
        labels: (...) token ids; masked positions may hold anything (−100).
        approx_head: the model.
        label_smoothing: ε in [0, 1].
        z_loss: c ≥ 0, keeps the normaliser near 1 (Chowdhery et al., *PaLM*, arXiv 2204.02311, section 5: 1e-4).
        temperature, scale, mask, reduction, chunk_tokens: see the module.

    Returns:
        Scalar, or (...) for ``reduction="none"``.

    Raises:
        ValueError: ε or c out of range, and as the module says.
        TypeError: labels that are not integers.

    Source: label smoothing: Szegedy et al., arXiv 1512.00567, section 7.
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if not z_loss >= 0.0:
        raise ValueError(f"z_loss must not be negative, got {z_loss}")
    _check_tokens(labels, "labels", approx_head, mask, lists=False)
    rows = partial(cross_entropy_rows, label_smoothing=label_smoothing, z_loss=z_loss)
    return chunked_loss(
        rows, approx_head, labels.long(),
        temperature=temperature, scale=scale, mask=mask, reduction=reduction, chunk_tokens=chunk_tokens,
    )  # fmt: skip


def fused_token_log_probs(
    tokens: Tensor,
    approx_head: OutputHead,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    r"""Log-probability of each given token, :math:`\log q_{y}`, in nats: what preference and policy losses start from.

    Args:
        tokens: (...) token ids; masked positions may hold anything.
        approx_head: the model.
        temperature, mask, chunk_tokens: see the module.

    Returns:
        (...); 0 at masked positions.

    Raises:
        ValueError, TypeError: as the module says.
    """
    _check_tokens(tokens, "tokens", approx_head, mask, lists=False)
    return -chunked_loss(
        cross_entropy_rows, approx_head, tokens.long(),
        temperature=temperature, mask=mask, reduction="none", chunk_tokens=chunk_tokens,
    )  # fmt: skip


def fused_forward_kl(
    target_head: OutputHead,
    approx_head: OutputHead,
    *,
    temperature: float = 1.0,
    scale: TemperatureScale = "none",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    chunk_tokens: int | None = None,
) -> Tensor:
    r"""Forward KL, :math:`\mathrm{KL}(P\|Q) = \sum_v p_v (\log p_v - \log q_v)`: mass-covering.

    Arguments, result, errors: see the module. The plain form is :func:`relent.divergences.discrete.forward_kl`.
    """
    return chunked_loss(
        forward_kl_rows, approx_head, target_head=target_head,
        temperature=temperature, scale=scale, mask=mask, reduction=reduction, chunk_tokens=chunk_tokens,
    )  # fmt: skip


def fused_reverse_kl(
    target_head: OutputHead,
    approx_head: OutputHead,
    *,
    temperature: float = 1.0,
    scale: TemperatureScale = "none",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    chunk_tokens: int | None = None,
) -> Tensor:
    r"""Reverse KL, :math:`\mathrm{KL}(Q\|P) = \sum_v q_v (\log q_v - \log p_v)`: mode-seeking.

    Arguments, result, errors: see the module. The plain form is :func:`relent.divergences.discrete.reverse_kl`.
    """
    return chunked_loss(
        reverse_kl_rows, approx_head, target_head=target_head,
        temperature=temperature, scale=scale, mask=mask, reduction=reduction, chunk_tokens=chunk_tokens,
    )  # fmt: skip


def fused_jensen_shannon(
    target_head: OutputHead,
    approx_head: OutputHead,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    scale: TemperatureScale = "none",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    chunk_tokens: int | None = None,
) -> Tensor:
    r"""Generalised Jensen–Shannon divergence, with :math:`M = \beta P + (1-\beta) Q`,

    .. math:: \beta\,\mathrm{KL}(P\|M) + (1-\beta)\,\mathrm{KL}(Q\|M),

    as :func:`relent.divergences.discrete.jensen_shannon`. ``beta``, strictly between 0 and 1, is the weight of the
    target, anything else a ``ValueError``; the other arguments, the result and errors are as the module says.

    Source: Agarwal et al., *On-Policy Distillation of Language Models* (GKD), arXiv 2306.13649, equation 1.
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta must lie strictly between 0 and 1, got {beta}; the ends are the forward and reverse KL")
    return chunked_loss(
        partial(jensen_shannon_rows, beta=beta), approx_head, target_head=target_head,
        temperature=temperature, scale=scale, mask=mask, reduction=reduction, chunk_tokens=chunk_tokens,
    )  # fmt: skip


def fused_top_k_forward_kl(
    indices: Tensor,
    target_log_probs: Tensor,
    approx_head: OutputHead,
    *,
    rest: Rest,
    temperature: float = 1.0,
    scale: TemperatureScale = "none",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    chunk_tokens: int | None = None,
) -> Tensor:
    r"""Forward KL against stored probabilities of the target's most probable tokens, a set K a token.

    - ``rest="drop"``: :math:`\sum_{v \in K} p_v (\log p_v - \log q_v)`; no divergence, its minimum is negative.
    - ``rest="renormalise"``: P and Q restricted to K and renormalised; blind to all mass outside K.
    - ``rest="bucket"``: plus :math:`p_r \log(p_r / q_r)`, where r is the rest of the vocabulary as one class.

    Args:
        indices: (..., k) token ids, distinct within a token.
        target_log_probs: (..., k) log-probabilities in nats of the whole softmax of the target, at this
            ``temperature``; they sum to at most one. −inf (no probability) is allowed.
        approx_head: the student.
        rest: as above; see :func:`relent.divergences.discrete.partial_forward_kl`.
        temperature: divides the student's logits only.
        scale, mask, reduction, chunk_tokens: see the module.

    Returns:
        Scalar, or (...) for ``reduction="none"``.

    Raises:
        ValueError: an unknown ``rest``, shapes that differ, and as the module says.
        TypeError: indices that are not integers.
    """
    if rest not in get_args(Rest):
        raise ValueError(f"rest={rest!r} is unknown; use one of {get_args(Rest)}")
    _check_tokens(indices, "indices", approx_head, mask, lists=True)
    if target_log_probs.shape != indices.shape:
        raise ValueError(
            f"target_log_probs have shape {tuple(target_log_probs.shape)}, the indices {tuple(indices.shape)}"
        )
    stored = target_log_probs.detach().to(upcast(approx_head.weight.new_empty(0)).dtype)
    return chunked_loss(
        partial(top_k_rows, rest=rest), approx_head, indices.long(), stored,
        temperature=temperature, scale=scale, mask=mask, reduction=reduction, chunk_tokens=chunk_tokens,
    )  # fmt: skip
