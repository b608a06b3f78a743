"""Geometry of features by class: class means, and cosines within and between classes."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Negative = Literal["signed", "mean_abs", "abs_mean"]


class Similarities(NamedTuple):
    """Mean cosine of pairs of one class (`same`) and of different classes (`different`): scalars."""

    same: Tensor
    different: Tensor


def pair_similarities(features: Tensor, labels: Tensor, negative: Negative = "mean_abs") -> Similarities:
    """Mean cosines over ordered pairs of different items; 0 where there is no such pair.

    Args:
        features: (B, D); a zero row counts as a direction of length zero and gets no gradient.
        labels: (B,).
        negative: How pairs of different classes are averaged: `signed` Σ cos/n, `mean_abs` Σ |cos|/n, `abs_mean`
            |Σ cos/n|; 1e-6 is added to each number of pairs.

    Source: arXiv 2103.14021, equations 2 to 4 and the official code.
    """
    features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    norms = features.norm(dim=-1, keepdim=True)
    directions = torch.where(norms > 0, features, 0) / torch.where(norms > 0, norms, 1).clamp_min(1e-12)
    cosines = directions @ directions.T
    same = labels[:, None] == labels
    different = (~same).to(cosines)
    same = (same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)).to(cosines)
    cosines_between = cosines.abs() if negative == "mean_abs" else cosines
    between = (cosines_between * different).sum() / (different.sum() + 1e-6)
    if negative == "abs_mean":
        between = between.abs()
    return Similarities((cosines * same).sum() / (same.sum() + 1e-6), between)


def means_by_class(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean of (N, D) over the items of each class: (C, D); zero for a class without items."""
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    return sums / labels.bincount(minlength=classes).clamp_min(1).unsqueeze(-1)
