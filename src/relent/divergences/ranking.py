r"""Probability models of rankings: Plackett–Luce, and the losses of lists and pairs that follow from it.

A score is one real number an item, larger is better; only differences count. A *ranking* lists item indices from the
best down: ``ranking[k]`` is the item at position k, not the position of item k. Lists are the last dimension, the
batch may have any shape, and results are in nats. Half precision is computed in float32. Gradients flow into scores;
relevances (labels, or a teacher's scores) are constants.

``mask`` (..., C), boolean or 0/1 integer, marks the real items of a list. Others may hold anything, NaN included, get
no gradient and change nothing; a list without a real item gives 0 and is not counted by a mean.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from relent.divergences.discrete import cross_entropy
from relent.divergences.logits import tempered_log_probs
from relent.divergences.reduction import Reduction, as_mask, masked_mean, reduce, upcast

RankNetTargets = Literal["soft", "hard"]

__all__ = [
    "RankNetTargets",
    "list_mle",
    "list_net",
    "plackett_luce_log_prob",
    "plackett_luce_loss",
    "plackett_luce_steps",
    "rank_net",
    "ranking_of",
    "sample_plackett_luce",
]

# Score of an absent item. It is finite so that a sum over absent items only has no NaN gradient, and so low that beside
# any real score its exponential is exactly 0.
_ABSENT = -1e30


def _present(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Upcast, and give absent items a score that no choice notices."""
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(f"scores need a last dimension of at least one item, got shape {tuple(scores.shape)}")
    scores = upcast(scores)
    return scores if mask is None else torch.where(as_mask(mask, scores.shape), scores, _ABSENT)


def _over_lists(values: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
    """Reduce over lists, (...), leaving out those without a real item."""
    return reduce(values, None if mask is None else (mask != 0).any(dim=-1), reduction)


def _same_shape(scores: Tensor, relevance: Tensor) -> None:
    if scores.shape != relevance.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and relevance {tuple(relevance.shape)} must have one shape")


def ranking_of(relevance: Tensor, *, mask: Tensor | None = None, first: Tensor | None = None) -> Tensor:
    """Ranking by descending relevance; ties keep the order of the items, absent items come last.

    Args:
        relevance: (..., C), for instance the logits of a teacher.
        mask: (..., C), see the module.
        first: (...) a real item to put before all others, for instance the true label.

    Returns:
        (..., C) item indices, int64.

    Raises:
        ValueError: if the shapes do not fit.
    """
    keys = _present(relevance.detach(), mask)
    if first is not None:
        if first.shape != relevance.shape[:-1]:
            raise ValueError(f"first has shape {tuple(first.shape)}, expected {tuple(relevance.shape[:-1])}")
        keys = keys.scatter(-1, first.long().unsqueeze(-1), math.inf)
    return keys.argsort(dim=-1, descending=True, stable=True)


def plackett_luce_steps(scores: Tensor, ranking: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Negative log-probability of each choice of a ranking under the Plackett–Luce model,

    .. math:: \ell_k = \log \sum_{i \notin \{\pi_1, \dots, \pi_{k-1}\}} e^{s_i} - s_{\pi_k}.

    Each choice competes with all items not chosen before, those that a partial ranking never names included. The sums
    are one cumulative log-sum-exp from the last position upwards, :math:`O(C)`.

    Args:
        scores: (..., C), finite.
        ranking: (..., K) indices of distinct items, best first; K < C is a partial (top-K) ranking.
        mask: (..., C), see the module; a position that names an absent item gives 0. Top-K lists of different length:
            pass whole rankings and weight the steps.

    Returns:
        (..., K) nats, at least 0.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the ranking does not hold integers.

    Source: Plackett, *The Analysis of Permutations* (1975); Luce, *Individual Choice Behavior* (1959).
    """
    if ranking.dtype.is_floating_point or ranking.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise TypeError(f"a ranking must hold item indices of an integer dtype, got {ranking.dtype}")
    present = _present(scores, mask)
    if ranking.shape[:-1] != scores.shape[:-1] or not 1 <= ranking.shape[-1] <= scores.shape[-1]:
        raise ValueError(
            f"a ranking of shape {tuple(ranking.shape)} does not fit scores of shape {tuple(scores.shape)}: "
            "expected (..., K) beside (..., C) with K from 1 to C"
        )
    ranking = ranking.long()
    chosen = present.gather(-1, ranking)
    ladder = chosen
    if ranking.shape[-1] < scores.shape[-1]:
        never_chosen = present.scatter(-1, ranking, _ABSENT).logsumexp(-1, keepdim=True)
        ladder = torch.cat((chosen, never_chosen), dim=-1)
    left = ladder.flip(-1).logcumsumexp(-1).flip(-1)[..., : ranking.shape[-1]]
    steps = left - chosen
    return steps if mask is None else torch.where((mask != 0).gather(-1, ranking), steps, 0.0)


def plackett_luce_log_prob(scores: Tensor, ranking: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Log-probability of a whole or partial ranking, :math:`\log P(\pi \mid s) = -\sum_k \ell_k`, shape (...).

    The exponentials sum to one over all rankings of one length. Arguments, errors and source as
    :func:`plackett_luce_steps`.
    """
    return -plackett_luce_steps(scores, ranking, mask=mask).sum(dim=-1)


def plackett_luce_loss(
    scores: Tensor,
    ranking: Tensor,
    *,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    r"""Weighted negative log-likelihood of a ranking, :math:`\sum_k \alpha_k \ell_k`.

    With :math:`\alpha = (1, 0, \dots, 0)` it is the cross-entropy of the first item; with 1 it is ListMLE; with a
    teacher's probability of the item chosen at each step it is the list-wise distillation loss of arXiv 2506.12542.
    Convex in the scores for weights that are not negative.

    Args:
        scores, ranking, mask: as :func:`plackett_luce_steps`.
        weights: α, (..., K) or broadcast to it, one a *position*; 1 by default. Constants (detach a teacher's).
        reduction: over lists, see :func:`relent.divergences.reduction.reduce`.

    Returns:
        Nats, (...) or reduced.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the ranking does not hold integers.

    Source: Bassam, Zhu, Bian, *PLD: A Choice-Theoretic List-Wise Knowledge Distillation*, arXiv 2506.12542; position
    weights: Lan et al., *Position-Aware ListMLE* (2014).
    """
    steps = plackett_luce_steps(scores, ranking, mask=mask)
    if weights is not None:
        weights = upcast(weights).expand_as(steps)
        steps = steps * (weights if mask is None else torch.where((mask != 0).gather(-1, ranking.long()), weights, 0.0))
    return _over_lists(steps.sum(dim=-1), mask, reduction)


def list_mle(scores: Tensor, relevance: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none") -> Tensor:
    """ListMLE: the negative Plackett–Luce log-likelihood of the ranking by relevance (ties: order of the items).

    Args:
        scores, relevance: (..., C). mask: (..., C). reduction: over lists.

    Returns:
        Nats, (...) or reduced.

    Raises:
        ValueError: if the shapes do not fit.

    Source: Xia et al., *Listwise Approach to Learning to Rank: Theory and Algorithm* (2008), section 4.3.
    """
    _same_shape(scores, relevance)
    return plackett_luce_loss(scores, ranking_of(relevance, mask=mask), mask=mask, reduction=reduction)


def list_net(scores: Tensor, relevance: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "none") -> Tensor:
    r"""ListNet: cross-entropy of the top-one probabilities, :math:`-\sum_i p_i \log q_i`, p and q softmaxes of y and s.

    It exceeds KL(p‖q) by the entropy of the target, a constant. Arguments and errors as :func:`list_mle`.

    Source: Cao et al., *Learning to Rank: From Pairwise Approach to Listwise Approach* (2007), equation 5.
    """
    _same_shape(scores, relevance)
    target, approx = (tempered_log_probs(_present(x, mask)) for x in (relevance.detach(), scores))
    values = cross_entropy(target, approx)
    return _over_lists(values, mask, reduction)


def rank_net(
    scores: Tensor,
    relevance: Tensor,
    *,
    targets: RankNetTargets,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    r"""RankNet: logistic loss of score differences, averaged over the pairs i < j of a list,

    .. math:: \mathrm{softplus}(d_{ij}) - P_{ij} d_{ij}, \qquad d_{ij} = s_i - s_j.

    Args:
        scores, relevance: (..., C).
        targets: ``"soft"``: :math:`P_{ij} = \sigma(y_i - y_j)`, all pairs (distillation of a teacher's scores; the loss
            at s = y is the entropy of P, not 0); ``"hard"``: P is 1 for :math:`y_i > y_j`, 0 for :math:`y_i < y_j`,
            and ties are left out.
        mask: (..., C), see the module.
        reduction: over lists; lists without a pair are not counted.

    Returns:
        Nats, (...) or reduced.

    Raises:
        ValueError: shapes that do not fit, or unknown targets.

    Source: Burges et al., *Learning to Rank using Gradient Descent* (2005), equation 3.
    """
    if targets not in get_args(RankNetTargets):
        raise ValueError(f"targets={targets!r} is unknown; use one of {get_args(RankNetTargets)}")
    _same_shape(scores, relevance)
    present, known = _present(scores, mask), _present(relevance.detach(), mask)
    size = scores.shape[-1]
    first, second = torch.triu_indices(size, size, offset=1, device=scores.device)
    gap, order = present[..., first] - present[..., second], known[..., first] - known[..., second]
    counted = torch.ones_like(gap, dtype=torch.bool)
    if mask is not None:
        real = mask != 0
        counted = real[..., first] & real[..., second]
    if targets == "hard":
        counted = counted & (order != 0)
    gap = torch.where(counted, gap, 0.0)
    wanted = order.sigmoid() if targets == "soft" else (order > 0).to(gap.dtype)
    values = masked_mean(F.softplus(gap) - wanted * gap, counted, dim=-1, empty="zero")
    return reduce(values, counted.any(dim=-1), reduction)


def sample_plackett_luce(
    scores: Tensor,
    sample_shape: tuple[int, ...] = (),
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw rankings from the Plackett–Luce model: the order of :math:`s_i + g_i` with independent Gumbel noise.

    Args:
        scores: (..., C).
        sample_shape: leading shape of the sample.
        mask: (..., C), see the module; absent items come last.
        generator: source of randomness, on the device of ``scores``.

    Returns:
        (\*sample_shape, ..., C) item indices, int64. The first K positions are a draw of the top-K ranking.

    Source: Yellott, *The Relationship between Luce's Choice Axiom, Thurstone's Theory of Comparative Judgment, and the
    Double Exponential Distribution* (1977).
    """
    present = _present(scores.detach(), mask)
    noise = torch.empty((*sample_shape, *present.shape), dtype=present.dtype, device=present.device)
    return (present - noise.exponential_(generator=generator).log()).argsort(dim=-1, descending=True)
