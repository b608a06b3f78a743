"""Rolls a trained run out from any initial times, to any lead, with any number of members, into `forecast.zarr`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from relent.data.tiles import SPLITS, Fields
from relent.errors import ConfigError, DataError
from relent.evaluate.run import read_spec
from relent.methods.weather.base import ForecastMethod
from relent.tasks.ensemble_forecast.forecasts import round_mantissa
from relent.tasks.ensemble_forecast.store import ForecastStore, forecast_variables
from relent.train.sampling import derive_seed
from relent.train.stage import build

LOG = logging.getLogger("relent.forecast")


@dataclass(frozen=True)
class Request:
    """What to forecast.

    Args:
        start: `test`, `validation` or `train` (initial times whose longest lead lies in that split), or times as
            `2018-01-01T00`, or periods `FIRST/LAST`.
        n_leads: Steps.
        members: Members.
        seed: Of the members' noise.
        every: Take every such initial time of a split or period.
        keep_bits: Bits of the mantissa that are stored.
    """

    start: tuple[str, ...]
    n_leads: int
    members: int
    seed: int = 0
    every: int = 1
    keep_bits: int = 12


class MemberNoise:
    """Standard normal draws: the n-th draw of a member is a function of (seed, initial time, member, n) alone.

    Drawn on the CPU, member by member, so that the device and what a member is batched with change nothing.
    """

    def __init__(self, seed: int, init_time: np.datetime64, members: Sequence[int]):
        start = int(init_time.astype("datetime64[s]").astype(np.int64))
        self.generators = [torch.Generator().manual_seed(derive_seed("forecast", seed, start, m)) for m in members]

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Draws of a shape whose first two dimensions together number the members."""
        if shape[0] * shape[1] != len(self.generators):
            raise ValueError(f"noise of {len(self.generators)} members was asked for a shape of {tuple(shape)}")
        draws = [torch.randn(shape[2:], generator=generator) for generator in self.generators]
        return torch.stack(draws).reshape(shape)


def forecast_run(
    folder: Path, out: Path, request: Request, *, batch: int = 0, device: str = "cpu", dataset: Path | None = None
) -> Path:
    """Forecast with a trained run; goes on where an earlier call with the same request stopped.

    Args:
        folder: The run's folder.
        out: The store that is written.
        request: What to forecast.
        batch: Members that are computed together; 0: all. Memory is a matter of this, members are not.
        device: `cpu`, `cuda`, `cuda:1` …
        dataset: Prepared data set, where it is not the one that the run was trained with.

    Raises:
        ConfigError: The request cannot be met.
        DataError: Run or data are missing or broken, or `out` is a part of another forecast.
    """
    spec, config = read_spec(folder)
    if spec.kind != "ensemble_forecast":
        raise ConfigError(f"{folder}: is a run of the kind {spec.kind!r}; only ensemble forecasts can be rolled out")
    if dataset is not None:
        spec.inputs["data"] = str(dataset)
    if not (folder / "weights.safetensors").is_file():
        raise DataError(f"{folder / 'weights.safetensors'}: does not exist; train the run first")
    module, _, task = build(spec)
    module.load_state_dict(load_file(folder / "weights.safetensors"))
    fields: Fields = task.fields  # type: ignore[attr-defined]
    initials = initial_steps(fields, request)
    method = cast(ForecastMethod, module.eval().to(device))
    with torch.inference_mode():
        own = own_members(method, fields, initials[0])
        members = own or request.members
        times = fields.time[initials]
        plan = _plan(str(config["plan"]), fields, times, request, members)
        if ForecastStore.is_whole(out, plan):
            LOG.info("%s is whole already", out)
            return out
        store = ForecastStore(out, fields, times, request.n_leads, members, plan)
        roller = _Roller(method, fields, request, 0 if own else min(batch or members, members))
        for number, initial in enumerate(initials):
            for group in store.missing(number):
                roller.write(store, number, initial, group)
            LOG.info("%s: %d of %d initial times", out, number + 1, len(initials))
    store.finish()
    return out


def _plan(run: str, fields: Fields, times: np.ndarray, request: Request, members: int) -> dict[str, Any]:
    """What decides the forecast's content."""
    return {
        "run": run,
        "data": fields.checksum,
        "from": [str(np.datetime_as_string(time, unit="s")) for time in times],
        "leads": request.n_leads,
        "members": members,
        "seed": request.seed,
        "keep_bits": request.keep_bits,
    }


def own_members(method: ForecastMethod, fields: Fields, initial: int) -> int:
    """Members that a method gives whatever it is asked for; 0 if it gives as many as it is asked for.

    A deterministic forecast has one, a climatology its states, an ensemble of networks one for each.
    """
    frames, forcing = inputs(method, fields, initial, 1)
    given = []
    for asked in (2, 3):
        method.noise = MemberNoise(0, fields.time[initial], range(asked))
        given.append(len(next(method.roll_out(frames, 1, asked, fields.topology, forcing))))
    return 0 if given == [2, 3] else given[-1]


def inputs(method: ForecastMethod, fields: Fields, initial: int, n_leads: int) -> tuple[Tensor, Tensor | None]:
    """The two frames that a forecast starts from, and the forced variables at each of its steps.

    Raises:
        ConfigError: Forced variables are not known as far as the lead.
    """
    frames = fields.frames(initial - 1, 2).to(method.device)
    forced = [c for c, name in enumerate(fields.variables) if fields.attributes[name].get("role") == "forced"]
    if not forced:
        return frames, None
    if not fields.unbroken(initial + 1, n_leads) or initial + n_leads >= len(fields.time):
        raise ConfigError(
            f"{', '.join(fields.variables[c] for c in forced)} must be given at every step, and the data do not reach "
            f"{n_leads} steps beyond {fields.time[initial]} without a gap"
        )
    return frames, fields.frames(initial + 1, n_leads)[:, forced].to(method.device)


@dataclass(frozen=True)
class _Roller:
    """Rolls blocks of members out and writes them."""

    method: ForecastMethod
    fields: Fields
    request: Request
    batch: int
    """Members that are computed together; 0: the method has members of its own, and gives all of them at once."""

    def write(self, store: ForecastStore, number: int, initial: int, group: range) -> None:
        """Forecast one block of members from one initial step, and write it lead block by lead block."""
        n_leads, fields = self.request.n_leads, self.fields
        frames, forcing = inputs(self.method, fields, initial, n_leads)
        known = frames[-1].isfinite().cpu()
        rolls = [self._roll(initial, part, frames, forcing) for part in self._parts(group)]
        for first in range(0, n_leads, store.blocks.leads):
            count = min(store.blocks.leads, n_leads - first)
            fields_of_leads = [torch.cat([next(roll) for roll in rolls]) for _ in range(count)]
            chosen = slice(None) if self.batch else slice(group.start, group.stop)
            values = torch.stack([members[chosen] for members in fields_of_leads])
            self._check(values, known, initial, first)
            rounded = {
                name: round_mantissa(values[:, :, fields.variables.index(name)].numpy(), self.request.keep_bits)
                for name in forecast_variables(fields)
            }
            store.write(number, first, group, rounded)
        store.mark(number, group)

    def _parts(self, group: range) -> list[range]:
        if not self.batch:
            return [group]
        return [
            range(start, min(start + self.batch, group.stop)) for start in range(group.start, group.stop, self.batch)
        ]

    def _roll(self, initial: int, members: range, frames: Tensor, forcing: Tensor | None) -> Iterator[Tensor]:
        """Physical fields (M, C, H, W) of some members at each lead, on the CPU, with noise of their own."""
        noise = MemberNoise(self.request.seed, self.fields.time[initial], members)
        roll = self.method.roll_out(frames, self.request.n_leads, len(members), self.fields.topology, forcing)
        for _ in range(self.request.n_leads):
            self.method.noise = noise  # the roll-outs of other members are under way too
            yield self.fields.physical(next(roll).float().cpu())

    def _check(self, values: Tensor, known: Tensor, initial: int, first: int) -> None:
        """Refuse what is not finite where the initial state is known: the run has diverged."""
        wrong = (~values.isfinite() & known).flatten(3).any(-1)
        if bool(wrong.any()):
            lead, member, channel = (int(i) for i in wrong.nonzero()[0])
            raise DataError(
                f"{self.fields.variables[channel]} from {self.fields.time[initial]} is not finite {first + lead + 1} "
                f"steps ahead (member {member} of its block): it diverges; ask for fewer leads, or train with longer "
                "roll-outs"
            )


# ------------------------------------------------------------------------------------------------ initial times


def initial_steps(fields: Fields, request: Request) -> list[int]:
    """Initial steps of a request, ascending.

    Raises:
        ConfigError: A time is not in the data, or no initial time reaches the longest lead.
    """
    found: set[int] = set()
    for text in request.start:
        steps = _of_split(fields, text, request) if text in SPLITS else _of_times(fields, text)
        found.update(steps[:: request.every] if text in SPLITS or "/" in text else steps)
    return sorted(found)


def _of_split(fields: Fields, split: str, request: Request) -> list[int]:
    cases = fields.cases(split, request.n_leads)
    steps = [initial for initial, leads in cases if max(leads) >= request.n_leads]
    if not steps:
        longest = max((max(leads) for _, leads in cases), default=0)
        raise ConfigError(
            f"no initial time has a truth of the {split} split {request.n_leads} steps ahead; the longest that can "
            f"be verified there is {longest} steps ({longest * fields.step_hours} h); give times instead to go further"
        )
    return steps


def _of_times(fields: Fields, text: str) -> list[int]:
    first, _, last = text.partition("/")
    try:
        bounds = [np.datetime64(value, "ns") for value in (first, last or first)]
    except ValueError:
        raise ConfigError(
            f"{text!r} is no time; write 2018-01-01T00, FIRST/LAST, or one of {', '.join(SPLITS)}"
        ) from None
    times = fields.time.astype("datetime64[ns]")
    inside = np.flatnonzero((times >= bounds[0]) & (times <= bounds[1]))
    steps = [int(step) for step in inside if step > 0 and fields.unbroken(int(step) - 1, 2)]
    if not steps:
        raise ConfigError(
            f"{text}: no initial time there has a state and one {fields.step_hours} h before it; the data have "
            f"{len(times)} times from {_minute(times.min())} to {_minute(times.max())}"
        )
    return steps


def _minute(time: np.datetime64) -> str:
    return str(np.datetime_as_string(time, unit="m"))
