r"""DONE: adversarial training whose weights of the examples come from KL-regularised robust optimisation.

Sow, Lin, Wang, Liang, "Doubly Robust Instance-Reweighted Adversarial Training", arXiv 2308.00311 (ICLR 2024):

    min_θ max_w Σ_i w_i ℓ_i(θ, δ_i*) − r·KL(w ‖ uniform),   δ_i* = argmin_{δ in the box} −ℓ_i(θ, δ)
    w_i* = exp(ℓ_i/r)/Σ_j exp(ℓ_j/r),   value r·log mean_i exp(ℓ_i/r)
    log-barrier form of the inner problem:  ℓ̄_i = −ℓ_i − c·Σ_k [ log(h_k − δ_k) + log(δ_k − l_k) ]

The mean over all examples in the weights is tracked by a running estimate u ← (1 − η)u + η·mean_batch exp(ℓ/r), kept as
log u, and w_i = exp(ℓ_i/r)/(B·u): compositional implicit differentiation. The gradient through δ* (implicit term) is
Σ_i w_i ∇_θ⟨∇_δ ℓ_i, v_i⟩ with v = H⁻¹∇_δ ℓ and H the barrier's diagonal curvature, v bounded by the distance to the
nearer wall.

The abstract, summaries and reviews of the paper were read, the displayed equations and code were not. Weights in closed
form, the compositional problem, the log barrier and implicit differentiation are the paper's; the diagonal H, its
bound, the start by sign steps and the values of r, c and η are a reconstruction, whose hypergradient is tested against
finite differences. Uniform weights (r infinite) without the implicit term are plain adversarial training.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from relent.attacks import Loss, PixelBox, input_gradient, projected_gradient_attack
from relent.methods.config import MethodConfig, hyperparameter
from relent.methods.robustness.base import AdversarialMethod

WALL = 1e-3
"""Share of the box at each wall that the perturbation keeps off: the barrier is infinite there."""


class Config(MethodConfig):
    """Hyperparameters of DONE."""

    radius: float = hyperparameter(
        8 / 255, "Radius of the box (largest change of a pixel), in pixels from 0 to 1.", source="paper, CIFAR-10", ge=0
    )
    weight_temperature: float = hyperparameter(
        10.0, "r, price of weights that are not uniform, in nats; 0: uniform.", source="ours; not public", ge=0
    )
    running_rate: float = hyperparameter(0.1, "η of the running mean.", source="ours; not public", gt=0, le=1)
    barrier: float = hyperparameter(1e-2, "c, weight of the log barrier.", source="ours; not public", gt=0)
    sign_steps: int = hyperparameter(5, "Steps along the gradient's sign first.", source="ours", ge=0, le=1000)
    step_size: float = hyperparameter(2 / 255, "Length of a sign step, in pixels.", source="ours", gt=0)
    barrier_steps: int = hyperparameter(1, "Newton steps on the barrier problem.", source="ours", ge=0, le=1000)
    implicit: bool = hyperparameter(True, "Whether the gradient goes through the attack.", source="paper")
    warmup_share: float = hyperparameter(
        0.2, "Share of the epochs with uniform weights.", source="ours; common with reweighting", ge=0, lt=1
    )


def example_weights(losses: Tensor, temperature: float) -> Tensor:
    """w* of losses (M,): softmax(ℓ/r), without gradient; uniform for r = 0 (no weighting) by definition here."""
    if temperature == 0:
        return torch.full_like(losses.detach(), 1 / len(losses))
    return (losses.detach() / temperature).softmax(0)


def robust_value(losses: Tensor, temperature: float) -> Tensor:
    """r·log mean exp(ℓ/r) of losses (M,): between their mean (r → ∞) and their maximum (r → 0)."""
    return temperature * (torch.logsumexp(losses / temperature, 0) - math.log(len(losses)))


def running_log_mean(log_mean: Tensor, losses: Tensor, temperature: float, rate: float) -> Tensor:
    """log u after a batch: log[(1 − η)u + η·mean exp(ℓ/r)]; NaN log_mean: the first batch."""
    fresh = torch.logsumexp(losses.detach() / temperature, 0) - math.log(len(losses))
    if bool(log_mean.isnan()):
        return fresh
    if rate == 1:
        return fresh
    return torch.logaddexp(math.log1p(-rate) + log_mean, math.log(rate) + fresh)


class Barrier(NamedTuple):
    """The log barrier of a box: lowest and highest perturbation of each pixel, and c."""

    lowest: Tensor
    highest: Tensor
    weight: float

    def inside(self, perturbation: Tensor) -> Tensor:
        """Perturbation moved into the box without its walls."""
        margin = WALL * (self.highest - self.lowest)
        return torch.minimum(torch.maximum(perturbation, self.lowest + margin), self.highest - margin)

    def gradient(self, perturbation: Tensor) -> Tensor:
        """Derivative of −c Σ [log(h − δ) + log(δ − l)]."""
        return self.weight * (1 / (self.highest - perturbation) - 1 / (perturbation - self.lowest))

    def curvature(self, perturbation: Tensor) -> Tensor:
        """Its second derivative, the diagonal H."""
        below, above = perturbation - self.lowest, self.highest - perturbation
        return self.weight * (above.pow(-2) + below.pow(-2))

    def bounded(self, step: Tensor, perturbation: Tensor) -> Tensor:
        """A step no longer than the distance to the nearer wall."""
        room = torch.minimum(self.highest - perturbation, perturbation - self.lowest)
        return torch.minimum(torch.maximum(step, -room), room)


def solve_barrier(loss: Loss, inputs: Tensor, box: PixelBox, start: Tensor, barrier: Barrier, steps: int) -> Tensor:
    """Steps δ ← δ − H⁻¹∇ℓ̄ on the barrier problem with its diagonal curvature, bounded and projected; (B, …)."""
    perturbation = barrier.inside(start)
    for _ in range(steps):
        slope = barrier.gradient(perturbation) - input_gradient(loss, inputs, perturbation, box)
        step = barrier.bounded(-slope / barrier.curvature(perturbation), perturbation)
        perturbation = barrier.inside(perturbation + step)
    return perturbation


def implicit_term(loss: Loss, inputs: Tensor, box: PixelBox, perturbation: Tensor, barrier: Barrier) -> Tensor:
    """⟨∇_δ ℓ_i, v_i⟩ of each item, v = H⁻¹∇_δ ℓ held constant: its gradient by the parameters is the implicit term.

    Returns:
        (B,); differentiable once more.
    """
    with torch.enable_grad():
        variable = perturbation.detach().requires_grad_()
        total = loss(inputs + box.scale * variable).sum()
        (gradient,) = torch.autograd.grad(total, variable, create_graph=True)
    reaction = gradient.detach() / barrier.curvature(perturbation)
    return (gradient * barrier.bounded(reaction, perturbation)).flatten(1).sum(1)


class DONE(AdversarialMethod):
    """Trains with weighted losses at solved attacks."""

    config: Config
    baseline_limit = (
        "cross_entropy",
        {"radius": 0.0, "weight_temperature": 0.0, "implicit": False},
    )
    log_mean: Tensor

    def setup_method(self) -> None:
        """The running mean starts with the first batch."""
        super().setup_method()
        self.register_buffer("log_mean", torch.tensor(torch.nan))

    def attack(self, batch: dict[str, Tensor]) -> tuple[Tensor, Barrier]:
        """δ* (pixel units) of a batch, and the barrier of its box."""
        config, inputs, labels = self.config, batch["input"], batch["label"]

        def loss(x: Tensor) -> Tensor:
            return self.label_losses(x, labels)

        barrier = Barrier(*self.box.bounds(inputs, config.radius), config.barrier)
        perturbed = projected_gradient_attack(
            loss,
            inputs,
            self.box,
            norm="linf",
            radius=config.radius,
            steps=config.sign_steps,
            step_size=config.step_size,
        )
        start = (perturbed - inputs) / self.box.scale
        return solve_barrier(loss, inputs, self.box, start, barrier, config.barrier_steps), barrier

    def adversarial_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, inputs, labels = self.config, batch["input"], batch["label"]
        if config.radius == 0:
            return {"weighted_cross_entropy": self.weighted(self.label_losses(inputs, labels), None)}
        perturbation, barrier = self.attack(batch)
        losses = self.label_losses(inputs + self.box.scale * perturbation, labels)
        extra = None
        if config.implicit:
            extra = implicit_term(lambda x: self.label_losses(x, labels), inputs, self.box, perturbation, barrier)
        return {"weighted_cross_entropy": self.weighted(losses, extra)}

    def weighted(self, losses: Tensor, extra: Tensor | None) -> Tensor:
        """Σ w ℓ of a batch, with the gradient of Σ w (ℓ + extra) and the value of the first."""
        temperature = self.config.weight_temperature
        if temperature == 0 or self.warmup(self.config.warmup_share) < 1:
            value = losses.mean()
            return value if extra is None else value + (extra - extra.detach()).mean()
        self.log_mean = running_log_mean(self.log_mean, losses, temperature, self.config.running_rate)
        weights = (losses.detach() / temperature - self.log_mean).exp() / len(losses)
        value = (weights * losses).sum()
        return value if extra is None else value + (weights * (extra - extra.detach())).sum()
