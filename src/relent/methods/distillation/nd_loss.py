r"""ND loss: regularise norm and direction of the student's penultimate features (KD++, DKD++).

Wang, Cheng, et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction", arXiv 2305.17007:

    e_k = c_k/‖c_k‖,  c_k the mean of the teacher's features over the training items of class k
    L_ND = (β/B)·Σ_b [ 1 − f_b·e_{y_b} / max(‖f_b‖, ‖t_b‖) ]
    L = λ·CE(y, s) + min(1, epoch/warm-up)·α·T²·KL( softmax(t/T) ‖ softmax(s/T) ) + L_ND

A feature shorter than the teacher's on the same item is turned and lengthened; a longer one is only turned. The maximum
is not detached. Where the widths differ, the term sees an adapter's output (batch norm, dropout ½, linear), which is
dropped after training: the logits come from the raw features.

Formula, weights by pair of networks, adapter and warm-up (20 of 240 epochs, 5 of 100 on ImageNet, counted from 0, so
that the first epoch has no soft labels) are those of the official code (`WangYZ1608/Knowledge-Distillation-via-ND`). It
computes the class means with training augmentation and rounds them to four decimals; here they come from the stored
outputs of the teacher, exact. The direction-only term, 1 − cos, is the paper's ablation; its exact form there was not
read.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from relent.divergences.discrete import forward_kl
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput
from relent.scores.features import means_by_class


class Config(MethodConfig):
    """Hyperparameters of KD++."""

    temperature: float = hyperparameter(4.0, "T.", source="official code, CIFAR-100", gt=0, le=100)
    label_weight: float = hyperparameter(1.0, "λ, weight of the labels.", source="official code", ge=0, le=100)
    alpha: float = hyperparameter(
        1.0, "α, weight of the soft labels.", source="official code, ResNet56 → ResNet20", ge=0, le=1000
    )
    beta: float = hyperparameter(
        2.0, "β, weight of the ND loss.", source="official code, ResNet56 → ResNet20", ge=0, le=1000
    )
    regulariser: Literal["norm_and_direction", "direction"] = hyperparameter(
        "norm_and_direction", "The ND loss, or its direction alone.", source="paper; `direction` is its ablation"
    )
    warmup_share: float = hyperparameter(
        1 / 12, "Share of the epochs over which the soft labels come in.", source="official code: 20 of 240", ge=0, lt=1
    )


def nd_loss(features: Tensor, teacher_features: Tensor, class_means: Tensor, labels: Tensor) -> Tensor:
    """ND loss of each item, without β.

    Args:
        features: f, (B, D), the adapter's output where there is one.
        teacher_features: t, (B, D), of the same items; gets no gradient.
        class_means: c, (C, D), of any positive length; gets no gradient.
        labels: (B,).

    Returns:
        (B,), in [0, 2]; 0 where f is parallel to e_y and at least as long as t.
    """
    directions = _directions(class_means)[labels]
    longest = torch.maximum(features.norm(dim=-1), teacher_features.detach().norm(dim=-1)).clamp_min(1e-12)
    return 1 - (features * directions).sum(-1) / longest


def direction_loss(features: Tensor, class_means: Tensor, labels: Tensor) -> Tensor:
    """1 − cos(f, e_y) of each item, (B,); arguments as of `nd_loss`."""
    return 1 - torch.cosine_similarity(features, _directions(class_means)[labels], dim=-1, eps=1e-12)


def _directions(class_means: Tensor) -> Tensor:
    class_means = class_means.detach()
    return class_means / class_means.norm(dim=-1, keepdim=True).clamp_min(1e-12)


class Adapter(nn.Module):
    """Batch norm, dropout ½ and a linear layer: (B, W) → (B, D).

    A batch of one item, which has no variance, is normalised by the running statistics.
    """

    def __init__(self, width: int, teacher_width: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.rest = nn.Sequential(nn.Dropout(0.5), nn.Linear(width, teacher_width))

    def forward(self, features: Tensor) -> Tensor:
        norm = self.norm
        if self.training and len(features) == 1:
            mean, variance = norm.running_mean, norm.running_var
            return self.rest(nn.functional.batch_norm(features, mean, variance, norm.weight, norm.bias))
        return self.rest(norm(features))


class NDLoss(ClassifierMethod):
    """Trains KD++; with α = β = 0 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"alpha": 0.0, "beta": 0.0})
    class_means: Tensor

    def setup_method(self) -> None:
        """Build the adapter where the widths differ; it comes after the network, whose weights it does not change."""
        width = self.task.teacher["features"].shape[1]  # type: ignore[attr-defined]
        self.adapter: nn.Module = nn.Identity()
        if self.feature_width != width:
            self.adapter = Adapter(self.feature_width, width)
        self.register_buffer("class_means", torch.zeros(self.classes, width))

    def prepare(self, datamodule: Any) -> None:
        """Class means of the teacher's stored features over the training items."""
        super().prepare(datamodule)
        items = datamodule.data.items(datamodule.split)
        means = means_by_class(datamodule.teacher["features"][items], datamodule.data.labels[items], self.classes)
        self.class_means.copy_(means)

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, labels, temperature = self.config, batch["label"], self.config.temperature
        soft = forward_kl(
            tempered_log_probs(batch["teacher_logits"].detach(), temperature),
            tempered_log_probs(output.logits, temperature),
            reduction="mean",
        )
        features = self.adapter(output.features)
        if config.regulariser == "direction":
            regulariser = direction_loss(features, self.class_means, labels)
        else:
            regulariser = nd_loss(features, batch["teacher_features"], self.class_means, labels)
        hard = label_cross_entropy(labels, tempered_log_probs(output.logits), reduction="mean")
        return {
            "cross_entropy": config.label_weight * hard,
            "soft_labels": self.warmup(config.warmup_share) * config.alpha * temperature**2 * soft,
            "features": config.beta * regulariser.mean(),
        }
