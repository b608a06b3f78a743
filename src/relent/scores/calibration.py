"""Calibration of predicted probabilities: expected and maximum calibration error, reliability data, temperature.

The binary functions take a confidence in [0, 1] and the outcome that it was given for, so that they serve a classifier
(`top_label` makes the pair), one class of it, or a preference model. Everything is computed in float64.
"""

from __future__ import annotations

from math import exp, inf, log
from typing import Literal, NamedTuple

import torch
from scipy import optimize
from torch import Tensor

from relent.divergences.logits import tempered_log_probs
from relent.scores.classification import Array, as_labelled_scores, as_tensor

__all__ = [
    "Reliability",
    "classwise_calibration_error",
    "expected_calibration_error",
    "fit_temperature",
    "maximum_calibration_error",
    "reliability_diagram",
    "squared_calibration_error",
    "top_label",
]

Binning = Literal["width", "mass"]


class Reliability(NamedTuple):
    """Data of a reliability diagram, one entry a bin; bins without items count 0 and have NaN means."""

    edges: Tensor  # [B + 1], bin b is (edges[b], edges[b + 1]]; the first includes its left edge
    counts: Tensor  # [B]
    confidence: Tensor  # [B] mean confidence
    frequency: Tensor  # [B] mean outcome


def top_label(logits: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """Confidence of the predicted class and whether it is right, both [N], for the functions of this module.

    Args, raises: logits [N, C] and labels [N] as in `relent.scores.classification.accuracy`.
    """
    scores, classes, _ = as_labelled_scores(logits, labels)
    log_confidence, predicted = tempered_log_probs(scores.double()).max(-1)
    return log_confidence.exp(), predicted == classes


def reliability_diagram(confidence: Array, outcome: Array, bins: int = 15, binning: Binning = "width") -> Reliability:
    """Mean confidence and observed frequency in bins of the confidence.

    Args:
        confidence: [N] probabilities in [0, 1].
        outcome: [N] boolean or 0/1: whether the event came about.
        bins: number of bins, at least 1.
        binning: ``"width"``: equal parts of [0, 1]. ``"mass"``: about equal numbers of items; items of equal confidence
            are never parted, so the result does not depend on their order, and many ties leave fewer bins.

    Bins are closed on the right: confidence 0 falls in the first, 1 in the last.

    Raises:
        ValueError: empty or unequal inputs, values out of range, fewer than one bin, unknown binning.

    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599, equation 3.
    """
    probs, event = _checked(confidence, outcome)
    edges = _edges(probs, bins, binning)
    which = torch.bucketize(probs, edges[1:-1].contiguous())
    count, sums, hits = _bin_sums(which, len(edges) - 1, torch.ones_like(probs), probs, event)
    return Reliability(edges, count.long(), sums / count, hits / count)


def expected_calibration_error(confidence: Array, outcome: Array, bins: int = 15, binning: Binning = "width") -> Tensor:
    r"""Expected calibration error, :math:`\sum_b \frac{n_b}{n} |\bar y_b - \bar p_b|`, in [0, 1].

    Biased upwards: a perfectly calibrated model with N items in B bins scores about :math:`\sum_b \sqrt{2 n_b v_b /
    \pi} / N`, v_b the mean of p (1 − p) in bin b (0.04 for p near 0.7, N = 1000 and 15 equal-mass bins). Compare models
    only at the same N and bins; `squared_calibration_error` removes the bias. Binning also hides errors that cancel
    within a bin, which biases downwards.

    Args, raises: as in `reliability_diagram`.

    Source: arXiv:1706.04599, equation 3; bias: Kumar et al., arXiv:1909.10155, section 4.
    """
    _, counts, predicted, observed = reliability_diagram(confidence, outcome, bins, binning)
    return ((predicted - observed).abs() * counts / counts.sum()).nansum()


def maximum_calibration_error(confidence: Array, outcome: Array, bins: int = 15, binning: Binning = "width") -> Tensor:
    """Largest gap between mean confidence and frequency over the bins that hold items; a small bin can set it.

    Args, raises: as in `reliability_diagram`. Source: arXiv:1706.04599, equation 4.
    """
    _, counts, predicted, observed = reliability_diagram(confidence, outcome, bins, binning)
    return (predicted - observed).abs()[counts > 0].max()


def squared_calibration_error(
    confidence: Array, outcome: Array, bins: int = 15, binning: Binning = "width", debiased: bool = True
) -> Tensor:
    r"""Squared calibration error, :math:`\sum_b w_b (\bar y_b - \bar p_b)^2`, by default without the plug-in's bias.

    With r = y − p, the debiased form puts the mean of :math:`r_i r_j` over pairs i ≠ j of a bin for its
    :math:`\bar r_b^2`: unbiased for the squared gap at any bin size, hence negative at times. A bin with one item has
    no pair and is left out. Exactly unbiased for fixed edges ("width"), nearly so for "mass", whose edges follow the
    data.

    Args:
        debiased: False gives the plug-in, biased upwards by the variance of the bin means.
        others: as in `reliability_diagram`.

    Raises:
        ValueError: as in `reliability_diagram`, or when no bin holds two items (debiased).

    Source: Kumar, Liang, Ma, "Verified Uncertainty Calibration", arXiv:1909.10155, definition 4.1 (there with the
    confidence constant in each bin; here it may vary).
    """
    probs, event = _checked(confidence, outcome)
    edges = _edges(probs, bins, binning)
    residual = event - probs
    which = torch.bucketize(probs, edges[1:-1].contiguous())
    count, first, second = _bin_sums(which, len(edges) - 1, torch.ones_like(probs), residual, residual.square())
    if not debiased:
        return (first.square() / count).nansum() / count.sum()
    usable = count > 1
    if not bool(usable.any()):
        raise ValueError("no bin holds two items: use fewer bins or debiased=False")
    count, first, second = count[usable], first[usable], second[usable]
    return (count * (first.square() - second) / (count * (count - 1))).sum() / count.sum()


def classwise_calibration_error(logits: Array, labels: Array, bins: int = 15, binning: Binning = "width") -> Tensor:
    """Mean over the classes of the expected calibration error of that class's probability, in [0, 1].

    Args, raises: logits [N, C] and labels [N] as in `relent.scores.classification.accuracy`, bins as above.

    Source: Kull et al., "Beyond temperature scaling", arXiv:1910.12656, equation 3.
    """
    scores, classes, _ = as_labelled_scores(logits, labels)
    probs = tempered_log_probs(scores.double()).exp()
    errors = [expected_calibration_error(probs[:, c], classes == c, bins, binning) for c in range(scores.shape[-1])]
    return torch.stack(errors).mean()


def fit_temperature(logits: Array, labels: Array, bounds: tuple[float, float] = (0.01, 100.0)) -> float:
    r"""Temperature T that minimises the negative log-likelihood of softmax(logits / T) on held-out items.

    The loss is convex in the inverse temperature β; its derivative :math:`\mathbb{E}_i[\mathbb{E}_{p_\beta}[z] - z_y]`
    grows with β, so that Brent's method on log β finds the one root. Where there is none within the bounds (every item
    right: T → 0; no better than chance: T → ∞) the nearer bound is returned.

    Args:
        logits: [N, C]; labels: [N]; as in `relent.scores.classification.accuracy`.
        bounds: smallest and largest temperature, 0 < low < high.

    Raises:
        ValueError: bounds out of order, a label of probability 0, and as in `accuracy`.

    Source: arXiv:1706.04599, section 4.2.
    """
    scores, classes, _ = as_labelled_scores(logits, labels)
    scores, (low, high) = scores.double(), bounds
    if not 0 < low < high < inf:
        raise ValueError(f"bounds must satisfy 0 < low < high, got {bounds}")
    target = scores.gather(-1, classes.unsqueeze(-1)).squeeze(-1)
    if bool(target.isneginf().any()):
        raise ValueError("a label has probability 0 (logit −inf): its likelihood is 0 at every temperature")
    finite = scores.nan_to_num(neginf=0.0)

    def slope(log_beta: float) -> float:
        mean = (tempered_log_probs(scores, exp(-log_beta)).exp() * finite).sum(-1)
        return float((mean - target).mean())

    if slope(-log(high)) >= 0:
        return high
    if slope(-log(low)) <= 0:
        return low
    return exp(-float(optimize.brentq(slope, -log(high), -log(low), xtol=1e-12, rtol=1e-12)))


def _checked(confidence: Array, outcome: Array) -> tuple[Tensor, Tensor]:
    probs, event = as_tensor(confidence).detach().double().contiguous(), as_tensor(outcome).double()
    if probs.ndim != 1 or probs.shape != event.shape or probs.numel() == 0:
        raise ValueError(f"need two non-empty [N], got {tuple(probs.shape)} and {tuple(event.shape)}")
    if not bool(((probs >= 0) & (probs <= 1)).all()):
        raise ValueError("confidence must lie in [0, 1]")
    if not bool(((event == 0) | (event == 1)).all()):
        raise ValueError("outcome must be boolean or 0/1")
    return probs, event


def _edges(probs: Tensor, bins: int, binning: Binning) -> Tensor:
    if bins < 1:
        raise ValueError(f"need at least one bin, got {bins}")
    if binning == "width":
        return torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=probs.device)
    if binning != "mass":
        raise ValueError(f'binning must be "width" or "mass", got {binning!r}')
    n = probs.numel()
    last = (torch.arange(1, bins, device=probs.device) * n + bins - 1) // bins - 1  # last item of each bin but one
    inner = probs.sort().values[last].unique()
    inner = inner[(inner > 0) & (inner < 1)]
    return torch.cat((inner.new_zeros(1), inner, inner.new_ones(1)))


def _bin_sums(which: Tensor, bins: int, *values: Tensor) -> list[Tensor]:
    return [torch.zeros(bins, dtype=v.dtype, device=v.device).index_add(0, which, v) for v in values]
