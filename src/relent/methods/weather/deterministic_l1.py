"""A deterministic forecast with the network of FuXi-ENS: no latent, one member, trained by the absolute error."""

from __future__ import annotations

import torch
from torch import Tensor

from relent.grid import Topology
from relent.methods.config import MethodConfig, hyperparameter
from relent.methods.weather.base import Batch, NetworkForecast, row_weighted_mean


class Config(MethodConfig):
    """Hyperparameters."""

    rollout_steps: int = hyperparameter(1, "K: steps of the training roll-out at its end.", source="ours", ge=1, le=60)
    rollout_start: float = hyperparameter(
        0.75, "Share of the training at K = 1, before K rises one by one.", source="ours", ge=0, lt=1
    )


def deterministic_l1_loss(forecast: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Latitude-weighted mean absolute error: the CRPS of a single member.

    Args:
        forecast, truth: (B, C, H, W), standardised; NaN cells of the truth are left out.
        weights: (B, H).
    """
    return row_weighted_mean((forecast - truth).abs(), truth, weights)


class DeterministicL1(NetworkForecast):
    """Trains encoder and decoder alone."""

    config: Config

    def setup_method(self) -> None:
        """Drop prior, posterior and perturbation; encoder and decoder start as in the ensemble methods."""
        del self.network.prior_head, self.network.posterior_head, self.network.perturbation

    def advance(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """One step with z = 0."""
        return self.network.decode(states, self.network.encode(states, topology), None, topology).flatten(0, 1)

    def rollout_terms(self, batch: Batch, length: int) -> dict[str, Tensor]:
        """Absolute error of K steps."""
        frames, topology = batch["frames"], self.topology(batch["frames"])
        states, losses = frames[:, :2], []
        for step in range(length):
            following = self.advance(states, 1, topology)
            losses.append(deterministic_l1_loss(following, frames[:, 2 + step], batch["weights"]))
            states = torch.stack([states[:, 1], following], dim=1)
        return {"loss": torch.stack(losses).mean()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Absolute error one step ahead."""
        terms = self.rollout_terms(batch, 1)
        self.log("validation/mae", terms["loss"], batch_size=len(batch["frames"]))
