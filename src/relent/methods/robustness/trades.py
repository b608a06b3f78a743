r"""TRADES: cross-entropy on clean images and the KL to the outputs on perturbed ones.

Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy",
arXiv 1901.08573 (ICML 2019), equation 5 with the KL of the official code (`yaodongyu/TRADES`):

    L = CE(y, f(x)) + β·mean_i max_{‖δ‖ ≤ r} KL( softmax f(x_i) ‖ softmax f(x_i + δ) )

The attack starts at a Gaussian of size 0.001; clean outputs are constant in it and get a gradient in the loss. β 6, ten
steps of 0.007 in a ball of 0.031 are the paper's for CIFAR-10. With β = 0 it is cross-entropy.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from relent.attacks import projected_gradient_attack
from relent.divergences.discrete import forward_kl
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.config import MethodConfig, hyperparameter
from relent.methods.robustness.base import AdversarialMethod


class Config(MethodConfig):
    """Hyperparameters of TRADES."""

    beta: float = hyperparameter(6.0, "β, weight of the KL.", source="paper, CIFAR-10", ge=0, le=1000)
    norm: Literal["linf", "l2"] = hyperparameter("linf", "Norm of the ball.", source="paper")
    radius: float = hyperparameter(0.031, "Radius, in pixels from 0 to 1.", source="paper, CIFAR-10", ge=0, le=1000)
    attack_steps: int = hyperparameter(10, "Steps of the attack.", source="paper, CIFAR-10", ge=1, le=1000)
    step_size: float = hyperparameter(0.007, "Length of a step, in pixels.", source="paper, CIFAR-10", gt=0, le=1000)


class TRADES(AdversarialMethod):
    """Trains with labels on clean images and the KL to perturbed ones."""

    config: Config
    baseline_limit = ("cross_entropy", {"beta": 0.0})

    def adversarial_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, labels = self.config, batch["label"]
        clean = tempered_log_probs(self.network(batch["input"]).logits)
        terms = {"cross_entropy": label_cross_entropy(labels, clean, reduction="mean")}
        if config.beta == 0:
            return terms
        constant = clean.detach()
        inputs = projected_gradient_attack(
            lambda x: forward_kl(constant, tempered_log_probs(self.network(x).logits)),
            batch["input"],
            self.box,
            norm=config.norm,
            radius=config.radius,
            steps=config.attack_steps,
            step_size=config.step_size,
            start="gaussian",
        )
        perturbed = tempered_log_probs(self.network(inputs).logits)
        return terms | {"robustness": config.beta * forward_kl(clean, perturbed, reduction="mean")}
