r"""Kernels of sentence embeddings in log space, and their hierarchical mixture.

Das et al., "DPO Kernels: A Semantically-Aware, Kernel-Enhanced, and Divergence-Rich Paradigm for Direct Preference
Optimization", arXiv 2501.03271, and the released code of DETONATE, arXiv 2506.14903.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relent.divergences.kernels import log_rbf_kernel, polynomial_kernel
from relent.divergences.reduction import upcast

Kernel = Literal["rbf", "polynomial", "wavelet", "spectral", "mahalanobis"]

KERNEL_FLOOR = 1e-10
"""What the released code adds to a kernel before its logarithm; kernels that are not positive stand at it here."""


def log_kernel(
    kernel: Kernel | str,
    first: Tensor,
    second: Tensor,
    *,
    sigma: float = 1.0,
    degree: int = 3,
    offset: float = 1.0,
    amplitudes: tuple[float, ...] = (1.0, 0.5),
    rates: tuple[float, ...] = (1.0, 0.1),
    factor: Tensor | None = None,
) -> Tensor:
    r"""log K(u_i, v_i), row by row, (B,).

    ==============  ================================================  ======================================
    `rbf`           exp(−‖u − v‖²/(2σ²))                              exact in the log, whatever the distance
    `polynomial`    (u·v + c)^p                                       −∞ replaced where u·v + c ≤ 0
    `wavelet`       e^{−w} cos w, w = ‖u − v‖²/(2σ²)                  −∞ replaced where w ≥ π/2
    `spectral`      Σ_k a_k exp(−b_k ‖u − v‖²), a_k > 0               exact in the log
    `mahalanobis`   exp(−(u − v)ᵀ A (u − v)/2), A = F Fᵀ              exact in the log
    ==============  ================================================  ======================================

    Kernels that are not positive have no logarithm: there the value is log 1e-10, without gradient (see
    :func:`invalid_share`).

    Args:
        kernel: Its name.
        first: (B, d). Unit length is advised: σ is in the unit of the embeddings.
        second: (B, d).
        sigma: σ of `rbf` and `wavelet`.
        degree: p.
        offset: c.
        amplitudes: a of `spectral`.
        rates: b of `spectral`.
        factor: (d, d), F of `mahalanobis` (:func:`precision_factor`); the identity by default.

    Raises:
        ValueError: An unknown kernel, shapes that differ, amplitudes or rates that do not fit.

    Source: `kernel_utils.py` of the released code; `spectral` and `mahalanobis` as in arXiv 2501.03271, whose own code
    is not public.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"expected embeddings (B, d) of one shape, got {tuple(first.shape)}, {tuple(second.shape)}")
    u, v = first.unsqueeze(-2), second.unsqueeze(-2)
    if kernel == "rbf":
        return log_rbf_kernel(u, v, sigma)[:, 0, 0]
    if kernel == "mahalanobis":
        scaled = (u, v) if factor is None else (u @ factor.to(u), v @ factor.to(v))
        return log_rbf_kernel(*scaled, 1.0)[:, 0, 0]
    if kernel == "spectral":
        if len(amplitudes) != len(rates) or min(amplitudes) <= 0 or min(rates) < 0:
            raise ValueError(f"as many positive amplitudes as rates are needed, got {amplitudes} and {rates}")
        squares = -2.0 * log_rbf_kernel(u, v, 1.0)[:, 0, 0]
        terms = [math.log(a) - b * squares for a, b in zip(amplitudes, rates)]
        return torch.stack(terms).logsumexp(dim=0)
    if kernel == "polynomial":
        return _log_of_signed(polynomial_kernel(u, v, degree=1, offset=offset)[:, 0, 0], degree)
    if kernel == "wavelet":
        negative_w = log_rbf_kernel(u, v, sigma)[:, 0, 0]
        # cos w is positive again beyond 3π/2; that revival is not a similarity, and e^{−w} < 0.01 there.
        cosine = torch.where(negative_w > -0.5 * math.pi, negative_w.cos(), 0.0)
        return _log_of_signed(cosine, 1, negative_w)
    raise ValueError(f"kernel={kernel!r} is unknown; use one of {', '.join(get_args(Kernel))}")


def _log_of_signed(base: Tensor, power: int, log_factor: Tensor | float = 0.0) -> Tensor:
    """power·log(base) + log_factor, and the floor where the base is not positive."""
    valid = base > 0
    logs = power * torch.where(valid, base, 1.0).log() + log_factor
    return torch.where(valid, logs, math.log(KERNEL_FLOOR))


def invalid_share(
    kernel: Kernel | str, first: Tensor, second: Tensor, *, sigma: float = 1.0, offset: float = 1.0
) -> Tensor:
    """Share of rows whose kernel is not positive, a scalar to log: such pairs have a constant in place of E."""
    if kernel == "polynomial":
        return ((upcast(first) * second).sum(-1) + offset <= 0).float().mean()
    if kernel == "wavelet":
        return ((upcast(first) - second).square().sum(-1) / (2 * sigma**2) >= 0.5 * math.pi).float().mean()
    return torch.zeros((), device=first.device)


def precision_factor(embeddings: Tensor, *, ridge: float = 1e-3) -> Tensor:
    r"""F with F Fᵀ = (Cov + ridge·I)⁻¹, (d, d), of embeddings (N, d): the whitening that `mahalanobis` measures in.

    Raises:
        ValueError: Fewer than two rows.
    """
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"a covariance needs at least two rows (N, d), got {tuple(embeddings.shape)}")
    values, vectors = torch.linalg.eigh(embeddings.detach().double().mT.cov())
    return (vectors * (values.clamp(min=0) + ridge).rsqrt()).to(embeddings.dtype)


class KernelMixture(nn.Module):
    r"""Hierarchical mixture of kernels, K = τ_1 (a_1 RBF + a_2 polynomial) + τ_2 (b_1 spectral + b_2 Mahalanobis).

    Each pair of weights is the softmax of two learned logits, equal at the start. It only shapes the margin E: with a
    frozen encoder it has a gradient through the loss, the policy none through it.

    Args:
        factor: (d, d), F of the Mahalanobis kernel; the identity by default.
        degree: p of the polynomial.

    Source: arXiv 2501.03271, section on the mixture; details from a public re-implementation of unknown authorship.
    """

    factor: Tensor | None

    def __init__(self, factor: Tensor | None = None, *, degree: int = 2) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.degree = degree
        self.local, self.distant, self.level = (nn.Parameter(torch.zeros(2)) for _ in range(3))

    def weights(self) -> Tensor:
        """Weights of RBF, polynomial, spectral and Mahalanobis, (4,), summing to one."""
        return self._log_weights().exp()

    def _log_weights(self) -> Tensor:
        level = F.log_softmax(self.level, dim=0)
        return torch.cat((level[0] + F.log_softmax(self.local, 0), level[1] + F.log_softmax(self.distant, 0)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """log K(u_i, v_i), (B,), from (B, d) each."""
        logs = torch.stack(
            [
                log_kernel("rbf", first, second),
                log_kernel("polynomial", first, second, degree=self.degree),
                log_kernel("spectral", first, second),
                log_kernel("mahalanobis", first, second, factor=self.factor),
            ],
            dim=-1,
        )
        return (logs + self._log_weights().to(logs)).logsumexp(dim=-1)
