"""Sharpness of a training loss at its weights: the largest Hessian eigenvalue, and the rise within a ball."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LossFunction = Callable[[], Tensor]
"""The loss at the current weights, a scalar that is twice differentiable by them."""


def top_hessian_eigenvalue(
    loss: LossFunction, parameters: Sequence[Tensor], *, iterations: int = 20, seed: int = 0
) -> float:
    """Rayleigh quotient after a power iteration of Hessian–vector products, from a seeded Gaussian start.

    The power iteration finds the eigenvalue that is largest in size; near a minimum that is the largest one.

    Args:
        loss: The loss.
        parameters: Weights that require a gradient.
        iterations: Hessian–vector products.
        seed: Of the start.

    Raises:
        ValueError: No parameter, or no iteration.
    """
    if not parameters or iterations < 1:
        raise ValueError("needs at least one parameter and one iteration")
    generator = torch.Generator().manual_seed(seed)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in parameters]
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
        value = 0.0
        for _ in range(iterations):
            length = _length(direction)
            if not float(length) > 0:
                return 0.0
            direction = [v / length for v in direction]
            product = torch.autograd.grad(gradients, parameters, grad_outputs=direction, retain_graph=True)
            value = float(sum((v * h).sum() for v, h in zip(direction, product)))
            direction = [h.detach() for h in product]
    return value


def sam_sharpness(loss: LossFunction, parameters: Sequence[Tensor], *, radius: float = 0.05) -> float:
    """L(w + ρ·g/‖g‖) − L(w) with g the gradient; the weights are put back bit for bit.

    Source: Foret et al., arXiv 2010.01412, equation 2.

    Args:
        loss: The loss.
        parameters: Weights that require a gradient.
        radius: ρ.
    """
    with torch.enable_grad():
        before = loss()
        gradients = torch.autograd.grad(before, parameters)
    length = _length(gradients).clamp_min(1e-12)
    saved = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients):
            parameter.add_(radius * gradient / length)
        after = float(loss())
        for parameter, value in zip(parameters, saved):
            parameter.copy_(value)
    return after - float(before)


def _length(vectors: Sequence[Tensor]) -> Tensor:
    return torch.stack([v.norm() for v in vectors]).norm()
