"""Data sets of two-layer quasi-geostrophic flow (`relent.data.quasi_geostrophic`), made by a rule, of any length.

Every trajectory starts from its own random state and is heated by its own noise: both are functions of the seed and the
trajectory's number, so that trajectories can be made in any grouping. Each step begins from the stored (float32)
stream functions, which therefore determine the law of the next ones exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import BloscCodec

from relent.data.options import TwinOptions, checked
from relent.data.quasi_geostrophic import FlowParameters, TwoLayerFlow
from relent.data.receipt import write_receipt
from relent.errors import DataError

VARIABLES = {"psi_1": "stream function of the upper layer", "psi_2": "stream function of the lower layer"}
SPLITS = ("train", "validation", "test")
STEP_HOURS = 6
START = np.datetime64("2000-01-01T00", "ns")
DEGREES = 1.0
"""Nominal side of the plane, on the equator, where cos(latitude) weighs all rows alike (to 4e-5)."""
LEADS = 20
"""Leads for which the statistics know damping and residual."""
BATCH_VALUES = 2**24
"""Values of a batch of trajectories that are in memory at once."""
INITIAL_STD, INITIAL_WAVENUMBER = 0.9, 3.0
NOTICE = (
    "An idealised flow, not the atmosphere: two layers on a doubly periodic plane, without dimension. Times and places "
    "are nominal: a step is taken as six hours, the plane's side as one degree on the equator; trajectories follow one "
    "another on the time axis without being related."
)


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Simulate the trajectories and write `out/dataset.zarr` and `out/receipt.json`.

    Args:
        sources: Not used: the data are made, not fetched.
        out: Folder to write; the caller renames it when it is whole.
        options: See `TwinOptions`.
        seed: Not used: the options hold the seed.

    Raises:
        ConfigError: An option is unknown or out of range.
        DataError: The flow became unstable.
    """
    chosen = checked(TwinOptions, options)
    torch.set_num_threads(1)  # small transforms lose more by threads than they gain
    flow = TwoLayerFlow(FlowParameters(size=chosen.size)).to(chosen.device)
    parts = {name: (getattr(chosen, f"{name}_trajectories"), getattr(chosen, f"{name}_steps")) for name in SPLITS}
    out.mkdir(parents=True, exist_ok=True)
    store = out / "dataset.zarr"
    arrays = _create(store, flow.parameters_of_flow, parts, chosen.seed)
    moments = Moments(min(LEADS, chosen.train_steps - 1))
    first_step = first_trajectory = 0
    for name, (count, steps) in parts.items():
        for numbers in batches(first_trajectory, count, steps * 2 * chosen.size**2):
            states = simulate(flow, chosen.seed, numbers, steps, chosen.spin_up)
            if name == "train":
                moments.add(states)
            region = slice(first_step, first_step + len(numbers) * steps)
            for layer, array in enumerate(arrays):
                array[region] = states[:, :, layer].flatten(0, 1).numpy()
            first_step = region.stop
        first_trajectory += count
    _statistics(moments, chosen.size).to_zarr(store, group="statistics", mode="a", zarr_format=3, consolidated=False)
    counts = {name: count * steps for name, (count, steps) in parts.items()}
    write_receipt(out, sources=[], options=chosen.model_dump(), steps=counts, notice=NOTICE)


def batches(first: int, count: int, values: int) -> Iterator[range]:
    """Groups of trajectories whose states fit in memory together, `values` each."""
    size = max(1, BATCH_VALUES // values)
    return (range(first + done, first + min(done + size, count)) for done in range(0, count, size))


def simulate(flow: TwoLayerFlow, seed: int, numbers: range, steps: int, spin_up: int) -> Tensor:
    """Trajectories after their spin-up, (trajectory, step, 2, N, N), float32, on the CPU.

    Args:
        flow: The model.
        seed: Seed of the data set.
        numbers: Numbers of the trajectories: each gives initial state and heating of its own.
        steps: Steps to keep.
        spin_up: Steps before.

    Raises:
        DataError: A state is not finite.
    """
    device = flow.kept.device
    generators = [generator(seed, number) for number in numbers]
    states = torch.stack([initial_state(flow, source) for source in generators])
    kept = torch.empty(len(numbers), steps, *states.shape[1:])
    for step in range(spin_up + steps):
        if step:
            noise = torch.stack([torch.randn(flow.noise_shape(), generator=source) for source in generators])
            states = flow(states.to(device), noise.to(device)).cpu()
        if step >= spin_up:
            kept[:, step - spin_up] = states
    if not bool(kept.isfinite().all()):
        raise DataError(
            f"the flow on {flow.parameters_of_flow.size} × {flow.parameters_of_flow.size} points became unstable"
        )
    return kept


def generator(seed: int, number: int) -> torch.Generator:
    """Random numbers of one trajectory."""
    state = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


def initial_state(flow: TwoLayerFlow, source: torch.Generator) -> Tensor:
    """Smooth random stream functions of about the climate's size, the lower layer half as strong: (2, N, N)."""
    size = flow.parameters_of_flow.size
    spectra = flow.spectrum(torch.randn(2, size, size, generator=source).to(flow.kept.device))
    smooth = flow.field(spectra * torch.exp(-flow.squared / (2 * INITIAL_WAVENUMBER**2)))
    smooth = INITIAL_STD * smooth / smooth.std(dim=(-2, -1), keepdim=True)
    lower = 0.5 * smooth[0] + 0.25 * smooth[1]
    return torch.stack([smooth[0], lower]).cpu()


# ---------------------------------------------------------------------------------------------- statistics


@dataclass
class Moments:
    """Sums over training states from which the statistics follow; trajectories are added group by group.

    The climate's mean is zero by symmetry: every place of the plane is like every other, and stream functions have no
    mean over it.

    Args:
        leads: Longest lead, in steps.
    """

    leads: int
    count: int = 0
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def __post_init__(self) -> None:
        self.pairs = np.zeros(self.leads)
        self.before, self.after, self.products = (np.zeros((self.leads, 2)) for _ in range(3))

    def add(self, states: Tensor) -> None:
        """Add trajectories (trajectory, step, 2, N, N)."""
        values = states.double()
        squares = (values**2).sum(dim=(-2, -1)).numpy()
        points = states.shape[-1] * states.shape[-2]
        self.count += states.shape[0] * states.shape[1] * points
        self.squares += squares.sum(axis=(0, 1))
        for lead in range(1, self.leads + 1):
            product = (values[:, :-lead] * values[:, lead:]).sum(dim=(0, 1, 3, 4))
            self.pairs[lead - 1] += states.shape[0] * (states.shape[1] - lead) * points
            self.before[lead - 1] += squares[:, :-lead].sum(axis=(0, 1))
            self.after[lead - 1] += squares[:, lead:].sum(axis=(0, 1))
            self.products[lead - 1] += product.numpy()

    @property
    def std(self) -> NDArray[np.float64]:
        """Of each layer's stream function, (2)."""
        return np.sqrt(self.squares / self.count)

    @property
    def damping(self) -> NDArray[np.float64]:
        """Slope of the regression on the state `lead` steps before, (lead, 2)."""
        return self.products / self.before

    @property
    def residual_std(self) -> NDArray[np.float64]:
        """What the slope leaves, in units of `std`, (lead, 2)."""
        left = (self.after - self.damping * self.products) / self.pairs[:, None]
        return np.sqrt(left) / self.std


def _statistics(moments: Moments, size: int) -> xr.Dataset:
    result = xr.Dataset(coords={"lead": ("lead", np.arange(1, moments.leads + 1), {"long_name": "lead, in steps"})})
    for layer, name in enumerate(VARIABLES):
        result[f"{name}_base"] = xr.DataArray(np.zeros(size), dims="latitude", attrs={"units": "1"})
        result[f"{name}_std"] = xr.DataArray(moments.std[layer], attrs={"units": "1"})
        result[f"{name}_damping"] = xr.DataArray(moments.damping[:, layer], dims="lead", attrs={"units": "1"})
        result[f"{name}_residual_std"] = xr.DataArray(moments.residual_std[:, layer], dims="lead", attrs={"units": "1"})
    return result


# ---------------------------------------------------------------------------------------------- store


def _create(
    store: Path, parameters: FlowParameters, parts: dict[str, tuple[int, int]], seed: int
) -> list[zarr.Array[Any]]:
    """Coordinates, and empty arrays of the two layers."""
    size = parameters.size
    numbers = np.repeat(
        np.arange(sum(count for count, _ in parts.values())), [s for c, s in parts.values() for _ in range(c)]
    )
    codes = np.repeat(np.arange(3, dtype=np.int8), [count * steps for count, steps in parts.values()])
    place = (np.arange(size) + 0.5) / size * DEGREES
    axis = {"comment": f"nominal: the plane's side, 2π, is taken as {DEGREES:g} degree"}
    coordinates = {
        "time": ("time", START + np.arange(codes.size) * np.timedelta64(STEP_HOURS, "h"), {"standard_name": "time"}),
        "latitude": ("latitude", place - DEGREES / 2, {"standard_name": "latitude", "units": "degrees_north"} | axis),
        "longitude": ("longitude", place, {"standard_name": "longitude", "units": "degrees_east"} | axis),
    }
    flags = {"flag_values": [0, 1, 2], "flag_meanings": " ".join(SPLITS)}
    dataset = xr.Dataset(
        {
            "trajectory": ("time", numbers, {"long_name": "number of the trajectory"}),
            "split": ("time", codes, flags),
        },
        coords=coordinates,
        attrs=_attributes(parameters, seed),
    )
    dataset.to_zarr(store, mode="w", zarr_format=3, consolidated=False)
    group = zarr.open_group(store, mode="r+")
    return [
        group.create_array(
            name,
            shape=(codes.size, size, size),
            chunks=(max(1, 2**18 // size**2), size, size),
            dtype="float32",
            fill_value=float("nan"),
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
            dimension_names=("time", "latitude", "longitude"),
            attributes={"long_name": long_name, "units": "1", "role": "prognostic"},
        )
        for name, long_name in VARIABLES.items()
    ]


def _attributes(parameters: FlowParameters, seed: int) -> dict[str, Any]:
    return {
        "Conventions": "CF-1.11",
        "title": "Two-layer quasi-geostrophic flow with state-dependent stochastic heating",
        "source": f"relent.data.quasi_geostrophic, seed {seed}",
        "notice": NOTICE,
        "variables": " ".join(VARIABLES),
        "step_hours": STEP_HOURS,
        "topology": "torus",
        "flow": parameters.to_json(),
    }


def read_flow(folder: Path | str) -> FlowParameters:
    """Parameters of the flow that made a data set.

    Raises:
        DataError: Another source made it, or one of another version.
    """
    store = Path(folder) / "dataset.zarr"
    try:
        return FlowParameters.from_json(str(zarr.open_group(store, mode="r").attrs["flow"]))
    except (KeyError, TypeError, ValueError, OSError):
        raise DataError(
            f"{store}: does not say which flow made it, so that its true law is not known; only data of "
            "relent.data.weather_twin have a perfect ensemble"
        ) from None
