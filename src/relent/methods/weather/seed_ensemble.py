"""An ensemble of deterministic networks that differ by their initial weights: the ensemble that needs no latent.

All networks learn in one run, from the same batches, each by its own absolute error. With N networks a run costs N
times as much as `deterministic_l1`, in time and memory, and gives N members. (Lakshminarayanan et al. 2017, arXiv
1612.01474, for regression; there the order of the data differs as well.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from relent.grid import Topology
from relent.methods.config import hyperparameter
from relent.methods.weather.config import ForecastConfig
from relent.methods.weather.deterministic import DeterministicForecast
from relent.models.fuxi_ens.network import ForecastNetwork


class Config(ForecastConfig):
    """Hyperparameters."""

    networks: int = hyperparameter(
        5, "N: networks, and members.", source="Lakshminarayanan et al. 2017, section 3: M = 5", ge=2, le=100
    )


class SeedEnsemble(DeterministicForecast):
    """N networks side by side; the first starts as that of `deterministic_l1`."""

    config: Config

    def setup_method(self) -> None:
        """Add the other networks, initialised one after the other from the run's seed."""
        super().setup_method()
        others = [self.task.network() for _ in range(self.config.networks - 1)]
        for network in others:
            del network.prior_head, network.posterior_head, network.perturbation
        self.others = torch.nn.ModuleList(others)

    @property
    def training_members(self) -> int:  # type: ignore[override]
        """Each network is a member."""
        return self.config.networks

    def forecast(self, states: Tensor, draws: int, topology: Topology) -> Tensor:
        """One step: of every network from each state at the first step (draws > 1), later of each from its own."""
        networks: list[ForecastNetwork] = [self.network, *self.others]
        own = [states] * len(networks) if draws > 1 else list(states.chunk(len(networks)))
        steps = [n.decode(s, n.encode(s, topology), None, topology) for n, s in zip(networks, own, strict=True)]
        return torch.cat(steps) if draws > 1 else torch.cat(steps, dim=1)

    def advance(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """One step of each network, whatever the number of members asked for."""
        return self.forecast(states, len(self.others) + 1 if len(states) == 1 else 1, topology).flatten(0, 1)
