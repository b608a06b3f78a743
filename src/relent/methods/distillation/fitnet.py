r"""Feature matching after FitNets: the student's penultimate features regress the teacher's.

Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550 (ICLR 2015), equation 3, in the one-stage form in
which later comparisons use it:

    L = CE(y, s) + β·mean_{b,d} (r(f_s) − f_t)²

with a linear regressor r that is dropped after training. The paper matches a hidden layer of the middle, before the
training proper and with a convolutional regressor; stored outputs hold the penultimate features, which are matched
here.
"""

from __future__ import annotations

from torch import Tensor, nn

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of feature matching."""

    beta: float = hyperparameter(
        1.0,
        "β, weight of the mean squared difference, in units of the teacher's mean square.",
        source="ours",
        ge=0,
        le=1e6,
    )


class FitNet(ClassifierMethod):
    """Trains with labels and feature matching; with β = 0 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"beta": 0.0})

    def setup_method(self) -> None:
        """Build the regressor and take the scale of the teacher's features."""
        features = self.task.teacher["features"]  # type: ignore[attr-defined]
        self.regressor = nn.Linear(self.feature_width, features.shape[1])
        self.mean_square = float(features.square().mean())

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        difference = self.regressor(output.features) - batch["teacher_features"].detach()
        return {
            "cross_entropy": label_cross_entropy(batch["label"], tempered_log_probs(output.logits), reduction="mean"),
            "features": self.config.beta * difference.square().mean() / self.mean_square,
        }
