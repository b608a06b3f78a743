"""Scores of rankings: nDCG, reciprocal rank, precision, recall and average precision at a cut-off.

Input is a score and a relevance grade for each document of each query, [..., D], larger scores ranked first; ``mask``
(True = kept) marks the documents that exist where lists are padded to one length. Results have shape [...].

Tied scores leave the order open. Every function here returns the expectation over all orders of the tied documents, in
closed form, so that no score depends on the order in which documents happen to be stored, and a constant ranker scores
what a random one does. Without ties this is the usual definition.

Source of the closed forms: McSherry & Najork, "Computing Information Retrieval Performance Measures Efficiently in the
Presence of Tied Scores" (ECIR 2008).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relent.divergences.reduction import as_mask
from relent.scores.classification import Array, as_tensor

__all__ = ["average_precision", "ndcg", "precision_at_k", "recall_at_k", "reciprocal_rank"]

Gain = Literal["exponential", "linear"]


class _Ranking(NamedTuple):
    """Ranks in order; all but `gain` describes the tie group that holds a rank."""

    gain: Tensor  # [..., D] mean of the tie group
    start: Tensor  # [..., D] number of documents before the group
    size: Tensor  # [..., D] number of documents in the group
    total: Tensor  # [..., D] sum of the gains in the group
    before: Tensor  # [..., D] sum of the gains before the group


def ndcg(
    scores: Array,
    relevance: Array,
    k: int | None = None,
    gain: Gain = "exponential",
    *,
    mask: Array = None,
    undefined: float = 0.0,
) -> Tensor:
    r"""Normalised discounted cumulative gain, :math:`\mathrm{DCG}_k / \mathrm{IDCG}_k`, in [0, 1].

    :math:`\mathrm{DCG}_k = \sum_{r=1}^{k} g(\mathrm{rel}_r) / \log_2(r + 1)`, the ideal DCG that of the documents in
    order of relevance, cut at the same k.

    Args:
        scores: [..., D], finite where kept.
        relevance: [..., D], grades >= 0.
        k: cut-off, at least 1; None takes the whole list. A cut-off beyond the list is the whole list.
        gain: ``"exponential"``: :math:`2^{rel} - 1`; ``"linear"``: rel. Equal for grades 0 and 1.
        mask: [..., D], True = the document exists.
        undefined: value for a query without relevant documents (0 as in trec_eval and scikit-learn; NaN leaves such
            queries out of a ``nanmean``).

    Returns:
        Float64 [...].

    Raises:
        ValueError: shapes that differ, an empty list, NaN or infinite scores, negative grades, k < 1, unknown gain.

    Source: Järvelin & Kekäläinen (2002) for linear gain; Burges et al. (2005) for exponential gain.
    """
    if gain not in ("exponential", "linear"):
        raise ValueError(f'gain must be "exponential" or "linear", got {gain!r}')
    values, grades = _checked(scores, relevance, mask, k)
    gains = torch.exp2(grades) - 1 if gain == "exponential" else grades
    weights = _within(k, grades) / torch.log2(torch.arange(2, grades.shape[-1] + 2, device=grades.device).double())
    achieved = (_rank(values, gains).gain * weights).sum(-1)
    ideal = (gains.sort(-1, descending=True).values * weights).sum(-1)
    return torch.where(ideal > 0, achieved / ideal, undefined)


def precision_at_k(scores: Array, relevance: Array, k: int, *, mask: Array = None) -> Tensor:
    """Share of relevant documents (grade > 0) among the first k, divided by k even where the list is shorter.

    Args, raises: as in `ndcg`.
    """
    values, grades = _checked(scores, relevance, mask, k)
    return (_rank(values, (grades > 0).double()).gain * _within(k, grades)).sum(-1) / k


def recall_at_k(scores: Array, relevance: Array, k: int, *, mask: Array = None, undefined: float = 0.0) -> Tensor:
    """Share of the relevant documents (grade > 0) that stand among the first k.

    Args, raises: as in `ndcg`.
    """
    values, grades = _checked(scores, relevance, mask, k)
    relevant = (grades > 0).double()
    found = (_rank(values, relevant).gain * _within(k, grades)).sum(-1)
    return torch.where(relevant.sum(-1) > 0, found / relevant.sum(-1), undefined)


def reciprocal_rank(
    scores: Array, relevance: Array, k: int | None = None, *, mask: Array = None, undefined: float = 0.0
) -> Tensor:
    r"""Reciprocal rank of the first relevant document (grade > 0); its mean over queries is the MRR.

    In a tie group of n documents, r of them relevant, the first relevant one is at place i with probability
    :math:`\binom{n-i}{r-1} / \binom{n}{r}`. With a cut-off, first hits beyond rank k count 0.

    Args, raises: as in `ndcg`.
    """
    values, grades = _checked(scores, relevance, mask, k)
    ranking = _rank(values, (grades > 0).double())
    n, r = ranking.size, ranking.total
    place = torch.arange(1, grades.shape[-1] + 1, device=grades.device).double()
    first = (ranking.before == 0) & (r > 0)
    left = n - (place - ranking.start)  # documents of the group after this place
    possible = first & (left >= r - 1)
    log_ways = _log_binomial(left, r - 1) - _log_binomial(n, r)
    chance = torch.where(possible, log_ways, -torch.inf).exp()
    hits = (chance / place * _within(k, grades)).sum(-1)
    return torch.where((grades > 0).any(-1), hits, undefined)


def average_precision(
    scores: Array, relevance: Array, k: int | None = None, *, mask: Array = None, undefined: float = 0.0
) -> Tensor:
    r"""Average precision, :math:`\frac{1}{R}\sum_{r \le k} \mathrm{rel}_r\, \mathrm{precision}_r`; its mean is the MAP.

    R is the number of relevant documents (grade > 0) in the whole list, also with a cut-off (trec_eval's convention).
    scikit-learn's function of this name treats ties as one threshold, not as an expectation, and differs there.

    Args, raises: as in `ndcg`.
    """
    values, grades = _checked(scores, relevance, mask, k)
    ranking = _rank(values, (grades > 0).double())
    place = torch.arange(1, grades.shape[-1] + 1, device=grades.device).double()
    # given a relevant document at this place, the others of its group are spread evenly over the other places
    others = (ranking.total - 1) / (ranking.size - 1).clamp(min=1) * (place - ranking.start - 1)
    terms = ranking.gain * (ranking.before + others + 1) / place
    relevant = (grades > 0).sum(-1)
    total = (terms * _within(k, grades)).sum(-1)
    return torch.where(relevant > 0, total / relevant, undefined)


def _rank(values: Tensor, gains: Tensor) -> _Ranking:
    """Sort by score and describe the tie groups."""
    ordered, order = values.sort(-1, descending=True)
    gains = gains.gather(-1, order)
    group = torch.zeros_like(order)
    group[..., 1:] = (ordered[..., 1:] != ordered[..., :-1]).cumsum(-1)

    def per_group(x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter_add(-1, group, x)

    sizes, totals = per_group(torch.ones_like(gains)), per_group(gains)
    size, total = sizes.gather(-1, group), totals.gather(-1, group)
    start = (sizes.cumsum(-1) - sizes).gather(-1, group)
    before = (totals.cumsum(-1) - totals).gather(-1, group)
    return _Ranking(total / size, start, size, total, before)


def _within(k: int | None, like: Tensor) -> Tensor:
    count = like.shape[-1]
    return (torch.arange(count, device=like.device) < (count if k is None else k)).double()


def _log_binomial(n: Tensor, r: Tensor) -> Tensor:
    """log C(n, r); callers mask what lies outside 0 <= r <= n."""
    n, r = n.clamp(min=0), r.clamp(min=0)
    return torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma((n - r).clamp(min=0) + 1)


def _checked(scores: Array, relevance: Array, mask: Array, k: int | None) -> tuple[Tensor, Tensor]:
    """Check; documents that do not exist get score −inf, behind all others, and grade 0."""
    values, grades = as_tensor(scores).detach().double(), as_tensor(relevance).double()
    if values.shape != grades.shape or values.ndim == 0 or values.numel() == 0:
        raise ValueError(f"need two equal non-empty shapes [..., D], got {tuple(values.shape)}, {tuple(grades.shape)}")
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    keep = torch.ones_like(values, dtype=torch.bool) if mask is None else as_mask(as_tensor(mask), values.shape)
    if not bool(values[keep].isfinite().all()):
        raise ValueError("scores must be finite; mask the documents that do not exist")
    if not bool(((grades[keep] >= 0) & grades[keep].isfinite()).all()):
        raise ValueError("relevance grades must be finite and not negative")
    return values.masked_fill(~keep, -torch.inf), grades.masked_fill(~keep, 0.0)
