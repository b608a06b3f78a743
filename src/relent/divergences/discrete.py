r"""Divergences between discrete distributions, from log-probabilities over the last dimension.

P is the *target* (teacher, reference, data) with log-probabilities ``target_log_probs``; Q is the *approximation*
(student, policy, model) with ``approx_log_probs``. Both have shape [..., C] and are normalised over C; the result, in
nats, has shape [...]. The direction stands in the name: ``forward_kl`` is KL(P‖Q), ``reverse_kl`` is KL(Q‖P).
All functions share these rules:

- ``mask`` has shape [...], boolean or 0/1 integer; left-out positions may hold NaN. ``reduction`` names what follows
  (:func:`relent.divergences.reduction.reduce`; the default ``"none"`` keeps one number a distribution).
- A class of log-probability −inf under both contributes 0, with zero gradient. Where the mathematics gives +inf
  (mass of P outside the support of Q in KL(P‖Q)), the value is +inf, never NaN, and the gradient is zero.
- Gradients flow into both arguments (detach the teacher), to any order.
- Half precision is computed and returned in float32: what remains is the rounding of the input, about
  :math:`|\log p|\,2^{-11}` (float16) or :math:`|\log p|\,2^{-8}` (bfloat16) a class. Sums that are zero in exact
  arithmetic come out within a few units of the last place, so a divergence may be −1e−16 (or −1e−7 in float32).
- Shapes must agree exactly; ``ValueError`` names both (vocabularies of different size are a common mistake).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relent.divergences.logits import (
    TemperatureScale,
    log_sum_exp,
    renormalised,
    temperature_factor,
    tempered_log_probs,
    top_k_classes,
)
from relent.divergences.reduction import Reduction, as_mask, reduce, upcast

Rest = Literal["drop", "renormalise", "bucket"]

# Stands for log 0 in differences of log-probabilities: beyond any real one, yet its products stay finite in float32.
_FAR = 1e30

__all__ = [
    "Rest",
    "amari_alpha",
    "cross_entropy",
    "entropy",
    "forward_kl",
    "from_logits",
    "jeffreys",
    "jensen_shannon",
    "neyman_chi2",
    "partial_forward_kl",
    "pearson_chi2",
    "renyi",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "squared_hellinger",
    "tempered_forward_kl",
    "tempered_jensen_shannon",
    "tempered_reverse_kl",
    "top_k_forward_kl",
    "total_variation",
]


def _pair(target: Tensor, approx: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Check shapes, upcast, and put a harmless constant where the mask leaves out (before any nonlinearity)."""
    if target.ndim == 0 or approx.ndim == 0:
        raise ValueError("log-probabilities need a last dimension of classes, got a scalar")
    if target.shape[-1] != approx.shape[-1]:
        raise ValueError(
            f"the target has {target.shape[-1]} classes and the approximation {approx.shape[-1]}: distributions over "
            "different vocabularies cannot be compared; cut or align them first"
        )
    if target.shape != approx.shape:
        raise ValueError(
            f"shapes differ: target {tuple(target.shape)}, approximation {tuple(approx.shape)}; expand explicitly"
        )
    target, approx = upcast(target), upcast(approx)
    if mask is not None:
        keep = as_mask(mask, target.shape[:-1]).unsqueeze(-1)
        target, approx = torch.where(keep, target, 0.0), torch.where(keep, approx, 0.0)
    return target, approx


def _total(
    items: Callable[[Tensor, Tensor], Tensor], target: Tensor, approx: Tensor, mask: Tensor | None, reduction: Reduction
) -> Tensor:
    """Evaluate one number a distribution and reduce over the batch."""
    return reduce(items(*_pair(target, approx, mask)), mask, reduction)


def _log_ratio(lp: Tensor, lq: Tensor) -> Tensor:
    """log p − log q with −inf taken as −1e30: 0 for classes impossible under both, ±1e30 for one, and never NaN.

    exp(−inf) = 0 times 1e30 is 0 in value and gradient, where times inf it is NaN; clamping also stops the gradient.
    """
    return lp.clamp(min=-_FAR) - lq.clamp(min=-_FAR)


def _infinite_where(rows: Tensor, outside: Tensor) -> Tensor:
    """+inf for the distributions with mass outside the other's support, as a constant: no gradient."""
    return rows.masked_fill(outside.any(dim=-1), math.inf)


def _kl(lp: Tensor, lq: Tensor) -> Tensor:
    ratio = _log_ratio(lp, lq)
    return _infinite_where((lp.exp() * ratio).sum(dim=-1), ratio > 0.5 * _FAR)


def forward_kl(
    target_log_probs: Tensor, approx_log_probs: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none"
) -> Tensor:
    r"""Forward KL, :math:`\mathrm{KL}(P\|Q) = \sum_i p_i (\log p_i - \log q_i)`: mass-covering.

    Range [0, ∞]; +inf where P has mass and Q none. Through a softmax the gradient in Q's logits is q − p: bounded.

    Source: Kullback, Leibler, *On Information and Sufficiency* (1951); as a distillation loss arXiv 1503.02531.
    """
    return _total(_kl, target_log_probs, approx_log_probs, mask, reduction)


def reverse_kl(
    target_log_probs: Tensor, approx_log_probs: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none"
) -> Tensor:
    r"""Reverse KL, :math:`\mathrm{KL}(Q\|P) = \sum_i q_i (\log q_i - \log p_i)`: mode-seeking.

    Range [0, ∞]; +inf where Q has mass and P none. The gradient vanishes on classes that Q has given up (q → 0).
    """
    return forward_kl(approx_log_probs, target_log_probs, mask=mask, reduction=reduction)


def _jeffreys(lp: Tensor, lq: Tensor) -> Tensor:
    ratio = _log_ratio(lp, lq)
    return _infinite_where(((lp.exp() - lq.exp()) * ratio).sum(dim=-1), ratio.abs() > 0.5 * _FAR)


def jeffreys(
    target_log_probs: Tensor, approx_log_probs: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none"
) -> Tensor:
    r"""Jeffreys divergence, the sum (not the mean) of both KLs: :math:`\sum_i (p_i - q_i)(\log p_i - \log q_i)`.

    Symmetric; range [0, ∞]; +inf as soon as the supports differ.
    """
    return _total(_jeffreys, target_log_probs, approx_log_probs, mask, reduction)


def skewed_forward_kl(
    target_log_probs: Tensor,
    approx_log_probs: Tensor,
    *,
    alpha: float,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    r"""Skewed forward KL, :math:`\mathrm{KL}(P \,\|\, \alpha P + (1-\alpha) Q)`.

    Args:
        alpha: in [0, 1]; 0 is the forward KL, 1 gives 0. For α > 0 the value is at most −log α, whatever the supports.

    Source: Ko et al., *DistiLLM*, arXiv 2402.03898, section 3.1 (α = 0.1 there).

    Raises:
        ValueError: if α is outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if alpha == 0.0:
        return forward_kl(target_log_probs, approx_log_probs, mask=mask, reduction=reduction)
    log_odds = math.inf if alpha == 1.0 else math.log(alpha) - math.log1p(-alpha)

    def items(lp: Tensor, lq: Tensor) -> Tensor:
        # log p − log(αp + (1−α)q) = log σ(log p/q + log α/(1−α)) − log α: no mixture is formed.
        return (lp.exp() * (F.logsigmoid(_log_ratio(lp, lq) + log_odds) - math.log(alpha))).sum(dim=-1)

    return _total(items, target_log_probs, approx_log_probs, mask, reduction)


def skewed_reverse_kl(
    target_log_probs: Tensor,
    approx_log_probs: Tensor,
    *,
    alpha: float,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    r"""Skewed reverse KL, :math:`\mathrm{KL}(Q \,\|\, \alpha Q + (1-\alpha) P)`.

    α = 0 is the reverse KL; see :func:`skewed_forward_kl`. Source: arXiv 2402.03898, section 3.1.
    """
    return skewed_forward_kl(approx_log_probs, target_log_probs, alpha=alpha, mask=mask, reduction=reduction)


def jensen_shannon(
    target_log_probs: Tensor,
    approx_log_probs: Tensor,
    *,
    beta: float = 0.5,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    r"""Generalised Jensen–Shannon divergence, with :math:`M = \beta P + (1-\beta) Q`,

    .. math:: \mathrm{JS}_\beta(P, Q) = \beta\,\mathrm{KL}(P\|M) + (1-\beta)\,\mathrm{KL}(Q\|M).

    Finite for any supports: at most the entropy of (β, 1 − β), that is log 2 at β = ½, where it is symmetric.

    Args:
        beta: weight of the target, strictly between 0 and 1. The divergence itself tends to 0 at both ends; divided by
            β it tends to KL(P‖Q) as β → 0, and divided by 1 − β to KL(Q‖P) as β → 1. TRL's ``generalized_jsd_loss``
            has the same β inside the interval and returns these KLs at exactly 0 and 1, a jump; ask for
            :func:`forward_kl` or :func:`reverse_kl` instead.

    Raises:
        ValueError: if β is not strictly between 0 and 1.

    Source: Lin, *Divergence measures based on the Shannon entropy* (1991); Agarwal et al., *On-Policy Distillation of
    Language Models* (GKD), arXiv 2306.13649, equation 1.
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta must lie strictly between 0 and 1, got {beta}; the ends are forward_kl and reverse_kl")

    log_p, log_q = math.log(beta), math.log1p(-beta)

    def items(lp: Tensor, lq: Tensor) -> Tensor:
        # log p/m = log σ(a) − log β and log q/m = log σ(−a) − log(1−β), a = log(βp / (1−β)q): no mixture is formed.
        odds = _log_ratio(lp, lq) + (log_p - log_q)
        from_p = lp.exp() * (F.logsigmoid(odds) - log_p)
        from_q = lq.exp() * (F.logsigmoid(-odds) - log_q)
        return (beta * from_p + (1.0 - beta) * from_q).sum(dim=-1)

    return _total(items, target_log_probs, approx_log_probs, mask, reduction)


def total_variation(
    target_log_probs: Tensor, approx_log_probs: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none"
) -> Tensor:
    r"""Total variation distance, :math:`\tfrac12 \sum_i |p_i - q_i|`, in [0, 1].

    A metric. Not differentiable where p = q (the subgradient 0 is returned); its gradient does not grow with the error.
    """

    def items(lp: Tensor, lq: Tensor) -> Tensor:
        return 0.5 * (lp.exp() - lq.exp()).abs().sum(dim=-1)

    return _total(items, target_log_probs, approx_log_probs, mask, reduction)


def squared_hellinger(
    target_log_probs: Tensor, approx_log_probs: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none"
) -> Tensor:
    r"""Squared Hellinger distance, :math:`\tfrac12 \sum_i (\sqrt{p_i} - \sqrt{q_i})^2 = 1 - \sum_i \sqrt{p_i q_i}`.

    Symmetric, in [0, 1], 1 for disjoint supports. Its root is a metric. Some papers leave out the factor ½.
    """

    def items(lp: Tensor, lq: Tensor) -> Tensor:
        return 0.5 * ((0.5 * lp).exp() - (0.5 * lq).exp()).square().sum(dim=-1)

    return _total(items, target_log_probs, approx_log_probs, mask, reduction)


def _pearson(lp: Tensor, lq: Tensor) -> Tensor:
    """Σ (p − q)²/q as exp(log q + 2 max(d, 0)) · expm1(−|d|)², d = log p/q: no cancellation, no early overflow."""
    d = _log_ratio(lp, lq)
    outside = d > 0.5 * _FAR
    # torch.where instead of abs and relu: their second derivative at d = 0 (P = Q) would be wrong.
    up = (d > 0) & ~outside
    size = (lq + torch.where(up, 2.0 * d, 0.0)).exp()
    return _infinite_where((size * torch.where(up, -d, d).clamp(max=0.0).expm1().square()).sum(dim=-1), outside)


def pearson_chi2(
    target_log_probs: Tensor, approx_log_probs: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none"
) -> Tensor:
    r"""Pearson χ², :math:`\chi^2(P\|Q) = \sum_i (p_i - q_i)^2 / q_i = \sum_i p_i^2 / q_i - 1`.

    Range [0, ∞]. The value grows as the exponential of the log-ratio and leaves the range of float64 (float32) at log
    ratios of about 709 (88): then it is +inf and has no usable gradient. :func:`renyi` of order 2 is its logarithm,
    log(1 + χ²), and stays finite.
    """
    return _total(_pearson, target_log_probs, approx_log_probs, mask, reduction)


def neyman_chi2(
    target_log_probs: Tensor, approx_log_probs: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none"
) -> Tensor:
    r"""Neyman χ², :math:`\sum_i (p_i - q_i)^2 / p_i = \chi^2(Q\|P)`; see :func:`pearson_chi2` for its range."""
    return pearson_chi2(approx_log_probs, target_log_probs, mask=mask, reduction=reduction)


def _amari(lp: Tensor, lq: Tensor, alpha: float) -> Tensor:
    """Σ q f(p/q) of the Amari divergence for α ≤ ½, each term ≥ 0: [p − q − q (r^α − 1)/α] / (1 − α)."""
    p, q, d = lp.exp(), lq.exp(), _log_ratio(lp, lq)
    if alpha == 0.0:
        power = q * d
    else:
        # q r^α may be small where r^α overflows: there it is exp(log q + α d). Where p or q is 0 expm1 has the limit.
        small = (alpha * d < 1.0) | (d.abs() > 0.5 * _FAR)
        near = q * torch.where(small, (alpha * d).clamp(max=1.0), 0.0).expm1()
        power = torch.where(small, near, (lq + torch.where(small, 0.0, alpha * d)).exp() - q) / alpha
    total = (p - q - power).sum(dim=-1) / (1.0 - alpha)
    return _infinite_where(total, d < -0.5 * _FAR) if alpha <= 0.0 else total


def amari_alpha(
    target_log_probs: Tensor,
    approx_log_probs: Tensor,
    *,
    alpha: float,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    r"""Amari's α-divergence, :math:`\frac{1 - \sum_i p_i^\alpha q_i^{1-\alpha}}{\alpha (1 - \alpha)}`.

    α = 1 is KL(P‖Q) and α = 0 is KL(Q‖P), both exactly, and values near them are accurate (no 0/0). α = ½ is four
    times the squared Hellinger distance, α = 2 half of Pearson's χ², α = −1 half of Neyman's. Amari's own parameter is
    2α − 1. D_α(P‖Q) = D_{1−α}(Q‖P).

    Args:
        alpha: any real number. For 0 < α < 1 the value is finite for any supports, at most 1/(α(1 − α)).

    Raises:
        ValueError: if α is not finite.

    Source: Cichocki, Amari, *Families of Alpha- Beta- and Gamma-Divergences*, Entropy 12 (2010), equation 1.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")
    if alpha > 0.5:
        return amari_alpha(approx_log_probs, target_log_probs, alpha=1.0 - alpha, mask=mask, reduction=reduction)
    return _total(lambda lp, lq: _amari(lp, lq, alpha), target_log_probs, approx_log_probs, mask, reduction)


def _renyi(lp: Tensor, lq: Tensor, order: float) -> Tensor:
    p_zero, q_zero = lp == -math.inf, lq == -math.inf
    log_sum = log_sum_exp((order * lp + (1.0 - order) * lq).masked_fill(p_zero | q_zero, -math.inf))
    if order > 1.0:
        log_sum = _infinite_where(log_sum, q_zero & ~p_zero)
    if abs(order - 1.0) > 0.05:
        return log_sum / (order - 1.0)
    # Near order 1 that is log(1 + small) / small: where the sum is close to one it is 1 + α(α−1) D_α, D_α accurate.
    near = log_sum.abs() < 0.25
    lp, lq = (torch.where(near.unsqueeze(-1), x, 0.0) for x in (lp, lq))
    excess = torch.where(near, _amari(lq, lp, 1.0 - order), 0.0) * (order * (order - 1.0))
    return torch.where(near, excess.log1p(), log_sum) / (order - 1.0)


def renyi(
    target_log_probs: Tensor,
    approx_log_probs: Tensor,
    *,
    order: float,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    r"""Rényi divergence, :math:`\frac{1}{\alpha - 1} \log \sum_i p_i^\alpha q_i^{1-\alpha}`, α = ``order``.

    Order 1 is KL(P‖Q) exactly, and orders near 1 are accurate. Order ½ is −2 log Σ√(pq), twice the Bhattacharyya
    distance; order 2 is log(1 + χ²); order 0 is −log Q(support of P). Non-decreasing in the order.

    Args:
        order: α ≥ 0, finite. For α < 1 the value is +inf only for disjoint supports.

    Raises:
        ValueError: if the order is negative or not finite.

    Source: van Erven, Harremoës, *Rényi Divergence and Kullback–Leibler Divergence*, arXiv 1206.2459, equation 1.
    """
    if not 0.0 <= order < math.inf:
        raise ValueError(f"the order must be finite and not negative, got {order}")
    if order == 1.0:
        return forward_kl(target_log_probs, approx_log_probs, mask=mask, reduction=reduction)
    if order == 0.0:
        lp, lq = _pair(target_log_probs, approx_log_probs, mask)
        return reduce(-log_sum_exp(lq.masked_fill(lp == -math.inf, -math.inf)), mask, reduction)
    return reduce(_renyi(*_pair(target_log_probs, approx_log_probs, mask), order), mask, reduction)


def cross_entropy(
    target_log_probs: Tensor, approx_log_probs: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none"
) -> Tensor:
    r"""Cross-entropy with soft targets, :math:`H(P, Q) = -\sum_i p_i \log q_i = H(P) + \mathrm{KL}(P\|Q)`.

    Integer labels: :func:`relent.divergences.logits.label_cross_entropy`.
    """

    def items(lp: Tensor, lq: Tensor) -> Tensor:
        outside = (lq == -math.inf) & (lp != -math.inf)
        return _infinite_where(-(lp.exp() * lq.clamp(min=-_FAR)).sum(dim=-1), outside)

    return _total(items, target_log_probs, approx_log_probs, mask, reduction)


def entropy(log_probs: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none") -> Tensor:
    r"""Shannon entropy, :math:`H(P) = -\sum_i p_i \log p_i`, in [0, log C]."""
    return cross_entropy(log_probs, log_probs, mask=mask, reduction=reduction)


def partial_forward_kl(
    target_log_probs: Tensor,
    approx_log_probs: Tensor,
    keep: Tensor,
    *,
    rest: Rest,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    r"""Forward KL over a subset K of the classes; ``rest`` says what becomes of the others.

    - ``"drop"``: :math:`\sum_{i \in K} p_i (\log p_i - \log q_i)`. Not a divergence: it can be negative and has its
      minimum :math:`p_K \log p_K` (with :math:`p_K = \sum_K p_i`) at Q = P restricted to K, not at Q = P.
    - ``"renormalise"``: KL of both restricted to K and renormalised. Blind to all mass outside K.
    - ``"bucket"``: the others lumped together into one class. A true divergence, at most the full KL.

    Args:
        keep: boolean [..., C], the classes in K; constant for the gradient.

    Raises:
        ValueError: shapes that differ, or an unknown ``rest``.
    """
    lp, lq = _pair(target_log_probs, approx_log_probs, mask)
    outside = ~as_mask(keep, lp.shape)
    kept_p, kept_q = (x.masked_fill(outside, -math.inf) for x in (lp, lq))
    if rest == "renormalise":
        kept_p, kept_q = (renormalised(x) for x in (kept_p, kept_q))
    elif rest == "bucket":
        others = (log_sum_exp(x.masked_fill(~outside, -math.inf)).unsqueeze(-1) for x in (lp, lq))
        kept_p, kept_q = (torch.cat(pair, dim=-1) for pair in zip((kept_p, kept_q), others))
    elif rest != "drop":
        raise ValueError(f"rest={rest!r} is unknown; use 'drop', 'renormalise' or 'bucket'")
    return reduce(_kl(kept_p, kept_q), mask, reduction)


def top_k_forward_kl(
    target_log_probs: Tensor,
    approx_log_probs: Tensor,
    k: int,
    *,
    rest: Rest,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    """Forward KL over the target's k most probable classes; ``rest`` as in :func:`partial_forward_kl`.

    Raises:
        ValueError: if k is not between 1 and C, shapes differ, or ``rest`` is unknown.
    """
    keep = top_k_classes(target_log_probs.detach(), k)
    return partial_forward_kl(target_log_probs, approx_log_probs, keep, rest=rest, mask=mask, reduction=reduction)


def from_logits(
    divergence: Callable[..., Tensor],
    target_logits: Tensor,
    approx_logits: Tensor,
    *,
    temperature: float = 1.0,
    scale: TemperatureScale = "none",
    **options: Any,
) -> Tensor:
    r"""Evaluate a divergence of this module between softmaxes at temperature τ: :math:`c\,D(P_\tau, Q_\tau)`.

    Args:
        divergence: a function of target and approximate log-probabilities.
        target_logits, approx_logits: [..., C].
        temperature: τ > 0.
        scale: c = 1 for ``"none"``, c = τ² for ``"tau_squared"`` (arXiv 1503.02531, section 2.1).
        options: passed on (``mask``, ``reduction``, ``beta``, …).

    Raises:
        ValueError: a temperature that is not positive, or an unknown scale.
    """
    factor = temperature_factor(temperature, scale)
    target, approx = (tempered_log_probs(x, temperature) for x in (target_logits, approx_logits))
    return factor * divergence(target, approx, **options)


def tempered_forward_kl(
    target_logits: Tensor, approx_logits: Tensor, temperature: float, *, scale: TemperatureScale, **options: Any
) -> Tensor:
    """Forward KL between softmaxes at a temperature, with or without τ² by name; see :func:`from_logits`."""
    return from_logits(forward_kl, target_logits, approx_logits, temperature=temperature, scale=scale, **options)


def tempered_reverse_kl(
    target_logits: Tensor, approx_logits: Tensor, temperature: float, *, scale: TemperatureScale, **options: Any
) -> Tensor:
    """Reverse KL between softmaxes at a temperature, with or without τ² by name; see :func:`from_logits`."""
    return from_logits(reverse_kl, target_logits, approx_logits, temperature=temperature, scale=scale, **options)


def tempered_jensen_shannon(
    target_logits: Tensor, approx_logits: Tensor, temperature: float, *, scale: TemperatureScale, **options: Any
) -> Tensor:
    """Jensen–Shannon divergence between softmaxes at a temperature; see :func:`from_logits`."""
    return from_logits(jensen_shannon, target_logits, approx_logits, temperature=temperature, scale=scale, **options)
