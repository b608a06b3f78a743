"""USKD: self-distillation with customised soft labels, without a teacher.

Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", arXiv 2303.13005 (ICCV 2023), second method.
With S = softmax(s), W = softmax(w) of a weak head on a mid-level feature, and hard labels y:

    P = stopgrad(S_y² + 1 − mean_batch S_y²),                    L_t    = −P·log S_y
    Z_i = (1/r_i) / Σ_{j≠y} 1/r_j,  r = rank of class i,         L_non  = −Σ_{i≠y} Z_i·log N_1(s)_i
    L_weak = μ·CE(0.9·onehot(y) + 0.1/C, w)
    L = CE(y, s) + α·L_t + β·L_non + L_weak, mean over the batch.

Paper and official code (`yzd-v/cls_KD`) differ in the rank score: the paper ranks by W_i/(1 − W_y) + S_i/(1 − S_y)
(`paper`, the default: it is what the text argues for); the code uses log-probabilities in the second term, because a
variable had been overwritten, and ranks the target along with the others, which leaves a gap in the ranks (`code`).
Only hard labels are supported: the treatment of mixed labels in the code is not needed here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from relent.divergences.discrete import cross_entropy
from relent.divergences.logits import (
    label_cross_entropy,
    non_target_log_probs,
    non_target_logits,
    tempered_log_probs,
)
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of USKD."""

    alpha: float = hyperparameter(1.0, "α, weight of the target part.", source="official code, ImageNet", ge=0, le=100)
    beta: float = hyperparameter(
        0.1, "β, weight of the non-target part.", source="official code, ImageNet", ge=0, le=100
    )
    mu: float = hyperparameter(
        0.005, "μ, weight of the weak head's loss.", source="official code, ImageNet", ge=0, le=100
    )
    ranking: Literal["paper", "code"] = hyperparameter(
        "paper", "How classes are ranked: the paper's formula, or what the official code computes.", source="paper"
    )


def zipf_labels(
    student_logits: Tensor, weak_logits: Tensor, labels: Tensor, ranking: Literal["paper", "code"] = "paper"
) -> Tensor:
    """Non-target soft labels by Zipf's law over ranks.

    Args:
        student_logits: (B, C).
        weak_logits: (B, C).
        labels: (B,).
        ranking: `paper` or `code`.

    Returns:
        Z, (B, C − 1), sums to one, without gradient; columns in the order of the classes without the target.
    """
    student_logits, weak_logits = student_logits.detach(), weak_logits.detach()
    if ranking == "paper":
        # W_i/(1 − W_y) is the softmax over the non-targets; the quotient itself is 0/0 for a confident student.
        student, weak = non_target_log_probs(student_logits, labels), non_target_log_probs(weak_logits, labels)
        scores = weak.exp() + student.exp()
    else:
        target = labels.unsqueeze(-1)
        student, weak = tempered_log_probs(student_logits), tempered_log_probs(weak_logits).exp()
        scores = weak / (1 - weak.gather(-1, target) + 1e-6) + student / (1 - student.gather(-1, target) + 1e-6)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    by_rank = torch.arange(1, order.shape[-1] + 1, device=order.device).to(student_logits.dtype).reciprocal()
    weights = torch.empty_like(scores).scatter(-1, order, by_rank.expand_as(scores))
    if ranking == "code":
        weights = non_target_logits(weights, labels)
    return weights / weights.sum(-1, keepdim=True)


def uskd_loss(
    student_logits: Tensor,
    weak_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 0.1,
    mu: float = 0.005,
    ranking: Literal["paper", "code"] = "paper",
) -> dict[str, Tensor]:
    """The three parts of L_USKD, means over the batch.

    Args:
        student_logits: (B, C), C ≥ 3.
        weak_logits: (B, C), of the weak head.
        labels: (B,).
        alpha: α.
        beta: β.
        mu: μ.
        ranking: See `zipf_labels`.

    Returns:
        `target`, `non_target`, `weak`: scalars in nats, weights included.
    """
    log_prob = tempered_log_probs(student_logits).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    squared = log_prob.detach().mul(2).exp()
    soft_target = squared + 1 - squared.mean()
    soft_others = zipf_labels(student_logits, weak_logits, labels, ranking)
    others = cross_entropy(soft_others.log(), non_target_log_probs(student_logits, labels), reduction="mean")
    weak = label_cross_entropy(labels, tempered_log_probs(weak_logits), label_smoothing=0.1, reduction="mean")
    return {
        "target": alpha * -(soft_target * log_prob).mean(),
        "non_target": beta * others,
        "weak": mu * weak,
    }


class USKD(ClassifierMethod):
    """Trains with cross-entropy + USKD; with all weights zero it is cross-entropy. The weak head only trains."""

    config: Config
    baseline_limit = ("cross_entropy", {"alpha": 0.0, "beta": 0.0, "mu": 0.0})

    def setup_method(self) -> None:
        """Add the weak head on the pooled output of the second-last stage."""
        with torch.no_grad():
            sample = next(iter(self.task.datamodule(self.config, 0).val_dataloader()))["input"][:1]
            output: ClassifierOutput = self.network(sample)
        self.weak_head = nn.Linear(output.mid.shape[-1], output.logits.shape[-1])

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, labels = self.config, batch["label"]
        parts = uskd_loss(
            output.logits, self.weak_head(output.mid), labels, config.alpha, config.beta, config.mu, config.ranking
        )
        return {
            "cross_entropy": label_cross_entropy(labels, tempered_log_probs(output.logits), reduction="mean"),
            **parts,
        }
