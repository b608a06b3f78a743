"""The standard variational forecaster, L1 + KL, which FuXi-ENS is contrasted with (arXiv 2405.05925).

    L = mean_m |X̂_m − X^{t+1}| + λ KL(Q ‖ P) / (C H W)

The L1 of each member rewards no spread: at large λ all members collapse onto the conditional median. FuXi-S2S (Nature
Communications 2024) is trained so. Network, latents, members and normalisation are those of `fuxi_ens`.
"""

from __future__ import annotations

from torch import Tensor

from relent.methods.config import hyperparameter
from relent.methods.weather.base import row_weighted_mean
from relent.methods.weather.config import VariationalConfig
from relent.methods.weather.variational import VariationalForecast, latent_kl
from relent.models.fuxi_ens.latent import LatentGaussian


class Config(VariationalConfig):
    """Hyperparameters."""

    members: int = hyperparameter(4, "Members over which the L1 is averaged.", source="ours; not public", ge=1, le=64)
    kl_weight: float = hyperparameter(
        0.1,
        "λ of the KL, which is divided by the number of forecast values C H W.",
        source="ours; not public",
        ge=0,
    )


def vae_l1_kl_loss(
    members: Tensor,
    truth: Tensor,
    posterior: LatentGaussian,
    prior: LatentGaussian,
    weights: Tensor,
    *,
    kl_weight: float,
    free_bits: float = 0.0,
) -> dict[str, Tensor]:
    """L1 + λ KL of one forecast step; arguments and terms as in `relent.methods.weather.fuxi_ens.fuxi_ens_loss`."""
    l1 = row_weighted_mean((members - truth).abs().mean(0), truth, weights)
    kl = latent_kl(posterior, prior, truth, free_bits)
    return {"loss": l1 + kl_weight * kl.per_value, "l1": l1, "kl": kl.per_value, "active_units": kl.active}


class VaeL1Kl(VariationalForecast):
    """Trains the variational forecaster by L1 + KL."""

    config: Config

    def objective(
        self, members: Tensor, truth: Tensor, posterior: LatentGaussian, prior: LatentGaussian, weights: Tensor
    ) -> dict[str, Tensor]:
        """The loss of one step."""
        return vae_l1_kl_loss(
            members, truth, posterior, prior, weights, kl_weight=self.kl_weight(), free_bits=self.config.free_bits
        )
