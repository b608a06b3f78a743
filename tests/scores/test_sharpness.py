"""Sharpness against closed forms of quadratic losses."""

from __future__ import annotations

import pytest
import torch

from relent.scores.sharpness import sam_sharpness, top_hessian_eigenvalue


def quadratic(eigenvalues: list[float], at: list[float]):
    """½ wᵀ A w with the given eigenvalues in a rotated basis, over two parameter tensors."""
    size = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)).double())[0]
    matrix = q @ torch.diag(torch.tensor(eigenvalues).double()) @ q.T
    start = torch.tensor(at).double()
    parameters = [start[:2].clone().requires_grad_(), start[2:].clone().requires_grad_()]

    def loss() -> torch.Tensor:
        w = torch.cat(parameters)
        return 0.5 * w @ matrix @ w

    return loss, parameters, matrix


def test_the_largest_eigenvalue_is_found():
    loss, parameters, _ = quadratic([5.0, 1.0, 0.5, 0.1], [1.0, 2.0, 3.0, 4.0])
    assert top_hessian_eigenvalue(loss, parameters, iterations=40) == pytest.approx(5.0, rel=1e-9)


def test_of_largest_size_even_if_negative():
    loss, parameters, _ = quadratic([-5.0, 1.0, 0.5, 0.1], [1.0, 2.0, 3.0, 4.0])
    assert top_hessian_eigenvalue(loss, parameters, iterations=40) == pytest.approx(-5.0, rel=1e-9)


def test_a_flat_loss_has_eigenvalue_zero():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert top_hessian_eigenvalue(lambda: (0 * w**2).sum(), [w]) == 0


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        top_hessian_eigenvalue(lambda: torch.zeros(()), [])


def test_sam_sharpness_of_a_quadratic_and_weights_are_put_back():
    """With g = A w and u = g/‖g‖: ρ‖g‖ + ½ρ² uᵀAu."""
    loss, parameters, matrix = quadratic([5.0, 1.0, 0.5, 0.1], [1.0, 2.0, 3.0, 4.0])
    before = [p.detach().clone() for p in parameters]
    gradient = matrix @ torch.cat(before)
    unit = gradient / gradient.norm()
    expected = 0.3 * gradient.norm() + 0.5 * 0.09 * unit @ matrix @ unit
    assert sam_sharpness(loss, parameters, radius=0.3) == pytest.approx(float(expected), rel=1e-9)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before))
