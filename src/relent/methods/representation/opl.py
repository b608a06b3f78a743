r"""OPL: cross-entropy with features of different classes orthogonal and of one class parallel.

Ranasinghe, Naseer, Hayat, Khan, Khan, "Orthogonal Projection Loss", arXiv 2103.14021 (ICCV 2021). With f_i the
normalised penultimate features of a batch and G_ij = f_i·f_j,

    s = Σ_{i≠j, y_i=y_j} G_ij / (n_same + 1e-6),   d over the ordered pairs of different classes
    L = CE + λ·[ (1 − s) + γ·d ]

Three forms of d are in use: Σ G/n (`signed`, the released loss.py), Σ |G|/n (`mean_abs`, the official code for
CIFAR-100 and ImageNet, and the default here) and |Σ G/n| (`abs_mean`, the paper's formula). They agree on non-negative
features; on others `signed` rewards opposite directions. λ 1 and γ 0.5 are the README's and the CIFAR-100 script's.
Pairs are formed within a process. A feature row that is zero gets no gradient from the term (the plain normalisation
would give it one of size 1e12); that mask is ours.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput
from relent.scores.features import pair_similarities


class Config(MethodConfig):
    """Hyperparameters of OPL."""

    weight: float = hyperparameter(1.0, "λ, weight of the term.", source="official code, CIFAR-100", ge=0, le=1000)
    gamma: float = hyperparameter(
        0.5, "γ, weight of the pairs of different classes.", source="official code, CIFAR-100", ge=0, le=1000
    )
    negative: Literal["signed", "mean_abs", "abs_mean"] = hyperparameter(
        "mean_abs", "Form of d.", source="official code, CIFAR-100 and ImageNet"
    )


def opl_loss(
    features: Tensor,
    labels: Tensor,
    gamma: float = 0.5,
    negative: Literal["signed", "mean_abs", "abs_mean"] = "mean_abs",
) -> Tensor:
    """(1 − s) + γ·d of a batch, a scalar; arguments as of `pair_similarities`."""
    same, different = pair_similarities(features, labels, negative)
    return (1 - same) + gamma * different


class OPL(ClassifierMethod):
    """Trains with labels and OPL; with λ = 0 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"weight": 0.0})

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, labels = self.config, batch["label"]
        return {
            "cross_entropy": label_cross_entropy(labels, tempered_log_probs(output.logits), reduction="mean"),
            "orthogonality": config.weight * opl_loss(output.features, labels, config.gamma, config.negative),
        }
