r"""DPO: preferences without a reward model and without sampling.

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", arXiv 2305.18290.
The optimum of E_π[r] − β·KL(π ‖ π_ref) is π* ∝ π_ref·exp(r/β) (equation 4), so that a policy *is* a reward up to a
function of the prompt, r = β·log(π/π_ref) + β·log Z (equation 5), and the likelihood of preferences under the
Bradley–Terry law is

    L = −E log σ(β·[log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)])       (equation 7)

With label noise ε (Mitchell, "A note on DPO with noisy preferences", 2023; `label_smoothing` in TRL) the loss is
−(1 − ε)·log σ(βΔ) − ε·log σ(−βΔ).
"""

from __future__ import annotations

from torch import Tensor

from relent.methods.alignment.base import PairMethod
from relent.methods.alignment.preference import positive, preference_loss
from relent.methods.config import MethodConfig, hyperparameter


class Config(MethodConfig):
    """Hyperparameters of DPO."""

    beta: float = hyperparameter(
        0.1, "β, strength of the KL penalty, in the unit of the reward.", source="paper, appendix B", gt=0, le=1000
    )
    label_smoothing: float = hyperparameter(
        0.0, "ε, probability that a label is wrong.", source="paper: none", ge=0, lt=0.5
    )


def dpo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Loss of each pair (equation 7).

    Args:
        chosen_log_ratio, rejected_log_ratio: (B,) log π(y|x) − log π_ref(y|x) of whole completions: sums over tokens.
        beta: β > 0.
        label_smoothing: ε in [0, ½).

    Returns:
        (B,) in nats.

    Raises:
        ValueError: β or ε out of range.
    """
    margin = positive(beta, "beta") * (chosen_log_ratio - rejected_log_ratio)
    return preference_loss(margin, label_smoothing=label_smoothing)


class DPO(PairMethod):
    """Trains the policy as its own reward model."""

    config: Config

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        chosen, rejected = (side.log_ratio() for side in self.pair(batch))
        return {"preference": dpo_loss(chosen, rejected, self.config.beta, self.config.label_smoothing).mean()}
