"""The twin's data set, its climate and predictability, and the methods that know its law or its statistics alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from synthetic_atmosphere import own_catalogue
from torch import Tensor

from relent.data.quasi_geostrophic import FlowParameters, TwoLayerFlow
from relent.data.receipt import check_receipt
from relent.data.tiles import Fields, MirroredTiles, TileDataset, Windows, read_fields
from relent.data.weather_twin import Moments, batches, generator, initial_state, prepare, read_flow, simulate
from relent.errors import ConfigError, DataError
from relent.grid import Topology
from relent.manifest.catalogue import Run
from relent.manifest.models import Config
from relent.methods.weather.base import FixedForecast
from relent.runspec import RunSpec
from relent.scores.crps import crps_ensemble
from relent.train.stage import build, run_stage

OPTIONS = {
    "size": 16,
    "train_trajectories": 3,
    "train_steps": 8,
    "validation_trajectories": 1,
    "validation_steps": 5,
    "test_trajectories": 2,
    "test_steps": 6,
    "spin_up": 4,
    "tile": 16,
}
MEMBERS, LEADS = 20, (1, 4, 10)
STD = (0.983, 0.584)
"""Of the two layers, from 4,160 states on 32 × 32 points."""
PERFECT_CRPS = {1: 0.0654, 4: 0.1565, 10: 0.357}
"""Of 64 initial states, with 20 members, in units of `STD`; standard errors 0.001, 0.0025, 0.008."""


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set."""
    folder = tmp_path_factory.mktemp("twin")
    prepare({}, folder, OPTIONS)
    return folder


def spec(method: str, data: Path, output: Path, seed: int = 0, task: str = "weather_twin") -> RunSpec:
    found = own_catalogue().stage_spec(Run(task, method, "default", "smoke", seed))
    evaluation = found.evaluation_options | {"lead_steps": 3, "initial_stride": 2}
    options = {"inputs": {"data": str(data)}, "output": str(output), "evaluation_options": evaluation}
    return replace(found, data_options=OPTIONS, **options)


# ---------------------------------------------------------------------------------------------- data set


def test_trajectories_lie_one_after_the_other(twin: Path) -> None:
    fields = read_fields(twin)
    assert fields.variables == ("psi_1", "psi_2")
    assert fields.shape == (16, 16)
    assert fields.topology is Topology.torus
    assert [len(fields.splits[name]) for name in ("train", "validation", "test")] == [24, 5, 12]
    assert fields.trajectory.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 5 + [4] * 6 + [5] * 6
    assert (np.diff(fields.time) == np.timedelta64(6, "h")).all()
    assert fields.attributes["psi_1"]["role"] == "prognostic"
    # Four initial states of each test trajectory; none looks across its end.
    assert [case for case in fields.cases("test", 2, 2) if case[0] < 35] == [(30, [1, 2]), (32, [1, 2])]
    assert not fields.unbroken(7, 2)
    weights = np.cos(np.deg2rad(fields.latitude))
    assert weights.max() / weights.min() < 1.0001
    with xr.open_zarr(twin / "dataset.zarr", consolidated=False) as dataset:
        assert dataset["psi_2"].dims == ("time", "latitude", "longitude")
        assert "idealised" in dataset.attrs["notice"]
    assert check_receipt(twin, contents=True)["steps"] == {"train": 24, "validation": 5, "test": 12}


def test_tiles_of_the_whole_plane_begin_anywhere(twin: Path) -> None:
    fields = read_fields(twin)
    windows = Windows.over(fields, "train", 3, 16, 1)
    assert len(windows) == 3 * 6 * 16 * 16
    tiles = TileDataset(fields, windows, 3, 16, torch.ones(16))
    index = next(i for i in range(len(windows)) if windows[i] == (9, 5, 13))
    expected = fields.frames(9, 3).roll((-5, -13), (-2, -1))
    assert torch.equal(tiles[index]["frames"], expected)


def test_mirrored_tiles_are_states_of_the_same_flow(twin: Path) -> None:
    fields = read_fields(twin)
    tiles = TileDataset(fields, Windows.over(fields, "train", 3, 16, 1), 3, 16, torch.arange(16.0))
    both = MirroredTiles(tiles)
    assert len(both) == 2 * len(tiles)
    index = len(tiles) // 2
    plain, mirrored = both[index], both[len(tiles) + index]
    assert torch.equal(plain["frames"], tiles[index]["frames"])
    assert torch.equal(mirrored["frames"], -plain["frames"].flip(-2))
    assert torch.equal(mirrored["weights"], plain["weights"].flip(0))
    torch.manual_seed(0)
    flow = TwoLayerFlow(read_flow(twin), torch.float64)
    state, noise = plain["frames"][1].double(), torch.randn(flow.noise_shape(), dtype=torch.float64)
    torch.testing.assert_close(flow(-state.flip(-2), -noise.flip(-2)), -flow(state, noise).flip(-2))


def test_statistics_equal_a_direct_computation(twin: Path) -> None:
    fields = read_fields(twin)
    states = fields.physical(fields.frames(0, 24)).double().reshape(3, 8, 2, 16, 16)
    std = states.square().mean((0, 1, 3, 4)).sqrt()
    torch.testing.assert_close(fields.std.double(), std, rtol=1e-5, atol=0)
    assert fields.lead_damping.shape == (7, 2)
    for lead in (1, 4, 7):
        before, after = states[:, :-lead], states[:, lead:]
        slope = (before * after).sum((0, 1, 3, 4)) / before.square().sum((0, 1, 3, 4))
        residual = (after - slope[:, None, None] * before).square().mean((0, 1, 3, 4)).sqrt() / std
        torch.testing.assert_close(fields.lead_damping[lead - 1].double(), slope, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fields.lead_residual_std[lead - 1].double(), residual, rtol=1e-4, atol=0)


def test_moments_add_up_over_groups_of_trajectories() -> None:
    states = torch.randn(5, 6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    together, apart = Moments(3), Moments(3)
    together.add(states)
    apart.add(states[:2])
    apart.add(states[2:])
    for name in ("std", "damping", "residual_std"):
        np.testing.assert_allclose(getattr(together, name), getattr(apart, name), rtol=1e-12)


def test_preparing_twice_gives_the_same_bytes_and_another_seed_others(twin: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        prepare({}, tmp_path / name, OPTIONS | {"seed": seed})
    checksum = check_receipt(twin)["checksum"]
    assert read_fields(tmp_path / "same").checksum == checksum
    assert read_fields(tmp_path / "other").checksum != checksum


def test_a_trajectory_is_the_same_whatever_it_is_made_with() -> None:
    flow = TwoLayerFlow(FlowParameters(size=16))
    together = simulate(flow, 3, range(0, 5), 3, 1)
    for numbers in (range(0, 2), range(2, 3), range(3, 5)):
        apart = simulate(flow, 3, numbers, 3, 1)
        torch.testing.assert_close(apart, together[numbers.start : numbers.stop], atol=1e-5, rtol=0)
    assert [list(group) for group in batches(4, 5, 2**23)] == [[4, 5], [6, 7], [8]]
    assert [list(group) for group in batches(0, 2, 2**30)] == [[0], [1]]


def test_trajectories_differ_from_their_beginning() -> None:
    flow = TwoLayerFlow(FlowParameters(size=16))
    first, second = (initial_state(flow, generator(0, number)) for number in (0, 1))
    assert float((first * second).mean().abs()) < 0.5 * float(first.square().mean())
    assert float(first.mean().abs()) < 1e-6


def test_an_unstable_flow_is_one_line() -> None:
    flow = TwoLayerFlow(FlowParameters(size=16, shear=60.0, viscosity=0.0))
    with pytest.raises(DataError, match="the flow on 16 × 16 points became unstable"):
        simulate(flow, 0, range(1), 6, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 32}, r"data\.sise: unknown key \(did you mean 'size'\?\)"),
        ({"size": 30}, r"data\.size: .*multiple of 4, got 30"),
        ({"size": None}, "data.size: .*got None"),
        ({"tile": 20}, "a tile of 20 points does not fit the grid of 16; lower `tile`"),
        ({"train_steps": 2}, "data.train_steps: .*greater than or equal to 3"),
        ({"device": "tpu"}, "data.device: .*'cpu' or 'cuda'"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare({}, tmp_path, {"size": 16, "tile": 16} | options)


# ---------------------------------------------------------------------------------------------- climate


@pytest.fixture(scope="module")
def climate() -> Tensor:
    """Twelve trajectories of 32 × 32 points after the usual spin-up, (12, 13, 2, 32, 32)."""
    torch.set_num_threads(1)
    return simulate(TwoLayerFlow(FlowParameters()), 12345, range(12), 13, 80)


def test_climate_has_the_known_size(climate: Tensor) -> None:
    squares = climate.square().mean((1, 3, 4))
    error = squares.std(0) / len(squares) ** 0.5
    assert bool(((squares.mean(0) - torch.tensor(STD).square()).abs() < 4 * error).all())
    assert float(error.max()) < 0.1
    assert float(climate.mean((-2, -1)).abs().max()) < 1e-5


@pytest.fixture(scope="module")
def perfect(climate: Tensor) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Fair CRPS, variance and squared error of the mean of a perfect ensemble, by lead: (12) each."""
    torch.manual_seed(1)
    flow = TwoLayerFlow(FlowParameters())
    scale = torch.tensor(STD)[:, None, None]
    members = climate[:, :1].expand(-1, MEMBERS, -1, -1, -1)
    found = {}
    for lead in range(1, max(LEADS) + 1):
        members = flow(members, torch.randn(*members.shape[:2], *flow.noise_shape()))
        if lead in LEADS:
            scaled, truth = (members / scale).transpose(0, 1), climate[:, lead] / scale
            crps = crps_ensemble(scaled, truth).mean((1, 2, 3))
            found[lead] = (crps, scaled.var(0).mean((1, 2, 3)), (scaled.mean(0) - truth).square().mean((1, 2, 3)))
    return found


@pytest.mark.parametrize("lead", LEADS)
def test_the_perfect_ensembles_crps_is_the_known_limit(
    perfect: dict[int, tuple[Tensor, Tensor, Tensor]], lead: int
) -> None:
    crps = perfect[lead][0]
    assert abs(float(crps.mean()) - PERFECT_CRPS[lead]) < 4 * float(crps.std()) / len(crps) ** 0.5
    assert float(crps.std()) < 0.35 * float(crps.mean())


@pytest.mark.parametrize("lead", LEADS)
def test_the_perfect_ensembles_spread_equals_its_error(
    perfect: dict[int, tuple[Tensor, Tensor, Tensor]], lead: int
) -> None:
    """E[squared error of the mean] = (1 + 1/M) variance, if members and truth have one law."""
    _, variance, error = perfect[lead]
    difference = (1 + 1 / MEMBERS) * variance - error
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / len(difference) ** 0.5
    assert float(((1 + 1 / MEMBERS) * variance.mean() / error.mean()).sqrt()) == pytest.approx(1, abs=0.12)


def test_errors_grow_from_step_to_step(perfect: dict[int, tuple[Tensor, Tensor, Tensor]]) -> None:
    spread = [float(perfect[lead][1].mean().sqrt()) for lead in LEADS]
    assert spread[0] < 0.5 * spread[1] < 0.35 * spread[2] < 0.35


# ---------------------------------------------------------------------------------------------- methods


def built(method: str, data: Path, tmp_path: Path) -> tuple[FixedForecast, Fields]:
    module, _, task = build(spec(method, data, tmp_path / method))
    assert isinstance(module, FixedForecast)
    return module, task.fields  # type: ignore[attr-defined]


def test_with_the_truths_noise_a_member_is_the_truth(twin: Path, tmp_path: Path) -> None:
    """So the stored state is all that the law depends on."""
    module, fields = built("perfect_ensemble", twin, tmp_path)
    step = int(np.flatnonzero(fields.trajectory == 4)[0]) + 1
    flow = TwoLayerFlow(read_flow(twin))
    source = generator(0, 4)
    initial_state(flow, source)
    noise = [torch.randn(flow.noise_shape(), generator=source) for _ in range(OPTIONS["spin_up"] + 4)]
    draws = iter(noise[OPTIONS["spin_up"] + 1 :])
    module.noise = lambda shape: next(draws)[None, None]
    forecast = module.ensemble_forecast(fields.frames(step - 1, 2), 3, 1, Topology.torus)
    torch.testing.assert_close(forecast[:, 0], fields.frames(step + 1, 3), atol=1e-4, rtol=0)


def test_members_of_the_perfect_ensemble_differ_and_have_no_bias(twin: Path, tmp_path: Path) -> None:
    module, fields = built("perfect_ensemble", twin, tmp_path)
    torch.manual_seed(0)
    frames = fields.frames(30, 2)
    members = module.ensemble_forecast(frames, 1, 400, Topology.torus)[0]
    quiet = TwoLayerFlow(read_flow(twin))(fields.physical(frames[1])) / fields.std[:, None, None]
    error = members.std(0) / 400**0.5
    # Heating of one step has no mean; what it does to the mean within the step is of higher order.
    assert float(((members.mean(0) - quiet).abs() / error).mean()) < 1.5
    assert float(members.std(0).min()) > 0


def test_other_data_have_no_perfect_ensemble(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not say which flow made it.*only data of relent.data.weather_twin"):
        read_flow(data)
    with pytest.raises(
        ConfigError, match=r"'perfect_ensemble' needs data of relent.data.weather_twin; those of 'weather"
    ):
        spec("perfect_ensemble", data, tmp_path, task="weather_isentropic")


def test_a_comparison_of_other_data_refuses_it_before_any_job() -> None:
    catalogue = own_catalogue()
    request = {"task": "weather_isentropic", "methods": ["persistence", "perfect_ensemble"]}
    with pytest.raises(ConfigError, match=r"comparisons\.0\.methods\.1: method 'perfect_ensemble' needs data of"):
        catalogue.comparisons(Config.model_validate({"comparisons": [request]}))
    for task, there in (("weather_isentropic", False), ("weather_twin", True)):
        family = Config.model_validate({"comparisons": [{"task": task, "methods": ["family:weather"]}], "seeds": [0]})
        methods = {run.method for run in catalogue.comparisons(family)[0].runs}
        assert ("perfect_ensemble" in methods) == there
        assert "damped_persistence" in methods


def test_damped_persistence_draws_from_its_gaussian(twin: Path, tmp_path: Path) -> None:
    module, fields = built("damped_persistence", twin, tmp_path)
    torch.manual_seed(0)
    frames = fields.frames(30, 2)
    forecast = module.ensemble_forecast(frames, 5, 3000, Topology.torus)
    assert forecast.shape == (5, 3000, 2, 16, 16)
    for lead in (1, 5):
        damping, residual = (
            values[lead - 1, :, None, None] for values in (fields.lead_damping, fields.lead_residual_std)
        )
        score = (forecast[lead - 1].mean(0) - damping * frames[1]) / (residual / 3000**0.5)
        assert float(score.abs().max()) < 5
        assert float(score.std()) == pytest.approx(1, abs=0.15)
        torch.testing.assert_close(forecast[lead - 1].std(0).mean((1, 2)), residual[:, 0, 0], rtol=0.01, atol=0)
    flat = forecast[0] - forecast[0].mean(0)
    neighbours = (flat[..., 1:] * flat[..., :-1]).mean() / flat.square().mean()
    assert abs(float(neighbours)) < 0.01


def test_damped_persistence_knows_as_many_leads_as_the_statistics(twin: Path, tmp_path: Path) -> None:
    module, fields = built("damped_persistence", twin, tmp_path)
    with pytest.raises(ConfigError, match="statistics reach 7 steps ahead, not 8"):
        module.ensemble_forecast(fields.frames(30, 2), 8, 2, Topology.torus)


@pytest.mark.parametrize("method", ["perfect_ensemble", "damped_persistence"])
def test_runs_without_training_forecast_from_the_test_trajectories(method: str, twin: Path, tmp_path: Path) -> None:
    found = spec(method, twin, tmp_path / "run")
    assert found.hyperparameters["max_steps"] == 0
    run_stage(found)
    with xr.open_zarr(tmp_path / "run" / "predictions.zarr", consolidated=False, decode_timedelta=True) as forecasts:
        sizes = {"init_time": 4, "lead_time": 3, "member": 5, "latitude": 16, "longitude": 16}
        assert dict(forecasts["psi_1"].sizes) == sizes
        known = np.isfinite(forecasts["psi_2"].values).all(axis=(2, 3, 4))
    np.testing.assert_array_equal(known, np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]], bool))
