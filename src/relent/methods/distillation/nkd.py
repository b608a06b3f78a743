"""NKD: distillation with normalised non-target probabilities.

Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
Normalized Loss and Customized Soft Labels", arXiv 2303.13005 (ICCV 2023). With T = softmax(t), S = softmax(s),
and N_λ the softmax of the non-target logits divided by λ:

    L_NKD = −T_y·log S_y − γ·λ²·Σ_{i≠y} N_λ(t)_i·log N_λ(s)_i,   L = CE(y, s) + L_NKD, mean over the batch.

Both parts are cross-entropies; the target part has no temperature. Paper and official code (`yzd-v/cls_KD`) agree.
The two published settings are variants: ImageNet λ 1, γ 1.5 (`default`) and CIFAR-100 λ 3, γ 3.5 (`cifar100`).
"""

from __future__ import annotations

from torch import Tensor

from relent.divergences.discrete import cross_entropy
from relent.divergences.logits import (
    label_cross_entropy,
    other_class_log_probs,
    tempered_log_probs,
)
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of NKD."""

    temperature: float = hyperparameter(
        1.0, "λ, of the non-target part.", source="official code, ImageNet; 3 on CIFAR-100", gt=0, le=100
    )
    gamma: float = hyperparameter(
        1.5, "γ, weight of the non-target part.", source="official code, ImageNet; 3.5 on CIFAR-100", ge=0, le=100
    )


def nkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 1.0, gamma: float = 1.5
) -> dict[str, Tensor]:
    """The two parts of L_NKD, for each item.

    Args:
        student_logits: (B, C), C ≥ 3 (with two classes the non-target part vanishes).
        teacher_logits: (B, C); gets no gradient.
        labels: (B,).
        temperature: λ.
        gamma: γ.

    Returns:
        `target` and `non_target`, (B,) nats each, γ·λ² included.

    Raises:
        ValueError: Fewer than three classes.
    """
    if student_logits.shape[-1] < 3:
        raise ValueError(f"NKD needs at least three classes, got {student_logits.shape[-1]}: with two, N is always 1")
    teacher_logits = teacher_logits.detach()
    target = labels.unsqueeze(-1)
    student_log_prob = tempered_log_probs(student_logits).gather(-1, target).squeeze(-1)
    teacher_prob = tempered_log_probs(teacher_logits).gather(-1, target).squeeze(-1).exp()
    others = cross_entropy(
        other_class_log_probs(teacher_logits, labels, temperature),
        other_class_log_probs(student_logits, labels, temperature),
    )
    return {"target": -teacher_prob * student_log_prob, "non_target": gamma * temperature**2 * others}


class NKD(ClassifierMethod):
    """Trains with cross-entropy + NKD."""

    config: Config

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        labels = batch["label"]
        parts = nkd_loss(output.logits, batch["teacher_logits"], labels, self.config.temperature, self.config.gamma)
        labelled = label_cross_entropy(labels, tempered_log_probs(output.logits), reduction="mean")
        return {"cross_entropy": labelled} | {name: part.mean() for name, part in parts.items()}
