"""From logits to log-probabilities: temperature, subsets of classes, target against non-target, label cross-entropy.

Classes are the last dimension and the batch may have any shape. Half precision is computed in float32; every function
is finite, with finite gradient, for finite logits of any size, and takes logits of −inf (impossible classes).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relent.divergences.reduction import Reduction, as_mask, reduce, upcast

TemperatureScale = Literal["none", "tau_squared"]

_NO_LABEL = -(2**63)

__all__ = [
    "TemperatureScale",
    "binary_target_log_probs",
    "check_normalised",
    "label_cross_entropy",
    "log_mixture",
    "log_sum_exp",
    "non_target_log_probs",
    "non_target_logits",
    "other_class_log_probs",
    "renormalised",
    "temperature_factor",
    "tempered_log_probs",
    "top_k_classes",
]


def log_sum_exp(values: Tensor, dim: int = -1) -> Tensor:
    r"""Return :math:`\log \sum_i e^{v_i}` over one dimension, with zero gradient where nothing is there to sum.

    A slice that holds only −inf gives −inf; ``torch.logsumexp`` has a NaN gradient there.
    """
    empty = (values == -math.inf).all(dim=dim, keepdim=True)
    total = torch.logsumexp(values.masked_fill(empty, 0.0), dim=dim)
    return total.masked_fill(empty.squeeze(dim), -math.inf)


def renormalised(log_weights: Tensor) -> Tensor:
    r"""Return log-weights [..., C] less their :func:`log_sum_exp`; all −inf stays −inf (``log_softmax`` gives NaN)."""
    log_mass = log_sum_exp(log_weights).unsqueeze(-1)
    return log_weights - log_mass.masked_fill(log_mass == -math.inf, 0.0)


def log_mixture(first_log_probs: Tensor, second_log_probs: Tensor, weight: float) -> Tensor:
    r"""Return :math:`\log(w\,p + (1 - w)\,q)` elementwise without leaving log space.

    ``torch.logaddexp`` has NaN gradients at −inf on both sides, and NaN second derivatives at gaps above 88 (float32)
    or 709 (float64); this form has neither.

    Raises:
        ValueError: if the weight is outside [0, 1].
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"a mixture weight must lie in [0, 1], got {weight}")
    if weight in (0.0, 1.0):
        return first_log_probs if weight == 1.0 else second_log_probs
    first, second = first_log_probs + math.log(weight), second_log_probs + math.log1p(-weight)
    first_zero, second_zero = first == -math.inf, second == -math.inf
    gap = (first - second).masked_fill(first_zero | second_zero, 0.0)
    mixed = first - F.logsigmoid(gap)
    return torch.where(first_zero, second, torch.where(second_zero, first, mixed))


def tempered_log_probs(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    r"""Return :math:`\log \mathrm{softmax}(z / \tau)` over the last dimension.

    Log-probabilities may be given in place of logits: they differ by a constant, which the softmax removes.

    Args:
        logits: [..., C], floating; half precision is computed in float32.
        temperature: τ > 0, or a tensor that broadcasts to ``logits`` (its values are not checked).

    Returns:
        Log-probabilities in nats, shape [..., C].

    Raises:
        ValueError: if the temperature is not a positive finite number, or there is no class.
        TypeError: if the logits are not floating-point.

    Source: Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531, equation 1.
    """
    logits = upcast(logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits need a last dimension of at least one class, got shape {tuple(logits.shape)}")
    if not isinstance(temperature, Tensor):
        temperature_factor(temperature, "none")
        if temperature == 1.0:
            return F.log_softmax(logits, dim=-1)
    return F.log_softmax(logits / temperature, dim=-1)


def temperature_factor(temperature: float, scale: TemperatureScale) -> float:
    r"""Return what multiplies a tempered loss: 1 (``"none"``) or :math:`\tau^2` (``"tau_squared"``).

    The gradient of a divergence between softmaxes at temperature τ shrinks as :math:`1/\tau^2`; the factor keeps its
    weight against a loss at temperature 1 (Hinton et al., arXiv 1503.02531, section 2.1).

    Raises:
        ValueError: if the temperature is not a positive finite number or the scale is unknown.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive finite number, got {temperature}")
    if scale not in ("none", "tau_squared"):
        raise ValueError(f"scale={scale!r} is unknown; use 'none' or 'tau_squared'")
    return temperature**2 if scale == "tau_squared" else 1.0


def check_normalised(log_probs: Tensor, *, tolerance: float | None = None, name: str = "log_probs") -> None:
    r"""Refuse log-probabilities that do not sum to one over the last dimension (logits given by mistake, say).

    Reads the tensor back from the device: for debugging and for the borders of a program, not for inner loops.

    Args:
        log_probs: [..., C].
        tolerance: allowed :math:`|\log \sum_i p_i|`; by default 1e-8 in float64, 1e-4 in float32, 0.05 in half
            precision.
        name: how the error message calls the tensor.

    Raises:
        ValueError: with the worst sum found.
    """
    if tolerance is None:
        tolerance = {torch.float64: 1e-8, torch.float32: 1e-4}.get(log_probs.dtype, 0.05)
    log_mass = log_sum_exp(upcast(log_probs.detach()))
    off = ~(log_mass.abs() <= tolerance)
    if bool(off.any()):
        worst = log_mass[off].reshape(-1)[0].item()
        raise ValueError(
            f"{name} are not normalised: {int(off.sum())} of {off.numel()} distributions do not sum to one, "
            f"the first to exp({worst:.6g}); apply tempered_log_probs to logits first"
        )


def _checked_labels(labels: Tensor, scores: Tensor) -> Tensor:
    if labels.dtype.is_floating_point or labels.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise TypeError(f"labels must be class indices of an integer dtype, got {labels.dtype}")
    if labels.shape != scores.shape[:-1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, expected {tuple(scores.shape[:-1])}: one label for each "
            f"distribution of shape {tuple(scores.shape)}"
        )
    return labels.long()


def label_cross_entropy(
    labels: Tensor,
    log_probs: Tensor,
    *,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    r"""Cross-entropy against integer labels, :math:`-(1-\epsilon) \log q_y - \frac{\epsilon}{C} \sum_i \log q_i`.

    Args:
        labels: class indices, shape [...]; left-out positions may hold anything (−100).
        log_probs: normalised log-probabilities of the model, [..., C], in nats.
        label_smoothing: ε in [0, 1]; the target is :math:`(1-\epsilon)\,\mathrm{onehot}(y) + \epsilon / C`. With ε > 0
            a class of log-probability −inf makes the loss +inf.
        mask: [...], boolean or 0/1 integer, True = kept.
        reduction: see :func:`relent.divergences.reduction.reduce`.

    Returns:
        Nats, shape [...] or reduced; float32 for half precision.

    Raises:
        ValueError: wrong shapes, or ε outside [0, 1].
        TypeError: labels that are not integers.

    Source: Szegedy et al., *Rethinking the Inception Architecture*, arXiv 1512.00567, section 7.
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    log_probs, labels = upcast(log_probs), _checked_labels(labels, log_probs)
    if mask is not None:
        keep = as_mask(mask, labels.shape)
        labels = torch.where(keep, labels, 0)
        log_probs = torch.where(keep.unsqueeze(-1), log_probs, 0.0)
    # Torch's own pick of the label's entry costs half of a gather; no label is one to be ignored here.
    rows = log_probs.reshape(-1, log_probs.shape[-1])
    loss = F.nll_loss(rows, labels.reshape(-1), ignore_index=_NO_LABEL, reduction="none").reshape(labels.shape)
    if label_smoothing > 0.0:
        loss = (1.0 - label_smoothing) * loss - label_smoothing * log_probs.mean(dim=-1)
    return reduce(loss, mask, reduction)


def non_target_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits without the target class: [..., C] and [...] give [..., C − 1], order kept.

    The class is dropped by gathering the others. Adding a large negative number to it instead, as is often done,
    leaves a probability that rounds to zero and a logarithm that is then infinite.

    Raises:
        ValueError: wrong shapes, or fewer than two classes.
        TypeError: labels that are not integers.
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"dropping the target needs at least two classes, got {logits.shape[-1]}")
    labels = _checked_labels(labels, logits)
    others = torch.arange(logits.shape[-1] - 1, device=logits.device).expand(*labels.shape, -1)
    return logits.gather(-1, others + (others >= labels.unsqueeze(-1)).long())


def non_target_log_probs(logits: Tensor, labels: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    r"""Log-probabilities renormalised over the non-target classes, :math:`\log \mathrm{softmax}(z_{\neq y} / \tau)`.

    Args:
        logits: [..., C]. labels: [...]. temperature: τ > 0.

    Returns:
        [..., C − 1] in nats. The target's logit has no influence and gets no gradient.

    Source: Zhao et al., *Decoupled Knowledge Distillation*, arXiv 2203.08679, equation 2.
    """
    return tempered_log_probs(non_target_logits(upcast(logits), labels), temperature)


def _without_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [..., C] with −inf at the label: the other classes are read where they lie, which a gather does not."""
    if logits.shape[-1] < 2:
        raise ValueError(f"dropping the target needs at least two classes, got {logits.shape[-1]}")
    return logits.scatter(-1, _checked_labels(labels, logits).unsqueeze(-1), -math.inf)


def other_class_log_probs(logits: Tensor, labels: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    r"""The distribution of :func:`non_target_log_probs` with all classes kept: −inf at the target, shape [..., C].

    Half as much work, and what the divergences of ``discrete`` take: a class that is impossible under both adds
    nothing. Arguments, errors and source as there.
    """
    return tempered_log_probs(_without_target(upcast(logits), labels), temperature)


def binary_target_log_probs(logits: Tensor, labels: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    r"""Log-probabilities of "target" and "any other class", :math:`(\log p_y, \log(1 - p_y))`, never through 1 − p.

    Args:
        logits: [..., C]. labels: [...]. temperature: τ > 0.

    Returns:
        [..., 2] in nats, a distribution of its own that every function of ``discrete`` takes.

    Source: Zhao et al., *Decoupled Knowledge Distillation*, arXiv 2203.08679, equation 1.
    """
    scaled = upcast(logits) if isinstance(temperature, float) and temperature == 1.0 else upcast(logits) / temperature
    target = scaled.gather(-1, _checked_labels(labels, logits).unsqueeze(-1)).squeeze(-1)
    rest = log_sum_exp(_without_target(scaled, labels))
    return tempered_log_probs(torch.stack((target, rest), dim=-1))


def top_k_classes(log_probs: Tensor, k: int) -> Tensor:
    """Return a boolean mask [..., C] of the k most probable classes (ties: as ``torch.topk`` breaks them).

    Raises:
        ValueError: if k is not between 1 and the number of classes.
    """
    if not 1 <= k <= log_probs.shape[-1]:
        raise ValueError(f"k must lie between 1 and the number of classes {log_probs.shape[-1]}, got {k}")
    indices = log_probs.topk(k, dim=-1).indices
    return torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, indices, True)
