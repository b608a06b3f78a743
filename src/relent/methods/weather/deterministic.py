"""What deterministic forecasters share: the network without a latent, trained by the absolute error."""

from __future__ import annotations

import torch
from torch import Tensor

from relent.grid import Topology
from relent.methods.weather.base import NetworkForecast, row_weighted_mean


def absolute_error(members: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Latitude-weighted mean absolute error of each member, averaged: the CRPS where there is a single one.

    Args:
        members: (M, B, C, H, W), standardised.
        truth: (B, C, H, W); NaN cells are left out.
        weights: (B, H).
    """
    return row_weighted_mean((members - truth).abs().mean(0), truth, weights)


class DeterministicForecast(NetworkForecast):
    """Trains encoder and decoder alone."""

    def setup_method(self) -> None:
        """Drop prior, posterior and perturbation; encoder and decoder start as in the ensemble methods."""
        del self.network.prior_head, self.network.posterior_head, self.network.perturbation

    def forecast(self, states: Tensor, draws: int, topology: Topology) -> Tensor:
        """One step with z = 0: a single member, whatever `draws`."""
        return self.network.decode(states, self.network.encode(states, topology), None, topology)

    def training_forecast(
        self, states: Tensor, truth: Tensor, draws: int, weights: Tensor, topology: Topology
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Absolute error of one step."""
        members = self.forecast(states, draws, topology)
        members = members.reshape(-1, len(truth), *members.shape[2:])
        with torch.autocast(members.device.type, enabled=False):
            loss = absolute_error(members, self.network.channels.given(truth), weights)
        return members, {"loss": loss}
