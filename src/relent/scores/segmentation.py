"""Scores of segmentation masks: overlap (Dice, IoU) and surface distances (Hausdorff, average surface distance).

A mask is boolean (or 0/1) with its spatial dimensions last; leading dimensions are batch, class or both. Overlap scores
run on any device; surface distances go through SciPy's exact Euclidean distance transform on the CPU, mask by mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from relent.scores.classification import Array, as_tensor

__all__ = ["average_surface_distance", "class_masks", "dice", "hausdorff_distance", "intersection_over_union"]

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]


def class_masks(labels: Array, num_classes: int, spatial_dims: int = 2) -> Tensor:
    """Boolean masks [..., C, *spatial] of label maps [..., *spatial], class by class.

    Raises:
        ValueError: labels outside [0, C) or with too few dimensions.
        TypeError: labels that are not integers.
    """
    maps = as_tensor(labels)
    if maps.dtype.is_floating_point or maps.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {maps.dtype}")
    if maps.ndim < spatial_dims or bool(((maps < 0) | (maps >= num_classes)).any()):
        raise ValueError(f"labels must have {spatial_dims} spatial dimension(s) and lie in [0, {num_classes})")
    return torch.stack([maps == c for c in range(num_classes)], dim=-spatial_dims - 1)


def dice(prediction: Array, target: Array, spatial_dims: int = 2, empty: float = 1.0) -> Tensor:
    r"""Dice coefficient, :math:`2 |P \cap T| / (|P| + |T|)`, in [0, 1]: the F1 score of the pixels.

    Args:
        prediction, target: [..., *spatial] masks of one shape.
        spatial_dims: number of trailing dimensions that make up one mask (3 for a volume).
        empty: score where both masks are empty: 1 (nothing to find and nothing found), or NaN to leave such cases out
            with ``nanmean``. One empty mask against a full one scores 0.

    Returns:
        Float64 [...].

    Raises:
        ValueError: shapes that differ, too few dimensions, no pixel, values other than 0 and 1.

    Source: Dice, "Measures of the amount of ecologic association between species" (1945).
    """
    overlap, total = _overlap(prediction, target, spatial_dims)
    return torch.where(total > 0, 2 * overlap / total, empty)


def intersection_over_union(prediction: Array, target: Array, spatial_dims: int = 2, empty: float = 1.0) -> Tensor:
    r"""Intersection over union (Jaccard index), :math:`|P \cap T| / |P \cup T|`, in [0, 1]; IoU = Dice / (2 − Dice).

    Args, returns, raises: as in `dice`.
    """
    overlap, total = _overlap(prediction, target, spatial_dims)
    return torch.where(total > 0, overlap / (total - overlap), empty)


def hausdorff_distance(
    prediction: Array,
    target: Array,
    percentile: float = 100.0,
    spacing: Sequence[float] | None = None,
    spatial_dims: int = 2,
) -> Tensor:
    """Hausdorff distance between the surfaces of two masks; ``percentile=95`` gives the robust HD95.

    The surface is every mask pixel with a face neighbour outside the mask (outside the image counts as outside). The
    score is the larger of the two directed distances; with a percentile, the larger of the two percentiles (linear
    interpolation) of the directed distances, not the percentile of both pooled, which some libraries report.

    Args:
        prediction, target: [..., *spatial] masks of one shape.
        percentile: in (0, 100].
        spacing: size of a pixel in each spatial dimension, in the unit of the result (mm, say); 1 by default.
        spatial_dims: number of trailing dimensions that make up one mask.

    Returns:
        Float64 [...]: 0 where both masks are empty, +inf where just one is.

    Raises:
        ValueError: as in `dice`; percentile out of range; spacing not positive or of the wrong length.

    Source: Huttenlocher et al., "Comparing images using the Hausdorff distance" (1993).
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must lie in (0, 100], got {percentile}")

    def score(there: Distances, back: Distances) -> float:
        return float(max(np.percentile(there, percentile), np.percentile(back, percentile)))

    return _surface_score(score, prediction, target, spacing, spatial_dims)


def average_surface_distance(
    prediction: Array, target: Array, spacing: Sequence[float] | None = None, spatial_dims: int = 2
) -> Tensor:
    """Average symmetric surface distance: the mean over the pixels of both surfaces of the distance to the other one.

    Args, returns, raises: as in `hausdorff_distance`.

    Source: Heimann et al., "Comparison and evaluation of methods for liver segmentation" (2009).
    """
    return _surface_score(lambda *both: float(np.concatenate(both).mean()), prediction, target, spacing, spatial_dims)


def _surface_score(
    score: Callable[[Distances, Distances], float],
    prediction: Array,
    target: Array,
    spacing: Sequence[float] | None,
    spatial_dims: int,
) -> Tensor:
    first, second = _masks(prediction, target, spatial_dims)
    if spacing is not None and (len(spacing) != spatial_dims or min(spacing) <= 0):
        raise ValueError(f"spacing needs {spatial_dims} positive numbers, got {tuple(spacing)}")
    batch, spatial = first.shape[: first.ndim - spatial_dims], first.shape[first.ndim - spatial_dims :]
    pairs = zip(first.reshape(-1, *spatial).cpu().numpy(), second.reshape(-1, *spatial).cpu().numpy())
    scores = [_of_pair(score, a, b, spacing) for a, b in pairs]
    return torch.tensor(scores, dtype=torch.float64).reshape(batch)


def _of_pair(
    score: Callable[[Distances, Distances], float], first: Mask, second: Mask, spacing: Sequence[float] | None
) -> float:
    if not first.any() or not second.any():
        return 0.0 if first.any() == second.any() else inf
    a, b = _surface(first), _surface(second)
    there = ndimage.distance_transform_edt(~b, sampling=spacing)[a]
    back = ndimage.distance_transform_edt(~a, sampling=spacing)[b]
    return score(there, back)


def _surface(mask: Mask) -> Mask:
    return np.asarray(mask & ~ndimage.binary_erosion(mask))


def _overlap(prediction: Array, target: Array, spatial_dims: int) -> tuple[Tensor, Tensor]:
    first, second = _masks(prediction, target, spatial_dims)
    dims = tuple(range(-spatial_dims, 0))
    return (first & second).sum(dims).double(), (first.sum(dims) + second.sum(dims)).double()


def _masks(prediction: Array, target: Array, spatial_dims: int) -> tuple[Tensor, Tensor]:
    first, second = as_tensor(prediction), as_tensor(target)
    if first.shape != second.shape:
        raise ValueError(f"prediction and target differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
    if not 1 <= spatial_dims <= first.ndim or first.numel() == 0:
        raise ValueError(f"need {spatial_dims} spatial dimension(s) with pixels, got shape {tuple(first.shape)}")
    for name, mask in (("prediction", first), ("target", second)):
        if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"{name} must be boolean or 0/1: threshold probabilities, split label maps (class_masks)")
    return first.bool(), second.bool()
