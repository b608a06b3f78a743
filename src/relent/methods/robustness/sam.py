r"""SAM: sharpness-aware minimisation.

Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization",
arXiv 2010.01412 (ICLR 2021), algorithm 1: move the weights by ε = ρ·g/‖g‖ along the gradient g of the batch, take the
gradient there, move back, and step with it. Two forward and backward passes a step. ρ 0.05 is the paper's for ImageNet
and CIFAR-10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of SAM."""

    radius: float = hyperparameter(0.05, "ρ, radius of the ball of weights.", source="paper, ImageNet", ge=0, le=100)


class SAM(ClassifierMethod):
    """Trains with labels, by the gradient at the worst weights nearby; with ρ = 0 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"radius": 0.0})

    def setup_method(self) -> None:
        """Nothing is moved yet."""
        self._before: list[tuple[torch.nn.Parameter, Tensor]] = []

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "cross_entropy": label_cross_entropy(batch["label"], tempered_log_probs(output.logits), reduction="mean")
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss at the moved weights, whose gradient the optimiser gets."""
        if self.config.radius == 0 or not torch.is_grad_enabled():
            return super().training_step(batch, batch_idx)
        parameters = [p for p in self.parameters() if p.requires_grad]
        loss = self.terms(self.network(batch["input"]), batch)["cross_entropy"]
        gradients = torch.autograd.grad(loss, parameters)
        length = torch.stack([gradient.norm() for gradient in gradients]).norm().clamp_min(1e-12)
        self._before = [(p, p.detach().clone()) for p in parameters]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                parameter.add_(self.config.radius * gradient / length)
        return super().training_step(batch, batch_idx)

    def on_after_backward(self) -> None:
        """Move the weights back, bit for bit."""
        with torch.no_grad():
            for parameter, value in self._before:
                parameter.copy_(value)
        self._before = []
