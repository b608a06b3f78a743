r"""f-DPO: direct preference optimisation under any f-divergence whose derivative is −∞ at zero.

Wang, Jiang, Yang, Liu, Chen, "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
Constraints", arXiv 2309.16240 (ICLR 2024). The regularised problem is

    max_π E_π r − β D_f(π‖π_ref),   D_f(π‖π_ref) = E_ref f(π/π_ref)

Where f′ can be inverted and 0 ∉ dom f′ (f′(0+) = −∞: the optimum gives every answer some probability, so that its
multipliers vanish), the KKT conditions give r(x, y) = β f′(π*(y|x)/π_ref(y|x)) + V(x), and V(x) cancels in a pair:

    L = −log σ( β [f′(e^ρ_w) − f′(e^ρ_l)] ),   ρ(y) = Σ_t log π(y_t|h_t) − log π_ref(y_t|h_t)

f′ is applied **after** the sum over tokens. Names are those of the registry with π_ref as the target: `reverse_kl` is
KL(π‖π_ref), which is DPO; `forward_kl` is KL(π_ref‖π); the paper's JS, KL(π‖m) + KL(π_ref‖m), is
`jensen_shannon_unhalved`; `alpha` has the paper's α (0 the reverse, 1 the forward KL), and TRL's
`f_alpha_divergence_coef` is 1 − α. At one β the divergences do not bind equally (f″(1) is 1 for both KLs and α, ½ for
JS): compare frontiers over β. A run is judged by its own reward β f′ and its own optimum (`regulariser`), for which
`relent.language.exact.regularised_optimum` solves.

[paper] objective, condition, divergences; [code] the form of TRL 1.16, there being no code of the authors; ours: the
ceiling of the exponent, the default divergence (α = 0.5, the middle of the paper's set), networks and recipe.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relent.divergences.f_divergence import f_divergence_names, get_f_divergence
from relent.divergences.f_generator import FDivergence
from relent.divergences.reduction import masked_mean, upcast
from relent.language.regulariser import Regulariser
from relent.methods.alignment.base import PairMethod
from relent.methods.alignment.preference import positive, preference_loss, reward_diagnostics
from relent.methods.config import MethodConfig, hyperparameter


class Config(MethodConfig):
    """Hyperparameters of f-DPO."""

    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon_unhalved", "jeffreys", "alpha"] = hyperparameter(
        "alpha", "D_f(π‖π_ref), by its name in the registry.", source="paper: all but jeffreys; the default is ours"
    )
    alpha: float = hyperparameter(
        0.5, "α of the divergence `alpha`: 0 the reverse, 1 the forward KL.", source="paper: 0.3, 0.5, 0.7", ge=0, le=1
    )
    beta: float = hyperparameter(
        0.1, "β, strength of the divergence, in the unit of the reward.", source="paper and TRL", gt=0, le=1000
    )
    label_smoothing: float = hyperparameter(
        0.0, "ε, probability that a label is wrong.", source="paper: none", ge=0, lt=0.5
    )
    exponent_ceiling: float = hyperparameter(
        20.0,
        "Bound of the exponent of scores exp(−α·ρ); beyond it an answer gets no gradient.",
        source="ours; TRL: 80 for α, none for the forward KL",
        gt=0,
        le=80,
    )


def f_dpo_divergence(name: str, **parameters: float) -> FDivergence:
    """Return a registered divergence after checking the condition of f-DPO, f′(0+) = −∞.

    Args:
        name: `reverse_kl`, `forward_kl`, `jensen_shannon_unhalved`, `alpha`, … (see the module's docstring).
        **parameters: `alpha` of the family `alpha`.

    Raises:
        ValueError: An unknown name, or a divergence with 0 in the domain of f′ (total variation, χ²(π‖π_ref), …).

    Source: theorem 1 and table 1.
    """
    divergence = get_f_divergence(name, **parameters)
    if not divergence.admissible:
        others = [other for other in f_divergence_names() if other != "alpha" and get_f_divergence(other).admissible]
        raise ValueError(
            f"f-DPO cannot use {divergence.name}: 0 lies in the domain of f' (or f' cannot be inverted), so the "
            "optimal policy may give an answer probability 0 and its reward cannot be read off; use one of "
            f"{', '.join(others)}, or alpha with alpha >= 0"
        )
    return divergence


def f_dpo_loss(
    chosen_log_ratios: Tensor,
    rejected_log_ratios: Tensor,
    divergence: FDivergence,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    exponent_ceiling: float | None = None,
) -> Tensor:
    r"""−log σ( β [g(ρ_w) − g(ρ_l)] ) of each pair, g(ρ) = f′(e^ρ) − f′(1).

    Args:
        chosen_log_ratios: (B,), ρ of the chosen answers, **summed** over tokens.
        rejected_log_ratios: (B,).
        divergence: From :func:`f_dpo_divergence`.
        beta: β > 0.
        label_smoothing: Share of labels taken to be wrong.
        exponent_ceiling: Bound of the exponent in scores that contain exp(−α ρ): beyond it the score is constant and
            its gradient 0. TRL 1.16 has 80 for α (11 in float16) and none for the forward KL; 20 is safe in training.

    Returns:
        (B,) nats.

    Raises:
        ValueError: A divergence that is not admissible, β ≤ 0, shapes that differ.
    """
    if chosen_log_ratios.shape != rejected_log_ratios.shape:
        shapes = f"{tuple(chosen_log_ratios.shape)} and {tuple(rejected_log_ratios.shape)}"
        raise ValueError(f"log-ratios of chosen and rejected answers must have one shape, got {shapes}")
    chosen, rejected = (
        divergence.score(ratios, exponent_ceiling=exponent_ceiling)
        for ratios in (chosen_log_ratios, rejected_log_ratios)
    )
    return preference_loss(positive(beta, "beta") * (chosen - rejected), label_smoothing=label_smoothing)


def f_dpo_rewards(log_ratios: Tensor, divergence: FDivergence, *, beta: float) -> Tensor:
    """Implicit rewards β g(ρ), (B,) to (B,), detached: increasing in ρ, so a given policy ranks alike under every f.

    TRL logs β ρ whatever the divergence.
    """
    return positive(beta, "beta") * divergence.score(log_ratios.detach())


def clamped_share(log_ratios: Tensor, divergence: FDivergence, exponent_ceiling: float) -> Tensor:
    """Share of answers beyond the ceiling of :func:`f_dpo_loss`, which get no gradient; a scalar to log."""
    if divergence.score_exponent is None:
        return torch.zeros((), device=log_ratios.device)
    return masked_mean((divergence.score_exponent * upcast(log_ratios.detach()) > exponent_ceiling).float(), None)


class FDPO(PairMethod):
    """Trains the policy as its own reward model under a divergence of choice; under the reverse KL it is DPO."""

    config: Config
    baseline_limit = ("dpo", {"divergence": "reverse_kl"})

    def setup_method(self) -> None:
        """Take the divergence out of the registry."""
        self.divergence = f_dpo_divergence(self.config.divergence, **self._family)

    @property
    def _family(self) -> dict[str, float]:
        return {"alpha": self.config.alpha} if self.config.divergence == "alpha" else {}

    def regulariser(self) -> Regulariser:
        """β D_f of the run's divergence: its implicit reward and its optimum are not DPO's."""
        config = self.config
        return Regulariser(config.beta, config.divergence, self._family, config.exponent_ceiling)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, divergence = self.config, self.divergence
        chosen, rejected = (side.log_ratio() for side in self.pair(batch))
        loss = f_dpo_loss(
            chosen,
            rejected,
            divergence,
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            exponent_ceiling=config.exponent_ceiling,
        )
        rewards = (f_dpo_rewards(ratios, divergence, beta=config.beta) for ratios in (chosen, rejected))
        clamped = clamped_share(torch.cat((chosen, rejected)), divergence, config.exponent_ceiling)
        self.log_terms(reward_diagnostics(*rewards) | {"clamped_share": clamped})
        return {"preference": loss.mean()}
