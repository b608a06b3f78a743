r"""Deep mutual learning: two networks learn from the labels and from each other.

Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", arXiv 1706.00384 (CVPR 2018), equations 4 and 5:

    L_1 = CE(y, z_1) + λ·KL(p_2 ‖ p_1),   L_2 = CE(y, z_2) + λ·KL(p_1 ‖ p_2)

The paper updates the networks in turn; here both step at once, on the same batch. Temperature and λ are 1 there.
"""

from __future__ import annotations

from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import OnlineDistillation
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of deep mutual learning."""

    weight: float = hyperparameter(
        1.0, "λ, weight of what a network learns from the other.", source="paper", ge=0, le=100
    )
    temperature: float = hyperparameter(
        1.0, "Of both distributions; the KL is multiplied by its square.", source="paper", gt=0, le=100
    )


class DeepMutualLearning(OnlineDistillation):
    """Trains both networks; with λ = 0 each learns alone."""

    config: Config
    baseline_limit = ("cross_entropy", {"weight": 0.0})

    def both_terms(
        self, student: ClassifierOutput, peer: ClassifierOutput, batch: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        labels, temperature = batch["label"], self.config.temperature
        scale = self.config.weight * temperature**2
        ours, theirs = (tempered_log_probs(output.logits, temperature) for output in (student, peer))
        return {
            "cross_entropy": label_cross_entropy(labels, tempered_log_probs(student.logits), reduction="mean"),
            "from_peer": scale * forward_kl(theirs.detach(), ours, reduction="mean"),
            "peer_cross_entropy": label_cross_entropy(labels, tempered_log_probs(peer.logits), reduction="mean"),
            "peer_from_student": scale * forward_kl(ours.detach(), theirs, reduction="mean"),
        }
