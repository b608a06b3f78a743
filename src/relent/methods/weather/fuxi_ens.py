"""FuXi-ENS: A machine learning model for medium-range ensemble weather forecasting (arXiv 2405.05925).

A conditional variational autoencoder learns the perturbations: at every step a Gaussian is predicted from the state
(P), and a sample of it perturbs the hidden features. Training adds the CRPS of several members and the KL between P and
a Gaussian that has also seen the target (Q):

    L = CRPS_α(X̂_1..X̂_M, X^{t+1}) + λ KL(Q ‖ P) / (C H W)
    z_m ~ Q(X^{t−1}, X^t, X^{t+1}),   X̂_m = Dec(Enc(X^{t−1}, X^t), z_m)

The paper names both terms; weights, estimator, direction of the KL and schedule are not public, and are ours here.
Beside the paper's, two terms that see the members' fields as a whole can be added: the energy score of each
variable's map, and the CRPS of its zonal Fourier coefficients (as FourCastNet 3, arXiv 2507.12144, does with
spherical harmonics): the CRPS of single points does not ask for members that are coherent in space.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relent.methods.config import hyperparameter
from relent.methods.weather.base import row_weighted_mean
from relent.methods.weather.config import VariationalConfig
from relent.methods.weather.variational import VariationalForecast, latent_kl
from relent.models.fuxi_ens.latent import LatentGaussian
from relent.scores.crps import crps_ensemble
from relent.scores.ensemble import energy_score


class Config(VariationalConfig):
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
        0.5,
        "λ of the KL, which is divided by the number of forecast values C H W.",
        source="ours; not public",
        ge=0,
    )
    kl_direction: Literal["posterior_prior", "prior_posterior"] = hyperparameter(
        "posterior_prior",
        "KL(Q‖P), that of the variational bound, or KL(P‖Q).",
        source="ours: the abstract says 'between the predicted and target distribution'",
    )
    energy_weight: float = hyperparameter(
        0.0, "Weight of the energy score of whole maps.", source="ours; not part of FuXi-ENS", ge=0
    )
    spectral_weight: float = hyperparameter(
        0.0,
        "Weight of the CRPS of zonal Fourier coefficients.",
        source="ours, after FourCastNet 3, arXiv 2507.12144",
        ge=0,
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
    free_bits: float = 0.0,
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
        free_bits: See `relent.methods.weather.variational.latent_kl`.

    Returns:
        `loss`, `crps`, `kl` (nats for each forecast value, without λ) and `active_units` (share of latent dimensions).
    """
    crps = crps_ensemble(members, truth, estimator="almost_fair", alpha=alpha)
    crps = row_weighted_mean(crps, truth, weights)
    pair = (posterior, prior) if kl_direction == "posterior_prior" else (prior, posterior)
    kl = latent_kl(*pair, truth, free_bits)
    return {"loss": crps + kl_weight * kl.per_value, "crps": crps, "kl": kl.per_value, "active_units": kl.active}


def map_energy_score(members: Tensor, truth: Tensor, weights: Tensor, alpha: float) -> Tensor:
    r"""Energy score of each variable's map, divided by √(number of points); mean over batch and variables.

    With the weighted norm ‖x‖² = Σ_ij a_i x_ij² / (H W): of maps that are the same everywhere it is the CRPS.

    Args:
        members, truth, weights, alpha: As in `fuxi_ens_loss`; unknown cells are left out of the norm.
    """
    scale = (weights[:, None, :, None] / truth[0, 0].numel()).sqrt()
    known = ~truth.isnan()
    observed = torch.where(known, truth, 0) * scale
    drawn = torch.where(known, members, 0) * scale
    return energy_score(drawn.flatten(-2), observed.flatten(-2), estimator="almost_fair", alpha=alpha).mean()


def spectral_crps(members: Tensor, truth: Tensor, weights: Tensor, alpha: float) -> Tensor:
    r"""CRPS of real and imaginary parts of the Fourier coefficients of each row, weighted as the rows are.

    Coefficients are orthonormal: of fields that are white along the row the score is that of a grid point. Each is a
    linear function of the field, so that the score is proper whether the row is a whole circle or a part of one.

    Args:
        members, truth, weights, alpha: As in `fuxi_ens_loss`; unknown cells count as zero in both.
    """
    known = ~truth.isnan()
    observed, drawn = (
        torch.view_as_real(torch.fft.rfft(torch.where(known, fields, 0), norm="ortho")).flatten(-2)
        for fields in (truth, members)
    )
    crps = crps_ensemble(drawn, observed, estimator="almost_fair", alpha=alpha)
    return row_weighted_mean(crps, observed, weights)


class FuXiENS(VariationalForecast):
    """Trains the variational forecaster by CRPS + KL."""

    config: Config

    def objective(
        self, members: Tensor, truth: Tensor, posterior: LatentGaussian, prior: LatentGaussian, weights: Tensor
    ) -> dict[str, Tensor]:
        """The loss of one step."""
        config = self.config
        terms = fuxi_ens_loss(
            members,
            truth,
            posterior,
            prior,
            weights,
            alpha=config.crps_alpha,
            kl_weight=self.kl_weight(),
            kl_direction=config.kl_direction,
            free_bits=config.free_bits,
        )
        extra = {
            "energy": (config.energy_weight, map_energy_score),
            "spectral": (config.spectral_weight, spectral_crps),
        }
        for name, (weight, score) in extra.items():
            if weight:
                terms[name] = score(members, truth, weights, config.crps_alpha)
                terms["loss"] = terms["loss"] + weight * terms[name]
        return terms
