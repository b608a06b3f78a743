"""Adversarial perturbations within a ball around the input and the range of pixels.

Sizes (radius, step) are stated for pixels from 0 to 1. Networks see standardised pixels; `PixelBox` converts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
Loss = Callable[[Tensor], Tensor]
"""Standardised inputs (B, …) → loss of each item (B,)."""


class PixelBox(NamedTuple):
    """Standardised values of a black (0) and a white (1) pixel."""

    black: float
    white: float

    @property
    def scale(self) -> float:
        """Standardised length of one pixel unit."""
        return self.white - self.black

    def bounds(self, inputs: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        """Least and largest perturbation of each pixel, in pixel units, within ±radius and the range of pixels."""
        lowest, highest = (self.black - inputs) / self.scale, (self.white - inputs) / self.scale
        return lowest.clamp(-radius, 0.0), highest.clamp(0.0, radius)


def projected_gradient_attack(
    loss: Loss,
    inputs: Tensor,
    box: PixelBox,
    *,
    norm: Norm,
    radius: float,
    steps: int,
    step_size: float,
    start: Literal["random", "zero", "gaussian"] = "random",
) -> Tensor:
    r"""Perturbed inputs that increase a loss, by projected gradient ascent (PGD).

    `linf`: steps along the sign of the gradient, clipped to ±radius. `l2`: steps along the normalised gradient,
    projected on the ball. Both stay within the range of pixels. Source: Madry et al., arXiv 1706.06083.

    Args:
        loss: Loss of each item.
        inputs: Standardised images, (B, C, H, W).
        box: Range of pixels.
        norm: `linf` or `l2`.
        radius: Size of the ball, in pixel units (`l2`: of the whole image).
        steps: Number of steps; 0 leaves the start.
        step_size: Length of a step, in pixel units.
        start: Uniform in the ball (`l2`: a uniform direction and radius), zero, or Gaussian of size 0.001 (TRADES).

    Returns:
        Standardised images, without gradient; equal to `inputs` for radius 0.
    """
    if radius == 0:
        return inputs.detach()
    inputs = inputs.detach()
    perturbation = _start(inputs, norm, radius, start)
    for _ in range(steps):
        gradient = input_gradient(loss, inputs, perturbation, box)
        if norm == "linf":
            perturbation = perturbation + step_size * gradient.sign()
        else:
            perturbation = perturbation + step_size * gradient / _length(gradient).clamp_min(1e-12)
        perturbation = _project(perturbation, inputs, box, norm, radius)
    return inputs + box.scale * _project(perturbation, inputs, box, norm, radius)


def input_gradient(loss: Loss, inputs: Tensor, perturbation: Tensor, box: PixelBox) -> Tensor:
    """Gradient of the summed loss by the perturbation (pixel units), of its shape; parameters get none."""
    with torch.enable_grad():
        variable = perturbation.detach().requires_grad_()
        total = loss(inputs + box.scale * variable).sum()
        (gradient,) = torch.autograd.grad(total, variable)
    return gradient


def _start(inputs: Tensor, norm: Norm, radius: float, start: str) -> Tensor:
    if start == "zero":
        return torch.zeros_like(inputs)
    if start == "gaussian":
        return 1e-3 * torch.randn_like(inputs)
    if norm == "linf":
        return radius * (2 * torch.rand_like(inputs) - 1)
    direction = torch.randn_like(inputs)
    share = torch.rand(len(inputs), *[1] * (inputs.ndim - 1), dtype=inputs.dtype, device=inputs.device)
    return radius * share * direction / _length(direction).clamp_min(1e-12)


def _project(perturbation: Tensor, inputs: Tensor, box: PixelBox, norm: Norm, radius: float) -> Tensor:
    if norm == "l2":
        # The box holds zero, so that clipping to it afterwards cannot leave the ball.
        perturbation = perturbation * (radius / _length(perturbation).clamp_min(1e-12)).clamp_max(1.0)
        radius = float("inf")
    lowest, highest = box.bounds(inputs, radius)
    return torch.minimum(torch.maximum(perturbation, lowest), highest)


def _length(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1).reshape(-1, *[1] * (values.ndim - 1))
