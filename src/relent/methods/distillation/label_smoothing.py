"""Label smoothing: cross-entropy against a mixture of the label and the uniform distribution.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision",
arXiv 1512.00567, section 7:  L = −Σ_i [(1 − ε)·1(i = y) + ε/C]·log softmax(s)_i, mean over the batch.
"""

from __future__ import annotations

from torch import Tensor

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of label smoothing."""

    smoothing: float = hyperparameter(
        0.1, "ε, the weight of the uniform distribution.", source="arXiv 1512.00567, section 7", ge=0, lt=1
    )


class LabelSmoothing(ClassifierMethod):
    """Trains with smoothed labels; at ε = 0 it is cross-entropy, bit for bit."""

    config: Config
    baseline_limit = ("cross_entropy", {"smoothing": 0.0})

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        log_probs = tempered_log_probs(output.logits)
        loss = label_cross_entropy(batch["label"], log_probs, label_smoothing=self.config.smoothing, reduction="mean")
        return {"smoothed_cross_entropy": loss}
