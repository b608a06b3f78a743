"""PLD: list-wise distillation by the Plackett–Luce likelihood of the teacher-optimal ranking.

Bassam, Zhu, Bian, "PLD: A Choice-Theoretic List-Wise Knowledge Distillation", arXiv 2506.12542:

    π* = (y, then all other classes by descending teacher logit)
    α_k = softmax(t/τ_T)_{π*_k}
    L = Σ_k α_k·[ log Σ_{l ≥ k} exp s_{π*_l} − s_{π*_k} ], mean over the batch.

One loss: no cross-entropy beside it, no mixing weight, no temperature on the student. α_1 is the teacher's probability
of the true label even where the teacher is wrong. The paper's displayed equations were read through its text, which
fixes them; its code is not public. The paper uses τ_T = 1 on ImageNet (`default`) and the temperature of DIST, 4, on
CIFAR-100 (`cifar100`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relent.divergences.logits import tempered_log_probs
from relent.divergences.ranking import plackett_luce_loss, ranking_of
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of PLD."""

    teacher_temperature: float = hyperparameter(
        1.0,
        "τ_T, of the teacher's softmax that weights the choices.",
        source="paper, ImageNet; 4 on CIFAR-100",
        gt=0,
        le=100,
    )
    weights: Literal["teacher", "uniform"] = hyperparameter(
        "teacher",
        "Weights of the choices: the teacher's probabilities, or 1/C (ListMLE, the paper's ablation).",
        source="paper, method section and ablation",
    )


def pld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    teacher_temperature: float = 1.0,
    weights: Literal["teacher", "uniform"] = "teacher",
) -> Tensor:
    """PLD loss of each item.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C), of any finite size; gets no gradient.
        labels: (B,).
        teacher_temperature: τ_T.
        weights: `teacher` (PLD) or `uniform` (1/C: ListMLE divided by C).

    Returns:
        (B,) nats.
    """
    teacher_logits = teacher_logits.detach()
    ranking = ranking_of(teacher_logits, first=labels)
    if weights == "uniform":
        alpha = torch.full_like(student_logits, 1 / student_logits.shape[-1])
    else:
        alpha = tempered_log_probs(teacher_logits, teacher_temperature).exp().gather(-1, ranking)
    return plackett_luce_loss(student_logits, ranking, weights=alpha)


class PLD(ClassifierMethod):
    """Trains with PLD; with a one-hot teacher at the label it is cross-entropy."""

    config: Config

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        loss = pld_loss(
            output.logits, batch["teacher_logits"], batch["label"], config.teacher_temperature, config.weights
        )
        return {"pld": loss.mean()}
