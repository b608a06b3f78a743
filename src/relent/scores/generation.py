"""Scores of generated text: pass@k, diversity (distinct-n, self-BLEU), perplexity and win rate.

Sequences are lists of hashable tokens (ids or words): what a token is decides distinct-n and BLEU, so state the
tokenizer with the number. Special tokens are the caller's to strip.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from math import exp, log
from typing import Literal

import torch
from torch import Tensor

from relent.divergences.reduction import masked_mean
from relent.scores.classification import Array, as_tensor
from relent.scores.inference import Interval, win_rate_interval

__all__ = ["bleu", "distinct_n", "pass_all_k", "pass_at_k", "perplexity", "self_bleu", "win_rate"]

Tokens = Sequence[Hashable]
Smoothing = Literal["add-one", "none"]


def pass_at_k(samples: Array, correct: Array, k: int) -> Tensor:
    r"""Unbiased pass@k: the chance that at least one of k samples is right, :math:`1 - \binom{n-c}{k} / \binom{n}{k}`.

    Computed as :math:`1 - \prod_{j<k} (1 - c / (n - j))` through log1p and expm1: exact to rounding for any n, also
    where the value is tiny. The plug-in :math:`1 - (1 - c/n)^k` is biased downwards.

    Args:
        samples: number of samples n of each problem, [...] or one number.
        correct: number of right ones c, [...].
        k: at least 1 and at most the smallest n: no estimate from n < k samples is unbiased.

    Returns:
        Float64 [...], one a problem; average over problems for the benchmark's score.

    Raises:
        ValueError: no problem, c outside [0, n], k outside [1, n].

    Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, equation 1.
    """
    n, c, drawn = _trials(samples, correct, k)
    misses = torch.log1p(-(c / (n - drawn)).clamp(max=1.0)).sum(-1)
    return -torch.expm1(misses)


def pass_all_k(samples: Array, correct: Array, k: int) -> Tensor:
    r"""Unbiased pass^k: the chance that all of k samples are right, :math:`\binom{c}{k} / \binom{n}{k}`.

    Args, returns, raises: as in `pass_at_k`.

    Source: Yao et al., "τ-bench", arXiv:2406.12045, section 3.
    """
    n, c, drawn = _trials(samples, correct, k)
    return ((c - drawn).clamp(min=0) / (n - drawn)).prod(-1)


def distinct_n(sequences: Sequence[Tokens], n: int) -> float:
    """Number of different n-grams over the number of all n-grams of the whole set, in (0, 1].

    It falls as the set grows: compare only sets of equal size. Sequences shorter than n have no n-gram.

    Raises:
        ValueError: n < 1, or no n-gram at all.

    Source: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", arXiv:1510.03055.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    counts: Counter[Tokens] = Counter(gram for tokens in sequences for gram in _grams(tokens, n))
    if not counts:
        raise ValueError(f"no sequence has {n} tokens: there is no {n}-gram to count")
    return len(counts) / counts.total()


def bleu(
    hypothesis: Tokens, references: Sequence[Tokens], max_order: int = 4, smoothing: Smoothing = "add-one"
) -> float:
    r"""Sentence BLEU, :math:`\min(1, e^{1 - r/c}) \prod_n p_n^{1/N}`, in [0, 1].

    p_n is the share of the hypothesis's n-grams found in a reference, counts clipped at the largest count in one
    reference; c is the length of the hypothesis, r the closest reference length (of two equally close, the shorter).
    N is `max_order`, or the length of a shorter hypothesis (the "effective order").

    Args:
        smoothing: ``"add-one"`` adds one to numerator and denominator of p_n for n > 1 (Lin & Och); ``"none"`` gives 0
            as soon as one order has no match.

    An empty hypothesis scores 1 if a reference is empty too, else 0.

    Raises:
        ValueError: no reference, max_order < 1, unknown smoothing.

    Source: Papineni et al. (ACL 2002); Lin & Och, "ORANGE" (COLING 2004), section 4.
    """
    _check_bleu(len(references), max_order, smoothing)
    matched = []
    for n in range(1, max_order + 1):
        limit: Counter[Tokens] = Counter()
        for reference in references:
            limit |= Counter(_grams(reference, n))
        matched.append((Counter(_grams(hypothesis, n)) & limit).total())
    lengths = sorted(len(reference) for reference in references)
    return _bleu(len(hypothesis), _closest(lengths, len(hypothesis)), matched, smoothing)


def self_bleu(samples: Sequence[Tokens], max_order: int = 4, smoothing: Smoothing = "add-one") -> float:
    """Mean BLEU of each sample against all the others, in [0, 1]: 1 when all are alike; lower is more diverse.

    It grows with the number of samples: compare only sets of equal size. One pass over the n-grams instead of a
    comparison of all pairs: each n-gram keeps its two largest counts, so that the largest among the others is known.

    Raises:
        ValueError: fewer than two samples, max_order < 1, unknown smoothing.

    Source: Zhu et al., "Texygen", arXiv:1802.01886, section 3.2; definition of BLEU as in `bleu`.
    """
    _check_bleu(len(samples) - 1, max_order, smoothing)
    matched = [_matched_by_others([Counter(_grams(tokens, n)) for tokens in samples]) for n in range(1, max_order + 1)]
    lengths = sorted(len(tokens) for tokens in samples)
    total = 0.0
    for i, tokens in enumerate(samples):
        own = bisect_left(lengths, len(tokens))
        closest = _closest(lengths[:own] + lengths[own + 1 :], len(tokens))
        total += _bleu(len(tokens), closest, [order[i] for order in matched], smoothing)
    return total / len(samples)


def perplexity(token_log_probs: Array, mask: Array = None, per: Literal["corpus", "sequence"] = "corpus") -> Tensor:
    r"""Perplexity, :math:`\exp(-\sum_t m_t \log p_t / \sum_t m_t)`: e to the mean negative log-likelihood of a token.

    Args:
        token_log_probs: [..., T] in nats, log-probability of each token that was there; masked entries may hold
            anything.
        mask: [..., T], True = counted; None counts all.
        per: ``"corpus"``: every token weighs the same, one number. ``"sequence"``: one perplexity a row, [...].

    Returns:
        Float64, at least 1; +inf where a token had probability 0.

    Raises:
        ValueError: nothing to count (in one row, for "sequence"), NaN or positive log-probabilities, unknown `per`.
    """
    values = as_tensor(token_log_probs).detach().double()
    keep = None if mask is None else as_tensor(mask)
    counted = values if keep is None else values[keep.bool()]
    if not bool((counted <= 1e-4).all()):  # rounding of sums in float32 may leave the last digits above zero
        raise ValueError("token_log_probs must be log-probabilities: at most 0 and not NaN")
    if per not in ("corpus", "sequence"):
        raise ValueError(f'per must be "corpus" or "sequence", got {per!r}')
    return torch.exp(-masked_mean(values, keep, dim=None if per == "corpus" else -1))


def win_rate(first: Array, second: Array, confidence: float = 0.95, tie_margin: float = 0.0) -> Interval:
    """Rate at which the first model's score beats the second's on the same items, ties half, with Wilson's interval.

    The items are taken as independent and both models as fixed: variation between training seeds is not in it
    (`relent.scores.inference.hierarchical_bootstrap` has both).

    Args:
        first, second: [N] scores of the same N items, higher = better; NaN is refused.
        confidence: nominal coverage.
        tie_margin: scores that differ by no more than this are a tie.

    Raises:
        ValueError: shapes that differ or are empty, NaN, a negative margin.
    """
    a, b = as_tensor(first).double(), as_tensor(second).double()
    if a.ndim != 1 or a.shape != b.shape or a.numel() == 0:
        raise ValueError(f"need two equal non-empty shapes [N], got {tuple(a.shape)} and {tuple(b.shape)}")
    if bool((a.isnan() | b.isnan()).any()) or not tie_margin >= 0:
        raise ValueError("scores must not be NaN and tie_margin must not be negative")
    wins, losses = int((a > b + tie_margin).sum()), int((b > a + tie_margin).sum())
    return win_rate_interval(wins, losses, a.numel() - wins - losses, confidence)


def _trials(samples: Array, correct: Array, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counts n and c with a last dimension added, and 0 … k − 1 to run along it."""
    n, c = torch.broadcast_tensors(as_tensor(samples).double(), as_tensor(correct).double())
    if n.numel() == 0 or bool(((c < 0) | (c > n) | (n != n.round()) | (c != c.round())).any()):
        raise ValueError("need at least one problem and whole numbers 0 <= correct <= samples")
    if not 1 <= k <= int(n.min()):
        raise ValueError(f"k must lie in [1, {int(n.min())}], the smallest number of samples, got {k}")
    return n.unsqueeze(-1), c.unsqueeze(-1), torch.arange(k, dtype=torch.float64, device=n.device)


def _grams(tokens: Tokens, n: int) -> Iterator[Tokens]:
    return zip(*(tokens[i:] for i in range(n)))


def _matched_by_others(counts: list[Counter[Tokens]]) -> list[int]:
    """Clipped matches of each sample's n-grams, the limit being the largest count in one of the other samples."""
    largest: dict[Tokens, tuple[int, int, int]] = {}  # owner, its count, the second largest count
    for i, grams in enumerate(counts):
        for gram, count in grams.items():
            owner, first, second = largest.get(gram, (i, 0, 0))
            largest[gram] = (i, count, first) if count > first else (owner, first, max(second, count))
    matched = []
    for i, grams in enumerate(counts):
        limits = ((count, largest[gram]) for gram, count in grams.items())
        matched.append(sum(min(count, second if owner == i else first) for count, (owner, first, second) in limits))
    return matched


def _closest(lengths: list[int], length: int) -> int:
    """Closest of sorted lengths, the shorter of two equally close."""
    at = bisect_left(lengths, length)
    return min(lengths[max(at - 1, 0) : at + 1], key=lambda other: (abs(other - length), other))


def _bleu(length: int, closest: int, matched: list[int], smoothing: Smoothing) -> float:
    """BLEU from clipped matches per order: n-grams of order n number `length` - n + 1."""
    if length == 0:
        return float(closest == 0)
    orders = min(len(matched), length)
    total = 0.0
    for n in range(1, orders + 1):
        extra = int(smoothing == "add-one" and n > 1)
        if matched[n - 1] + extra == 0:
            return 0.0
        total += log((matched[n - 1] + extra) / (length - n + 1 + extra)) / orders
    return exp(min(0.0, 1 - closest / length) + total)


def _check_bleu(references: int, max_order: int, smoothing: str) -> None:
    if references < 1:
        raise ValueError("BLEU needs at least one reference; self-BLEU at least two samples")
    if max_order < 1:
        raise ValueError(f"max_order must be at least 1, got {max_order}")
    if smoothing not in ("add-one", "none"):
        raise ValueError(f'smoothing must be "add-one" or "none", got {smoothing!r}')
