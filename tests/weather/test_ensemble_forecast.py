"""The task: predictions on disk, scores, figures, resume, and that nothing leaks from the test steps."""

from __future__ import annotations

import csv
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from synthetic_atmosphere import atmosphere, prepared, run_spec

from relent.cli import cli
from relent.compare.results import read_run
from relent.data.tiles import read_fields
from relent.errors import ConfigError, DataError
from relent.evaluate.run import evaluate_run
from relent.grid import Topology
from relent.methods.weather.base import NetworkForecast
from relent.tasks.ensemble_forecast import comparison, evaluation
from relent.tasks.ensemble_forecast.forecasts import Forecasts, round_mantissa
from relent.tasks.ensemble_forecast.rollout import MemberNoise, Request, forecast_run
from relent.tasks.ensemble_forecast.store import DIMENSIONS, Blocks, ForecastStore, check_shards
from relent.train.stage import run_stage
from relent.verify.command import Choice, run_scorecard, verify_stores
from relent.verify.layout import as_forecast
from relent.verify.report import Resampling, score_rows
from relent.verify.truth import FieldsTruth

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
    of_members = {"rank_histograms.png", "reliability.png"}
    maps = {f"forecast_{name}.png" for name in ("PV", "U", "V")}
    assert made == maps | {"meteogram.png", "spread_skill.png", "spectra.png"} | of_members
    assert made - {path.name for path in (runs["persistence"] / "figures").iterdir()} == of_members
    results = [read_run(folder, name) for name, folder in runs.items()]
    captions = comparison.draw(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(captions)
    by_lead = {"crps_by_lead.png", "spread_skill_by_lead.png", "rank_histograms.png", "spectra.png"}
    assert set(captions) == by_lead | maps
    for name in captions:
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert "fair" in captions["crps_by_lead.png"]


def test_distance_to_the_perfect_ensemble(runs: dict[str, Path], tmp_path: Path) -> None:
    """A copy of a run stands for the perfect ensemble: its own distance is one, and the correlation of spreads too."""
    results = [read_run(runs[name], name) for name in ("fuxi_ens", "persistence")]
    perfect = replace(results[0], label="perfect", config={**results[0].config, "method": "perfect_ensemble"})
    groups = {run.label: [run] for run in (perfect, *results)}
    captions = comparison._distance(groups, tmp_path) | comparison._flow(groups, tmp_path)
    assert (
        {path.name for path in tmp_path.iterdir()}
        == set(captions)
        == {"distance_to_perfect.png", "flow_dependence.png"}
    )
    assert "fuxi_ens 1.00 → 1.00" in captions["distance_to_perfect.png"]
    ratios = [
        run.tables["by_lead"][0]["crps_normalised"] / perfect.tables["by_lead"][0]["crps_normalised"] for run in results
    ]
    assert ratios[1] > ratios[0] == 1
    assert "First lead: fuxi_ens 1.00." in captions["flow_dependence.png"]
    assert comparison._distance({"fuxi_ens": results[:1]}, tmp_path) == {}


def test_metrics_are_named_by_hours_or_by_steps_where_time_is_nominal(data: Path) -> None:
    fields = read_fields(data)
    rows = [
        {"variable": name, "lead_hours": 6.0 * lead, "crps_normalised": 0.1 * lead + shift, "spread_skill_ratio": 1.0}
        for name, shift in (("PV", 0.0), ("U", 0.2))
        for lead in (1, 2, 3, 4)
    ]
    assert evaluation.report_leads({"lead_steps": 4}, fields) == [1, 4]
    assert evaluation.report_leads({"lead_steps": 10, "report_leads": [1, 4, 10, 12]}, fields) == [1, 4, 10]
    scores = evaluation.headline(rows, fields, [1, 4])
    expected = {"crps": 0.2, "crps_24h": 0.5, "spread_skill_ratio": 1.0, "spread_skill_ratio_24h": 1.0}
    assert scores == pytest.approx(expected)
    nominal = evaluation.headline(rows, replace(fields, topology=Topology.torus), [1, 2])
    assert nominal == pytest.approx(
        {"crps_lead1": 0.2, "crps_lead2": 0.3, "crps_mean": 0.35}
        | {f"spread_skill_ratio_{name}": 1.0 for name in ("lead1", "lead2", "mean")}
    )


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
    settings = {"max_steps": 16, "checkpoint_every": 5, "validate_every": 8, "rollout_steps": 4}
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


# ------------------------------------------------------------------------------------------------ relent forecast


def forecast_arrays(path: Path) -> dict[str, np.ndarray]:
    with xr.open_dataset(path, engine="zarr") as dataset:
        return {name: dataset[name].values for name in ("PV", "U", "V")}


@pytest.fixture(scope="module")
def rolled_out(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forecast") / "forecast.zarr"
    return forecast_run(runs["fuxi_ens"], path, Request(("test",), 3, 6, seed=7))


def test_a_forecast_opens_with_xarray_without_help(rolled_out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets = [xr.open_dataset(rolled_out, engine="zarr"), xr.open_zarr(rolled_out, consolidated=False)]
    for dataset in datasets:
        assert dict(dataset.sizes) == {"init_time": 2, "lead_time": 3, "member": 6, "latitude": 22, "longitude": 32}
        assert dataset["U"].dims == DIMENSIONS
        assert dataset["U"].attrs["units"] == "m s-1"
        assert dataset["lead_time"].values[2] == np.timedelta64(18, "h")
        assert dataset["init_time"].values[0] == np.datetime64("1959-06-04T18")
        assert dataset["valid_time"].values[1, 2] == np.datetime64("1959-06-05T18")
        assert dataset["init_time"].attrs["standard_name"] == "forecast_reference_time"
        assert np.isfinite(dataset["V"].values).all()
        assert set(dataset.data_vars) == {"PV", "U", "V"}
        dataset.close()
    members = forecast_arrays(rolled_out)["U"]
    assert np.ptp(members, axis=2).min() > 0
    assert (members.view(np.uint32) & np.uint32((1 << 11) - 1)).max() == 0  # twelve bits of the mantissa are kept


@pytest.mark.parametrize("batch", [1, 4])
def test_members_are_the_same_however_they_are_batched(
    batch: int, runs: dict[str, Path], rolled_out: Path, tmp_path: Path
) -> None:
    request = Request(("test",), 3, 6, seed=7)
    batched = forecast_arrays(forecast_run(runs["fuxi_ens"], tmp_path / "f.zarr", request, batch=batch))
    fewer = forecast_run(runs["fuxi_ens"], tmp_path / "g.zarr", Request(("1959-06-05T00",), 2, 3, seed=7))
    for name, whole in forecast_arrays(rolled_out).items():
        # Sums of another batch may round differently by the last bit, of which a kept one is 2^11.
        np.testing.assert_allclose(batched[name], whole, rtol=2**-12, atol=1e-5)
        np.testing.assert_allclose(forecast_arrays(fewer)[name], whole[1:, :2, :3], rtol=2**-12, atol=1e-5)
    other = forecast_run(runs["fuxi_ens"], tmp_path / "h.zarr", Request(("1959-06-05T00",), 2, 3, seed=8))
    assert not np.array_equal(forecast_arrays(other)["U"], forecast_arrays(fewer)["U"])


def test_draws_are_a_function_of_seed_time_member_and_number() -> None:
    time = np.datetime64("2018-01-01T06")
    together, parts = (
        MemberNoise(1, time, range(5)),
        [MemberNoise(1, time, range(2)), MemberNoise(1, time, range(2, 5))],
    )
    first, second = together((5, 1, 3, 4)), together((1, 5, 2))
    torch.testing.assert_close(first, torch.cat([part((n, 1, 3, 4)) for part, n in zip(parts, (2, 3))]), rtol=0, atol=0)
    torch.testing.assert_close(
        second, torch.cat([part((1, n, 2)) for part, n in zip(parts, (2, 3))], 1), rtol=0, atol=0
    )
    changed = [MemberNoise(2, time, range(5)), MemberNoise(1, time + np.timedelta64(6, "h"), range(5))]
    assert not any(torch.equal(first, noise((5, 1, 3, 4))) for noise in changed)
    draws = MemberNoise(0, time, range(50))((50, 1, 1000))
    assert abs(float(draws.mean())) < 0.02
    assert float(draws.std()) == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="noise of 5 members was asked for"):
        together((4, 1, 3))


def test_a_killed_forecast_goes_on_after_the_last_whole_block(
    runs: dict[str, Path], rolled_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two members a shard and two leads: six blocks of members, two writes each.
    blocks = Blocks(2, 2, (2, 2, 22, 32))
    monkeypatch.setattr("relent.tasks.ensemble_forecast.store.Blocks.of", lambda *_: blocks)
    write, calls = ForecastStore.write, []

    def dies(self: ForecastStore, initial: int, *rest: object) -> None:
        calls.append(initial)
        if len(calls) == 8:
            raise KeyError("killed")
        write(self, initial, *rest)  # type: ignore[arg-type]

    request, path = Request(("test",), 3, 6, seed=7), tmp_path / "f.zarr"
    monkeypatch.setattr(ForecastStore, "write", dies)
    with pytest.raises(KeyError, match="killed"):
        forecast_run(runs["fuxi_ens"], path, request, batch=2)
    assert not path.exists()
    with pytest.raises(DataError, match="the forecast is not whole"):
        check_shards(tmp_path / ".f.zarr.partial")
    with pytest.raises(DataError, match=r"part of another forecast \(members: 6 there, 4 now\); delete it"):
        forecast_run(runs["fuxi_ens"], path, Request(("test",), 3, 4, seed=7))
    forecast_run(runs["fuxi_ens"], path, request)
    assert calls[8:] == [1] * 6  # the first initial time was whole: three blocks of two writes are left
    for name, values in forecast_arrays(rolled_out).items():
        np.testing.assert_allclose(forecast_arrays(path)[name], values, rtol=2**-12, atol=1e-5)
    before = path.stat().st_mtime_ns
    forecast_run(runs["fuxi_ens"], path, request)
    assert path.stat().st_mtime_ns == before
    assert len(calls) == 14
    shard = path / "U" / "c" / "1" / "0" / "2" / "0" / "0"
    shard.unlink()
    with pytest.raises(DataError, match=r"U/c/1/0/2/0/0: this shard is missing"):
        check_shards(path)


def test_methods_with_members_of_their_own_give_these(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("deterministic_l1", "climatology"):
        path = forecast_run(runs[name], tmp_path / f"{name}.zarr", Request(("1959-06-05T00",), 2, 4), batch=2)
        with xr.open_zarr(runs[name] / "predictions.zarr", consolidated=False) as predictions:
            np.testing.assert_allclose(
                forecast_arrays(path)["V"][0, 0], predictions["V"].values[1, 0], rtol=1e-3, atol=1e-4
            )
            assert (predictions.sizes["member"] == 1) == (name == "deterministic_l1")


def test_a_forecast_goes_beyond_the_data(runs: dict[str, Path], tmp_path: Path) -> None:
    path = forecast_run(runs["persistence"], tmp_path / "f.zarr", Request(("1959-06-05T06/1959-06-05T12",), 14, 2))
    with xr.open_zarr(path) as dataset:
        assert dict(dataset.sizes)["init_time"] == 2
        assert dataset["valid_time"].values[-1, -1] == np.datetime64("1959-06-09T00")
        now = atmosphere()["U"].values[7]
        np.testing.assert_allclose(dataset["U"].values[0, 13, 0], now, rtol=2**-12, atol=2e-3)


def test_forecasts_that_cannot_be_made_are_refused_in_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "f.zarr"
    with pytest.raises(
        ConfigError, match=r"no initial time has a truth of the test split 5 steps ahead.* is 4 steps \(24"
    ):
        forecast_run(runs["persistence"], out, Request(("test",), 5, 2))
    with pytest.raises(ConfigError, match="no initial time there has a state and one 6 h before it"):
        forecast_run(runs["persistence"], out, Request(("1959-06-03T12",), 2, 2))
    with pytest.raises(ConfigError, match="'soon' is no time"):
        forecast_run(runs["persistence"], out, Request(("soon",), 2, 2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"config\.json: does not exist"):
        forecast_run(tmp_path / "empty", out, Request(("test",), 2, 2))
    assert not out.exists()
    done = CliRunner().invoke(
        cli, ["forecast", str(runs["fuxi_ens"]), "--leads", "2", "--members", "1", "--out", str(out)]
    )
    assert isinstance(done.exception, ConfigError)
    assert "--members: one member has no fair CRPS" in str(done.exception)


def test_verifying_the_forecast_gives_the_scores_of_the_run(
    runs: dict[str, Path], data: Path, rolled_out: Path, tmp_path: Path
) -> None:
    """The same numbers from `relent evaluate` and `relent verify`, and a scorecard between two runs."""
    rows = score_rows(verify_stores(runs["fuxi_ens"] / "predictions.zarr", str(data), Choice()), None)
    own = read_run(runs["fuxi_ens"], "fuxi_ens").tables["by_lead"]
    for row in (row for row in rows if row["region"] == "globe"):
        table = next(r for r in own if (r["variable"], r["lead_hours"]) == (row["variable"], row["lead_hours"]))
        assert table[row["score"]] == pytest.approx(row["value"], rel=1e-9)
    assert {row["region"] for row in rows} >= {"globe", "tropics"}
    pair = str(runs["fuxi_ens"]), str(runs["persistence"])
    summary = run_scorecard(pair, ("a", "b"), None, Choice(), "crps", Resampling(), tmp_path / "card")
    assert summary["share_better"] == 1.0
    assert summary["pairs"] == 12
    assert "fewer than 8 initial times" in summary["note"]
    found = verify_stores(rolled_out, str(data), Choice(("U",)))
    assert [field.name for field in found.fields] == ["U"]
    assert found.fields[0].cases()[:, 0].tolist() == [2, 2, 2]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 800), st.integers(1, 1500))
def test_shards_are_whole_chunks_and_bounded(n_leads: int, members: int, height: int, width: int) -> None:
    blocks = Blocks.of(n_leads, members, height, width)
    leads, in_chunk, rows, columns = blocks.chunk
    shard = blocks.shard(height, width)
    assert all(side % part == 0 for side, part in zip(shard, (1, *blocks.chunk)))
    assert shard[3] - rows < height <= shard[3]
    assert shard[4] - columns < width <= shard[4]
    assert 4 * leads * in_chunk * rows * columns <= 2**20 + 4 * leads
    assert blocks.members == 1 or 4 * blocks.leads * blocks.members * height * width <= 2**25
    assert blocks.leads <= n_leads
    assert blocks.members <= members


def test_a_forecast_has_no_truth_on_another_trajectory(data: Path, rolled_out: Path) -> None:
    fields = read_fields(data)
    times = fields.time[[5, 6]], np.array([6, 12], "timedelta64[h]").astype("timedelta64[ns]")
    with xr.open_zarr(rolled_out) as forecast:
        whole = FieldsTruth(fields, as_forecast(forecast, "f")).positions(*times)
        broken = replace(fields, trajectory=np.repeat([0, 1], [7, len(fields.time) - 7]))
        parts = FieldsTruth(broken, as_forecast(forecast, "f")).positions(*times)
    np.testing.assert_array_equal(whole, [[6, 7], [7, 8]])
    np.testing.assert_array_equal(parts, [[6, -1], [-1, -1]])
