"""Scores of classifiers and of students against their teachers, from logits, computed and returned in float64.

Log-probabilities are logits (a softmax leaves them as they are), so every function takes either, as a tensor or a NumPy
array of shape [..., C]; labels, masks and per-item results have shape [...]. A logit of −inf means probability 0; NaN
and +inf are refused, because a model that yields them has no accuracy. ``mask`` (True = kept) and ``reduction`` follow
`relent.divergences.reduction.reduce`; ``reduction="none"`` keeps the per-item scores that paired inference needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.divergences.logits import label_cross_entropy, non_target_logits, tempered_log_probs
from relent.divergences.reduction import Reduction, as_mask, reduce
from relent.scores._arrays import as_tensor as array_as_tensor

__all__ = [
    "accuracy",
    "agreement",
    "confusion_matrix",
    "kl_to_teacher",
    "label_entropy",
    "multiclass_brier_score",
    "mutual_information",
    "negative_log_likelihood",
    "non_target_rank_correlation",
    "per_class_accuracy",
    "rank_correlation",
    "top_k_accuracy",
    "worst_class_accuracy",
]

Array = Any  # torch.Tensor or anything that numpy.asarray takes


def accuracy(logits: Array, labels: Array, *, mask: Array = None, reduction: Reduction = "mean") -> Tensor:
    """Share of items whose label has the largest logit; among equal logits the lowest class index is predicted.

    A constant model therefore always predicts class 0.

    Args:
        logits: [..., C], floating.
        labels: [...], integers in [0, C).
        mask: [...], True = kept; left-out items may hold anything.
        reduction: see the module.

    Returns:
        Float64 in [0, 1].

    Raises:
        ValueError: no item, shapes that do not fit, labels out of range, NaN or +inf logits.
        TypeError: logits that are not floating, labels that are not integers.
    """
    scores, classes, keep = as_labelled_scores(logits, labels, mask)
    return reduce((scores.argmax(-1) == classes).double(), keep, reduction)


def top_k_accuracy(
    logits: Array, labels: Array, k: int, *, mask: Array = None, reduction: Reduction = "mean"
) -> Tensor:
    """Share of items whose label is among the k largest logits, ties broken by class index as in `accuracy` (k = 1).

    Raises:
        ValueError: k outside [1, C], and as in `accuracy`.
    """
    scores, classes, keep = as_labelled_scores(logits, labels, mask)
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k must lie in [1, {scores.shape[-1]}], got {k}")
    target = scores.gather(-1, classes.unsqueeze(-1))
    earlier = torch.arange(scores.shape[-1], device=scores.device) < classes.unsqueeze(-1)
    rank = ((scores > target) | ((scores == target) & earlier)).sum(-1)
    return reduce((rank < k).double(), keep, reduction)


def negative_log_likelihood(
    logits: Array, labels: Array, *, mask: Array = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""Negative log-likelihood, :math:`-\log p_y`, in nats; +inf where the model gave the label probability 0.

    Args, raises: as in `accuracy`.
    """
    scores, classes, keep = as_labelled_scores(logits, labels, mask)
    return label_cross_entropy(classes, tempered_log_probs(scores.double()), mask=keep, reduction=reduction)


def multiclass_brier_score(
    logits: Array, labels: Array, *, mask: Array = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""Multi-class Brier score, :math:`\sum_c (p_c - [c = y])^2`, in [0, 2]: for two classes twice the binary score.

    Args, raises: as in `accuracy`.

    Source: Brier, "Verification of forecasts expressed in terms of probability" (1950), equation 2.
    """
    scores, classes, keep = as_labelled_scores(logits, labels, mask)
    probs = tempered_log_probs(scores.double()).exp()
    onehot = torch.nn.functional.one_hot(classes, scores.shape[-1])
    return reduce((probs - onehot).square().sum(-1), keep, reduction)


def confusion_matrix(logits: Array, labels: Array, *, mask: Array = None) -> Tensor:
    """Counts [C, C] (int64) of items by true class (row) and predicted class (column).

    Args, raises: as in `accuracy`.
    """
    scores, classes, keep = as_labelled_scores(logits, labels, mask)
    count = scores.shape[-1]
    cells = count * classes + scores.argmax(-1)
    cells = cells.flatten() if keep is None else cells[keep]
    return torch.bincount(cells, minlength=count * count).reshape(count, count)


def per_class_accuracy(logits: Array, labels: Array, *, mask: Array = None) -> Tensor:
    """Accuracy [C] over the items of each true class (recall); NaN for a class without items.

    Args, raises: as in `accuracy`.
    """
    counts = confusion_matrix(logits, labels, mask=mask)
    return counts.diagonal().double() / counts.sum(-1)


def worst_class_accuracy(logits: Array, labels: Array, *, mask: Array = None) -> Tensor:
    """Smallest accuracy of a class that has items: biased downwards when classes hold few items.

    Raises:
        ValueError: no item at all, and as in `accuracy`.
    """
    by_class = per_class_accuracy(logits, labels, mask=mask)
    present = ~by_class.isnan()
    if not bool(present.any()):
        raise ValueError("the mask leaves no item: there is no class to take the worst of")
    return by_class[present].min()


def agreement(
    student_logits: Array, teacher_logits: Array, *, mask: Array = None, reduction: Reduction = "mean"
) -> Tensor:
    """Share of items on which student and teacher predict the same class (fidelity), whether it is right or not.

    Args, raises: both logits [..., C]; as in `accuracy`.

    Source: Stanton et al., "Does Knowledge Distillation Really Work?", arXiv:2106.05945, section 3.
    """
    student, teacher, keep = _student_and_teacher(student_logits, teacher_logits, mask)
    return reduce((student.argmax(-1) == teacher.argmax(-1)).double(), keep, reduction)


def kl_to_teacher(
    student_logits: Array, teacher_logits: Array, *, mask: Array = None, reduction: Reduction = "mean"
) -> Tensor:
    """Forward divergence KL(teacher‖student) at temperature 1, in nats; +inf where only the teacher has mass.

    Args, raises: both logits [..., C]; as in `accuracy`.
    """
    student, teacher, keep = _student_and_teacher(student_logits, teacher_logits, mask)
    target, approx = tempered_log_probs(teacher.double()), tempered_log_probs(student.double())
    return forward_kl(target, approx, mask=keep, reduction=reduction)


def rank_correlation(first: Array, second: Array) -> Tensor:
    """Spearman's ρ over the last dimension, tied values given their mean rank; NaN where an input is constant.

    Args:
        first, second: [..., N], no NaN; infinities are ranked like any number.

    Returns:
        Float64 [...] in [-1, 1].

    Raises:
        ValueError: shapes that differ, N = 0, NaN.
    """
    a, b = as_tensor(first).double(), as_tensor(second).double()
    if a.shape != b.shape or a.ndim == 0 or a.shape[-1] == 0:
        raise ValueError(f"need two equal shapes [..., N] with N > 0, got {tuple(a.shape)} and {tuple(b.shape)}")
    if bool(a.isnan().any()) or bool(b.isnan().any()):
        raise ValueError("NaN has no rank: remove or mask such values first")
    a, b = _centred_ranks(a), _centred_ranks(b)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def non_target_rank_correlation(
    student_logits: Array, teacher_logits: Array, labels: Array, *, mask: Array = None, reduction: Reduction = "mean"
) -> Tensor:
    """Spearman's ρ between student and teacher over the classes other than the label, per item.

    It asks whether the student learnt the teacher's ranking of the wrong classes, which accuracy does not show. An item
    on which either model is constant over these classes has no ρ: NaN under ``"none"``, left out otherwise.

    Args, raises: as in `accuracy`; at least three classes, and one item with a defined ρ unless reduction is "none".
    """
    student, teacher, keep = _student_and_teacher(student_logits, teacher_logits, mask)
    _, classes, _ = as_labelled_scores(student, labels, keep)
    if student.shape[-1] < 3:
        raise ValueError(f"ranking the non-target classes needs at least three classes, got {student.shape[-1]}")
    values = rank_correlation(non_target_logits(student, classes), non_target_logits(teacher, classes))
    if reduction == "none":
        return reduce(values, keep, "none")
    defined = ~values.isnan() if keep is None else keep & ~values.isnan()
    if not bool(defined.any()):
        raise ValueError("no rank correlation is defined: student or teacher is constant over the other classes")
    return reduce(values, defined, reduction)


def mutual_information(first: Array, second: Array) -> Tensor:
    r"""Mutual information of two labellings of the same items, :math:`\sum_{ab} p_{ab} \log \frac{p_{ab}}{p_a p_b}`.

    From the shares of the items (plug-in): biased upwards by about (A − 1)(B − 1)/2N nats for A and B labels.

    Args:
        first: (N,), non-negative integers.
        second: (N,), likewise.

    Returns:
        Float64 in nats, from 0 to the smaller of the two entropies.

    Raises:
        ValueError: no item, other shapes, or negative labels.
        TypeError: labels that are not integers.
    """
    one, other = _labelling(first), _labelling(second)
    if one.shape != other.shape:
        raise ValueError(f"the labellings have shapes {tuple(one.shape)} and {tuple(other.shape)}; give one each item")
    columns = int(other.max()) + 1
    joint = torch.bincount(one * columns + other, minlength=(int(one.max()) + 1) * columns).double() / len(one)
    joint = joint.reshape(-1, columns)
    expected = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return torch.where(joint > 0, joint * (joint / expected.clamp_min(1e-300)).log(), 0.0).sum().clamp_min(0.0)


def label_entropy(labels: Array) -> Tensor:
    """Entropy in nats of the shares of labels (N,), float64; the `mutual_information` of a labelling with itself."""
    return mutual_information(labels, labels)


def _labelling(labels: Array) -> Tensor:
    values = as_tensor(labels)
    if values.dtype.is_floating_point or values.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {values.dtype}")
    if values.ndim != 1 or len(values) == 0 or int(values.min()) < 0:
        raise ValueError(f"labels must be (N,), N > 0, and not negative, got shape {tuple(values.shape)}")
    return values.long()


def _centred_ranks(values: Tensor) -> Tensor:
    ordered = values.sort(-1).values
    values = values.contiguous()
    below = torch.searchsorted(ordered, values)
    through = torch.searchsorted(ordered, values, right=True)
    return (below + through - values.shape[-1]).double() / 2


def as_tensor(values: Array) -> Tensor:
    """Tensor without a copy where possible; lists of Python floats stay float64, where torch would make float32."""
    tensor: Tensor = values if isinstance(values, Tensor) else array_as_tensor(np.asarray(values))
    return tensor


def _scores(logits: Array, mask: Array) -> tuple[Tensor, Tensor | None]:
    """Check logits [..., C], put zeros where the mask leaves out; the dtype is kept."""
    scores = as_tensor(logits).detach()
    if not scores.dtype.is_floating_point:
        raise TypeError(f"logits must be floating-point, got {scores.dtype}")
    if scores.ndim == 0 or scores.numel() == 0:
        raise ValueError(f"need at least one item and one class, got logits of shape {tuple(scores.shape)}")
    keep = None
    if mask is not None:
        keep = as_mask(as_tensor(mask), scores.shape[:-1])
        scores = torch.where(keep.unsqueeze(-1), scores, 0.0)
    if bool((scores.isnan() | scores.isposinf()).any()) or bool(scores.isneginf().all(-1).any()):
        raise ValueError("logits hold NaN, +inf or a row that is −inf throughout: the model has no prediction there")
    return scores, keep


def as_labelled_scores(logits: Array, labels: Array, mask: Array = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check and return logits [..., C] and labels [...] (both 0 where left out) and the boolean mask."""
    scores, keep = _scores(logits, mask)
    classes = as_tensor(labels)
    if classes.dtype.is_floating_point or classes.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {classes.dtype}")
    if classes.shape != scores.shape[:-1]:
        raise ValueError(f"labels have shape {tuple(classes.shape)}, expected {tuple(scores.shape[:-1])}")
    classes = classes.long() if keep is None else torch.where(keep, classes.long(), 0)
    if bool(((classes < 0) | (classes >= scores.shape[-1])).any()):
        raise ValueError(f"labels must lie in [0, {scores.shape[-1]}); mask the items to be ignored")
    return scores, classes, keep


def _student_and_teacher(
    student_logits: Array, teacher_logits: Array, mask: Array
) -> tuple[Tensor, Tensor, Tensor | None]:
    student, keep = _scores(student_logits, mask)
    teacher, _ = _scores(teacher_logits, mask)
    if student.shape != teacher.shape:
        raise ValueError(f"student and teacher differ in shape: {tuple(student.shape)} and {tuple(teacher.shape)}")
    return student, teacher, keep
