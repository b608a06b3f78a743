"""What forecast methods share: the interface to the task, roll-outs, the variational training step, weighted terms.

Fields are standardised anomalies (see `relent.data.tiles`). Batches hold `frames` (B, 2 + K, C, H, W), two inputs and K
targets, and `weights` (B, H), the latitude weights of the rows (mean one over the whole grid).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relent.data.tiles import Fields
from relent.divergences.gaussian import diagonal_gaussian_kl
from relent.grid import Topology
from relent.methods.base import Method
from relent.models.fuxi_ens import ForecastNetwork, LatentGaussian
from relent.scores.crps import crps_ensemble
from relent.scores.ensemble import ensemble_variance, mean_error

Batch = dict[str, Tensor]


def row_weighted_mean(values: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    r"""Mean of a_i v over the cells whose truth is known, Σ a_i v / (number of cells).

    The weights have mean one over the *whole* grid, not over a tile, and are therefore not divided out: a tile near a
    pole must weigh as little as its area does.

    Args:
        values: (B, C, H, W); may be NaN where the truth is.
        truth: (B, C, H, W); NaN cells (sea-surface temperature over land) are left out, of the denominator too.
        weights: a_i of the rows, (B, H).

    Returns:
        A scalar; zero where no cell is known. The gradient of cells left out is zero.
    """
    known = ~truth.isnan()
    cells = torch.where(known, values, 0) * weights[:, None, :, None]
    return cells.sum() / known.sum().clamp(min=1)


def filled(truth: Tensor) -> Tensor:
    """Targets as Q sees them: unknown (NaN) cells have no anomaly. The choice is ours."""
    return truth.nan_to_num(nan=0.0)


class KLTerms(NamedTuple):
    """KL of a latent map. `per_value`: nats for each forecast value; `active`: share of latent dimensions in use."""

    per_value: Tensor
    active: Tensor


ACTIVE_NATS = 0.01
"""A latent dimension is in use if its KL, averaged over the batch, is larger.

Burda, Grosse & Salakhutdinov 2016 (arXiv 1509.00519) set the same bound on the variance of the posterior mean.
"""


def latent_kl(first: LatentGaussian, second: LatentGaussian, truth: Tensor) -> KLTerms:
    """KL(first‖second), summed over the latent map, divided by C H W, averaged over the batch.

    Args:
        first, second: Latent Gaussians of B states.
        truth: (B, C, H, W); only its shape is used: the divisor makes the weight of the KL independent of map and tile.
    """
    terms = diagonal_gaussian_kl(first.mean, 2 * first.log_std, second.mean, 2 * second.log_std, dim=None)
    per_value = terms.flatten(1).sum(1).mean() / truth[0].numel()
    return KLTerms(per_value, (terms.detach().mean(0) > ACTIVE_NATS).float().mean())


class ForecastMethod(Method):
    """A method that makes ensemble forecasts."""

    def ensemble_forecast(self, frames: Tensor, steps: int, members: int, topology: Topology) -> Tensor:
        """Forecast of one initial state, each member fed with its own output.

        Args:
            frames: (2, C, H, W), one step apart.
            steps: Number of steps.
            members: Members asked for; a method that has fewer (one, for a deterministic one) gives fewer.
            topology: How the borders of the grid meet.

        Returns:
            (steps, M, C, H, W). No method sees anything later than `frames`.
        """
        states, forecasts = frames[None], []
        for _ in range(steps):
            following = self.advance(states, members, topology)
            forecasts.append(following)
            states = torch.stack([states[:, 1].expand_as(following), following], dim=1)
        return torch.stack(forecasts)

    def advance(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """One step of each member.

        Args:
            states: (M', 2, C, H, W), with M' = 1 at the first step and M' = M later.
            members: M.
            topology: How the borders of the grid meet.

        Returns:
            (M, C, H, W).
        """
        raise NotImplementedError


class FixedForecast(ForecastMethod):
    """A forecast without a network and without training."""

    def setup_method(self) -> None:
        """Drop the network: nothing is trained."""
        self.network = torch.nn.Identity()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Never called: such a method has `max_steps` 0."""
        raise RuntimeError("this method is not trained; set max_steps to 0")

    @property
    def fields(self) -> Fields:
        """The data set of the task."""
        fields: Fields = self.task.fields  # type: ignore[attr-defined]
        return fields


class NetworkForecast(ForecastMethod):
    """A trained forecast network.

    Its `Config` has `rollout_steps` (K) and `rollout_start`: up to that share of the steps K = 1; then the length of
    the roll-out rises by one at equal intervals until it is K (a curriculum; FuXi's goes from 2 to 12 steps, that of
    FuXi-ENS is unknown).
    """

    network: ForecastNetwork
    config: Any

    def rollout_length(self, step: int) -> int:
        """Steps of the roll-out at an optimiser step."""
        longest: int = self.config.rollout_steps
        start = self.config.rollout_start * self.config.max_steps
        if longest == 1 or step < start:
            return 1
        share = (step - start) / max(1.0, self.config.max_steps - start)
        return min(longest, 2 + int(share * (longest - 1)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, averaged over the steps of the roll-out."""
        terms = self.rollout_terms(batch, self.rollout_length(self.global_step))
        self.log_terms(terms)
        return terms["loss"]

    @abstractmethod
    def rollout_terms(self, batch: Batch, length: int) -> dict[str, Tensor]:
        """Named terms of a batch, `loss` among them."""

    def topology(self, frames: Tensor) -> Topology:
        """How the borders of tiles of this size meet."""
        fields: Fields = self.task.fields  # type: ignore[attr-defined]
        height, width = fields.shape
        return fields.topology.of_tile(all_rows=frames.shape[-2] == height, all_columns=frames.shape[-1] == width)


class VariationalForecast(NetworkForecast):
    """A conditional variational forecaster; a subclass states its `objective`.

    Its `Config` has `members`, `latent_source` and what its objective needs.
    """

    @abstractmethod
    def objective(
        self, members: Tensor, truth: Tensor, posterior: LatentGaussian, prior: LatentGaussian, weights: Tensor
    ) -> dict[str, Tensor]:
        """Named terms of one step: members (M, B, C, H, W), truth (B, C, H, W), weights (B, H)."""

    def advance(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """One step with latents from the prior P."""
        features = self.network.encode(states, topology)
        prior = self.network.prior(features, topology)
        draws = members if len(states) == 1 else 1
        return self.network.decode(states, features, prior.sample(draws), topology).flatten(0, 1)

    def rollout_terms(self, batch: Batch, length: int) -> dict[str, Tensor]:
        """K steps: the members' own states are fed back, Q sees each step's truth, gradients go through all steps."""
        frames, weights = batch["frames"], batch["weights"]
        topology, n_members = self.topology(frames), self.config.members
        states, totals = frames[:, :2], dict[str, Tensor]()
        for step in range(length):
            truth = frames[:, 2 + step]
            repeats = len(states) // len(truth)
            features = self.network.encode(states, topology)
            prior = self.network.prior(features, topology)
            posterior = self.network.posterior(states, filled(truth).repeat(repeats, 1, 1, 1), features, topology)
            latent = self.training_latents(posterior, prior, n_members if repeats == 1 else 1)
            following = self.network.decode(states, features, latent, topology).flatten(0, 1)
            members = following.reshape(n_members, *truth.shape)
            for name, value in self.objective(members, truth, posterior, prior, weights).items():
                totals[name] = totals.get(name, 0) + value / length
            states = torch.stack([states[:, 1].repeat(len(following) // len(states), 1, 1, 1), following], dim=1)
        return totals

    def training_latents(self, posterior: LatentGaussian, prior: LatentGaussian, draws: int) -> Tensor:
        """Latents of the members that the reconstruction term sees: draws of Q, of P, or half of each (by turns)."""
        if self.config.latent_source == "posterior":
            return posterior.sample(draws)
        if self.config.latent_source == "prior":
            return prior.sample(draws)
        both = torch.stack([posterior.sample(draws), prior.sample(draws)])
        from_prior = torch.arange(draws * len(posterior.mean), device=both.device) % 2
        from_prior = from_prior.reshape(len(posterior.mean), draws).T[..., None, None, None]
        return torch.where(from_prior.bool(), both[1], both[0])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Fair CRPS and spread-skill ratio of draws of P, and of Q.

        Q sees the target: only the gap between the two is of interest (a prior hole, or a collapsed posterior).
        """
        frames, weights, truth = batch["frames"], batch["weights"], batch["frames"][:, 2]
        states, topology = frames[:, :2], self.topology(frames)
        features = self.network.encode(states, topology)
        prior = self.network.prior(features, topology)
        posterior = self.network.posterior(states, filled(truth), features, topology)
        terms = {"active_units": latent_kl(posterior, prior, truth).active}
        for name, gaussian in (("prior", prior), ("posterior", posterior)):
            members = self.network.decode(states, features, gaussian.sample(max(2, self.config.members)), topology)
            terms |= {f"{key}_{name}": value for key, value in ensemble_terms(members, truth, weights).items()}
        for name, value in terms.items():
            self.log(f"validation/{name}", value, batch_size=len(frames))


def ensemble_terms(members: Tensor, truth: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Fair CRPS and spread-skill ratio of (M, B, C, H, W) members, averaged over tiles with latitude weights."""
    size = len(members)
    variance = row_weighted_mean(ensemble_variance(members), truth, weights)
    squared_error = row_weighted_mean(mean_error(members, truth, 0, "propagate").square(), truth, weights)
    return {
        "crps": row_weighted_mean(crps_ensemble(members, truth), truth, weights),
        "spread_skill_ratio": ((size + 1) / size * variance / squared_error).sqrt(),
    }
