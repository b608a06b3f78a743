from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics import pairwise
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from relent.divergences import kernels as k


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


@pytest.fixture
def points(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, 9, 3, generator=rng, dtype=torch.float64)
    return x, y[:6] + 1.0


def test_kernel_matrices_against_scikit_learn(points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    np.testing.assert_allclose(k.squared_distances(x, y), cdist(x, y, "sqeuclidean"), atol=1e-12)
    np.testing.assert_allclose(k.rbf_kernel(x, y, 0.7), pairwise.rbf_kernel(x, y, gamma=0.5 / 0.49), atol=1e-14)
    np.testing.assert_allclose(
        k.laplacian_kernel(x, y, 0.7), pairwise.laplacian_kernel(x, y, gamma=1 / 0.7), atol=1e-14
    )
    np.testing.assert_allclose(
        k.polynomial_kernel(x, y, degree=3, offset=0.5),
        pairwise.polynomial_kernel(x, y, degree=3, gamma=1, coef0=0.5),
        atol=1e-12,
    )
    np.testing.assert_allclose(k.linear_kernel(x, y), pairwise.linear_kernel(x, y), atol=1e-14)
    joined = np.concatenate((x, y))
    assert k.median_distance(x, y).item() == pytest.approx(np.sort(pdist(joined))[(len(pdist(joined)) - 1) // 2])


def test_row_wise_values() -> None:
    prompt, chosen, rejected = ([[1.0, 0.0]], [[0.8, 0.6]], [[0.0, 1.0]])
    x = torch.tensor([prompt, prompt], dtype=torch.float64)
    y = torch.tensor([chosen, rejected], dtype=torch.float64)
    assert k.rbf_kernel(y, x, 1.0).flatten().tolist() == pytest.approx([0.8187307531, 0.3678794412], abs=1e-10)
    assert k.polynomial_kernel(y, x).flatten().tolist() == pytest.approx([5.832, 1.0], abs=1e-12)
    assert k.wavelet_kernel(y, x, 1.0).flatten().tolist() == pytest.approx([0.8024106473, 0.1987661103], abs=1e-10)


def test_distances_far_from_the_origin_keep_their_digits(points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    far = k.squared_distances(x + 1e6, y + 1e6)
    torch.testing.assert_close(far, k.squared_distances(x, y), rtol=1e-8, atol=1e-8)
    assert (k.squared_distances(x, x).diagonal() < 1e-14).all()


def test_kernel_errors() -> None:
    with pytest.raises(ValueError, match=r"scalar data: \[N, 1\]"):
        k.rbf_kernel(torch.zeros(4), torch.zeros(4), 1.0)
    with pytest.raises(ValueError, match="rows of equal length"):
        k.linear_kernel(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="must be positive, got 0"):
        k.rbf_kernel(torch.zeros(4, 2), torch.zeros(4, 2), 0.0)
    with pytest.raises(ValueError, match="at least two points"):
        k.median_distance(torch.zeros(1, 2))


# --- MMD and HSIC ---------------------------------------------------------------------------------------------------


def test_mmd_against_the_definition(points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    xx, yy, xy = k.rbf_kernel(x, x, 1.0), k.rbf_kernel(y, y, 1.0), k.rbf_kernel(x, y, 1.0)
    n, m = len(x), len(y)
    pairs_x = sum(xx[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    pairs_y = sum(yy[i, j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    assert k.mmd_squared(xx, yy, xy).item() == pytest.approx((pairs_x + pairs_y - 2 * xy.mean()).item(), abs=1e-13)
    assert k.mmd_squared(xx, xx, xx, estimator="biased").item() == pytest.approx(0.0, abs=1e-15)
    biased = k.mmd_squared(xx, yy, xy, estimator="biased")
    assert biased > 0
    linear = [k.linear_kernel(a, b) for a, b in ((x, x), (y, y), (x, y))]
    gap = (x.mean(0) - y.mean(0)).square().sum()  # the linear kernel compares the means
    torch.testing.assert_close(k.mmd_squared(*linear, estimator="biased"), gap)


def test_unbiased_estimators_are_unbiased_by_enumeration() -> None:
    """All 3⁴ (MMD: 2² × 2²) equally likely samples of small discrete distributions."""
    support = column(0.0, 1.0, 2.5)
    gram = k.rbf_kernel(support, support, 1.0)
    index = torch.cartesian_prod(torch.arange(3), torch.arange(3), torch.arange(3), torch.arange(3))
    # Dependent pair: y = (x + 1) mod 3; the population HSIC of x and y follows from the 3 × 3 tables.
    gram_x = gram[index[:, :, None], index[:, None, :]]
    other = (index + 1) % 3
    gram_y = gram[other[:, :, None], other[:, None, :]]
    table_y = gram[torch.tensor([1, 2, 0])][:, torch.tensor([1, 2, 0])]
    population = (gram * table_y).mean() + gram.mean() * table_y.mean() - 2 * (gram.mean(0) * table_y.mean(0)).mean()
    assert k.hsic(gram_x, gram_y).mean().item() == pytest.approx(population.item(), abs=1e-13)
    biased = k.hsic(gram_x, gram_y, estimator="biased").mean()
    assert abs((biased - population).item()) > 1e-3
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    shifted = k.rbf_kernel(support, support + 0.5, 1.0)
    own, cross = gram[pairs[:, :, None], pairs[:, None, :]], shifted[pairs[:, None, :, None], pairs[None, :, None, :]]
    estimate = k.mmd_squared(own[:, None], own[None, :], cross).mean()
    truth = 2 * gram.mean() - 2 * shifted.mean()
    assert estimate.item() == pytest.approx(truth.item(), abs=1e-13)


def test_hsic_against_matrix_forms(points: tuple[Tensor, Tensor]) -> None:
    x, _ = points
    n = len(x)
    a, b = k.rbf_kernel(x, x, 1.0), k.laplacian_kernel(x.square(), x.square(), 2.0)
    centring = torch.eye(n, dtype=torch.float64) - 1.0 / n
    assert k.hsic(a, b, estimator="biased").item() == pytest.approx(
        ((a @ centring @ b @ centring).trace() / n**2).item(), abs=1e-14
    )
    zero_a, zero_b = a - torch.diag(a.diagonal()), b - torch.diag(b.diagonal())
    one = torch.ones(n, dtype=torch.float64)
    expected = (zero_a @ zero_b).trace() + (one @ zero_a @ one) * (one @ zero_b @ one) / ((n - 1) * (n - 2))
    expected = (expected - 2 * (one @ zero_a @ zero_b @ one) / (n - 2)) / (n * (n - 3))
    assert k.hsic(a, b).item() == pytest.approx(expected.item(), abs=1e-14)
    order = torch.randperm(n)
    torch.testing.assert_close(k.hsic(a[order][:, order], b[order][:, order]), k.hsic(a, b))
    constant = torch.ones_like(a)
    assert abs(k.hsic(a, constant, estimator="biased").item()) < 1e-15


def test_mmd_and_hsic_errors() -> None:
    small = torch.ones(3, 3)
    with pytest.raises(ValueError, match="at least 4 points, got 3"):
        k.hsic(small, small)
    with pytest.raises(ValueError, match="square and of one size"):
        k.hsic(small, torch.ones(4, 4))
    with pytest.raises(ValueError, match="at least 2 points"):
        k.mmd_squared(torch.ones(1, 1), small, torch.ones(1, 3))
    for call in (
        lambda: k.hsic(small, small, estimator="x"),
        lambda: k.mmd_squared(small, small, small, estimator="x"),
    ):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="'x' is unknown"):
            call()


# --- Cauchy–Schwarz -------------------------------------------------------------------------------------------------


def univariate(mean_p: float, var_p: float, mean_q: float, var_q: float) -> float:
    arguments = [torch.tensor(x, dtype=torch.float64) for x in ([mean_p], [[var_p]], [mean_q], [[var_q]])]
    return k.cauchy_schwarz_gaussian(*arguments).item()


def test_gaussian_closed_form() -> None:
    assert univariate(0, 1, 1, 1) == pytest.approx(0.5, abs=1e-12)
    assert univariate(0, 1, 1, 4) == pytest.approx(0.4231435513, abs=1e-10)
    assert univariate(0, 4, 0, 1) == pytest.approx(0.2231435513, abs=1e-10)


@given(st.floats(-3, 3), st.floats(0.1, 5), st.floats(-3, 3), st.floats(0.1, 5))
@settings(max_examples=30, deadline=None)
def test_gaussian_form_by_quadrature_and_below_kl(mean_p: float, var_p: float, mean_q: float, var_q: float) -> None:
    value = univariate(mean_p, var_p, mean_q, var_q)
    x = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
    p = torch.exp(-((x - mean_p) ** 2) / (2 * var_p)) / math.sqrt(2 * math.pi * var_p)
    q = torch.exp(-((x - mean_q) ** 2) / (2 * var_q)) / math.sqrt(2 * math.pi * var_q)
    inner = [torch.trapezoid(f, x) for f in (p * p, q * q, p * q)]
    assert value == pytest.approx((inner[0].log() + inner[1].log() - 2 * inner[2].log()).item(), abs=1e-9)
    assert value >= -1e-12
    assert value == pytest.approx(univariate(mean_q, var_q, mean_p, var_p), abs=1e-12)
    kl = 0.5 * (var_p / var_q + (mean_p - mean_q) ** 2 / var_q - 1 + math.log(var_q / var_p))
    # Half of it is below the KL; the whole need not be: N(0, 1) and N(1, 2) have 0.392 against a KL of 0.347.
    assert 0.5 * value <= kl + 1e-12


def test_mixture_form(rng: torch.Generator) -> None:
    means = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    covs = torch.tensor([[[0.5]], [[1.5]]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    other = (torch.tensor([0.0], dtype=torch.float64), torch.tensor([[0.4]]).double(), torch.tensor([[[2.0]]]).double())
    value = k.cauchy_schwarz_mixture(weights, means, covs, *other)
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64)

    def density(log_weights: Tensor, centres: Tensor, variances: Tensor) -> Tensor:
        parts = [
            w.exp() * torch.exp(-((x - m) ** 2) / (2 * v)) / (2 * math.pi * v).sqrt()
            for w, m, v in zip(log_weights, centres.flatten(), variances.flatten())
        ]
        return torch.stack(parts).sum(0)

    p, q = density(weights, means, covs), density(*other)
    inner = [torch.trapezoid(f, x) for f in (p * p, q * q, p * q)]
    assert value.item() == pytest.approx((inner[0].log() + inner[1].log() - 2 * inner[2].log()).item(), abs=1e-9)
    single = k.cauchy_schwarz_mixture(torch.zeros(1).double(), means[:1], covs[:1], *other)
    torch.testing.assert_close(single, k.cauchy_schwarz_gaussian(means[0], covs[0], other[1][0], other[2][0]))
    a, b = torch.randn(2, 2, 2, generator=rng, dtype=torch.float64)
    first, second = a @ a.mT + torch.eye(2), b @ b.mT + torch.eye(2)
    centre = torch.randn(2, 2, generator=rng, dtype=torch.float64)
    bound = kl_divergence(MultivariateNormal(centre[0], first), MultivariateNormal(centre[1], second))
    assert 0.5 * k.cauchy_schwarz_gaussian(centre[0], first, centre[1], second) <= bound


def test_kernel_estimate_is_the_divergence_of_the_density_estimates(points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    bandwidth = 0.6
    sigma = math.sqrt(2) * bandwidth
    estimate = k.cauchy_schwarz(
        k.log_rbf_kernel(x, x, sigma), k.log_rbf_kernel(y, y, sigma), k.log_rbf_kernel(x, y, sigma)
    )
    eye = bandwidth**2 * torch.eye(3, dtype=torch.float64)
    mixtures = [(torch.full((len(z),), -math.log(len(z))).double(), z, eye.expand(len(z), 3, 3)) for z in (x, y)]
    torch.testing.assert_close(estimate, k.cauchy_schwarz_mixture(*mixtures[0], *mixtures[1]))
    far = k.cauchy_schwarz(*(k.log_rbf_kernel(a, b, 0.01) for a, b in ((x, x), (y + 100, y + 100), (x, y + 100))))
    assert torch.isfinite(far)  # the kernel itself underflows to 0


def conditional(x: Tensor, y: Tensor, prediction: Tensor, sigma: float = 1.0, **options: str) -> float:
    log_kernels = [
        k.log_rbf_kernel(*pair, sigma) for pair in ((x, x), (y, y), (prediction, prediction), (prediction, y))
    ]
    return k.conditional_cauchy_schwarz(*log_kernels, **options).item()  # type: ignore[arg-type]


def test_conditional_values() -> None:
    x = column(0, 1)
    assert conditional(x, x, x) == pytest.approx(0.0, abs=1e-15)
    assert conditional(x, x, column(0, 0)) == pytest.approx(0.2773250961, abs=1e-10)
    assert conditional(x, x, column(0, 0), weights="code") == pytest.approx(0.2773250961, abs=1e-10)
    x, prediction = column(0, 1, 3), column(0, 0, 1)
    assert conditional(x, x, prediction) == pytest.approx(1.0043132371, abs=1e-10)
    assert conditional(x, x, prediction, weights="code") == pytest.approx(0.8121690298, abs=1e-10)
    assert conditional(x, prediction, x) == pytest.approx(1.0902040861, abs=1e-10)
    assert conditional(x, prediction, x, weights="code") == pytest.approx(0.8442911697, abs=1e-10)
    with pytest.raises(ValueError, match="'mean' is unknown"):
        conditional(x, x, x, weights="mean")


def test_conditional_wide_kernel_compares_means(rng: torch.Generator) -> None:
    x, y, prediction = torch.randn(3, 6, 1, generator=rng, dtype=torch.float64)
    value = 1e4 * conditional(x, y, prediction, sigma=100.0)
    assert value == pytest.approx((y.mean() - prediction.mean()).square().item(), rel=5e-2, abs=1e-3)


def information(x: Tensor, t: Tensor, **options: bool) -> Tensor:
    return k.cauchy_schwarz_mutual_information(k.log_rbf_kernel(x, x, 1.0), k.log_rbf_kernel(t, t, 1.0), **options)


def test_mutual_information_values() -> None:
    x = column(0, 1)
    assert information(x, x).item() == pytest.approx(0.0582548997, abs=1e-10)
    assert information(x, x).item() / math.log(2) == pytest.approx(0.0840440549, abs=1e-10)
    assert information(x, x, normalise=True).item() == pytest.approx(1.0, abs=1e-9)
    assert abs(information(column(0, 0, 1, 1), column(0, 2, 0, 2)).item()) < 1e-15
    constant = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
    value = information(column(0, 1, 2, 3), constant, normalise=True)
    assert abs(value.item()) < 1e-6
    assert torch.isfinite(torch.autograd.grad(value, constant)[0]).all()


def test_mutual_information_and_conditional_invariances(rng: torch.Generator) -> None:
    x, t = torch.randn(2, 8, 2, generator=rng, dtype=torch.float64)
    value, distance = information(x, t), conditional(x, x[:, :1], t[:, :1])
    angle = torch.tensor(0.7)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]], dtype=torch.float64)
    order = torch.randperm(8, generator=rng)
    torch.testing.assert_close(information((x + 3.0) @ turn, t), value, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(information(x[order], t[order]), value)
    assert conditional(x[order], x[order][:, :1], t[order][:, :1]) == pytest.approx(distance, abs=1e-12)
    assert conditional(x + 2.0, x[:, :1] + 5.0, t[:, :1] + 5.0) == pytest.approx(distance, abs=1e-9)


def test_gradients_and_vmap(rng: torch.Generator) -> None:
    x, y = (z.requires_grad_() for z in torch.randn(2, 5, 2, generator=rng, dtype=torch.float64))

    def mmd(a: Tensor, b: Tensor) -> Tensor:
        return k.mmd_squared(k.rbf_kernel(a, a, 1.0), k.rbf_kernel(b, b, 1.0), k.rbf_kernel(a, b, 1.0))

    def independence(a: Tensor, b: Tensor) -> Tensor:
        return k.hsic(k.rbf_kernel(a, a, 1.0), k.rbf_kernel(b, b, 1.0))

    def cauchy(a: Tensor, b: Tensor) -> Tensor:
        return k.cauchy_schwarz(*(k.log_rbf_kernel(*pair, 1.0) for pair in ((a, a), (b, b), (a, b))))

    def normalised(a: Tensor, b: Tensor) -> Tensor:
        return information(a, b, normalise=True)

    for function in (mmd, independence, cauchy, normalised):
        assert torch.autograd.gradcheck(function, (x, y))
        batch_x, batch_y = torch.randn(2, 3, 5, 2, generator=rng, dtype=torch.float64)
        mapped = torch.func.vmap(function)(batch_x, batch_y)
        torch.testing.assert_close(mapped, function(batch_x, batch_y))
    assert torch.autograd.gradgradcheck(cauchy, (x, y))
