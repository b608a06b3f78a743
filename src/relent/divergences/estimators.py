r"""Monte-Carlo estimators of KL(π‖ref) from samples, and the losses whose gradients are right.

π is the policy (gradient flows), ref the reference; all functions take log-probabilities of the **sampled** tokens (or
sequences) and work elementwise, with u = log ref(x) − log π(x). x ~ π unless a behaviour policy μ is named.

==============================  =======================================  ==============  ============================
function                        value                                    bias, variance  expected gradient as a loss
==============================  =======================================  ==============  ============================
:func:`kl_k1`                   −u                                       unbiased, high  **zero** (pure noise)
:func:`kl_k2`                   u²/2                                     biased, low     reverse KL, ∇KL(π‖ref)
:func:`kl_k3`                   exp(u) − 1 − u                           unbiased, low*  **forward** KL, ∇KL(ref‖π)
:func:`policy_gradient_loss`    sg(−u) log π (no KL value)               —               reverse KL
:func:`straight_through_kl`     value of one, gradient of another        as the value    as the gradient's estimator
:func:`importance_weighted_kl`  w·k1, w·k3 (x ~ μ, w = π/μ)              unbiased        reverse KL
                                w·k2                                     biased          reverse KL
full vocabulary                 ``discrete.reverse_kl`` at each prefix   exact a token   reverse KL
==============================  =======================================  ==============  ============================

\* k3 is k1 plus the control variate exp(u) − 1: never negative, but with a heavy tail where ref ≫ π: its variance is
:math:`\chi^2`-like and can exceed that of k1. "Valid loss" and "valid metric" differ: k1 and k3 are metrics, k2 and
``policy_gradient_loss`` are losses for the reverse KL, k3 is a loss only if the forward KL is wanted. For the forward
KL from samples of the *reference* swap the arguments: ``kl_k3(reference, policy)`` has that KL's value and gradient.

All this holds for one distribution (a token given its prefix). Over sequences, sums of per-token losses leave out that
a token changes later prefixes: :func:`sequence_kl_loss` puts that back.

Masked positions are replaced before anything is computed and give 0: reduce with
:func:`relent.divergences.reduction.reduce` and the same mask. Half precision is computed in float32.

Sources: Schulman, *Approximating KL Divergence* (2020, joschu.net/blog/kl-approx.html); Tang, Munos, *On a few pitfalls
in KL divergence gradient estimation for RL*, arXiv 2506.09477; Amini, Vieira, Cotterell, *Better Estimation of the KL
Divergence Between Language Models*, arXiv 2504.10637.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from relent.divergences.reduction import as_mask, upcast

Estimator = Literal["k1", "k2", "k3"]

__all__ = [
    "Estimator",
    "importance_weight",
    "importance_weighted_kl",
    "kl_estimate",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_reward",
    "policy_gradient_loss",
    "sequence_kl_loss",
    "straight_through_kl",
]


def _log_ratio(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor | None) -> Tensor:
    """u = log ref − log π, 0 where masked."""
    if log_probs.shape != reference_log_probs.shape:
        raise ValueError(
            f"log-probabilities of the sampled tokens must have one shape, got {tuple(log_probs.shape)} and "
            f"{tuple(reference_log_probs.shape)}"
        )
    log_probs, reference_log_probs = upcast(log_probs), upcast(reference_log_probs)
    if mask is not None:
        keep = as_mask(mask, log_probs.shape)
        log_probs, reference_log_probs = (torch.where(keep, x, 0.0) for x in (log_probs, reference_log_probs))
    return reference_log_probs - log_probs


def kl_k1(log_probs: Tensor, reference_log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""k1 = log π(x) − log ref(x): unbiased for KL(π‖ref), of either sign, high variance. **A metric or a reward.**

    As a loss its gradient is ∇ log π, whose expectation under π is zero: it learns nothing and adds noise.

    Args:
        log_probs: log π of the samples, any shape, nats. reference_log_probs: log ref, same shape.
        mask: same shape, True = kept; others give 0.

    Raises:
        ValueError: if the shapes differ.
    """
    return -_log_ratio(log_probs, reference_log_probs, mask)


def kl_k2(log_probs: Tensor, reference_log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""k2 = ½ (log π(x) − log ref(x))²: biased for KL(π‖ref) (to third order in u), low variance. **A loss.**

    Its gradient, (log π − log ref) ∇ log π, has the expectation of ∇KL(π‖ref) exactly, on-policy.
    Arguments as in :func:`kl_k1`.
    """
    return 0.5 * _log_ratio(log_probs, reference_log_probs, mask).square()


def kl_k3(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    *,
    mask: Tensor | None = None,
    ratio_clamp: float | None = None,
    value_clamp: float | None = None,
) -> Tensor:
    r"""k3 = exp(u) − 1 − u, u = log ref − log π: unbiased for KL(π‖ref), never negative. **A metric.**

    As a loss on-policy its gradient, (1 − ref/π) ∇ log π, is that of the *forward* KL(ref‖π). The other way round, with
    samples of the first argument held fixed and the gradient in the second, it is the exact forward-KL loss.

    Args:
        log_probs, reference_log_probs, mask: as in :func:`kl_k1`.
        ratio_clamp: clamp u to ±this first (20 in verl-like code). Without it exp overflows at u > 88 in float32.
        value_clamp: clamp the result to ±this (10 there). Both clamps bias the value and give zero gradient outside:
            with 10, tokens with u > 2.61 or u < −11 have no gradient.

    Raises:
        ValueError: if the shapes differ.
    """
    u = _log_ratio(log_probs, reference_log_probs, mask)
    if ratio_clamp is not None:
        u = u.clamp(-ratio_clamp, ratio_clamp)
    value = u.expm1() - u
    return value if value_clamp is None else value.clamp(-value_clamp, value_clamp)


_ESTIMATORS: dict[str, Callable[..., Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def kl_estimate(
    log_probs: Tensor, reference_log_probs: Tensor, estimator: Estimator, *, mask: Tensor | None = None
) -> Tensor:
    """Return the estimator of that name, for configurations; see :func:`kl_k1`, :func:`kl_k2`, :func:`kl_k3`.

    Raises:
        ValueError: if the name is unknown or the shapes differ.
    """
    if estimator not in _ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} is unknown; use one of {get_args(Estimator)}")
    return _ESTIMATORS[estimator](log_probs, reference_log_probs, mask=mask)


def kl_reward(log_probs: Tensor, reference_log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """KL penalty as a reward, log ref − log π, detached ("k1 in the reward"): multiply by β and add to the reward.

    With returns summed over later tokens this gives the exact gradient of the sequence KL. Arguments as in
    :func:`kl_k1`.
    """
    return _log_ratio(log_probs, reference_log_probs, mask).detach()


def policy_gradient_loss(log_probs: Tensor, reference_log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Score-function loss sg(log π − log ref) · log π: on-policy gradient of KL(π‖ref), sample by sample that of k2.

    The value means nothing; log the value of :func:`kl_k1` or :func:`kl_k3`. Arguments as in :func:`kl_k1`.
    """
    u = _log_ratio(log_probs, reference_log_probs, mask).detach()
    kept = upcast(log_probs) if mask is None else torch.where(as_mask(mask, log_probs.shape), upcast(log_probs), 0.0)
    return -u * kept


def straight_through_kl(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    *,
    value: Estimator = "k3",
    gradient: Estimator = "k2",
    mask: Tensor | None = None,
) -> Tensor:
    """Value of one estimator with the gradient of another.

    The default has the unbiased value of k3 and the reverse KL's gradient (verl's "k3+").
    Arguments as in :func:`kl_k1`.

    Raises:
        ValueError: an unknown name, or shapes that differ.
    """
    shown = kl_estimate(log_probs, reference_log_probs, value, mask=mask)
    pulled = kl_estimate(log_probs, reference_log_probs, gradient, mask=mask)
    return shown.detach() + pulled - pulled.detach()


def importance_weight(
    log_probs: Tensor, behaviour_log_probs: Tensor, *, mask: Tensor | None = None, ceiling: float | None = None
) -> Tensor:
    r"""Importance weight w = π(x)/μ(x) of samples x ~ μ, with gradient; 1 where masked.

    Args:
        log_probs, behaviour_log_probs: log π and log μ of the samples, same shape, nats.
        mask: same shape.
        ceiling: truncate w at this value (bias for variance; zero gradient above).

    Raises:
        ValueError: if the shapes differ.
    """
    weight = (-_log_ratio(log_probs, behaviour_log_probs.detach(), mask)).exp()
    return weight if ceiling is None else weight.clamp(max=ceiling)


def importance_weighted_kl(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    behaviour_log_probs: Tensor,
    estimator: Estimator = "k3",
    *,
    mask: Tensor | None = None,
    weight_ceiling: float | None = None,
) -> Tensor:
    r"""Off-policy estimator :math:`w\,k_i`, x ~ μ, w = π(x)/μ(x). **A loss** for the reverse KL, whichever k.

    For k1 and k3, :math:`\mathbb{E}_\mu[w k_i] = \mathrm{KL}(\pi\|\mathrm{ref})` for every π, so with the gradient
    also taken through w the derivative is exact. For k2, whose value is biased, w is detached: then its gradient is
    exact. On-policy, give ``log_probs.detach()`` as the behaviour: w is 1 in value, and w·k3 has the low variance of k3
    with the gradient of the reverse KL. A ceiling trades this for variance.

    Arguments as in :func:`kl_k1` and :func:`importance_weight`.

    Raises:
        ValueError: if the shapes differ or the name is unknown.
    """
    weight = importance_weight(log_probs, behaviour_log_probs, mask=mask, ceiling=weight_ceiling)
    if estimator == "k2":
        weight = weight.detach()
    return weight * kl_estimate(log_probs, reference_log_probs, estimator, mask=mask)


def sequence_kl_loss(log_probs: Tensor, token_kl: Tensor, *, exact: bool, mask: Tensor | None = None) -> Tensor:
    r"""Loss per sequence whose on-policy gradient is that of the KL between **sequence** distributions.

    That is the expected sum of the token KLs at the sampled prefixes, and a token also changes later prefixes:

    .. math:: \nabla \mathrm{KL} = \mathbb{E}\Big[\sum_t \nabla \mathrm{KL}_t
              + \sum_s \nabla \log \pi(y_s)\, \mathrm{sg}\Big(\sum_{t > s} \mathrm{KL}_t\Big)\Big].

    With ``exact=True``, ``token_kl`` is the full-vocabulary KL at each prefix (``discrete.reverse_kl``), the
    Rao–Blackwellised estimator: its sum is unbiased with a variance never above that of summed k1, and the loss is
    :math:`\sum_t \mathrm{KL}_t + \sum_s \log\pi(y_s)\,\mathrm{sg}(\sum_{t>s}\mathrm{KL}_t)`. With ``exact=False``,
    ``token_kl`` is k1 of the sampled tokens and the loss is the score-function one with the KL to go,
    :math:`\sum_s \log\pi(y_s)\,\mathrm{sg}(\sum_{t \ge s} k1_t)`.

    The value of the loss means nothing; log ``masked_sum(token_kl, mask, dim=-1)``.

    Args:
        log_probs: log π(y_t | y_<t) of the sampled tokens, [..., T].
        token_kl: [..., T], nats.
        exact: which of the two ``token_kl`` is.
        mask: [..., T].

    Returns:
        [...], one number a sequence.

    Raises:
        ValueError: if the shapes differ.

    Source: Amini, Vieira, Cotterell, arXiv 2504.10637, section 4; Tang, Munos, arXiv 2506.09477.
    """
    if log_probs.shape != token_kl.shape:
        raise ValueError(f"shapes differ: log_probs {tuple(log_probs.shape)}, token_kl {tuple(token_kl.shape)}")
    log_probs, token_kl = upcast(log_probs), upcast(token_kl)
    if mask is not None:
        keep = as_mask(mask, log_probs.shape)
        log_probs, token_kl = torch.where(keep, log_probs, 0.0), torch.where(keep, token_kl, 0.0)
    fixed = token_kl.detach()
    to_go = fixed.flip(-1).cumsum(-1).flip(-1)
    if exact:
        return (token_kl + log_probs * (to_go - fixed)).sum(dim=-1)
    return (log_probs * to_go).sum(dim=-1)
