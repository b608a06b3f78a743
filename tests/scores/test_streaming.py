"""Mean statistics: chunking must not change a number, whether through numpy, dask or a zarr store."""

import math
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.scores import ensemble, probability, spatial, streaming
from relent.scores.crps import chain_above, crps_ensemble
from relent.scores.joint import EnergyScore, VariogramScore

SIZES = {"time": 7, "lead": 3, "lat": 6, "lon": 5}
MEMBERS = 4


def every_statistic(nan_policy: str) -> list[streaming.MeanStatistic]:
    return [
        streaming.Crps(nan_policy=nan_policy),
        streaming.Crps(estimator="biased", nan_policy=nan_policy),
        streaming.Crps(estimator="almost_fair", nan_policy=nan_policy),
        streaming.Crps(chaining=chain_above(0.2), label="twcrps_above_0.2", nan_policy=nan_policy),
        streaming.MeanRmse(nan_policy=nan_policy),
        streaming.MeanAbsoluteError(nan_policy=nan_policy),
        streaming.Bias(nan_policy=nan_policy),
        streaming.Spread(nan_policy=nan_policy),
        streaming.SpreadSkillRatio(nan_policy=nan_policy),
        streaming.Brier(threshold=0.1, nan_policy=nan_policy),
        streaming.Brier(threshold=0.1, fair=False, nan_policy=nan_policy),
        streaming.RankFrequencies(nan_policy=nan_policy),
        streaming.EventTable(threshold=0.1, nan_policy=nan_policy),
        streaming.AnomalyCorrelation(nan_policy=nan_policy),
    ]


def data(missing: bool, dtype: str = "float64") -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(3)
    members, truth = rng.normal(size=(MEMBERS, *SIZES.values())), rng.normal(size=tuple(SIZES.values()))
    members += 0.7 * truth
    if missing:
        members[rng.uniform(size=members.shape) < 0.1] = np.nan
        truth[rng.uniform(size=truth.shape) < 0.1] = np.nan
    latitude = np.linspace(-75, 75, SIZES["lat"])
    coords = {"lat": latitude, "lead": [6, 12, 18]}
    forecast = xr.DataArray(members.astype(dtype), coords, dims=("member", *SIZES))
    weights = xr.DataArray(spatial.latitude_weights(latitude), {"lat": latitude}, dims="lat")
    return forecast, xr.DataArray(truth.astype(dtype), coords, dims=tuple(SIZES)), weights


chunkings = st.fixed_dictionaries(
    {dim: st.integers((size + 2) // 3, size) for dim, size in {"member": MEMBERS, **SIZES}.items()}
)


@settings(max_examples=12, deadline=None)
@given(chunkings, chunkings, st.booleans())
def test_no_chunking_changes_a_number(forecast_chunks, truth_chunks, missing):
    policy = "omit" if missing else "propagate"
    forecast, truth, weights = data(missing, "float32")
    whole = streaming.evaluate(every_statistic(policy), forecast, truth, weights)
    truth_chunks.pop("member")
    chunked = streaming.evaluate(
        every_statistic(policy), forecast.chunk(forecast_chunks), truth.chunk(truth_chunks), weights
    )
    assert not any(bool(whole[name].isnull().any()) for name in whole)
    xr.testing.assert_allclose(chunked, whole, rtol=1e-10, atol=1e-10)
    for name in whole:
        assert chunked[name].attrs == whole[name].attrs


def test_through_a_zarr_store(tmp_path):
    forecast, truth, weights = data(missing=True)
    whole = streaming.evaluate(every_statistic("omit"), forecast, truth, weights)
    for name, array, chunks in (("forecast", forecast, (2, 3, 1, 4, 5)), ("truth", truth, (7, 2, 3, 2))):
        array.to_dataset(name=name).to_zarr(tmp_path / f"{name}.zarr", encoding={name: {"chunks": chunks}})
    stored = [xr.open_zarr(tmp_path / f"{name}.zarr")[name] for name in ("forecast", "truth")]
    scores = streaming.evaluate(every_statistic("omit"), *stored, weights)
    xr.testing.assert_allclose(scores, whole, rtol=1e-10, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, SIZES["time"] - 1), max_size=4, unique=True), st.randoms(use_true_random=False))
def test_totals_add_in_any_order(cuts, random):
    forecast, truth, weights = data(missing=True)
    edges = [0, *sorted(cuts), SIZES["time"]]
    pieces = [slice(a, b) for a, b in pairwise(edges)]
    random.shuffle(pieces)
    mass = weights.values[:, None]
    for statistic in every_statistic("omit"):
        whole = statistic.totals(forecast.values, truth.values, mass)
        parts = [statistic.totals(forecast.values[:, p], truth.values[p], mass) for p in pieces]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        np.testing.assert_allclose(statistic.final(total.means()), statistic.final(whole.means()), rtol=1e-12)


@pytest.mark.parametrize("missing", [False, True])
def test_equals_the_plain_scores(missing):
    policy = "omit" if missing else "propagate"
    forecast, truth, weights = data(missing)
    scores = streaming.evaluate(every_statistic(policy), forecast, truth, weights, keep_dims=("lead",))
    assert scores["crps_fair"].dims == ("lead",)
    assert scores["lead"].values.tolist() == [6, 12, 18]
    mass = np.broadcast_to(weights.values[:, None], (7, 6, 5))
    options = {"nan_policy": policy}
    for k in range(3):
        x, y = forecast.values[:, :, k], truth.values[:, k]
        expected = {
            "crps_fair": spatial.weighted_mean(crps_ensemble(x, y, **options), mass, **options),
            "ensemble_mean_rmse": ensemble.ensemble_mean_rmse(x, y, mass, **options),
            "ensemble_mean_mae": ensemble.ensemble_mean_mae(x, y, mass, **options),
            "bias": ensemble.bias(x, y, mass, **options),
            "spread": ensemble.spread(x, mass, **options),
            "spread_skill_ratio": ensemble.spread_skill_ratio(x, y, mass, **options),
            "brier_fair_above_0.1": spatial.weighted_mean(
                probability.brier_score_ensemble(x, y, threshold=0.1, **options), mass, **options
            ),
            "anomaly_correlation": spatial.anomaly_correlation(
                ensemble.ensemble_mean(x, **options), y, np.zeros(1), weights=mass, dim=(0, 1, 2), **options
            ),
        }
        for name, value in expected.items():
            assert float(scores[name][k]) == pytest.approx(float(value), rel=1e-12), name
        counts = ensemble.rank_histogram(x, y, mass, ties="uniform", **options)
        np.testing.assert_allclose(scores["rank_frequencies"][k], counts / counts.sum())


def test_event_table_gives_reliability_and_roc():
    forecast, truth, weights = data(missing=False)
    table = streaming.evaluate([streaming.EventTable(threshold=0.1)], forecast, truth, weights, keep_dims=())
    mass = table["event_table_above_0.1"].values
    p = np.tile(np.arange(MEMBERS + 1) / MEMBERS, 2)
    o = np.repeat([0.0, 1.0], MEMBERS + 1)
    everywhere = (forecast.values > 0.1).mean(0), (truth.values > 0.1).astype(float)
    whole = np.broadcast_to(weights.values[:, None], truth.shape).copy()
    for score in (probability.brier_decomposition, probability.roc_auc, probability.roc_curve):
        ours, expected = score(p, o, mass), score(*everywhere, whole)
        np.testing.assert_allclose(np.asarray(ours), np.asarray(expected), rtol=1e-10, atol=1e-12)


def test_names_say_what_one_must_know():
    forecast, truth, _ = data(missing=False)
    scores = streaming.evaluate(every_statistic("propagate"), forecast, truth)
    assert {"crps_fair", "crps_biased", "crps_almost_fair_0.95", "twcrps_above_0.2", "brier_biased_above_0.1"} < set(
        scores
    )
    assert scores["crps_fair"].attrs == {"members": MEMBERS, "nan_policy": "propagate"}
    with pytest.raises(ValueError, match="differ in name"):
        streaming.evaluate([streaming.Crps(), streaming.Crps()], forecast, truth)


def test_dataset_variables_are_kept():
    forecast, truth, weights = data(missing=False)
    both = [xr.Dataset({"t2m": array, "z500": 2 * array}) for array in (forecast, truth)]
    scores = streaming.evaluate([streaming.Crps()], *both, weights)["crps_fair"]
    assert scores.dims == ("variable", "lead")
    np.testing.assert_allclose(scores.sel(variable="z500"), 2 * scores.sel(variable="t2m"))
    alone = streaming.evaluate([streaming.Crps()], forecast, truth, weights)["crps_fair"]
    np.testing.assert_allclose(scores.sel(variable="t2m"), alone)
    pooled = streaming.evaluate([streaming.Crps()], forecast, truth, weights, keep_dims=())["crps_fair"]
    assert float(pooled) == pytest.approx(float(alone.mean()))


def test_nan_policies():
    forecast, truth, _ = data(missing=False)
    truth[0, 1, 2, 3] = math.nan
    assert streaming.evaluate([streaming.Bias()], forecast, truth)["bias"].isnull().values.tolist() == [
        False,
        True,
        False,
    ]
    assert not streaming.evaluate([streaming.Bias(nan_policy="omit")], forecast, truth)["bias"].isnull().any()
    with pytest.raises(ValueError, match="1 NaN"):
        streaming.evaluate([streaming.Bias(nan_policy="raise")], forecast, truth)


def test_mismatches_are_refused():
    forecast, truth, weights = data(missing=False)
    statistic = [streaming.Bias()]
    with pytest.raises(ValueError, match="forecast's dimensions except"):
        streaming.evaluate(statistic, forecast, truth.isel(lead=0))
    with pytest.raises(ValueError, match="weights have dimensions"):
        streaming.evaluate(statistic, forecast, truth, weights.rename(lat="latitude"))
    with pytest.raises(ValueError, match="lead"):
        streaming.evaluate(statistic, forecast, truth.assign_coords(lead=[6, 12, 24]))


JOINT = {
    "energy_score_fair": (EnergyScore, ensemble.energy_score),
    "variogram_score_0.5": (VariogramScore, ensemble.variogram_score),
}


@settings(max_examples=12, deadline=None)
@given(chunkings, chunkings, st.booleans())
def test_joint_scores_with_gaps_equal_the_plain_ones(forecast_chunks, truth_chunks, missing):
    policy = "omit" if missing else "propagate"
    forecast, truth, weights = data(missing)
    truth_chunks.pop("member")
    statistics = [make(nan_policy=policy) for make, _ in JOINT.values()]
    scores = streaming.evaluate(
        statistics, forecast.chunk(forecast_chunks), truth.chunk(truth_chunks), weights, component_dim="lon"
    )
    mass = np.broadcast_to(weights.values, (7, 3, 6))
    for name, (make, score) in JOINT.items():
        values = score(forecast.values, truth.values, nan_policy=policy)
        expected = [spatial.weighted_mean(values[:, k], mass[:, k], nan_policy=policy) for k in range(3)]
        np.testing.assert_allclose(scores[name], expected, rtol=1e-10)
        totals = make(nan_policy=policy).totals(forecast.values, truth.values, mass[..., None], keep=(1,))
        np.testing.assert_allclose(totals.means()[make().name.rsplit("_", 1)[0]], expected, rtol=1e-10)


def test_joint_and_pointwise_statistics_share_one_reading():
    forecast, truth, weights = data(missing=False)
    read, scored = [], []

    class Counted(streaming.Bias):
        def terms(self, members, observed):
            scored.append(1)
            return super().terms(members, observed)

    def load(block: np.ndarray) -> np.ndarray:
        read.append(1)
        return block

    chunked = forecast.chunk(time=1)
    chunked = chunked.copy(data=chunked.data.map_blocks(load, dtype=float, meta=np.empty((0,) * 5)))
    options = {"keep_dims": ("lon", "lead"), "component_dim": "lon"}
    both = streaming.evaluate([streaming.Bias(), EnergyScore()], chunked, truth, weights, **options)
    assert len(read) == SIZES["time"]
    assert both["energy_score_fair"].dims == ("lead",)
    alone = streaming.evaluate([streaming.Bias()], forecast, truth, weights, **options)
    xr.testing.assert_allclose(both[["bias"]], alone, rtol=1e-12)
    assert both["bias"].dims == alone["bias"].dims
    with pytest.raises(ValueError, match="need the dimension 'level'"):
        streaming.evaluate([Counted(), EnergyScore()], chunked, truth, component_dim="level")
    assert not scored
