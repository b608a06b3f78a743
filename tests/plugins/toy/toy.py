"""Logit matching: the student's logits are regressed on the teacher's. The example of a method of one's own.

Ba, Caruana, "Do Deep Nets Really Need to be Deep?", arXiv 1312.6184, equation 1, with labels beside it:

    L = α·CE(y, s) + (1 − α)·½·Σ_i (s_i − t_i)², mean over the batch.

A method is three things: a `Config` with what it adds to the task's recipe, a pure function that is the paper's
formula, and a class that binds the two to the batch. `toy.yaml` beside this file tells who it is and what it claims.
"""

from __future__ import annotations

from torch import Tensor

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of logit matching."""

    alpha: float = hyperparameter(
        0.1, "α, the weight of the labels; the paper uses none.", source="ours: that of the KD baseline", ge=0, le=1
    )


def logit_matching(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Half the squared distance of the logits of each item.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.

    Returns:
        (B,), at least 0.
    """
    return (student_logits - teacher_logits.detach()).square().sum(-1) / 2


class Toy(ClassifierMethod):
    """Trains with labels and stored teacher logits; at α = 1 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"alpha": 1.0})

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The two weighted terms of the loss."""
        alpha = self.config.alpha
        labelled = label_cross_entropy(batch["label"], tempered_log_probs(output.logits), reduction="mean")
        matched = logit_matching(output.logits, batch["teacher_logits"]).mean()
        return {"cross_entropy": alpha * labelled, "matching": (1 - alpha) * matched}
