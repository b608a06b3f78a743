r"""DKD: knowledge distillation decoupled into the target's part and the rest.

Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", arXiv 2203.08679 (CVPR 2022), equation 7:

    TCKD = KL( (t_y, 1 − t_y) ‖ (s_y, 1 − s_y) ),   NCKD = KL( N_T(t) ‖ N_T(s) ) over the classes but y
    L = CE(y, s) + w·T²·(α·TCKD + β·NCKD),          w = min(1, epoch/warm-up)

All at temperature T, the teacher first. Defaults and warm-up are those of the official code
(`megvii-research/mdistiller`) for CIFAR-100; the warm-up, 20 of 240 epochs there, is stated as a share, and the first
epoch has none of both parts (there a twentieth: it counts from 1). On ImageNet: T 1, β 0.5, no warm-up (`imagenet`).
"""

from __future__ import annotations

from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.divergences.logits import (
    binary_target_log_probs,
    label_cross_entropy,
    other_class_log_probs,
    tempered_log_probs,
)
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of DKD."""

    temperature: float = hyperparameter(4.0, "T.", source="official code, CIFAR-100", gt=0, le=100)
    alpha: float = hyperparameter(1.0, "α, weight of the target's part.", source="paper, section 4", ge=0, le=1000)
    beta: float = hyperparameter(
        8.0, "β, weight of the other classes' part.", source="official code, ResNet32×4 → ResNet8×4", ge=0, le=1000
    )
    warmup_share: float = hyperparameter(
        1 / 12,
        "Share of the epochs over which both parts come in linearly.",
        source="official code: 20 of 240",
        ge=0,
        lt=1,
    )


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> dict[str, Tensor]:
    """Both parts, means over the batch, weights and T² included.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.
        labels: (B,).
        temperature: T.
        alpha: α.
        beta: β.

    Returns:
        `target` and `non_target`: scalars in nats.
    """
    teacher_logits = teacher_logits.detach()
    target = forward_kl(
        binary_target_log_probs(teacher_logits, labels, temperature),
        binary_target_log_probs(student_logits, labels, temperature),
        reduction="mean",
    )
    others = forward_kl(
        other_class_log_probs(teacher_logits, labels, temperature),
        other_class_log_probs(student_logits, labels, temperature),
        reduction="mean",
    )
    return {"target": alpha * temperature**2 * target, "non_target": beta * temperature**2 * others}


class DKD(ClassifierMethod):
    """Trains with labels and both parts; with α = β = 0 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"alpha": 0.0, "beta": 0.0})

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, labels = self.config, batch["label"]
        parts = dkd_loss(output.logits, batch["teacher_logits"], labels, config.temperature, config.alpha, config.beta)
        factor = self.warmup(config.warmup_share)
        return {
            "cross_entropy": label_cross_entropy(labels, tempered_log_probs(output.logits), reduction="mean"),
            **{name: factor * part for name, part in parts.items()},
        }
