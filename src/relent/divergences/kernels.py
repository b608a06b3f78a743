r"""Kernel matrices and what is measured with them: MMD, HSIC, Cauchy–Schwarz divergence and mutual information.

Points are rows: x is [..., N, D], y is [..., M, D], a kernel matrix [..., N, M]. To compare rows one by one give them
as [B, 1, D]. Half precision is computed in float32. Scalar data must be [N, 1]: a tensor of shape [N] could be one
point in N dimensions, so it is refused.

The Cauchy–Schwarz divergence is :math:`D_{CS}(p, q) = \log \frac{\int p^2 \int q^2}{(\int p q)^2} \ge 0` (some texts
take half of it): symmetric, zero iff p = q, finite without any condition on supports. Kernel forms work on
**log**-kernel matrices, so that far-apart points do not underflow to log 0. Source of the estimators: Yu et al.,
*Cauchy–Schwarz Divergence Information Bottleneck for Regression*, arXiv 2404.17951, propositions 1 and 2.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from relent.divergences.gaussian import cholesky_factor
from relent.divergences.reduction import upcast

Bias = Literal["biased", "unbiased"]
RowWeights = Literal["paper", "code"]

__all__ = [
    "cauchy_schwarz",
    "cauchy_schwarz_gaussian",
    "cauchy_schwarz_mixture",
    "cauchy_schwarz_mutual_information",
    "conditional_cauchy_schwarz",
    "hsic",
    "laplacian_kernel",
    "linear_kernel",
    "log_rbf_kernel",
    "median_distance",
    "mmd_squared",
    "polynomial_kernel",
    "rbf_kernel",
    "squared_distances",
    "wavelet_kernel",
]


def _points(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"points must be rows of equal length, [..., N, D] and [..., M, D]; got {tuple(x.shape)} and "
            f"{tuple(y.shape)} (scalar data: [N, 1])"
        )
    return upcast(x), upcast(y)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    r"""Squared Euclidean distances :math:`\|x_i - y_j\|^2`, [..., N, M].

    By the expansion :math:`|x|^2 + |y|^2 - 2 x \cdot y` after moving the origin to the mean of y, never negative.

    Raises:
        ValueError: if the points are not matrices of rows of equal length.
    """
    x, y = _points(x, y)
    # The expansion cancels: digits are lost in proportion to (distance from the origin)² / (distance)².
    centre = y.mean(dim=-2, keepdim=True).detach()
    x, y = x - centre, y - centre
    squares = x.square().sum(dim=-1).unsqueeze(-1) + y.square().sum(dim=-1).unsqueeze(-2)
    return (squares - 2.0 * x @ y.mT).clamp(min=0.0)


def median_distance(x: Tensor, y: Tensor | None = None) -> Tensor:
    r"""Median heuristic: the median distance over distinct pairs of the sample (joined with y), a detached scalar.

    Use it as the bandwidth σ of :func:`rbf_kernel`. Source: Gretton et al., JMLR 13 (2012), section 8.

    Raises:
        ValueError: fewer than two points.
    """
    x = x.detach() if y is None else torch.cat((x.detach(), y.detach()), dim=-2)
    if x.ndim != 2 or x.shape[0] < 2:
        raise ValueError(f"the median distance needs at least two points in a matrix [N, D], got {tuple(x.shape)}")
    rows, columns = torch.triu_indices(x.shape[0], x.shape[0], offset=1, device=x.device)
    return squared_distances(x, x)[rows, columns].median().sqrt()


def log_rbf_kernel(x: Tensor, y: Tensor, sigma: float | Tensor) -> Tensor:
    r"""Log of the Gaussian kernel, :math:`-\|x_i - y_j\|^2 / (2 \sigma^2)`.

    Raises:
        ValueError: if the points are not matrices of rows of equal length, or σ is not positive.
    """
    if not isinstance(sigma, Tensor) and not sigma > 0:
        raise ValueError(f"the bandwidth sigma must be positive, got {sigma}")
    return squared_distances(x, y) / (-2.0 * sigma**2)


def rbf_kernel(x: Tensor, y: Tensor, sigma: float | Tensor) -> Tensor:
    r"""Gaussian kernel, :math:`\exp(-\|x_i - y_j\|^2 / (2 \sigma^2))`; errors as :func:`log_rbf_kernel`."""
    return log_rbf_kernel(x, y, sigma).exp()


def laplacian_kernel(x: Tensor, y: Tensor, sigma: float | Tensor) -> Tensor:
    r"""Laplacian kernel, :math:`\exp(-\|x_i - y_j\|_1 / \sigma)` (L1 distance, as in scikit-learn with γ = 1/σ)."""
    x, y = _points(x, y)
    return (-torch.cdist(x, y, p=1.0) / sigma).exp()


def polynomial_kernel(x: Tensor, y: Tensor, *, degree: int = 3, offset: float = 1.0) -> Tensor:
    r"""Polynomial kernel, :math:`(x_i \cdot y_j + c)^p`; negative values are possible for odd p."""
    x, y = _points(x, y)
    return (x @ y.mT + offset) ** degree


def linear_kernel(x: Tensor, y: Tensor) -> Tensor:
    r"""Linear kernel, :math:`x_i \cdot y_j`."""
    x, y = _points(x, y)
    return x @ y.mT


def wavelet_kernel(x: Tensor, y: Tensor, sigma: float | Tensor) -> Tensor:
    r"""Wavelet kernel, :math:`e^{-w} \cos w` with :math:`w = \|x_i - y_j\|^2 / (2\sigma^2)`; negative for w > π/2.

    Source: the kernel set of DETONATE, arXiv 2506.14903.
    """
    log_kernel = log_rbf_kernel(x, y, sigma)
    return log_kernel.exp() * log_kernel.cos()


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    n = kernel.shape[-1]
    if kernel.shape[-2] != n or n < 2:
        raise ValueError(f"an unbiased estimate needs square matrices of at least 2 points, got {tuple(kernel.shape)}")
    return (kernel.sum(dim=(-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(dim=-1)) / (n * (n - 1))


def mmd_squared(kernel_xx: Tensor, kernel_yy: Tensor, kernel_xy: Tensor, *, estimator: Bias = "unbiased") -> Tensor:
    r"""Squared maximum mean discrepancy from the three kernel matrices,

    .. math:: \mathbb{E}\,k(x, x') + \mathbb{E}\,k(y, y') - 2\,\mathbb{E}\,k(x, y).

    ``"unbiased"`` leaves the diagonals out (may be negative); ``"biased"`` is the squared RKHS distance of the sample
    means (never negative; its expectation is positive even for equal distributions).

    Args:
        kernel_xx: [..., N, N]. kernel_yy: [..., M, M]. kernel_xy: [..., N, M].

    Raises:
        ValueError: unknown estimator, or fewer than two points for the unbiased one.

    Source: Gretton et al., *A Kernel Two-Sample Test*, JMLR 13 (2012), lemma 6 and equation 5.
    """
    cross = kernel_xy.mean(dim=(-2, -1))
    if estimator == "biased":
        return kernel_xx.mean(dim=(-2, -1)) + kernel_yy.mean(dim=(-2, -1)) - 2.0 * cross
    if estimator != "unbiased":
        raise ValueError(f"estimator={estimator!r} is unknown; use 'biased' or 'unbiased'")
    return _off_diagonal_mean(kernel_xx) + _off_diagonal_mean(kernel_yy) - 2.0 * cross


def hsic(kernel_x: Tensor, kernel_y: Tensor, *, estimator: Bias = "unbiased") -> Tensor:
    r"""Hilbert–Schmidt independence criterion of paired samples from their two kernel matrices [..., N, N].

    ``"biased"``: :math:`\mathrm{tr}(K H L H) / N^2`, H the centring matrix (never negative; texts that divide by
    :math:`(N-1)^2` differ by that factor). ``"unbiased"``, diagonals of K and L set to zero, N ≥ 4:

    .. math:: \frac{1}{N(N-3)} \Big[\mathrm{tr}(\tilde K \tilde L)
              + \frac{1^\top \tilde K 1\; 1^\top \tilde L 1}{(N-1)(N-2)}
              - \frac{2\; 1^\top \tilde K \tilde L 1}{N-2}\Big].

    O(N²): no matrix product is formed.

    Raises:
        ValueError: matrices that are not square or of different size, too few points, unknown estimator.

    Source: Gretton et al. (NeurIPS 2007), equation 4; Song et al., JMLR 13 (2012), equation 5.
    """
    n = kernel_x.shape[-1]
    if kernel_x.shape[-2:] != (n, n) or kernel_y.shape[-2:] != (n, n):
        raise ValueError(
            f"kernel matrices must be square and of one size, got {tuple(kernel_x.shape)}, {tuple(kernel_y.shape)}"
        )
    if estimator == "biased":
        centred = kernel_x - kernel_x.mean(dim=-1, keepdim=True)
        centred = centred - centred.mean(dim=-2, keepdim=True)
        return (centred * kernel_y).mean(dim=(-2, -1))
    if estimator != "unbiased":
        raise ValueError(f"estimator={estimator!r} is unknown; use 'biased' or 'unbiased'")
    if n < 4:
        raise ValueError(f"the unbiased HSIC needs at least 4 points, got {n}")
    eye = torch.eye(n, dtype=torch.bool, device=kernel_x.device)
    k, ell = kernel_x.masked_fill(eye, 0.0), kernel_y.masked_fill(eye, 0.0)
    total = k.sum(dim=(-2, -1)) * ell.sum(dim=(-2, -1)) / ((n - 1) * (n - 2))
    rows = 2.0 * (k.sum(dim=-2) * ell.sum(dim=-1)).sum(dim=-1) / (n - 2)
    return ((k * ell.mT).sum(dim=(-2, -1)) + total - rows) / (n * (n - 3))


def _log_overlap(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> Tensor:
    """log ∫ N(x; a, A) N(x; b, B) dx = log N(a − b; 0, A + B)."""
    factor = cholesky_factor(cov_p + cov_q, "the sum of covariances")
    shift = (mean_p - mean_q).unsqueeze(-1)
    whitened = torch.linalg.solve_triangular(factor, shift, upper=False).squeeze(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return -0.5 * (whitened.square().sum(dim=-1) + mean_p.shape[-1] * math.log(2.0 * math.pi)) - log_det


def cauchy_schwarz_gaussian(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> Tensor:
    r"""Cauchy–Schwarz divergence of two Gaussians in closed form.

    In one dimension :math:`(\mu_p - \mu_q)^2 / v - \log(2 \sigma_p \sigma_q / v)` with
    :math:`v = \sigma_p^2 + \sigma_q^2`.

    Args:
        mean: [..., D]. cov: [..., D, D], positive definite.

    Returns:
        [...] in nats; half of it is at most KL(p‖q) and at most KL(q‖p).

    Raises:
        ValueError: if a covariance is not positive definite.

    Source: Kampa, Hasanbelliu, Principe, *Closed-form Cauchy–Schwarz PDF divergence for mixture of Gaussians* (2011).
    """
    mean_p, cov_p, mean_q, cov_q = (upcast(x) for x in (mean_p, cov_p, mean_q, cov_q))
    own = _log_overlap(mean_p, cov_p, mean_p, cov_p) + _log_overlap(mean_q, cov_q, mean_q, cov_q)
    return own - 2.0 * _log_overlap(mean_p, cov_p, mean_q, cov_q)


def cauchy_schwarz_mixture(
    log_weights_p: Tensor, means_p: Tensor, covs_p: Tensor, log_weights_q: Tensor, means_q: Tensor, covs_q: Tensor
) -> Tensor:
    r"""Cauchy–Schwarz divergence of two Gaussian mixtures, exact: every overlap of components has a closed form.

    Args:
        log_weights: [..., K], normalised. means: [..., K, D]. covs: [..., K, D, D]. K may differ between p and q.

    Returns:
        [...] in nats. Errors and source as :func:`cauchy_schwarz_gaussian`.
    """

    def log_inner(first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        (weights, means, covs), (other_weights, other_means, other_covs) = first, second
        pairs = _log_overlap(
            means.unsqueeze(-2), covs.unsqueeze(-3), other_means.unsqueeze(-3), other_covs.unsqueeze(-4)
        )
        return torch.logsumexp(weights.unsqueeze(-1) + other_weights.unsqueeze(-2) + pairs, dim=(-2, -1))

    p = (upcast(log_weights_p), upcast(means_p), upcast(covs_p))
    q = (upcast(log_weights_q), upcast(means_q), upcast(covs_q))
    return log_inner(p, p) + log_inner(q, q) - 2.0 * log_inner(p, q)


def cauchy_schwarz(log_kernel_xx: Tensor, log_kernel_yy: Tensor, log_kernel_xy: Tensor) -> Tensor:
    r"""Kernel estimate of the Cauchy–Schwarz divergence of two samples,

    .. math:: \log \overline{K_{xx}} + \log \overline{K_{yy}} - 2 \log \overline{K_{xy}}.

    It is the exact divergence of the two kernel density estimates of bandwidth h when the log-kernels are Gaussian with
    :math:`\sigma^2 = 2 h^2`: never negative.

    Args:
        log_kernel_xx: [..., N, N]. log_kernel_yy: [..., M, M]. log_kernel_xy: [..., N, M].
    """
    return _log_mean(log_kernel_xx) + _log_mean(log_kernel_yy) - 2.0 * _log_mean(log_kernel_xy)


def _log_mean(log_kernel: Tensor) -> Tensor:
    n, m = log_kernel.shape[-2:]
    return torch.logsumexp(log_kernel, dim=(-2, -1)) - math.log(n * m)


def conditional_cauchy_schwarz(
    log_kernel_x: Tensor,
    log_kernel_targets: Tensor,
    log_kernel_predictions: Tensor,
    log_kernel_cross: Tensor,
    *,
    weights: RowWeights = "paper",
) -> Tensor:
    r"""Conditional Cauchy–Schwarz divergence :math:`D_{CS}(p(y|x); q(\hat y|x))` of a batch, in nats (proposition 1),

    .. math:: \log S(L_1) + \log S(L_2) - 2 \log S(L_{21}), \qquad
              S(L) = \sum_j \frac{\sum_i K_{ji} L_{ji}}{(\sum_i K_{ji})^2}.

    Args:
        log_kernel_x: log K of the inputs, [..., N, N].
        log_kernel_targets: log L₁ of the targets y.
        log_kernel_predictions: log L₂ of the predictions ŷ.
        log_kernel_cross: log L₂₁, row j the **prediction** ŷ_j, column i the target y_i.
        weights: ``"paper"`` squares the row sum, as the derivation needs; ``"code"`` sums the squares,
            :math:`1/\sum_i K_{ji}^2`, as the authors' released code does.

    Returns:
        [...]. On a batch it is not symmetric in y and ŷ, and only tends to be non-negative.

    Raises:
        ValueError: if ``weights`` is unknown.
    """
    if weights == "paper":
        log_weights = -2.0 * torch.logsumexp(log_kernel_x, dim=-1, keepdim=True)
    elif weights == "code":
        log_weights = -torch.logsumexp(2.0 * log_kernel_x, dim=-1, keepdim=True)
    else:
        raise ValueError(f"weights={weights!r} is unknown; use 'paper' or 'code'")

    def log_sum(log_kernel: Tensor) -> Tensor:
        return torch.logsumexp(log_weights + log_kernel_x + log_kernel, dim=(-2, -1))

    return log_sum(log_kernel_targets) + log_sum(log_kernel_predictions) - 2.0 * log_sum(log_kernel_cross)


def cauchy_schwarz_mutual_information(log_kernel_x: Tensor, log_kernel_t: Tensor, *, normalise: bool = False) -> Tensor:
    r"""Cauchy–Schwarz mutual information :math:`D_{CS}(p(x,t); p(x)p(t))` of paired samples (proposition 2),

    .. math:: \log \frac{\mathrm{tr}(K Q)}{N^2} + \log \frac{1^\top K 1\; 1^\top Q 1}{N^4}
              - 2 \log \frac{1^\top K Q 1}{N^3}.

    Args:
        log_kernel_x, log_kernel_t: symmetric log-kernel matrices, [..., N, N].
        normalise: divide by :math:`\sqrt{I(x,x) I(t,t)} + 10^{-12}`: about [0, 1] (values slightly above 1 occur), 0
            for a constant t.

    Returns:
        [...] in nats; without unit if normalised.
    """
    value = _cs_information(log_kernel_x, log_kernel_t)
    if not normalise:
        return value
    own = _cs_information(log_kernel_x, log_kernel_x) * _cs_information(log_kernel_t, log_kernel_t)
    # The root has an infinite slope at 0, where a constant t puts it: there the normaliser is held fixed.
    positive = own > 0
    return value / (torch.where(positive, torch.where(positive, own, 1.0).sqrt(), 0.0) + 1e-12)


def _cs_information(log_k: Tensor, log_q: Tensor) -> Tensor:
    n = log_k.shape[-1]
    rows = torch.logsumexp(log_k, dim=-1) + torch.logsumexp(log_q, dim=-1)
    mixed = torch.logsumexp(rows, dim=-1) - 3.0 * math.log(n)
    return _log_mean(log_k + log_q) + _log_mean(log_k) + _log_mean(log_q) - 2.0 * mixed
