"""The task: predictions on disk, scores, figures, resume, and that nothing leaks from the test steps."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from synthetic_atmosphere import atmosphere, prepared, run_spec

from relent.compare.results import read_run
from relent.data.tiles import read_fields
from relent.errors import DataError
from relent.evaluate.run import evaluate_run
from relent.methods.weather.base import NetworkForecast
from relent.tasks.ensemble_forecast import comparison, evaluation
from relent.tasks.ensemble_forecast.forecasts import Forecasts, round_mantissa
from relent.train.stage import run_stage

METHODS = ("fuxi_ens", "deterministic_l1", "persistence", "climatology")


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained and evaluated runs by method."""
    folder = tmp_path_factory.mktemp("runs")
    for name in METHODS:
        spec = run_spec(name, data, folder / name)
        run_stage(spec)
        with pytest.MonkeyPatch.context() as patch:
            if name in ("deterministic_l1", "climatology"):  # drawing takes longer than training
                patch.setattr(evaluation, "draw", lambda *_: None)
            evaluate_run(Path(spec.output))
    return {name: folder / name for name in METHODS}


def test_the_network_learns_motion_that_persistence_lacks(runs: dict[str, Path]) -> None:
    scores = {name: read_run(folder, name).scores for name, folder in runs.items()}
    for other in ("persistence", "climatology", "deterministic_l1"):
        assert scores["fuxi_ens"]["crps"] < scores[other]["crps"]
    assert scores["deterministic_l1"]["rmse"] < scores["persistence"]["rmse"]
    assert scores["fuxi_ens"]["crps_24h"] < scores["persistence"]["crps_24h"]
    assert 0.2 < scores["fuxi_ens"]["spread_skill_ratio"] < 2
    assert scores["persistence"]["spread_skill_ratio"] == 0
    assert "spread_error_correlation" not in scores["persistence"]


def test_predictions_open_with_xarray(runs: dict[str, Path]) -> None:
    with xr.open_zarr(runs["fuxi_ens"] / "predictions.zarr", consolidated=False, decode_timedelta=True) as dataset:
        assert dataset["U"].dims == ("init_time", "lead_time", "member", "latitude", "longitude")
        assert dict(dataset.sizes) == {"init_time": 4, "lead_time": 4, "member": 5, "latitude": 22, "longitude": 32}
        assert dataset["U"].dtype == np.float32
        assert dataset["U"].attrs["units"] == "m s-1"
        assert dataset["lead_time"].values[0] == np.timedelta64(6, "h")
        assert dataset["valid_time"].values[0, 3] == np.datetime64("1959-06-05T18")
        written = np.isfinite(dataset["PV"].values).all(axis=(2, 3, 4))
    expected = [[0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    np.testing.assert_array_equal(written, np.array(expected, bool))


def test_scores_equal_a_direct_computation(runs: dict[str, Path], data: Path) -> None:
    run = read_run(runs["fuxi_ens"], "fuxi_ens")
    truth = atmosphere()["V"].values.astype(float)
    with xr.open_zarr(run.folder / "predictions.zarr", consolidated=False, decode_timedelta=True) as dataset:
        members = dataset["V"].values[1:, 0].astype(float)
        weights = np.cos(np.deg2rad(dataset["latitude"].values))[:, None]
    error = members.mean(1) - truth[7:10]
    weights = np.broadcast_to(weights, error.shape)
    row = next(r for r in run.tables["by_lead"] if r["variable"] == "V" and r["lead_hours"] == 6)
    rmse = np.sqrt(np.average(error**2, weights=weights))
    spread = np.sqrt(np.average(members.var(axis=1, ddof=1), weights=weights))
    pairs = np.abs(members[:, :, None] - members[:, None]).sum(axis=(1, 2)) / (2 * 5 * 4)
    crps = np.average(np.abs(members - truth[7:10, None]).mean(1) - pairs, weights=weights)
    assert row["cases"] == 3
    assert row["rmse"] == pytest.approx(rmse, rel=1e-6)
    assert row["spread"] == pytest.approx(spread, rel=1e-6)
    assert row["spread_skill_ratio"] == pytest.approx(np.sqrt(6 / 5) * spread / rmse, rel=1e-6)
    assert row["crps"] == pytest.approx(crps, rel=1e-5)
    std = float(read_fields(data).std[2])
    assert row["crps_normalised"] == pytest.approx(crps / std, rel=1e-5)
    deviation, size = members.std(axis=1, ddof=1).ravel(), np.abs(error).ravel()
    covariance = np.cov(deviation, size, aweights=weights.ravel())
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert row["spread_error_correlation"] == pytest.approx(correlation, abs=1e-4)
    normalised = [r["crps_normalised"] for r in run.tables["by_lead"] if r["lead_hours"] == 6]
    assert run.scores["crps"] == pytest.approx(np.mean(normalised), rel=1e-12)


def test_rank_frequencies_sum_to_one(runs: dict[str, Path]) -> None:
    ranks = read_run(runs["fuxi_ens"], "fuxi_ens").tables["ranks"]
    for variable in ("PV", "U", "V"):
        for hours in (6, 24):
            shares = [r["frequency"] for r in ranks if r["variable"] == variable and r["lead_hours"] == hours]
            assert len(shares) == 6
            assert sum(shares) == pytest.approx(1)
    assert read_run(runs["persistence"], "persistence").tables["ranks"] == []


def test_a_single_member_is_scored_by_its_absolute_error_and_named_so(runs: dict[str, Path]) -> None:
    run = read_run(runs["persistence"], "persistence")
    truth = atmosphere()["U"].values.astype(float)
    weights = np.cos(np.deg2rad(atmosphere()["lat"].values))[:, None]
    error = np.abs(truth[7:10] - truth[6:9])
    row = next(r for r in run.tables["by_lead"] if r["variable"] == "U" and r["lead_hours"] == 6)
    assert row["crps"] == pytest.approx(np.average(error, weights=np.broadcast_to(weights, error.shape)), rel=1e-3)
    assert run.settings["crps_estimator"] == "absolute error (one member)"
    assert read_run(runs["fuxi_ens"], "fuxi_ens").settings["crps_estimator"] == "fair"


def test_figures_of_runs_and_comparison(runs: dict[str, Path], tmp_path: Path) -> None:
    made = {path.name for path in (runs["fuxi_ens"] / "figures").iterdir()}
    assert made == {"forecast_PV.png", "forecast_U.png", "forecast_V.png", "spread_skill.png", "rank_histograms.png"}
    assert not (runs["persistence"] / "figures" / "rank_histograms.png").exists()
    captions = comparison.draw([read_run(folder, name) for name, folder in runs.items()], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(captions)
    assert {"crps_by_lead.png", "spread_skill_by_lead.png", "rank_histograms.png", "forecast_PV.png"} <= set(captions)
    for name in captions:
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert "fair" in captions["crps_by_lead.png"]


# ------------------------------------------------------------------------------------------------ broken files


def test_a_missing_chunk_of_the_predictions_is_found(runs: dict[str, Path], data: Path, tmp_path: Path) -> None:
    shutil.copytree(runs["persistence"], tmp_path / "run")
    chunks = (tmp_path / "run" / "predictions.zarr" / "V" / "c" / "1" / "0").rglob("*")
    next(path for path in chunks if path.is_file()).unlink()
    with pytest.raises(DataError, match=r"V from 1959-06-05T00.* at lead step 1 is not finite: a chunk is missing"):
        evaluate_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "predictions.zarr")
    with pytest.raises(DataError, match="cannot be read"):
        Forecasts(tmp_path / "run" / "predictions.zarr", read_fields(data))


def test_predictions_of_other_data_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    other = prepared(tmp_path, atmosphere(seed=1))
    with pytest.raises(DataError, match="was made from other data"):
        evaluate_run(runs["persistence"], {"data": str(other)})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), st.integers(1, 23))
def test_rounding_the_mantissa(values: list[float], bits: int) -> None:
    array = np.array(values, np.float32)
    array[np.abs(array) < 1e-30] = 0  # subnormal numbers have no leading bit to be relative to
    rounded = round_mantissa(array, bits)
    assert rounded.dtype == np.float32
    assert np.all(
        np.abs(rounded.astype(float) - array.astype(float)) <= 2.0 ** -(bits + 1) * np.abs(array.astype(float))
    )
    np.testing.assert_array_equal(round_mantissa(rounded, bits), rounded)
    if bits < 23:
        assert not np.any(rounded.view(np.uint32) & np.uint32((1 << (23 - bits)) - 1))


# ------------------------------------------------------------------------------------------------ leakage and resume


def test_steps_after_the_initial_time_change_no_weight_and_no_forecast(runs: dict[str, Path], tmp_path: Path) -> None:
    changed = atmosphere()
    for name in ("PV", "U", "V"):
        changed[name][6:] = changed[name][6:].values[..., ::-1] * 1.5
    spec = run_spec("fuxi_ens", prepared(tmp_path, changed), tmp_path / "run")
    run_stage(spec)
    own, other = (load_file(folder / "weights.safetensors") for folder in (runs["fuxi_ens"], tmp_path / "run"))
    assert all(torch.equal(value, other[name]) for name, value in own.items())
    forecasts = []
    for folder in (runs["fuxi_ens"], tmp_path / "run"):
        with xr.open_zarr(folder / "predictions.zarr", consolidated=False, decode_timedelta=True) as dataset:
            forecasts.append(dataset.isel(init_time=slice(0, 2)).load())
    for name in ("PV", "U", "V"):
        np.testing.assert_array_equal(forecasts[0][name].values[0], forecasts[1][name].values[0])
        assert not np.array_equal(forecasts[0][name].values[1], forecasts[1][name].values[1], equal_nan=True)


def test_a_killed_run_resumes_to_the_same_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"max_steps": 16, "checkpoint_every": 5, "validate_every": 8, "rollout_steps": 2, "rollout_start": 0.5}
    whole = run_spec("fuxi_ens", data, tmp_path / "whole", **settings)
    run_stage(whole)
    step = NetworkForecast.training_step

    def dies(self: NetworkForecast, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.global_step == 12:
            raise KeyError("killed")
        return step(self, batch, batch_idx)

    spec = run_spec("fuxi_ens", data, tmp_path / "killed", **settings)
    monkeypatch.setattr(NetworkForecast, "training_step", dies)
    with pytest.raises(KeyError, match="killed"):
        run_stage(spec)
    assert not (tmp_path / "killed" / "config.json").exists()
    monkeypatch.setattr(NetworkForecast, "training_step", step)
    run_stage(spec)
    first, second = (load_file(folder / "weights.safetensors") for folder in (tmp_path / "whole", tmp_path / "killed"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    history = []
    for folder in ("whole", "killed"):
        with (tmp_path / folder / "metrics.csv").open(newline="") as handle:
            history.append({(row["step"], row["metric"]): row["value"] for row in csv.DictReader(handle)})
    assert history[0] == history[1]
    with (
        xr.open_zarr(tmp_path / "whole" / "predictions.zarr", consolidated=False, decode_timedelta=True) as one,
        xr.open_zarr(tmp_path / "killed" / "predictions.zarr", consolidated=False, decode_timedelta=True) as two,
    ):
        xr.testing.assert_identical(one.load(), two.load())
