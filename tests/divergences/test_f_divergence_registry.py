"""Adding divergences to the registry, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relent.divergences import discrete
from relent.divergences.f_divergence import (
    FDivergence,
    alpha_divergence,
    get_f_divergence,
    register_f_divergence,
)

U = torch.linspace(-4.0, 4.0, 33, dtype=torch.float64)
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
PI = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_a_user_adds_a_divergence_by_its_generator() -> None:
    name = "triangular_discrimination"
    register_f_divergence(FDivergence(name, lambda r: (r - 1).square() / (r + 1)))
    entry = get_f_divergence(name)
    expected = ((P - PI).square() / (P + PI)).sum()
    close(entry.divergence(P.log(), PI.log()), expected)
    assert not entry.admissible  # f°'(0+) = −3: Vincze–Le Cam is bounded
    close(entry.density_weight(U), 8 * U.exp() ** 2 / (1 + U.exp()) ** 3, 1e-9)
    y = torch.tensor([-0.5, 0.2], dtype=torch.float64)
    root = 2 / (1 - y).sqrt() - 1  # f'(r) = 1 − 4/(1 + r)²
    close(entry.conjugate(y), root * y - (root - 1).square() / (root + 1), 1e-9)
    with pytest.raises(ValueError, match="already registered"):
        register_f_divergence(FDivergence(name, entry.generator))


def test_a_family_is_registered_with_its_parameters() -> None:
    register_f_divergence(lambda beta: get_f_divergence("forward_kl").scaled(beta, f"scaled({beta})"), name="scaled_kl")
    close(
        get_f_divergence("scaled_kl", beta=3.0).divergence(P.log(), PI.log()),
        3 * discrete.forward_kl(P.log(), PI.log()),
    )
    assert get_f_divergence("alpha", alpha=0.25).name == "alpha(0.25)"


def test_registry_errors() -> None:
    with pytest.raises(ValueError, match=r"no f-divergence called 'kl'; there are alpha, forward_kl"):
        get_f_divergence("kl")
    with pytest.raises(TypeError):
        get_f_divergence("alpha")
    with pytest.raises(ValueError, match=r"must vanish at 1, got f\(1\) = 1.38629"):
        register_f_divergence(FDivergence("off", lambda r: (r + 1) * ((r + 1) / r).log()))
    with pytest.raises(ValueError, match="not convex"):
        register_f_divergence(FDivergence("concave", lambda r: -(r - 1).square()))
    with pytest.raises(ValueError, match="needs a name"):
        register_f_divergence(alpha_divergence)
    with pytest.raises(ValueError, match="factor must be positive"):
        get_f_divergence("forward_kl").scaled(-1.0, "negative")
    with pytest.raises(ValueError, match="alpha must be finite"):
        alpha_divergence(math.inf)
