r"""BD-KD: online distillation that balances forward and reverse KL sample by sample.

Amara, Sepahvand, Meyer, Gross, Clark, "BD-KD: Balancing the Divergences for Online Knowledge Distillation",
arXiv 2212.12965. Teacher (large) and student (small) learn together from scratch; per sample, at temperature τ,

    F = KL(p_t ‖ p_s),  R = KL(p_s ‖ p_t)
    L_S = CE(y, s) + λ·τ²·mean_b (δ_b F_b + ν_b R_b)         teacher held constant
    L_T = CE(y, t) + λ_T·τ²·mean_b KL(p_s ‖ p_t)             student held constant

The entropies decide the balance: a student that is surer than its teacher (H_s < H_t) gets more of the forward KL,
which spreads it; one that is less sure more of the reverse KL, which sharpens it.

The abstracts and summaries were read, the displayed equations were not, and no official code was found: that both
divergences are used at once, weighted by sample from the entropies, and that the teacher keeps cross-entropy and the
reverse KL are the paper's. The rule of the weights (`hard`: 2 and 1; `soft`: 2·sigmoid(κ(H_t − H_s)) and its
complement), τ and the detached entropies are a reconstruction. The two rules differ in total weight (3 and 2).

Stored outputs of a teacher cannot be used: the teacher is not finished before the student is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relent.divergences.discrete import entropy, forward_kl, reverse_kl
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import OnlineDistillation
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of BD-KD."""

    temperature: float = hyperparameter(2.0, "τ, of both divergences and the entropies.", source="ours", gt=0, le=100)
    weight: float = hyperparameter(1.0, "λ, weight of the student's divergences.", source="ours", ge=0, le=100)
    teacher_weight: float = hyperparameter(1.0, "λ_T, weight of the teacher's divergence.", source="ours", ge=0, le=100)
    balance: Literal["hard", "soft", "fixed"] = hyperparameter(
        "hard", "How the entropies set the weights; `fixed`: not at all.", source="ours"
    )
    high: float = hyperparameter(
        2.0, "`hard`: the larger weight; `fixed`: weight of the forward KL.", source="ours", ge=0, le=100
    )
    low: float = hyperparameter(
        1.0, "`hard`: the smaller weight; `fixed`: weight of the reverse KL.", source="ours", ge=0, le=100
    )
    sharpness: float = hyperparameter(1.0, "κ of the soft rule, per nat.", source="ours", ge=0, le=1000)


def balance_weights(
    student_entropy: Tensor, teacher_entropy: Tensor, balance: str, high: float, low: float, sharpness: float
) -> tuple[Tensor, Tensor]:
    """δ and ν of each sample from the entropies (B,), without gradient; a tie counts as a student that is less sure."""
    gap = (teacher_entropy - student_entropy).detach()
    if balance == "soft":
        forward = 2 * torch.sigmoid(sharpness * gap)
        return forward, 2 - forward
    if balance == "fixed":
        return torch.full_like(gap, high), torch.full_like(gap, low)
    overconfident = gap > 0
    forward = torch.where(overconfident, high, low).to(gap)
    return forward, high + low - forward


def bd_kd_student_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 2.0,
    balance: str = "hard",
    high: float = 2.0,
    low: float = 1.0,
    sharpness: float = 1.0,
) -> Tensor:
    """τ²·(δ F + ν R) of each sample, (B,).

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.
        temperature: τ.
        balance: `hard`, `soft` or `fixed`.
        high, low, sharpness: See `Config`.
    """
    student = tempered_log_probs(student_logits, temperature)
    teacher = tempered_log_probs(teacher_logits.detach(), temperature)
    forward, reverse = balance_weights(entropy(student), entropy(teacher), balance, high, low, sharpness)
    return temperature**2 * (forward * forward_kl(teacher, student) + reverse * reverse_kl(teacher, student))


class BDKD(OnlineDistillation):
    """Trains student and teacher together; with λ = λ_T = 0 each learns alone."""

    config: Config
    baseline_limit = ("cross_entropy", {"weight": 0.0, "teacher_weight": 0.0})

    def both_terms(
        self, student: ClassifierOutput, peer: ClassifierOutput, batch: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        config, labels, temperature = self.config, batch["label"], self.config.temperature
        balanced = bd_kd_student_loss(
            student.logits, peer.logits, temperature, config.balance, config.high, config.low, config.sharpness
        )
        ours, theirs = (tempered_log_probs(output.logits, temperature) for output in (student, peer))
        regulariser = forward_kl(ours.detach(), theirs, reduction="mean")
        return {
            "cross_entropy": label_cross_entropy(labels, tempered_log_probs(student.logits), reduction="mean"),
            "balanced_kl": config.weight * balanced.mean(),
            "peer_cross_entropy": label_cross_entropy(labels, tempered_log_probs(peer.logits), reduction="mean"),
            "peer_reverse_kl": config.teacher_weight * temperature**2 * regulariser,
        }
