"""Scores equal direct computations; regions, gaps, intervals and files are as they say."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import stores
import torch
import xarray as xr

from relent.errors import DataError
from relent.grid import Topology
from relent.scores.resampling import block_counts, replicate_interval, replicates
from relent.scores.streaming import Crps, Totals
from relent.verify import report
from relent.verify.command import Choice, run_verify, verify_stores
from relent.verify.engine import Verification
from relent.verify.regions import Region, region_weights
from relent.verify.statistics import spectra, wavenumbers

PERIOD = ("2018-01-01", "2018-01-10")
Key = tuple[str, str, float]


@pytest.fixture(scope="module")
def found(forecast_path: Path, truth_path: Path) -> Verification:
    return verify_stores(forecast_path, str(truth_path), Choice(period=PERIOD, percentiles=(10, 90)))


@pytest.fixture(scope="module")
def values(found: Verification) -> dict[Key, float]:
    rows = report.score_rows(found, None)
    return {(r["score"], r["region"], r["lead_hours"]): r["value"] for r in rows if r["level"] == 500.0}


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Members (I, M, H, W) and truth (I, H, W) of temperature at 500 hPa and 24 h, weights (I, H, W)."""
    members = stores.forecast()["temperature"].values[:, 1, :, 1].astype(float)
    true = stores.truth()["temperature"].values[2 : 2 + stores.N_INIT, 1].astype(float)
    weights = np.broadcast_to(np.cos(np.deg2rad(stores.LATITUDE))[:, None], true.shape)
    return members, true, weights


def test_scores_equal_a_direct_computation(
    values: dict[Key, float], arrays: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    members, true, weights = arrays

    def mean(points: np.ndarray) -> float:
        return float(np.average(points, weights=weights))

    size, error = members.shape[1], members.mean(1) - true
    pairs = np.abs(members[:, :, None] - members[:, None]).sum((1, 2)) / (2 * size * (size - 1))
    rmse, spread = np.sqrt(mean(error**2)), np.sqrt(mean(members.var(1, ddof=1)))
    climate = stores.truth()["temperature"].sel(time=slice(*PERIOD), level=500).values.astype(float)
    cut = np.percentile(climate, 90, axis=(0, 2))[:, None]  # few steps: the points of a row together
    share, event = (members > cut).mean(1), true > cut
    above = np.maximum(members, cut), np.maximum(true, cut)
    chained = np.abs(above[0][:, :, None] - above[0][:, None]).sum((1, 2)) / (2 * size * (size - 1))
    f, o = members.mean(1) - climate.mean(0), true - climate.mean(0)
    expected = {
        "crps": mean(np.abs(members - true[:, None]).mean(1) - pairs),
        "rmse": rmse,
        "bias": mean(error),
        "spread": spread,
        "spread_skill_ratio": np.sqrt((size + 1) / size) * spread / rmse,
        "brier_above_p90": mean((share - event) ** 2 - share * (1 - share) / (size - 1)),
        "twcrps_above_p90": mean(np.abs(above[0] - above[1][:, None]).mean(1) - chained),
        "anomaly_correlation": mean(f * o) / np.sqrt(mean(f**2) * mean(o**2)),
    }
    for name, value in expected.items():
        assert values[name, "globe", 24.0] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    low = np.percentile(climate, 10, axis=(0, 2))[:, None]
    share, event = (members < low).mean(1), true < low
    below = mean((share - event) ** 2 - share * (1 - share) / (size - 1))
    assert values["brier_below_p10", "globe", 24.0] == pytest.approx(below, rel=1e-5)


def test_regions_are_boxes_with_the_date_line_inside(
    forecast_path: Path, truth_path: Path, arrays: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    choice = Choice(variables=("temperature",), regions=("pacific=-50,50,120,-120", "north=0,90"))
    rows = report.score_rows(verify_stores(forecast_path, str(truth_path), choice), None)
    members, true, weights = arrays
    inside = (np.abs(stores.LATITUDE) <= 50)[:, None] & ((stores.LONGITUDE >= 120) & (stores.LONGITUDE <= 240))
    error = np.average((members.mean(1) - true) ** 2, weights=weights * inside)
    row = next(
        r for r in rows if (r["region"], r["score"], r["level"], r["lead_hours"]) == ("pacific", "rmse", 500.0, 24.0)
    )
    assert row["value"] == pytest.approx(np.sqrt(error), rel=1e-6)
    assert {r["region"] for r in rows} == {"pacific", "north"}


def test_official_reduction_takes_one_root_at_the_end(tmp_path: Path) -> None:
    """tpys/FuXi-ENS, eval.py: two times with an RMSE of 1 and 3 give √5, not 2; poles weigh nothing."""
    latitude = np.array([90.0, 45, 0, -45, -90])
    times = stores.START + np.arange(3) * stores.STEP
    zonal = np.array([3.0, 1, 2, 1, 3])
    grid = {"latitude": latitude, "longitude": [0.0, 90, 180, 270]}

    def rmse(errors: list[np.ndarray]) -> float:
        known = xr.Dataset({"t": (("time", "latitude", "longitude"), np.zeros((3, 5, 4)))}, {"time": times, **grid})
        members = np.stack([np.broadcast_to(e[:, None], (5, 4)) for e in errors])[:, None, None].repeat(2, axis=2)
        dims = ("time", "step", "number", "latitude", "longitude")
        coordinates = {"time": times[: len(errors)], "step": [stores.STEP.astype("timedelta64[ns]")], **grid}
        given = xr.Dataset({"t": (dims, members)}, coordinates)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        paths = stores.written(given, folder / "f.zarr"), stores.written(known, folder / "t.nc")
        rows = report.score_rows(verify_stores(paths[0], str(paths[1]), Choice()), None)
        return float(next(r["value"] for r in rows if r["score"] == "rmse" and r["region"] == "globe"))

    assert rmse([zonal]) == pytest.approx(1.4975448865, abs=1e-9)
    assert rmse([np.ones(5), 3 * np.ones(5)]) == pytest.approx(2.2360679775, abs=1e-9)


def test_spread_skill_and_brier_of_two_cases(tmp_path: Path) -> None:
    """Members {0, 2, 4} and {1, 1, 4}, truth 1 and 3, by hand; the event is above 1.5, the 90th percentile."""
    times = stores.START + np.arange(12) * stores.STEP
    series = np.array([0.0, 1, 3, *[1.5] * 9])
    grid = {"latitude": [0.0], "longitude": [0.0]}
    known = xr.Dataset({"t": (("time", "latitude", "longitude"), series[:, None, None])}, {"time": times, **grid})
    members = np.array([[0.0, 2, 4], [1, 1, 4]])[:, None, :, None, None]
    dims = ("time", "step", "number", "latitude", "longitude")
    given = xr.Dataset(
        {"t": (dims, members)}, {"time": times[:2], "step": [stores.STEP.astype("timedelta64[ns]")], **grid}
    )
    paths = stores.written(given, tmp_path / "f.zarr"), stores.written(known, tmp_path / "t.nc")
    choice = Choice(period=(str(times[3]), str(times[11])), percentiles=(90,))
    rows = report.score_rows(verify_stores(paths[0], str(paths[1]), choice), None)
    values = {row["score"]: row["value"] for row in rows}
    assert values["spread"] == pytest.approx(1.8708286934, abs=1e-9)
    assert values["rmse"] == pytest.approx(1.0)
    assert values["spread_skill_ratio"] == pytest.approx(2.1602468995, abs=1e-9)
    assert values["brier_above_p90"] == pytest.approx(1 / 3)


def test_calibrated_members_score_as_the_law_says(tmp_path: Path) -> None:
    """N(0, 1) members and truth: fair CRPS 1/√π, spread-skill 1, flat ranks; bounds are four standard errors."""
    known = stores.truth()
    generator = np.random.default_rng(5)
    given = stores.forecast(of=known)
    for name in given.data_vars:
        shift = 250 if name == "temperature" else 1e5
        given[name].values[:] = shift + generator.normal(size=given[name].shape)
    found = verify_stores(
        stores.written(given, tmp_path / "f.zarr"),
        str(stores.written(known, tmp_path / "t.nc")),
        Choice(("temperature",)),
    )
    rows = [r for r in report.score_rows(found, None) if r["region"] == "globe"]
    crps = [r["value"] for r in rows if r["score"] == "crps"]
    assert np.mean(crps) == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)
    assert np.mean([r["value"] for r in rows if r["score"] == "spread_skill_ratio"]) == pytest.approx(1, abs=0.02)
    ranks = report.rank_rows(found)
    shares = np.array([r["frequency"] for r in ranks]).reshape(-1, stores.MEMBERS + 1)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares.mean(0), 1 / 6, atol=0.02)


def test_reliability_is_the_share_of_events_by_forecast_probability(
    found: Verification, arrays: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    members, true, weights = arrays
    climate = stores.truth()["temperature"].sel(time=slice(*PERIOD), level=500).values.astype(float)
    cut = np.percentile(climate, 90, axis=(0, 2))[:, None]
    rows = [
        row
        for row in report.reliability_rows(found)
        if (row["variable"], row["lead_hours"], row["event"]) == ("temperature 500", 24.0, "above_p90")
    ]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    for row in rows:
        chosen = np.isclose((members > cut).mean(1), row["probability"])
        assert row["frequency"] == pytest.approx(np.average(true > cut, weights=weights * chosen), abs=1e-6)


# ------------------------------------------------------------------------------------------------ gaps


def test_points_and_pairs_without_truth_or_members_do_not_count(tmp_path: Path) -> None:
    known, given = stores.truth(), stores.forecast()
    known["temperature"].values[:, :, :3] = np.nan  # land, say
    given["temperature"].values[4] = np.nan  # an initial time that was not written
    given["temperature"].values[5, 0, 2, :, 6] = np.nan  # a member with a gap
    known = known.isel(time=np.delete(np.arange(known.sizes["time"]), 9))
    paths = stores.written(given, tmp_path / "f.zarr"), stores.written(known, tmp_path / "t.nc")
    rows = report.score_rows(verify_stores(paths[0], str(paths[1]), Choice(("temperature",))), None)
    members, steps = stores.forecast()["temperature"].values, np.arange(stores.N_INIT)[:, None] + [1, 2, 3]
    true = stores.truth()["temperature"].values[steps]
    weights = np.cos(np.deg2rad(stores.LATITUDE))[:, None] * np.ones(true.shape)
    weights[:, :, :, :3] = 0
    weights[4] = 0
    weights[5, 0, :, 6] = 0
    weights[steps == 9] = 0
    for lead in range(3):
        row = next(
            r for r in rows if r["score"] == "rmse" and r["lead_hours"] == 12 * (lead + 1) and r["level"] == 850.0
        )
        error = (members[:, lead, :, 0].mean(1) - true[:, lead, 0]) ** 2
        assert row["value"] == pytest.approx(np.sqrt(np.average(error, weights=weights[:, lead, 0])), rel=1e-6)
        assert row["cases"] == stores.N_INIT - 2
        assert row["coverage"] < 0.75


def test_a_forecast_without_any_known_point_is_refused(truth_path: Path, tmp_path: Path) -> None:
    given = stores.forecast() * np.nan
    with pytest.raises(DataError, match="no point of any forecast is known together with its truth"):
        verify_stores(stores.written(given, tmp_path / "f.zarr"), str(truth_path), Choice())


# ------------------------------------------------------------------------------------------------ blocks and bands


@pytest.mark.parametrize(("block", "band"), [(1, 10**9), (10**9, 1000)])
def test_how_a_forecast_is_cut_changes_nothing(
    block: int, band: int, found: Verification, forecast_path: Path, truth_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relent.verify.engine.BLOCK_BYTES", block)
    monkeypatch.setattr("relent.verify.engine.BAND_BYTES", band)
    choice = Choice(("mean_sea_level_pressure",), period=PERIOD, percentiles=(10, 90))
    other = verify_stores(forecast_path, str(truth_path), choice)
    for first, second in zip(found.fields[:1], other.fields, strict=True):
        for kind in ("by_init", "pooled"):
            for name, total in getattr(first, kind).items():
                for term, sums in total.sums.items():
                    np.testing.assert_allclose(getattr(second, kind)[name].sums[term], sums, rtol=1e-10, atol=1e-10)
                    np.testing.assert_allclose(
                        getattr(second, kind)[name].weights[term], total.weights[term], rtol=1e-12, atol=1e-12
                    )


# ------------------------------------------------------------------------------------------------ intervals and files


def test_intervals_come_from_blocks_of_initial_times(found: Verification) -> None:
    how = report.Resampling(resamples=499, block_length=3.0)
    row = next(
        r
        for r in report.score_rows(found, how)
        if (r["score"], r["region"], r["level"], r["lead_hours"]) == ("crps", "globe", 500.0, 24.0)
    )
    totals = next(f for f in found.fields if f.level == 500.0).by_init["crps"]
    series = totals.sums["crps"][:, 1, 0] / totals.weights["crps"][:, 1, 0]
    counts = block_counts(series.size, 3.0, 499, seed=report.SEED)
    means = replicates(Totals({"x": series}, {"x": np.ones(series.size)}), counts, lambda means: means["x"])
    expected = replicate_interval(float(series.mean()), means, series.size, 3.0)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert row["low"] < row["value"] < row["high"]
    assert row["block_length"] == 3.0


def test_few_initial_times_have_no_interval(truth_path: Path, tmp_path: Path) -> None:
    path = stores.written(stores.forecast().isel(time=slice(7)), tmp_path / "few.zarr")
    rows = report.score_rows(verify_stores(path, str(truth_path), Choice()), report.Resampling())
    assert all(row["low"] is None and row["high"] is None for row in rows)


def test_files_hold_what_was_computed_and_totals_come_back(
    forecast_path: Path, truth_path: Path, tmp_path: Path
) -> None:
    how = report.Resampling(resamples=199)
    rows = run_verify(forecast_path, str(truth_path), Choice(period=PERIOD, percentiles=(10, 90)), how, tmp_path)
    with (tmp_path / "scores.csv").open(newline="") as handle:
        stored = list(csv.DictReader(handle))
    assert len(stored) == len(rows)
    assert float(stored[0]["value"]) == rows[0]["value"]
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["scores"] == rows
    assert content["settings"]["crps_estimator"] == "fair"
    assert "block bootstrap" in content["settings"]["intervals"]
    assert report.score_rows(report.read(tmp_path), how) == rows
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    assert made == {"spread_skill.png", "spectra.png", "rank_histograms.png", "reliability.png"}
    assert all((tmp_path / "figures" / name).read_bytes()[:4] == b"\x89PNG" for name in made)
    with pytest.raises(DataError, match="is no verification"):
        report.read(tmp_path / "figures")


def test_one_member_is_scored_by_its_absolute_error(truth_path: Path, tmp_path: Path) -> None:
    path = stores.written(stores.forecast(members=1), tmp_path / "one.zarr")
    found = verify_stores(path, str(truth_path), Choice())
    assert found.settings["crps_estimator"] == "absolute error (one member)"
    rows = report.score_rows(found, None)
    assert not {"spread", "spread_skill_ratio"} & {row["score"] for row in rows}
    error = np.abs(
        stores.forecast(members=1)["temperature"][:, 0, 0, 1].values - stores.truth()["temperature"][1:25, 1].values
    )
    weights = np.cos(np.deg2rad(stores.LATITUDE))[:, None] * np.ones(error.shape)
    row = next(r for r in rows if r["score"] == "crps" and r["level"] == 500.0)
    assert row["value"] == pytest.approx(np.average(error, weights=weights), rel=1e-5)


# ------------------------------------------------------------------------------------------------ regions of scores


def test_region_totals_equal_totals_of_each_region() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    members, true = draw(4, 6, 5), draw(6, 5)
    members[2, 0, 0] = torch.nan
    weights = torch.stack([torch.rand(6, 5), torch.zeros(6, 5)])
    weights[1, 3:] = 1
    for policy in ("propagate", "omit"):
        statistic = Crps(nan_policy=policy)  # type: ignore[arg-type]
        together = statistic.region_totals(members, true, weights)
        assert np.isnan(together.sums["crps"][0]) == (policy == "propagate")
        single = statistic.totals(members[:, 3:], true[3:], weights[1, 3:])
        assert together.sums["crps"][1] == pytest.approx(float(single.sums["crps"]), rel=1e-12)
        assert together.weights["crps"][1] == pytest.approx(float(single.weights["crps"]))
    with pytest.raises(ValueError, match=r"weights of regions must be \(R, 6, 5\)"):
        Crps().region_totals(members, true, weights[0])


def test_weights_of_regions() -> None:
    weights = region_weights(None, stores.LATITUDE, stores.LONGITUDE, Topology.globe)
    assert list(weights) == ["globe", "northern extratropics", "tropics", "southern extratropics"]
    assert weights["tropics"][:, 0].astype(bool).tolist() == [False] * 3 + [True] + [False] * 3
    torus = region_weights(None, stores.LATITUDE, stores.LONGITUDE, Topology.torus)
    assert list(torus) == ["domain"]
    assert (torus["domain"] == 1).all()
    assert Region.parse("a=-1,2").mask(np.array([0.0]), np.array([200.0])).all()


# ------------------------------------------------------------------------------------------------ spectra


def test_spectra_find_a_wave_and_keep_the_variance_of_noise() -> None:
    latitude, longitude = np.linspace(-60, 60, 9), np.arange(48) * 7.5
    wave = np.cos(np.deg2rad(5 * longitude)) * np.ones((9, 1))
    totals = spectra(np.stack([wave, 2 * wave]), 3 * wave, latitude, longitude, Topology.globe)
    numbers, unit = wavenumbers(latitude, longitude, Topology.globe)
    assert unit == "zonal wavenumber"
    assert numbers[totals.sums["truth"].argmax()] == 5
    assert totals.sums["truth"][5] == pytest.approx(4.5)
    assert totals.sums["member"][5] == pytest.approx((0.5 + 2) / 2)
    assert totals.sums["mean"][5] == pytest.approx(1.5**2 / 2)
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(40, 24, 30))
    region = np.linspace(40, 60, 24), np.linspace(-20, 20, 30)
    for topology in (Topology.regional, Topology.torus):
        power = spectra(noise, noise[0], *region, topology).sums["member"]
        assert power.sum() == pytest.approx(1, abs=0.03), topology
    plane = np.arange(24.0)[:, None] + 3 * np.arange(30.0)
    flat = spectra(plane[None], plane, *region, Topology.regional)
    assert flat.sums["truth"].max() < 1e-20
    gap = noise.copy()
    gap[0, 0, 0] = np.nan
    assert spectra(gap, noise[0], *region, Topology.regional).weights["truth"].max() == 0
