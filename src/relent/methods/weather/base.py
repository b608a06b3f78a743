"""What forecast methods share: the interface to the task, roll-outs in training, validation and forecasts.

Fields are standardised anomalies (see `relent.data.tiles`). Batches hold `frames` (B, 2 + K, C, H, W), two inputs and K
targets, and `weights` (B, H), the latitude weights of the rows (mean one over the whole grid). Unknown cells are NaN.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from relent.data.tiles import Fields
from relent.grid import Topology
from relent.methods.base import Method
from relent.methods.weather.config import ForecastConfig
from relent.models.fuxi_ens.latent import Noise
from relent.models.fuxi_ens.network import ForecastNetwork
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


class ForecastMethod(Method):
    """A method that makes ensemble forecasts.

    `noise` is where the standard normal numbers of a forecast come from: None for torch's global generator, else a
    function of a shape whose first two dimensions together number the members. Whoever rolls a forecast out in parts
    of the ensemble sets it, so that a member is the same whatever it is computed with.
    """

    noise: Noise | None = None

    def roll_out(
        self, frames: Tensor, steps: int, members: int, topology: Topology, forcing: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Forecast of one initial state step by step, each member fed with its own output.

        Args:
            frames: (2, C, H, W), one step apart.
            steps: Number of steps.
            members: Members asked for; a method that has fewer (one, for a deterministic one) gives fewer.
            topology: How the borders of the grid meet.
            forcing: (steps, forced, H, W), true values of the forced variables at the time of each step; None where
                there are none.

        Yields:
            (M, C, H, W) of each step; cells that are unknown in both frames stay NaN, forced variables are those given.
            Beside them, no method sees anything later than `frames`.
        """
        states = self.initial(frames[None], members, topology).flatten(0, 1)
        for step in range(steps):
            given = self.advance(states, members, topology)
            following = self.completed(given, None if forcing is None else forcing[step])
            yield following
            states = torch.stack([states[:, 1].expand_as(following), following], dim=1)

    def ensemble_forecast(
        self, frames: Tensor, steps: int, members: int, topology: Topology, forcing: Tensor | None = None
    ) -> Tensor:
        """All steps of `roll_out` together, (steps, M, C, H, W)."""
        return torch.stack(list(self.roll_out(frames, steps, members, topology, forcing)))

    def initial(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """Where members start: (M', N, 2, C, H, W) of states (N, 2, C, H, W), M' = 1 (all from the same) or M."""
        return states.unsqueeze(0)

    def advance(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """One step of each member.

        Args:
            states: (M', 2, C, H, W), with M' = 1 at the first step and M' = M later.
            members: M.
            topology: How the borders of the grid meet.

        Returns:
            (M, C, H, W); without the forced channels, if the method forecasts with a network.
        """
        raise NotImplementedError

    def completed(self, given: Tensor, forcing: Tensor | None) -> Tensor:
        """All channels of a state, from what `advance` gave and what is forced."""
        return given


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

    With `rollout_steps` K above 1 each batch is rolled out, first over two steps, then over one more at equal intervals
    until it is K. That is meant for fine-tuning, from the weights of a run with K = 1 (as FuXi, whose K goes from 2 to
    12; that of FuXi-ENS is unknown). The gradient goes through all steps (`rollout_gradient` `full`), or stops at each
    fed-back state (`truncated`).
    """

    network: ForecastNetwork
    config: ForecastConfig
    training_members = 1
    """Members of the training loss."""

    def rollout_length(self, step: int) -> int:
        """Steps of the roll-out at an optimiser step."""
        longest = self.config.rollout_steps
        return min(longest, 2 + step * (longest - 1) // max(1, self.config.max_steps))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, averaged over the steps of the roll-out."""
        terms = self.rollout_terms(batch, self.rollout_length(self.global_step))
        self.log_terms(terms)
        return terms["loss"]

    @abstractmethod
    def forecast(self, states: Tensor, draws: int, topology: Topology) -> Tensor:
        """One step from each of N states (N, 2, C, H, W): (draws, N, outputs, H, W), without sight of the truth."""

    @abstractmethod
    def training_forecast(
        self, states: Tensor, truth: Tensor, draws: int, weights: Tensor, topology: Topology
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of training.

        Args:
            states: (M' B, 2, C, H, W), members first, with M' = 1 at the first step and M' = M later.
            truth: (B, C, H, W), NaN where it is not scored.
            draws: Draws of each state, M / M'.
            weights: (B, H).
            topology: How the borders of the tiles meet.

        Returns:
            The members (M, B, outputs, H, W), and named terms, `loss` among them.
        """

    def rollout_terms(self, batch: Batch, length: int) -> dict[str, Tensor]:
        """Terms of K steps, averaged: the members' own states are fed back, each step is scored against its truth."""
        frames, weights = batch["frames"], batch["weights"]
        topology, states, totals = self.topology(frames), frames[:, :2], dict[str, Tensor]()
        for step in range(length):
            truth = self.network.scored(frames[:, :2], frames[:, 2 + step])
            draws = self.training_members if step == 0 else 1
            members, terms = self.training_forecast(states, truth, draws, weights, topology)
            for name, value in terms.items():
                totals[name] = totals.get(name, 0) + value / length
            if step + 1 < length:
                fed_back = members if self.config.rollout_gradient == "full" else members.detach()
                states = self._following(states, fed_back, frames[:, 2 + step])
        return totals

    def _following(self, states: Tensor, members: Tensor, truth: Tensor) -> Tensor:
        """States (M B, 2, C, H, W) of the next step, members first; forced channels are those of the truth."""
        following = self.completed(members, truth[:, self.network.channels.forced]).flatten(0, 1)
        return torch.stack([states[:, 1].repeat(len(following) // len(states), 1, 1, 1), following], dim=1)

    def advance(self, states: Tensor, members: int, topology: Topology) -> Tensor:
        """One step of each member."""
        return self.forecast(states, members if len(states) == 1 else 1, topology).flatten(0, 1)

    def completed(self, given: Tensor, forcing: Tensor | None) -> Tensor:
        """All channels of a state."""
        return self.network.channels.complete(given, forcing)

    def topology(self, frames: Tensor) -> Topology:
        """How the borders of tiles of this size meet."""
        fields: Fields = self.task.fields  # type: ignore[attr-defined]
        height, width = fields.shape
        return fields.topology.of_tile(all_rows=frames.shape[-2] == height, all_columns=frames.shape[-1] == width)

    # ------------------------------------------------------------------------------------------ validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores of a roll-out as a forecast makes it, by lead: `crps_lead1`, …, and their mean `crps`."""
        scores = self.rollout_scores(batch, max(2, self.training_members))
        crps = [value for name, value in scores.items() if name.startswith("crps_lead")]
        for name, value in {**scores, "crps": torch.stack(crps).mean()}.items():
            self.log(f"validation/{name}", value, batch_size=len(batch["frames"]))

    def rollout_scores(self, batch: Batch, members: int) -> dict[str, Tensor]:
        """CRPS, spread and spread-skill ratio of a roll-out over all targets of a batch, by lead.

        The CRPS is fair; of a method that has one member it is the absolute error.
        """
        frames, weights = batch["frames"], batch["weights"]
        topology, scores = self.topology(frames), dict[str, Tensor]()
        states = self.initial(frames[:, :2], members, topology).flatten(0, 1)
        for lead in range(1, frames.shape[1] - 1):
            truth = self.network.scored(frames[:, :2], frames[:, 1 + lead])
            forecast = self.forecast(states, members if len(states) == len(frames) else 1, topology)
            forecast = forecast.reshape(-1, len(frames), *forecast.shape[2:])
            terms = ensemble_terms(forecast, self.network.channels.given(truth), weights)
            scores |= {f"{name}_lead{lead}": value for name, value in terms.items()}
            states = self._following(states, forecast, frames[:, 1 + lead])
        return scores

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Set what is chosen on validation after training, from its batches; part of the weights. Default: nothing."""

    def warnings(self, batches: Iterable[Batch]) -> list[str]:
        """What a user should know of the trained network, from validation batches, in words. Default: nothing."""
        return []


def ensemble_terms(members: Tensor, truth: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Fair CRPS, spread and spread-skill ratio of (M, B, C, H, W) members, over tiles with latitude weights."""
    size = len(members)
    if size == 1:
        return {"crps": row_weighted_mean((members[0] - truth).abs(), truth, weights)}
    variance = row_weighted_mean(ensemble_variance(members), truth, weights)
    squared_error = row_weighted_mean(mean_error(members, truth, 0, "propagate").square(), truth, weights)
    return {
        "crps": row_weighted_mean(crps_ensemble(members, truth), truth, weights),
        "spread": variance.sqrt(),
        "spread_skill_ratio": ((size + 1) / size * variance / squared_error).sqrt(),
    }
