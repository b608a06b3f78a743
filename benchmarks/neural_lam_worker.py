"""Trains neural-lam's GraphEFM on arrays; bench_neural_lam.py runs it in an environment that has no relent.

    python neural_lam_worker.py FOLDER --seconds 60 --seed 0 --crps-weight 1

Reads `arrays.npz` in FOLDER, writes `forecast.npy` (case, lead, member, C, H, W) and prints one line of JSON.

neural-lam 0.7.0 has the network (prior, variational encoder, decoder), but neither a loss nor a command that trains it.
The objective is that of the paper's authors (Oskarsson et al. 2024, arXiv 2406.04759): the Gaussian likelihood of one
step, with the constant standard deviations of the package, and the KL of encoder and prior, both summed over all
values; then the CRPS of two members drawn from the prior is added. All is divided by the number of values.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
import time
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import cartopy.crs as ccrs
import numpy as np
import torch
import xarray as xr
from neural_lam import metrics
from neural_lam.create_graph import create_graph
from neural_lam.datastore.base import BaseRegularGridDatastore, CartesianGridShape
from neural_lam.models import GraphEFM
from torch import Tensor

AUTOENCODER, ELBO = 0.2, 0.6
"""Shares of the budget up to which the KL, then the CRPS, are left out: the order of the authors' training."""
RATE, BATCH, CHECKS, VALIDATION_MEMBERS = 1e-3, 8, 5, 5


class Arrays(BaseRegularGridDatastore):
    """Standardised fields of one region as a datastore: no forcing, no boundary that is known."""

    def __init__(self, root: Path, arrays: dict[str, np.ndarray]):
        self._root, self.arrays = root, arrays
        self._shape = arrays["frames"].shape[1:]
        steps = arrays["frames"][arrays["train"][:, None] + np.arange(1, 3)]
        increments = steps[:, 1] - steps[:, 0]
        self.increments = increments.mean((0, 2, 3)), increments.std((0, 2, 3))

    root_path = property(lambda self: self._root)
    config = property(lambda self: {})
    step_length = property(lambda self: timedelta(hours=6))
    coords_projection = property(lambda self: ccrs.PlateCarree())

    def get_vars_names(self, category: str) -> list[str]:
        """Names of the variables."""
        names = {"state": [f"v{i}" for i in range(self._shape[0])], "static": ["row", "column"], "forcing": []}
        return names[category]

    get_vars_units = get_vars_long_names = get_vars_names

    def get_num_data_vars(self, category: str) -> int:
        """Number of variables."""
        return len(self.get_vars_names(category))

    def get_standardization_dataarray(self, category: str) -> xr.Dataset:
        """Fields are standardised already; increments have the statistics of the training steps."""
        zero, one = np.zeros(self._shape[0]), np.ones(self._shape[0])
        values = {"state_mean": zero, "state_std": one}
        values |= dict(zip(("state_diff_mean_standardized", "state_diff_std_standardized"), self.increments))
        return xr.Dataset({name: ("state_feature", value) for name, value in values.items()})

    def get_dataarray(self, category: str, split: str | None, standardize: bool = False) -> xr.DataArray | None:
        """Static features: the place on the grid, from −1 to 1."""
        if category != "static":
            return None
        place = 2 * self.get_xy("state", stacked=True) / (np.array(self._shape[1:]) - 1) - 1
        return xr.DataArray(place, dims=("grid_index", "static_feature"))

    @cached_property
    def boundary_mask(self) -> xr.DataArray:
        """No point has a boundary condition."""
        return xr.DataArray(np.zeros(self.num_grid_points), dims=("grid_index",))

    def get_xy(self, category: str, stacked: bool) -> np.ndarray:
        """Row and column of each point."""
        xy = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in self._shape[1:]), indexing="ij"), axis=-1)
        return xy.reshape(-1, 2) if stacked else xy

    @cached_property
    def grid_shape_state(self) -> CartesianGridShape:
        """Rows and columns."""
        return CartesianGridShape(x=self._shape[1], y=self._shape[2])

    @cached_property
    def state_feature_weights_values(self) -> list[float]:
        """All alike."""
        return [1.0] * self._shape[0]


def nodes(fields: Tensor) -> Tensor:
    """(…, C, H, W) → (…, points, C)."""
    return fields.flatten(-2).transpose(-1, -2)


def loss(model: Any, states: Tensor, target: Tensor, share: float, crps_weight: float) -> Tensor:
    """The objective at a share of the budget, for each value: states (B, 2, points, C), target (B, points, C)."""
    forcing = states.new_zeros(*target.shape[:2], 0)
    before, now = states[:, 0], states[:, 1]
    grid, graph = model.embedd_grid_and_graph(now, before, forcing)
    posterior = model.encoder(model.embedd_grid_with_target(now, before, forcing, target), graph_emb=graph)
    delta, _ = model.decoder(grid, posterior.rsample(), graph)
    mean = model.get_clamped_new_state(delta * model.diff_std + model.diff_mean, now)
    terms = metrics.nll(mean, target, model.diff_std, average_grid=False, sum_vars=False).sum((1, 2))
    if share > AUTOENCODER:
        prior = model.prior_model(grid, graph_emb=graph)
        terms = terms + torch.distributions.kl_divergence(posterior, prior).sum((1, 2))
    total = terms.mean() / target[0].numel()
    if crps_weight and share > ELBO:
        first, second = (model(now, before, forcing)[0] for _ in range(2))
        crps = 0.5 * ((first - target).abs() + (second - target).abs() - (first - second).abs())
        total = total + crps_weight * crps.sum(-1).mean()
    return total


@torch.no_grad()
def roll_out(model: Any, initial: Tensor, leads: int, members: int) -> Tensor:
    """Members of forecasts from (cases, 2, points, C): (cases, leads, members, points, C)."""
    states = initial.repeat_interleave(members, dim=0)
    before, now, steps = states[:, 0], states[:, 1], []
    for _ in range(leads):
        before, now = now, model(now, before, now.new_zeros(*now.shape[:2], 0))[0]
        steps.append(now)
    return torch.stack(steps, 1).reshape(len(initial), members, leads, *now.shape[1:]).transpose(1, 2)


def fair_crps(members: Tensor, truth: Tensor) -> Tensor:
    """Fair CRPS of (…, M, points, C), by value; for the choice among this training's own states."""
    count = members.shape[-3]
    spread = (members.unsqueeze(-3) - members.unsqueeze(-4)).abs().sum((-3, -4)) / (2 * count * (count - 1))
    return (members - truth.unsqueeze(-3)).abs().mean(-3) - spread


def validation(model: Any, frames: Tensor, pairs: np.ndarray, leads: int) -> float:
    """Mean fair CRPS over pairs (initial step, lead) of the validation split."""
    initials = sorted(set(pairs[:, 0].tolist()))
    states = torch.stack([frames[i - 1 : i + 1] for i in initials])
    forecast = roll_out(model, states, leads, VALIDATION_MEMBERS)
    scores = [fair_crps(forecast[initials.index(i), lead - 1], frames[i + lead]).mean() for i, lead in pairs.tolist()]
    return float(torch.stack(scores).mean())


def train(model: Any, arrays: dict[str, np.ndarray], seconds: float, seed: int, crps_weight: float) -> dict[str, Any]:
    """Train for so many processor seconds, those of the validation not counted; keep the best of the states checked."""
    frames = nodes(torch.from_numpy(arrays["frames"]))
    starts, generator = torch.from_numpy(arrays["train"]), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
    used, steps, best, kept, checked = 0.0, 0, math.inf, {}, 0
    while used < seconds:
        began, share = time.process_time(), used / seconds
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * share))
        chosen = starts[torch.randperm(len(starts), generator=generator)[:BATCH]]
        windows = torch.stack([frames[s : s + 3] for s in chosen.tolist()])
        optimizer.zero_grad()
        loss(model, windows[:, :2], windows[:, 2], share, crps_weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        used, steps = used + time.process_time() - began, steps + 1
        if used >= seconds * (checked + 1) / CHECKS:
            checked = int(used / seconds * CHECKS)
            score = validation(model, frames, arrays["validation"], int(arrays["leads"]))
            if share > AUTOENCODER and score < best:
                best, kept = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return {"cpu_seconds": used, "steps": steps, "validation": best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crps-weight", type=float, default=0.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    arrays = dict(np.load(options.folder / "arrays.npz"))
    with tempfile.TemporaryDirectory() as root:
        store = Arrays(Path(root), arrays)
        create_graph(
            str(Path(root) / "graph" / "hierarchical"), store.get_xy("state", stacked=False), hierarchical=True
        )
        model = GraphEFM(store, "hierarchical", num_past_forcing_steps=0, num_future_forcing_steps=0)
        row = train(model, arrays, options.seconds, options.seed, options.crps_weight)
        row["parameters"] = sum(p.numel() for p in model.parameters())
        frames = nodes(torch.from_numpy(arrays["frames"]))
        initial = torch.stack([frames[i - 1 : i + 1] for i in arrays["test"].tolist()])
        forecast = roll_out(model, initial, int(arrays["leads"]), int(arrays["members"]))
    height, width = arrays["frames"].shape[-2:]
    np.save(options.out, forecast.transpose(-1, -2).unflatten(-1, (height, width)).numpy())
    print(json.dumps(row))


if __name__ == "__main__":
    main()
