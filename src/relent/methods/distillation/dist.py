r"""DIST: match the correlations of predictions, between classes and within a class.

Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536 (NeurIPS 2022):

    p = softmax(s/τ), q = softmax(t/τ), (B, C)
    inter = τ²·mean_b (1 − ρ(p_b·, q_b·)),   intra = τ²·mean_c (1 − ρ(p_·c, q_·c)),   ρ: Pearson's correlation
    L = w·CE(y, s) + β·inter + γ·intra

Defaults as in the official code (`hunto/DIST_KD`): τ 4, β = γ = 2 on CIFAR-100 (default), τ 1, β = γ = 2 on ImageNet,
w 1 on both. PLD's paper compares with w 0.1, β = γ = 0.45, τ 1.
A constant row or column has no correlation; it counts as 0, as there, by 1e-8 in the denominator.
"""

from __future__ import annotations

from torch import Tensor

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of DIST."""

    temperature: float = hyperparameter(4.0, "τ.", source="official code, CIFAR-100", gt=0, le=100)
    beta: float = hyperparameter(2.0, "β, weight between classes.", source="paper, CIFAR-100", ge=0, le=1000)
    gamma: float = hyperparameter(2.0, "γ, weight within a class.", source="paper, CIFAR-100", ge=0, le=1000)
    label_weight: float = hyperparameter(
        1.0, "w, weight of the labels.", source="official code", omit_default=True, ge=0, le=1000
    )


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of the rows of (N, M) with those of (N, M): (N,); 0 where a row is constant."""
    first, second = first - first.mean(-1, keepdim=True), second - second.mean(-1, keepdim=True)
    return (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1) + 1e-8)


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, beta: float = 2.0, gamma: float = 2.0
) -> dict[str, Tensor]:
    """Both relations, weights and τ² included.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.
        temperature: τ.
        beta: β.
        gamma: γ.

    Returns:
        `inter` and `intra`: scalars.
    """
    student = tempered_log_probs(student_logits, temperature).exp()
    teacher = tempered_log_probs(teacher_logits.detach(), temperature).exp()
    scale = temperature**2
    return {
        "inter": beta * scale * (1 - correlation(student, teacher)).mean(),
        "intra": gamma * scale * (1 - correlation(student.T, teacher.T)).mean(),
    }


class DIST(ClassifierMethod):
    """Trains with labels and both relations; with β = γ = 0 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"beta": 0.0, "gamma": 0.0})

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        labels = label_cross_entropy(batch["label"], tempered_log_probs(output.logits), reduction="mean")
        return {
            "cross_entropy": config.label_weight * labels,
            **dist_loss(output.logits, batch["teacher_logits"], config.temperature, config.beta, config.gamma),
        }
