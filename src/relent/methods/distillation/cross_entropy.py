"""Cross-entropy with the labels: the baseline without a teacher.

L = −log softmax(s)_y, mean over the batch.
"""

from __future__ import annotations

from torch import Tensor

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Cross-entropy has no hyperparameters of its own."""


class CrossEntropy(ClassifierMethod):
    """Trains with labels alone; also trains the teachers."""

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        log_probs = tempered_log_probs(output.logits)
        return {"cross_entropy": label_cross_entropy(batch["label"], log_probs, reduction="mean")}
