"""Energy and variogram score stream: one number however the data are chunked, with weights and gaps."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.scores.ensemble import energy_score, variogram_score
from relent.scores.joint import EnergyScore, VariogramScore
from relent.scores.spatial import latitude_weights
from relent.scores.streaming import Crps, evaluate

LATITUDE = np.linspace(-60, 60, 5)
STATISTICS = [EnergyScore(), VariogramScore(p=1.0), Crps()]


def fields(seed: int = 0) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(seed)
    forecast = xr.DataArray(rng.normal(size=(6, 3, 7, 2, 5)), dims=("member", "variable", "time", "lead", "lat"))
    truth = xr.DataArray(rng.normal(size=(3, 7, 2, 5)), dims=("variable", "time", "lead", "lat"))
    return forecast, truth, xr.DataArray(latitude_weights(LATITUDE), dims="lat")


def expected(forecast: xr.DataArray, truth: xr.DataArray, weights: xr.DataArray) -> dict[str, np.ndarray]:
    members = forecast.transpose("member", "time", "lead", "lat", "variable").values
    observed = truth.transpose("time", "lead", "lat", "variable").values
    weight = np.broadcast_to(weights.values, observed.shape[:3])
    found = {}
    for name, values in (
        ("energy_score_fair", energy_score(members, observed)),
        ("variogram_score_1", variogram_score(members, observed, p=1.0)),
    ):
        found[name] = (np.asarray(values) * weight).sum((0, 2)) / weight.sum((0, 2))
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 2), st.integers(1, 5), st.integers(1, 6))
def test_same_number_however_chunked(variable, time, lead, lat, member):
    forecast, truth, weights = fields()
    chunks = {"variable": variable, "time": time, "lead": lead, "lat": lat}
    scores = evaluate(STATISTICS, forecast.chunk(chunks | {"member": member}), truth.chunk(chunks), weights)
    for name, values in expected(forecast, truth, weights).items():
        assert scores[name].dims == ("lead",)
        np.testing.assert_allclose(scores[name].values, values, rtol=1e-10, atol=1e-12)
    assert scores["crps_fair"].dims == ("variable", "lead")


def test_through_a_zarr_store(tmp_path):
    forecast, truth, weights = fields(1)
    forecast.chunk(time=2, variable=1).to_dataset(name="x").to_zarr(tmp_path / "forecast.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "forecast.zarr", consolidated=False)["x"]
    scores = evaluate(STATISTICS[:2], stored, truth, weights)
    for name, values in expected(forecast, truth, weights).items():
        np.testing.assert_allclose(scores[name].values, values, rtol=1e-10, atol=1e-12)


def test_gaps_are_left_out_by_name():
    forecast, truth, weights = fields(2)
    truth[0, 3, 0, 1] = np.nan
    assert np.isnan(evaluate([EnergyScore()], forecast, truth, weights)["energy_score_fair"].values[0])
    kept = evaluate([EnergyScore(nan_policy="omit")], forecast, truth, weights)["energy_score_fair"].values
    assert np.isfinite(kept).all()
    with pytest.raises(ValueError):
        evaluate([EnergyScore(nan_policy="raise")], forecast, truth, weights)


def test_weights_over_components_and_a_missing_dimension_are_refused():
    forecast, truth, _ = fields(3)
    with pytest.raises(ValueError, match="may not vary over their components"):
        evaluate([EnergyScore()], forecast, truth, xr.DataArray([1.0, 2.0, 3.0], dims="variable"))
    with pytest.raises(ValueError, match="need the dimension 'level'"):
        evaluate([VariogramScore()], forecast, truth, component_dim="level")


def test_one_component_is_the_crps():
    forecast, truth, weights = fields(4)
    scores = evaluate([EnergyScore(), Crps()], forecast[:, :1], truth[:1], weights)
    np.testing.assert_allclose(scores["energy_score_fair"], scores["crps_fair"][0], rtol=1e-10)
