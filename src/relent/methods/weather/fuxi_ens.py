"""FuXi-ENS: A machine learning model for medium-range ensemble weather forecasting (arXiv 2405.05925).

A conditional variational autoencoder learns the perturbations: at every step a Gaussian is predicted from the state
(P), and a sample of it perturbs the hidden features. Training adds the CRPS of several members and the KL between P and
a Gaussian that has also seen the target (Q):

    L = CRPS_α(X̂_1..X̂_M, X^{t+1}) + λ KL(Q ‖ P) / (C H W)
    z_m ~ Q(X^{t−1}, X^t, X^{t+1}),   X̂_m = Dec(Enc(X^{t−1}, X^t), z_m)

The paper names both terms; weights, estimator, direction of the KL and schedule are not public, and are ours here.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from relent.methods.config import MethodConfig, hyperparameter
from relent.methods.weather.base import VariationalForecast, latent_kl, row_weighted_mean
from relent.models.fuxi_ens import LatentGaussian
from relent.scores.crps import crps_ensemble


class Config(MethodConfig):
    """Hyperparameters."""

    members: int = hyperparameter(4, "Members in the training loss.", source="ours; not public", ge=2, le=64)
    crps_alpha: float = hyperparameter(
        0.95,
        "Almost-fair CRPS: weight of the fair estimator; 1 is degenerate with two members.",
        source="AIFS-CRPS, arXiv 2412.15832; not public for FuXi-ENS",
        gt=0,
        le=1,
    )
    kl_weight: float = hyperparameter(
        0.1, "λ of the KL, which is divided by the number of forecast values C H W.", source="ours; not public", ge=0
    )
    kl_direction: Literal["posterior_prior", "prior_posterior"] = hyperparameter(
        "posterior_prior",
        "KL(Q‖P), that of the variational bound, or KL(P‖Q).",
        source="ours: the abstract says 'between the predicted and target distribution'",
    )
    latent_source: Literal["posterior", "prior", "mixed"] = hyperparameter(
        "posterior",
        "Where the latents of the CRPS members come from: Q, P, or half of each.",
        source="ours: the conditional VAE's standard",
    )
    rollout_steps: int = hyperparameter(1, "K: steps of the training roll-out at its end.", source="ours", ge=1, le=60)
    rollout_start: float = hyperparameter(
        0.75, "Share of the training at K = 1, before K rises one by one.", source="ours", ge=0, lt=1
    )


def fuxi_ens_loss(
    members: Tensor,
    truth: Tensor,
    posterior: LatentGaussian,
    prior: LatentGaussian,
    weights: Tensor,
    *,
    alpha: float,
    kl_weight: float,
    kl_direction: str = "posterior_prior",
) -> dict[str, Tensor]:
    r"""CRPS + λ KL of one forecast step.

        L = mean_{b,c,i,j} a_i CRPS_α(X̂_{1..M}, X) + λ / (C H W) · mean_b Σ_d KL( N(μ_q, σ_q²) ‖ N(μ_p, σ_p²) )

    Args:
        members: X̂, (M, B, C, H, W), standardised.
        truth: X^{t+1}, (B, C, H, W); NaN cells are left out.
        posterior, prior: Θ_q and Θ_p of the latent map. Gradients go into both.
        weights: a_i, latitude weights of the rows, (B, H).
        alpha: Weight of the fair CRPS estimator in the almost-fair one.
        kl_weight: λ.
        kl_direction: `posterior_prior` or `prior_posterior`.

    Returns:
        `loss`, `crps`, `kl` (nats for each forecast value, without λ) and `active_units` (share of latent dimensions).
    """
    crps = crps_ensemble(members, truth, estimator="almost_fair", alpha=alpha)
    crps = row_weighted_mean(crps, truth, weights)
    pair = (posterior, prior) if kl_direction == "posterior_prior" else (prior, posterior)
    kl = latent_kl(*pair, truth)
    return {"loss": crps + kl_weight * kl.per_value, "crps": crps, "kl": kl.per_value, "active_units": kl.active}


class FuXiENS(VariationalForecast):
    """Trains the variational forecaster by CRPS + KL."""

    config: Config

    def objective(
        self, members: Tensor, truth: Tensor, posterior: LatentGaussian, prior: LatentGaussian, weights: Tensor
    ) -> dict[str, Tensor]:
        """The loss of one step."""
        config = self.config
        return fuxi_ens_loss(
            members,
            truth,
            posterior,
            prior,
            weights,
            alpha=config.crps_alpha,
            kl_weight=config.kl_weight,
            kl_direction=config.kl_direction,
        )
