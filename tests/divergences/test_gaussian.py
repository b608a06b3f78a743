from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Dirichlet,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from relent.divergences import gaussian as g


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_univariate_values() -> None:
    mean, narrow, wide = tensor(0.0), tensor(0.0), tensor(math.log(4.0))
    assert g.diagonal_gaussian_kl(tensor(1.0), wide, mean, narrow).item() == pytest.approx(1.3068528194, abs=1e-10)
    assert g.diagonal_gaussian_kl(mean, narrow, tensor(1.0), wide).item() == pytest.approx(0.4431471806, abs=1e-10)
    assert g.diagonal_gaussian_kl(mean, wide, mean, narrow).item() == pytest.approx(0.8068528194, abs=1e-10)
    assert g.standard_normal_kl(tensor(1.0), wide).item() == pytest.approx(1.3068528194, abs=1e-10)


def test_standard_normal_values_and_terms() -> None:
    mean = tensor(1.0, 0.0, -2.0)
    assert g.standard_normal_kl(mean, tensor(0.0, -2.0, 1.0)).item() == pytest.approx(3.4268085558, abs=1e-10)
    assert g.standard_normal_kl(mean, torch.zeros(3)).item() == pytest.approx(2.5, abs=1e-12)
    terms = g.standard_normal_kl(mean, tensor(0.0, -2.0, 1.0), dim=None)
    assert terms[1].item() == pytest.approx(0.5676676416, abs=1e-10)
    assert terms.sum().item() == pytest.approx(3.4268085558, abs=1e-10)


def test_low_rank_values() -> None:
    q = (tensor(1.0, 0, 0), torch.full((3,), math.log(0.5), dtype=torch.float64), tensor([0.0], [1.0], [0.0]))
    p = (torch.zeros(3).double(), torch.zeros(3).double(), tensor([1.0], [0.0], [1.0]))
    assert g.low_rank_gaussian_kl(*q, *p).item() == pytest.approx(0.9563874375, abs=1e-10)
    assert g.low_rank_gaussian_kl(*p, *q).item() == pytest.approx(2.7936125625, abs=1e-10)
    parameters = tuple(x.clone().requires_grad_() for x in q)
    value = g.low_rank_gaussian_kl(*parameters, *(x.clone() for x in q))
    assert abs(value.item()) < 1e-12
    for gradient in torch.autograd.grad(value, parameters):
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_against_torch_distributions(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    mean_p, mean_q, log_p, log_q = randn(4, 3, 5)
    expected = kl_divergence(Normal(mean_p, (0.5 * log_p).exp()), Normal(mean_q, (0.5 * log_q).exp()))
    torch.testing.assert_close(g.diagonal_gaussian_kl(mean_p, log_p, mean_q, log_q), expected.sum(-1))
    torch.testing.assert_close(g.diagonal_gaussian_kl(mean_p, log_p, mean_q, log_q, dim=None), expected)

    factor_p, factor_q = (x.tril() + 3 * torch.eye(5) for x in randn(2, 3, 5, 5))
    full = kl_divergence(
        MultivariateNormal(mean_p, scale_tril=factor_p), MultivariateNormal(mean_q, scale_tril=factor_q)
    )
    torch.testing.assert_close(g.full_gaussian_kl(mean_p, factor_p, mean_q, factor_q), full)

    load_p, load_q = randn(3, 5, 2), randn(3, 5, 1)
    low = kl_divergence(
        LowRankMultivariateNormal(mean_p, load_p, log_p.exp()), LowRankMultivariateNormal(mean_q, load_q, log_q.exp())
    )
    torch.testing.assert_close(g.low_rank_gaussian_kl(mean_p, log_p, load_p, mean_q, log_q, load_q), low)

    a, b = randn(2, 7) * 5
    torch.testing.assert_close(g.bernoulli_kl(a, b), kl_divergence(Bernoulli(logits=a), Bernoulli(logits=b)))
    first, second = randn(2, 3, 4).exp()
    torch.testing.assert_close(g.dirichlet_kl(first, second), kl_divergence(Dirichlet(first), Dirichlet(second)))


def test_full_diagonal_and_low_rank_forms_agree(rng: torch.Generator) -> None:
    mean_p, mean_q, log_p, log_q = torch.randn(4, 2, 4, generator=rng, dtype=torch.float64)
    diagonal = g.diagonal_gaussian_kl(mean_p, log_p, mean_q, log_q)
    factors = [torch.diag_embed((0.5 * x).exp()) for x in (log_p, log_q)]
    torch.testing.assert_close(g.full_gaussian_kl(mean_p, factors[0], mean_q, factors[1]), diagonal)
    none = torch.zeros(2, 4, 1, dtype=torch.float64)
    torch.testing.assert_close(g.low_rank_gaussian_kl(mean_p, log_p, none, mean_q, log_q, none), diagonal)
    loads = torch.randn(2, 2, 4, 3, generator=rng, dtype=torch.float64)
    full = [g.cholesky_factor(torch.diag_embed(x.exp()) + u @ u.mT) for x, u in zip((log_p, log_q), loads)]
    torch.testing.assert_close(
        g.low_rank_gaussian_kl(mean_p, log_p, loads[0], mean_q, log_q, loads[1]),
        g.full_gaussian_kl(mean_p, full[0], mean_q, full[1]),
    )


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-4, 4), st.floats(-4, 4))
@settings(max_examples=40, deadline=None)
def test_gaussian_identities(mean_p: float, mean_q: float, log_p: float, log_q: float) -> None:
    p, q = (tensor(mean_p), tensor(log_p)), (tensor(mean_q), tensor(log_q))
    value = g.diagonal_gaussian_kl(*p, *q)
    assert value >= 0
    assert g.diagonal_gaussian_kl(*p, *p) == 0
    shifted = g.diagonal_gaussian_kl(p[0] + 7.0, p[1] + 2.0, 7.0 + (q[0] - p[0]) * math.e + p[0], q[1] + 2.0)
    torch.testing.assert_close(shifted, value, rtol=1e-9, atol=1e-12)  # affine invariance


def test_equal_variances_keep_their_digits() -> None:
    """exp(a) − 1 − a of a = 1e−9 is 5e−19: lost if computed term by term."""
    zero = tensor(0.0)
    assert g.standard_normal_kl(zero, tensor(1e-9)).item() >= 0.0
    value = g.diagonal_gaussian_kl(zero, tensor(3e-5), zero, zero).item()
    assert value == pytest.approx(0.25 * 9e-10 * (1 + 1e-5), rel=1e-6)


def test_bernoulli_extremes() -> None:
    a = torch.tensor([1e4, -1e4, 1e4, 0.0], requires_grad=True)
    b = torch.tensor([-1e4, 1e4, 1e4, 1e4], requires_grad=True)
    value = g.bernoulli_kl(a, b)
    value.sum().backward()
    assert value.tolist() == pytest.approx([1e4, 1e4, 0.0, 5e3 - math.log(2)])
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


def test_categorical_prior() -> None:
    log_probs = torch.log_softmax(tensor([0.3, -1.0, 2.0], [0.0, 0.0, 0.0]), -1)
    uniform = torch.full((3,), -math.log(3.0), dtype=torch.float64)
    value = g.categorical_prior_kl(log_probs)
    torch.testing.assert_close(value, g.categorical_prior_kl(log_probs, uniform))
    assert abs(value[1].item()) < 1e-15
    peaked = tensor(0.0, -math.inf, -math.inf)
    assert g.categorical_prior_kl(peaked).item() == pytest.approx(math.log(3.0))
    assert g.categorical_prior_kl(log_probs, peaked).tolist() == [math.inf, math.inf]


def test_monte_carlo_agrees_with_the_closed_form(rng: torch.Generator) -> None:
    mean, log_var = tensor(0.7, -0.2), tensor(-1.0, 0.5)
    z = mean + (0.5 * log_var).exp() * torch.randn(200_000, 2, generator=rng, dtype=torch.float64)
    log_ratio = (Normal(mean, (0.5 * log_var).exp()).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(-1)
    error = log_ratio.std() / math.sqrt(len(z))
    assert (log_ratio.mean() - g.standard_normal_kl(mean, log_var)).abs() < 4 * error


def test_gradients(rng: torch.Generator) -> None:
    args = tuple(x.requires_grad_() for x in torch.randn(4, 2, 3, generator=rng, dtype=torch.float64))
    assert torch.autograd.gradcheck(g.diagonal_gaussian_kl, args)
    assert torch.autograd.gradgradcheck(g.diagonal_gaussian_kl, args)
    assert torch.autograd.gradcheck(g.bernoulli_kl, args[:2])
    assert torch.autograd.gradgradcheck(g.bernoulli_kl, args[:2])
    assert torch.autograd.gradcheck(lambda a, b: g.dirichlet_kl(a.exp(), b.exp()), args[:2])
    loads = torch.randn(2, 2, 3, 2, generator=rng, dtype=torch.float64)
    low = (args[0], args[1], loads[0].requires_grad_(), args[2], args[3], loads[1].requires_grad_())
    assert torch.autograd.gradcheck(g.low_rank_gaussian_kl, low)
    factors = (torch.randn(2, 3, 3, generator=rng, dtype=torch.float64).tril() * 0.3 + torch.eye(3)).requires_grad_()
    others = factors.detach().flip(0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m, f, n, h: g.full_gaussian_kl(m, f.tril(), n, h.tril()), (args[0], factors, args[2], others)
    )


def test_vmap_and_half_precision(rng: torch.Generator) -> None:
    args = torch.randn(4, 5, 3, generator=rng, dtype=torch.float64)
    mapped = torch.func.vmap(g.diagonal_gaussian_kl)(*args)
    torch.testing.assert_close(mapped, g.diagonal_gaussian_kl(*args))
    low = g.diagonal_gaussian_kl(*args.half())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), g.diagonal_gaussian_kl(*args), rtol=2e-2, atol=2e-2)


def test_errors_name_the_matrix() -> None:
    with pytest.raises(ValueError, match="prior covariance number 1 is not positive definite"):
        g.cholesky_factor(torch.stack((torch.eye(2), -torch.eye(2))), "prior covariance")
    with pytest.raises(ValueError, match=r"\[..., D, D\], got \(2, 3\)"):
        g.cholesky_factor(torch.zeros(2, 3))
