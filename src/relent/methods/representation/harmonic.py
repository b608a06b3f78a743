r"""Harmonic loss: classes scored by the distance of the feature to a prototype, to an inverse power.

Baek, Liu, Tyagi, Tegmark, "Harmonic Loss Trains Interpretable AI Models", arXiv 2502.01628, with the distances of
Miller-Golub et al., "Rethinking the Harmonic Loss via Non-Euclidean Distance Layers", arXiv 2603.10225:

    d_i = dist(x, w_i),   p_i = d_i^{−n} / Σ_j d_j^{−n} = softmax(−n·log d)_i,   L = −log p_y

The loss is finite at the prototype (x = w_y), unchanged by a common scale of features and prototypes, and is computed
here in log space, with d replaced by √(d² + ε²), ε = 1e-6.

n counts the distance as the table of `distances` writes it. The official code squares the Euclidean distance, so that
its exponent 1 is n = 2 here. In its released MLP, CNN and VGG the logits are minus the similarities, which rewards the
*largest* distance; that sign is not offered. Its `chebyshev` is a softmax-weighted sum of scaled differences, not the
maximum; the maximum is what is computed here. Its `hamming` compares sigmoids. The rest follows its formulas, but for
the places of its ε.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput

EPSILON = 1e-6
"""Distance below which a feature lies on its prototype."""
_ROOT = 1e-12
"""Inside roots: their derivative at zero is finite."""


class Config(MethodConfig):
    """Hyperparameters of the harmonic loss."""

    distance: Literal[
        "euclidean",
        "manhattan",
        "minkowski",
        "cosine",
        "chebyshev",
        "canberra",
        "bray_curtis",
        "hamming",
        "mahalanobis_diagonal",
        "mahalanobis_cholesky",
    ] = hyperparameter(
        "euclidean", "Distance of feature and prototype.", source="arXiv 2502.01628; the others 2603.10225"
    )
    exponent: float = hyperparameter(
        2.0, "n.", source="official code, vision: 1 on the squared Euclidean distance", gt=0, le=10_000
    )
    minkowski_order: float = hyperparameter(
        1.5, "p of the Minkowski distance.", source="official code: 1.5 or 3", ge=1, le=100
    )


def distances(features: Tensor, prototypes: Tensor, distance: str, order: float = 1.5) -> Tensor:
    """Distance of every feature from every prototype.

    | name | d(u, v), sums over D |
    | --- | --- |
    | euclidean | (Σ (u − v)²)^½ |
    | manhattan | Σ abs(u − v) |
    | minkowski | (Σ abs(u − v)^p)^(1/p) |
    | cosine | 1 − u·v/(‖u‖‖v‖) |
    | chebyshev | max abs(u − v) |
    | canberra | Σ abs(u − v)/(abs u + abs v) |
    | bray_curtis | Σ abs(u − v) / Σ (abs u + abs v) |
    | hamming | Σ abs(sigmoid u − sigmoid v) |

    Args:
        features: (B, D).
        prototypes: (C, D).
        distance: Name; the Mahalanobis distances are the Euclidean ones of transformed arguments (`HarmonicHead`).
        order: p of the Minkowski distance.

    Returns:
        (B, C), not negative.

    Raises:
        ValueError: Unknown distance.
    """
    if distance == "euclidean":
        return _EuclideanDistance.apply(features, prototypes)
    if distance == "cosine":
        u = features / features.square().sum(-1, keepdim=True).add(_ROOT).sqrt()
        v = prototypes / prototypes.square().sum(-1, keepdim=True).add(_ROOT).sqrt()
        return (1 - u @ v.T).clamp_min(0)
    if distance == "hamming":
        return (features.sigmoid().unsqueeze(1) - prototypes.sigmoid()).abs().sum(-1)
    gaps = (features.unsqueeze(1) - prototypes).abs()
    if distance == "manhattan":
        return gaps.sum(-1)
    if distance == "minkowski":
        return (gaps + _ROOT).pow(order).sum(-1).pow(1 / order)
    if distance == "chebyshev":
        return gaps.amax(-1)
    sizes = features.abs().unsqueeze(1) + prototypes.abs()
    if distance == "canberra":
        return (gaps / sizes.clamp_min(_ROOT)).sum(-1)
    if distance == "bray_curtis":
        return gaps.sum(-1) / sizes.sum(-1).clamp_min(_ROOT)
    raise ValueError(f"distance={distance!r} is unknown; use one of those in the table")


class _EuclideanDistance(torch.autograd.Function):
    """‖u − v‖ for all pairs, twice differentiable, which `torch.cdist` is not.

    Not by ‖u‖² − 2uv + ‖v‖², which loses all digits near a prototype; the derivative at distance 0 is 0.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, prototypes: Tensor) -> Tensor:
        distance = torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(features, prototypes, distance)
        return distance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        features, prototypes, distance = ctx.saved_tensors
        apart = distance > 0
        share = torch.where(apart, gradient / torch.where(apart, distance, 1.0), 0.0)
        of_features = features * share.sum(1, keepdim=True) - share @ prototypes
        return of_features, prototypes * share.sum(0).unsqueeze(1) - share.T @ features


def harmonic_logits(distance: Tensor, exponent: float) -> Tensor:
    """−n·log √(d² + ε²) of distances (B, C): their softmax is the harmonic probability."""
    return -exponent / 2 * (distance.square() + EPSILON**2).log()


class HarmonicHead(nn.Module):
    """Prototypes in place of a linear output layer: features (B, D) → logits (B, C).

    `mahalanobis_diagonal` learns a scale of each dimension, P = diag(exp θ) from θ = 0; `mahalanobis_cholesky` a lower
    triangle, P = L Lᵀ from L = 0.1·I; d² = (x − w)ᵀ P (x − w).

    Args:
        in_features: D.
        classes: C.
        config: Distance, n and p.
    """

    def __init__(self, in_features: int, classes: int, config: Config):
        super().__init__()
        self.in_features, self.distance = in_features, config.distance
        self.exponent, self.order = config.exponent, config.minkowski_order
        self.weight = nn.Parameter(torch.randn(classes, in_features) / in_features**0.5)
        if self.distance == "mahalanobis_diagonal":
            self.log_scale = nn.Parameter(torch.zeros(in_features))
        elif self.distance == "mahalanobis_cholesky":
            self.factor = nn.Parameter(0.1 * torch.eye(in_features))

    def transformed(self, vectors: Tensor) -> Tensor:
        """Vectors (N, D) such that their Euclidean distance is the Mahalanobis distance of the given ones."""
        if self.distance == "mahalanobis_diagonal":
            return vectors * (self.log_scale / 2).exp()
        if self.distance == "mahalanobis_cholesky":
            return vectors @ self.factor.tril()
        return vectors

    def forward(self, features: Tensor) -> Tensor:
        """Harmonic logits of features (B, D)."""
        name = "euclidean" if self.distance.startswith("mahalanobis") else self.distance
        gaps = distances(self.transformed(features), self.transformed(self.weight), name, self.order)
        return harmonic_logits(gaps, self.exponent)


class Harmonic(ClassifierMethod):
    """Trains prototypes and network by the harmonic loss."""

    config: Config

    def setup_method(self) -> None:
        """Put prototypes in the place of the output layer."""
        self.network.classifier = HarmonicHead(self.feature_width, self.classes, self.config)

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"harmonic": label_cross_entropy(batch["label"], tempered_log_probs(output.logits), reduction="mean")}
