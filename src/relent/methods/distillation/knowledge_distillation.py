"""Knowledge distillation: labels and a teacher's softened probabilities.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2:

    L = α·CE(y, s) + (1 − α)·τ²·KL(softmax(t/τ) ‖ softmax(s/τ)), mean over the batch.

The paper writes the second term as a cross-entropy, which has the same gradient: the teacher's entropy is constant.
The paper gives no single α and τ; the defaults are those of the comparison that PLD's paper makes (α 0.1, τ 2). The
variants are the baselines of CRD, DKD and NKD. [paper] for the loss, [code] of those for their weights.
"""

from __future__ import annotations

from torch import Tensor

from relent.divergences.discrete import tempered_forward_kl
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of knowledge distillation."""

    alpha: float = hyperparameter(
        0.1, "α, the weight of the labels.", source="arXiv 2506.12542, experiments (KD baseline)", ge=0, le=1
    )
    temperature: float = hyperparameter(
        2.0, "τ, of teacher and student.", source="arXiv 2506.12542, experiments (KD baseline)", gt=0, le=100
    )


def knowledge_distillation_terms(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, alpha: float, temperature: float
) -> dict[str, Tensor]:
    """The two weighted terms of the loss.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.
        labels: (B,).
        alpha: Weight of the labels.
        temperature: τ.

    Returns:
        `cross_entropy` and `distillation`, scalars in nats, weights and τ² included.
    """
    labelled = label_cross_entropy(labels, tempered_log_probs(student_logits), reduction="mean")
    distilled = tempered_forward_kl(
        teacher_logits.detach(), student_logits, temperature, scale="tau_squared", reduction="mean"
    )
    return {"cross_entropy": alpha * labelled, "distillation": (1 - alpha) * distilled}


class KnowledgeDistillation(ClassifierMethod):
    """Trains with labels and stored teacher logits; at α = 1 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"alpha": 1.0})

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        return knowledge_distillation_terms(
            output.logits, batch["teacher_logits"], batch["label"], config.alpha, config.temperature
        )
