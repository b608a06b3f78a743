"""What variational forecasters share: the step with prior and posterior, the KL of a latent map, signs of its failures.

A collapsed posterior and a prior hole look alike in a training loss. They are told apart by scoring draws of P and of
Q:

- *posterior collapse*: Q has become P. It knows nothing of the target, few latent dimensions are in use, and draws of Q
  score no better than those of P. Under an L1 loss the members become equal as well.
- *prior hole*: P is not what Q is on average, so that its draws reach the decoder where training never was. Q, which
  sees the target, scores better in any case; but draws of a P that matched it would be calibrated.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relent.grid import Topology
from relent.methods.weather.base import Batch, NetworkForecast, ensemble_terms
from relent.models.fuxi_ens.latent import LatentGaussian


class KLTerms(NamedTuple):
    """KL of a latent map. `per_value`: nats for each forecast value; `active`: share of latent dimensions in use."""

    per_value: Tensor
    active: Tensor


ACTIVE_NATS = 0.01
"""A latent dimension is in use if its KL, averaged over the batch, is larger.

Burda, Grosse & Salakhutdinov 2016 (arXiv 1509.00519) set the same bound on the variance of the posterior mean.
"""
COLLAPSED_ACTIVE = 0.05
"""Posterior collapse: at most this share of the latent dimensions is in use, and …"""
COLLAPSED_GAIN = 1.03
"""… the CRPS of draws of P is at most so many times that of draws of Q."""
HOLE_GAIN = 1.1
"""Prior hole: the CRPS of draws of P is more than so many times that of draws of Q, and …"""
CALIBRATED = (0.8, 1.25)
"""… the spread-skill ratio of draws of P is outside these bounds."""
NO_SPREAD = 0.2
"""Members count as nearly equal below this spread-skill ratio."""
WARNING_DRAWS = 16
"""Members that the warnings after training are judged by."""


def latent_kl(first: LatentGaussian, second: LatentGaussian, truth: Tensor, free_bits: float = 0.0) -> KLTerms:
    """KL(first‖second), summed over the latent map, divided by C H W, averaged over the batch.

    Args:
        first, second: Latent Gaussians of B states.
        truth: (B, C, H, W); only its shape is used: the divisor makes the weight of the KL independent of map and tile.
        free_bits: φ, nats of each latent dimension that cost nothing: Σ_d max(φ, mean_b KL_d) of diagonal Gaussians,
            max(φ D, mean_b KL) of low-rank ones, whose KL is no sum over dimensions. Kingma et al. 2016, arXiv
            1606.04934.
    """
    marginal = first.marginal_kl(second)
    active = (marginal.detach().mean(0) > ACTIVE_NATS).float().mean()
    if first.factor is None:
        whole = marginal.mean(0).clamp(min=free_bits).sum()
    else:
        whole = first.kl(second).mean().clamp(min=free_bits * marginal[0].numel())
    return KLTerms(whole / truth[0].numel(), active)


class RepeatedNoise:
    """Standard normal numbers that are the same whenever a shape is asked for again, on the device of `like`."""

    def __init__(self, like: Tensor):
        self.like, self.drawn = like, dict[tuple[int, ...], Tensor]()

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Numbers of a shape."""
        if shape not in self.drawn:
            self.drawn[shape] = torch.randn(shape, dtype=self.like.dtype, device=self.like.device)
        return self.drawn[shape]


class VariationalForecast(NetworkForecast):
    """A conditional variational forecaster; a subclass states its `objective`.

    Its `Config` is a `VariationalConfig` with `members`, `kl_weight` and what its objective needs.
    """

    config: Any

    @abstractmethod
    def objective(
        self, members: Tensor, truth: Tensor, posterior: LatentGaussian, prior: LatentGaussian, weights: Tensor
    ) -> dict[str, Tensor]:
        """Named terms of one step: members (M, B, C, H, W), truth (B, C, H, W), weights (B, H), float32 at least."""

    @property
    def training_members(self) -> int:  # type: ignore[override]
        """Members of the training loss."""
        members: int = self.config.members
        return members

    def kl_weight(self) -> float:
        """λ at this optimiser step: it rises from zero in proportion over the share `kl_annealing` of the training."""
        config = self.config
        steps = config.kl_annealing * config.max_steps
        share = min(1.0, self.global_step / steps) if steps else 1.0
        weight: float = share * config.kl_weight
        return weight

    def forecast(self, states: Tensor, draws: int, topology: Topology) -> Tensor:
        """One step with latents from the prior P."""
        features = self.network.encode(states, topology)
        latent = self.network.prior(features, topology).sample(draws, self.noise)
        return self.network.decode(states, features, latent, topology)

    def training_forecast(
        self, states: Tensor, truth: Tensor, draws: int, weights: Tensor, topology: Topology
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step with latents from the posterior Q, which sees each step's truth."""
        features = self.network.encode(states, topology)
        prior = self.network.prior(features, topology)
        seen = truth.repeat(len(states) // len(truth), 1, 1, 1)
        posterior = self.network.posterior(states, seen, features, topology)
        latent = self.training_latents(posterior, prior, draws)
        members = self.network.decode(states, features, latent, topology)
        members = members.reshape(-1, len(truth), *members.shape[2:])
        # Differences of members and of variances cancel: no half precision here.
        with torch.autocast(members.device.type, enabled=False):
            scored = self.network.channels.given(truth)
            return members, self.objective(members, scored, posterior, prior, weights)

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
        """The roll-out of every network, and scores of draws of P and of Q apart."""
        super().validation_step(batch, batch_idx)
        for name, value in self.latent_scores(batch, max(2, self.training_members)).items():
            self.log(f"validation/{name}", value, batch_size=len(batch["frames"]))

    def latent_scores(self, batch: Batch, draws: int) -> dict[str, Tensor]:
        """KL, active units, and CRPS, spread and spread-skill ratio of draws of P and of Q, one step ahead.

        Q sees the target: only the gap between the two is of interest. Both are made from the same noise, so that there
        is none where P is Q.
        """
        frames, topology = batch["frames"], self.topology(batch["frames"])
        states, truth = frames[:, :2], self.network.scored(frames[:, :2], frames[:, 2])
        scored = self.network.channels.given(truth)
        features = self.network.encode(states, topology)
        prior = self.network.prior(features, topology)
        posterior = self.network.posterior(states, truth, features, topology)
        kl = latent_kl(posterior, prior, scored)
        scores, noise = {"kl": kl.per_value, "active_units": kl.active}, RepeatedNoise(truth)
        for name, gaussian in (("prior", prior), ("posterior", posterior)):
            latent = gaussian.sample(draws, noise)
            members = self.network.decode(states, features, latent, topology)
            terms = ensemble_terms(members, scored, batch["weights"])
            scores |= {f"{key}_{name}": value for key, value in terms.items()}
        return scores

    def warnings(self, batches: Iterable[Batch]) -> list[str]:
        """Posterior collapse or a prior hole, from validation batches, in words."""
        found = [self.latent_scores(batch, WARNING_DRAWS) for batch in batches]
        if not found:
            return []
        means = {name: float(torch.stack([scores[name] for scores in found]).mean()) for name in found[0]}
        return latent_warnings(means, self.config.kl_weight)


def latent_warnings(scores: dict[str, float], kl_weight: float) -> list[str]:
    """What latent scores of validation say, in words; nothing if all is well.

    Args:
        scores: As `VariationalForecast.latent_scores` names them.
        kl_weight: λ, for the advice.
    """
    gain = scores["crps_prior"] / max(scores["crps_posterior"], 1e-12)
    told = (
        f"{scores['active_units']:.0%} of the latent dimensions in use, KL {scores['kl']:.2g} nats a value, CRPS of"
        f" draws of the prior {scores['crps_prior']:.3f} (spread/skill {scores['spread_skill_ratio_prior']:.2f}), of"
        f" the posterior {scores['crps_posterior']:.3f} ({scores['spread_skill_ratio_posterior']:.2f})"
    )
    if scores["active_units"] <= COLLAPSED_ACTIVE and gain <= COLLAPSED_GAIN:
        equal = scores["spread_skill_ratio_prior"] < NO_SPREAD
        meaning = "the members are nearly equal" if equal else "latents carry noise, and nothing about the target"
        advice = f"lower kl_weight (now {kl_weight:g}), or set free_bits or kl_annealing"
        return [f"posterior collapse: {meaning} ({told}); {advice}"]
    if gain > HOLE_GAIN and not CALIBRATED[0] <= scores["spread_skill_ratio_prior"] <= CALIBRATED[1]:
        meaning = "forecasts draw from the prior, which is not what the posterior is on average"
        advice = f"raise kl_weight (now {kl_weight:g}), or train on `latent_source: mixed`"
        return [f"prior hole: {meaning} ({told}); {advice}"]
    return []
