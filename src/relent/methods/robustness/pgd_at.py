r"""Adversarial training on PGD examples.

Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks",
arXiv 1706.06083 (ICLR 2018), equation 2.1:

    min_θ mean_i max_{‖δ‖ ≤ r} CE(y_i, f_θ(x_i + δ))

with the inner maximum by projected gradient ascent from a random start. With radius 0 it is cross-entropy.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from relent.attacks import projected_gradient_attack
from relent.methods.config import MethodConfig, hyperparameter
from relent.methods.robustness.base import AdversarialMethod


class Config(MethodConfig):
    """Hyperparameters of adversarial training."""

    norm: Literal["linf", "l2"] = hyperparameter("linf", "Norm of the ball.", source="paper")
    radius: float = hyperparameter(8 / 255, "Radius, in pixels from 0 to 1.", source="paper, CIFAR-10", ge=0, le=1000)
    attack_steps: int = hyperparameter(7, "Steps of the attack.", source="paper, CIFAR-10", ge=1, le=1000)
    step_size: float = hyperparameter(2 / 255, "Length of a step, in pixels.", source="paper, CIFAR-10", gt=0, le=1000)


class PGDTraining(AdversarialMethod):
    """Trains with labels on perturbed images."""

    config: Config
    baseline_limit = ("cross_entropy", {"radius": 0.0})

    def adversarial_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, labels = self.config, batch["label"]
        inputs = projected_gradient_attack(
            lambda x: self.label_losses(x, labels),
            batch["input"],
            self.box,
            norm=config.norm,
            radius=config.radius,
            steps=config.attack_steps,
            step_size=config.step_size,
        )
        return {"adversarial_cross_entropy": self.label_losses(inputs, labels).mean()}
