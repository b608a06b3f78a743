r"""Closed-form KL divergences between parametric distributions: Gaussian, Bernoulli, Dirichlet, categorical.

The first distribution is the first argument of the KL: ``f(p..., q...)`` is KL(p‖q), in nats. For a variational
posterior and its prior that is the posterior first. Half precision is computed in float32; shapes broadcast.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from relent.divergences.discrete import entropy, forward_kl
from relent.divergences.reduction import upcast

__all__ = [
    "bernoulli_kl",
    "categorical_prior_kl",
    "cholesky_factor",
    "diagonal_gaussian_kl",
    "dirichlet_kl",
    "full_gaussian_kl",
    "low_rank_gaussian_kl",
    "standard_normal_kl",
]


def diagonal_gaussian_kl(
    mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor, log_var_q: Tensor, *, dim: int | None = -1
) -> Tensor:
    r"""KL between Gaussians with diagonal covariance, from log-variances,

    .. math:: \tfrac12 \sum_d \big[e^{a_d} - 1 - a_d + (\mu_{p,d} - \mu_{q,d})^2 e^{-\log\sigma_{q,d}^2}\big],
              \qquad a_d = \log \sigma_{p,d}^2 - \log \sigma_{q,d}^2.

    Args:
        mean_p, log_var_p, mean_q, log_var_q: [..., D], broadcast against one another.
        dim: the dimension to sum; None keeps one number a component (to select or weight latents).

    Source: Kingma, Welling, arXiv 1312.6114, appendix B.
    """
    mean_p, log_var_p, mean_q, log_var_q = (upcast(x) for x in (mean_p, log_var_p, mean_q, log_var_q))
    log_ratio = log_var_p - log_var_q
    # expm1(a) − a keeps the digits that exp(a) − 1 − a loses when both variances are nearly equal.
    terms = 0.5 * (log_ratio.expm1() - log_ratio + (mean_p - mean_q).square() * (-log_var_q).exp())
    return terms if dim is None else terms.sum(dim=dim)


def standard_normal_kl(mean: Tensor, log_var: Tensor, *, dim: int | None = -1) -> Tensor:
    r"""KL(N(μ, diag σ²)‖N(0, I)) = :math:`\tfrac12 \sum_d (\mu_d^2 + \sigma_d^2 - 1 - \log \sigma_d^2)`.

    Args:
        mean, log_var: [..., D]. dim: the dimension to sum; None keeps one number a latent.
    """
    mean, log_var = upcast(mean), upcast(log_var)
    terms = 0.5 * (mean.square() + log_var.expm1() - log_var)
    return terms if dim is None else terms.sum(dim=dim)


def cholesky_factor(covariance: Tensor, name: str = "covariance") -> Tensor:
    """Lower Cholesky factor of a covariance [..., D, D].

    Raises:
        ValueError: if a matrix is not positive definite (or not square), naming the first one.
    """
    if covariance.ndim < 2 or covariance.shape[-1] != covariance.shape[-2]:
        raise ValueError(f"{name} must have shape [..., D, D], got {tuple(covariance.shape)}")
    factor, info = torch.linalg.cholesky_ex(upcast(covariance))
    if bool((info != 0).any()):
        first = int(info.reshape(-1).nonzero()[0])
        raise ValueError(f"{name} number {first} is not positive definite; add a multiple of the identity")
    return factor


def full_gaussian_kl(mean_p: Tensor, factor_p: Tensor, mean_q: Tensor, factor_q: Tensor) -> Tensor:
    r"""KL between Gaussians with full covariance :math:`\Sigma = L L^\top`, from the lower Cholesky factors,

    .. math:: \tfrac12 \big[\|L_q^{-1} L_p\|_F^2 + \|L_q^{-1}(\mu_p - \mu_q)\|^2 - D\big]
              + \sum_d \log L_{q,dd} - \sum_d \log L_{p,dd}.

    Args:
        mean_p, mean_q: [..., D].
        factor_p, factor_q: [..., D, D], lower triangular with positive diagonal; see :func:`cholesky_factor`.

    Returns:
        [...].
    """
    mean_p, factor_p, mean_q, factor_q = (upcast(x) for x in (mean_p, factor_p, mean_q, factor_q))
    whitened = torch.linalg.solve_triangular(factor_q, factor_p, upper=False)
    shift = torch.linalg.solve_triangular(factor_q, (mean_p - mean_q).unsqueeze(-1), upper=False)
    trace = whitened.square().sum(dim=(-2, -1)) + shift.square().sum(dim=(-2, -1)) - mean_p.shape[-1]
    return 0.5 * trace + _log_diagonal(factor_q) - _log_diagonal(factor_p)


def _log_diagonal(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)


def low_rank_gaussian_kl(
    mean_p: Tensor,
    log_diag_p: Tensor,
    factor_p: Tensor,
    mean_q: Tensor,
    log_diag_q: Tensor,
    factor_q: Tensor,
) -> Tensor:
    r"""KL between Gaussians with covariance :math:`\Sigma = \mathrm{diag}(e^{\text{log diag}}) + U U^\top`, rank R ≪ D.

    Woodbury's identity and the determinant lemma with the capacitance :math:`K = I + U^\top D^{-1} U`: no D × D matrix
    is formed; O(D R²) work.

    Args:
        mean: [..., D]. log_diag: [..., D]. factor: [..., D, R] (ranks of p and q may differ). One batch shape for all.

    Returns:
        [...].
    """
    mean_p, log_diag_p, factor_p = (upcast(x) for x in (mean_p, log_diag_p, factor_p))
    mean_q, log_diag_q, factor_q = (upcast(x) for x in (mean_q, log_diag_q, factor_q))
    scale_q = (-0.5 * log_diag_q).exp().unsqueeze(-1)
    loads_q = scale_q * factor_q
    capacitance_q = _capacitance(loads_q)

    def quadratic(columns: Tensor) -> Tensor:
        # Σ over columns of x^T Σ_q^{-1} x, the columns already scaled by D_q^{-1/2}.
        inner = torch.linalg.solve_triangular(capacitance_q, loads_q.mT @ columns, upper=False)
        return columns.square().sum(dim=(-2, -1)) - inner.square().sum(dim=(-2, -1))

    log_ratio = log_diag_p - log_diag_q
    root = (0.5 * log_ratio).exp().unsqueeze(-2)
    overlap = torch.linalg.solve_triangular(capacitance_q, loads_q.mT * root, upper=False)
    trace = log_ratio.exp().sum(dim=-1) - overlap.square().sum(dim=(-2, -1)) + quadratic(scale_q * factor_p)
    shift = quadratic(scale_q * (mean_p - mean_q).unsqueeze(-1))
    loads_p = (-0.5 * log_diag_p).exp().unsqueeze(-1) * factor_p
    log_det = _log_diagonal(capacitance_q) - _log_diagonal(_capacitance(loads_p)) - 0.5 * log_ratio.sum(dim=-1)
    return 0.5 * (trace + shift - mean_p.shape[-1]) + log_det


def _capacitance(loads: Tensor) -> Tensor:
    """Cholesky factor of I + A^T A for scaled loadings A [..., D, R]."""
    eye = torch.eye(loads.shape[-1], dtype=loads.dtype, device=loads.device)
    return torch.linalg.cholesky(eye + loads.mT @ loads)


def bernoulli_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    r"""KL between Bernoulli distributions from their logits, elementwise,

    .. math:: \sigma(a)\,[\log\sigma(a) - \log\sigma(b)] + \sigma(-a)\,[\log\sigma(-a) - \log\sigma(-b)].

    Finite, with finite gradient, for finite logits of any size.
    """
    a, b = upcast(logits_p), upcast(logits_q)
    positive = a.sigmoid() * (F.logsigmoid(a) - F.logsigmoid(b))
    return positive + (-a).sigmoid() * (F.logsigmoid(-a) - F.logsigmoid(-b))


def dirichlet_kl(concentration_p: Tensor, concentration_q: Tensor) -> Tensor:
    r"""KL between Dirichlet distributions with concentrations a and b over the last dimension,

    .. math:: \log\Gamma(a_0) - \log\Gamma(b_0) - \sum_i [\log\Gamma(a_i) - \log\Gamma(b_i)]
              + \sum_i (a_i - b_i)(\psi(a_i) - \psi(a_0)).

    Args:
        concentration_p, concentration_q: [..., C], positive.
    """
    a, b = upcast(concentration_p), upcast(concentration_q)
    total_a, total_b = a.sum(dim=-1, keepdim=True), b.sum(dim=-1, keepdim=True)
    log_norm = (total_a.lgamma() - total_b.lgamma()).squeeze(-1) - (a.lgamma() - b.lgamma()).sum(dim=-1)
    return log_norm + ((a - b) * (a.digamma() - total_a.digamma())).sum(dim=-1)


def categorical_prior_kl(log_probs: Tensor, prior_log_probs: Tensor | None = None) -> Tensor:
    r"""KL of a categorical posterior from its prior, :math:`\mathrm{KL}(q\|\pi)`; uniform prior: :math:`\log C - H(q)`.

    Args:
        log_probs: posterior, [..., C]. prior_log_probs: [C] or [..., C]; None is the uniform prior.
    """
    if prior_log_probs is None:
        return math.log(log_probs.shape[-1]) - entropy(log_probs)
    return forward_kl(log_probs, prior_log_probs.expand_as(log_probs))
