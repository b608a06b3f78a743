"""Scores of vectors as mean statistics: energy score and variogram score, streamed as `relent.scores.streaming` does.

The components of a vector (variables, or the points of a small region) are the last dimension of members and truth and
lie in one chunk; `evaluate` sees to both.
"""

from dataclasses import dataclass

from torch import Tensor

from relent.scores import ensemble
from relent.scores._arrays import Estimator
from relent.scores.streaming import MeanStatistic


@dataclass(frozen=True, kw_only=True)
class EnergyScore(MeanStatistic):
    """Mean energy score (`relent.scores.ensemble.energy_score`). Scale the components: the norm adds their units."""

    estimator: Estimator = "fair"
    alpha: float = 0.95

    @property
    def joint(self) -> bool:
        return True

    @property
    def name(self) -> str:
        estimator = f"almost_fair_{self.alpha:g}" if self.estimator == "almost_fair" else self.estimator
        return f"energy_score_{estimator}"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        score = ensemble.energy_score(
            members, truth, estimator=self.estimator, alpha=self.alpha, nan_policy=self.nan_policy
        )
        return {"energy_score": score}


@dataclass(frozen=True, kw_only=True)
class VariogramScore(MeanStatistic):
    """Mean variogram score of order p (`relent.scores.ensemble.variogram_score`), every pair weighing the same."""

    p: float = 0.5

    @property
    def joint(self) -> bool:
        return True

    @property
    def name(self) -> str:
        return f"variogram_score_{self.p:g}"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        return {"variogram_score": ensemble.variogram_score(members, truth, p=self.p, nan_policy=self.nan_policy)}
