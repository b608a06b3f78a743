"""Adversarial accuracy: over all items, by class, in the worst classes, and its gap to clean accuracy.

An item counts as robust when it is classified right under *every* attack given: ``adversarial_logits`` has shape
[..., N, C], leading dimensions being attacks or restarts. The unperturbed input lies in every threat model, so pass
``clean_logits`` [N, C] to count it as one more attack; without it, an attack that happens to repair a wrong prediction
scores as robust. The logits must come from the model in evaluation mode. Results are float64.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from relent.scores.classification import Array, accuracy, as_tensor, per_class_accuracy

__all__ = [
    "robust_accuracy",
    "robust_accuracy_by_class",
    "robust_correctness",
    "robust_gap",
    "robust_gap_by_class",
    "tail_robust_accuracy",
    "worst_class_robust_accuracy",
]


def robust_correctness(adversarial_logits: Array, labels: Array, clean_logits: Array = None) -> Tensor:
    """Whether each item is right under every attack, [N] with 0 and 1: what paired inference over items needs.

    Args:
        adversarial_logits: [..., N, C], one leading entry an attack.
        labels: [N], integers in [0, C).
        clean_logits: [N, C] or None; see the module.

    Raises:
        ValueError: no item or attack, shapes that do not fit, labels out of range, NaN logits.
        TypeError: logits that are not floating, labels that are not integers.
    """
    logits, classes = as_tensor(adversarial_logits), as_tensor(labels)
    if logits.ndim < 2 or classes.shape != logits.shape[-2:-1]:
        raise ValueError(f"need logits [..., N, C] and labels [N], got {tuple(logits.shape)}, {tuple(classes.shape)}")
    right = accuracy(logits, classes.expand(logits.shape[:-1]), reduction="none")
    robust = right.reshape(-1, len(classes)).amin(0)
    if clean_logits is None:
        return robust
    if as_tensor(clean_logits).shape != logits.shape[-2:]:
        raise ValueError(f"clean_logits must have shape {tuple(logits.shape[-2:])}")
    return torch.minimum(robust, accuracy(clean_logits, classes, reduction="none"))


def robust_accuracy(adversarial_logits: Array, labels: Array, clean_logits: Array = None) -> Tensor:
    """Share of items that are right under every attack.

    Args, raises: as in `robust_correctness`.
    """
    return robust_correctness(adversarial_logits, labels, clean_logits).mean()


def robust_accuracy_by_class(adversarial_logits: Array, labels: Array, clean_logits: Array = None) -> Tensor:
    """Robust accuracy [C] over the items of each true class; NaN for a class without items.

    Args, raises: as in `robust_correctness`.
    """
    robust = robust_correctness(adversarial_logits, labels, clean_logits)
    classes, count = as_tensor(labels).long(), as_tensor(adversarial_logits).shape[-1]
    return torch.bincount(classes, robust, minlength=count) / torch.bincount(classes, minlength=count)


def worst_class_robust_accuracy(adversarial_logits: Array, labels: Array, clean_logits: Array = None) -> Tensor:
    """Smallest robust accuracy of a class that has items: biased downwards when classes hold few items.

    Args, raises: as in `robust_correctness`.
    """
    by_class = robust_accuracy_by_class(adversarial_logits, labels, clean_logits)
    return by_class[~by_class.isnan()].min()


def tail_robust_accuracy(
    adversarial_logits: Array, labels: Array, share: float = 0.3, clean_logits: Array = None
) -> Tensor:
    """Mean robust accuracy of the worst classes: the ⌈share · C⌉ lowest of the C classes that have items.

    The classes are chosen on the items that are scored, so the value is biased downwards, more for few items.

    Args:
        share: in (0, 1]; 1 is the class-balanced robust accuracy.
        others: as in `robust_correctness`.

    Raises:
        ValueError: share out of range, and as in `robust_correctness`.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    by_class = robust_accuracy_by_class(adversarial_logits, labels, clean_logits)
    present = by_class[~by_class.isnan()].sort().values
    return present[: ceil(share * len(present) - 1e-9)].mean()


def robust_gap(clean_logits: Array, adversarial_logits: Array, labels: Array) -> Tensor:
    """Clean accuracy minus robust accuracy (the clean input counted as an attack), in [0, 1].

    Args, raises: as in `robust_correctness`.
    """
    return accuracy(clean_logits, labels) - robust_accuracy(adversarial_logits, labels, clean_logits)


def robust_gap_by_class(clean_logits: Array, adversarial_logits: Array, labels: Array) -> Tensor:
    """Gap [C] of each true class as in `robust_gap`; NaN for a class without items."""
    clean = per_class_accuracy(clean_logits, labels)
    return clean - robust_accuracy_by_class(adversarial_logits, labels, clean_logits)
