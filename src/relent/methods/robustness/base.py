"""What adversarial training shares: the attack on a batch, and its settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relent.attacks import PixelBox
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.errors import ConfigError
from relent.methods.classifier import ClassifierMethod
from relent.models.classifiers import ClassifierOutput


class AdversarialMethod(ClassifierMethod):
    """Trains on perturbed images; a subclass gives `adversarial_terms`.

    Its `Config` has `norm`, `radius`, `attack_steps` and `step_size`, in pixel units.
    """

    config: Any

    def setup_method(self) -> None:
        """Only images can be attacked within a range of pixels."""
        data = self.task.data  # type: ignore[attr-defined]
        if data.vocabulary:
            raise ConfigError("attacks images; this task has texts", key=f"{self.spec.task}: {self.spec.method}")
        self.box = PixelBox(*data.pixel_range)

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Not used: the loss needs more than one output."""
        raise NotImplementedError

    def adversarial_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted loss terms of a batch."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum of the terms on one batch."""
        terms = self.adversarial_terms(batch)
        loss = torch.stack(list(terms.values())).sum()
        self.log_terms(terms | {"loss": loss})
        return loss

    def label_losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each item, (B,)."""
        return label_cross_entropy(labels, tempered_log_probs(self.network(inputs).logits))
