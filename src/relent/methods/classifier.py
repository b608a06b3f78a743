"""The Lightning module that all classifiers of this family share: a subclass states its loss terms."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.base import Method
from relent.models.classifiers import ClassifierOutput


class ClassifierMethod(Method):
    """Trains a classifier by the sum of named loss terms."""

    @abstractmethod
    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms of a batch, weighted; training minimises their sum.

        Args:
            output: The student's output; `logits` (B, C).
            batch: `image` (B, 1, H, W), `label` (B,), `index` (B,) and, where the manifest's stage reads a teacher,
                `teacher_logits` (B, C) and `teacher_features` (B, D).
        """

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum of the terms on one batch."""
        terms = self.terms(self.network(batch["input"]), batch)
        loss = torch.stack(list(terms.values())).sum()
        self.log_terms(terms | {"loss": loss})
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Accuracy and negative log-likelihood on the validation split."""
        logits = self.network(batch["input"]).logits
        size = len(logits)
        nll = label_cross_entropy(batch["label"], tempered_log_probs(logits), reduction="mean")
        self.log("validation/nll", nll, batch_size=size)
        self.log("validation/accuracy", (logits.argmax(-1) == batch["label"]).float().mean(), batch_size=size)
