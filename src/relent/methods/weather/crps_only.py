"""The ensemble forecaster of FuXi-ENS without its latent model: plain noise in place of prior and posterior.

    L = CRPS_α(X̂_1..X̂_M, X^{t+1}),   X̂_m = Dec(Enc(X^{t−1}, X^t), z_m),   z_m ~ N(0, 1)

Nothing is fitted to the noise; the decoder alone makes it depend on the flow. FuXi-ENS needs to be compared with it
to see what P, Q and the KL are worth. (The same recipe, with other networks: AIFS-CRPS, arXiv 2412.15832.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from relent.grid import Topology
from relent.methods.config import hyperparameter
from relent.methods.weather.base import NetworkForecast, row_weighted_mean
from relent.methods.weather.config import ForecastConfig
from relent.models.fuxi_ens.latent import LatentGaussian
from relent.scores.crps import crps_ensemble


class Config(ForecastConfig):
    """Hyperparameters."""

    members: int = hyperparameter(4, "Members in the training loss.", source="that of `fuxi_ens`", ge=2, le=64)
    crps_alpha: float = hyperparameter(
        0.95,
        "Almost-fair CRPS: weight of the fair estimator; 1 is degenerate with two members.",
        source="AIFS-CRPS, arXiv 2412.15832",
        gt=0,
        le=1,
    )


def crps_only_loss(members: Tensor, truth: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Latitude-weighted almost-fair CRPS of (M, B, C, H, W) members; NaN cells of the truth are left out."""
    crps = crps_ensemble(members, truth, estimator="almost_fair", alpha=alpha)
    return row_weighted_mean(crps, truth, weights)


class CrpsOnly(NetworkForecast):
    """Trains encoder, decoder and perturbation by the CRPS."""

    config: Config

    def setup_method(self) -> None:
        """Drop prior and posterior; the rest starts as in `fuxi_ens`."""
        del self.network.prior_head, self.network.posterior_head

    @property
    def training_members(self) -> int:  # type: ignore[override]
        """Members of the training loss."""
        return self.config.members

    def forecast(self, states: Tensor, draws: int, topology: Topology) -> Tensor:
        """One step with standard normal latents."""
        features = self.network.encode(states, topology)
        batch, _, height, width = features.coarse.shape
        zero = torch.zeros(batch, self.network.latent_channels, height, width, dtype=states.dtype, device=states.device)
        latent = LatentGaussian(zero, zero).sample(draws, self.noise)
        return self.network.decode(states, features, latent, topology)

    def training_forecast(
        self, states: Tensor, truth: Tensor, draws: int, weights: Tensor, topology: Topology
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The CRPS of one step."""
        members = self.forecast(states, draws, topology)
        members = members.reshape(-1, len(truth), *members.shape[2:])
        with torch.autocast(members.device.type, enabled=False):
            loss = crps_only_loss(members, self.network.channels.given(truth), weights, self.config.crps_alpha)
        return members, {"loss": loss}
