"""The scorecard: who wins, what is significant, and how often it cries wolf."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import stores
from click.testing import CliRunner

from relent.cli import cli
from relent.errors import ConfigError, DataError
from relent.scores.streaming import Totals
from relent.verify import report, scorecard
from relent.verify.command import Choice, verify_stores
from relent.verify.engine import FieldScores, Verification
from relent.verify.statistics import entries


def verified(truth_path: Path, folder: Path, **options: float) -> Verification:
    path = stores.written(stores.forecast(**options), folder / f"{len(list(folder.iterdir()))}.zarr")  # type: ignore[arg-type]
    return verify_stores(path, str(truth_path), Choice())


def test_a_better_forecast_wins_every_pair_and_significantly(truth_path: Path, tmp_path: Path) -> None:
    good, bad = verified(truth_path, tmp_path, error=0.3), verified(truth_path, tmp_path, seed=2, error=0.6)
    card = scorecard.compare(good, bad, ("good", "bad"))
    assert len(card.rows) == 9
    assert card.summary["share_better"] == 1
    assert (card.summary["share_low"], card.summary["share_high"]) == (1, 1)
    assert card.summary["significantly_better"] == 9
    assert all(row["low"] < row["difference"] < row["high"] < 0 for row in card.rows)
    back = scorecard.compare(bad, good, ("bad", "good"))
    assert back.summary["significantly_worse"] == 9
    assert "good has the lower crps in 100.0% of 9 pairs" in scorecard.in_words(card.summary)
    assert "Holm over 9 pairs" in scorecard.in_words(card.summary)


def test_a_forecast_against_itself_has_no_difference(truth_path: Path, tmp_path: Path) -> None:
    one = verified(truth_path, tmp_path)
    card = scorecard.compare(one, one, ("a", "b"), score="rmse", region="tropics")
    assert {row["verdict"] for row in card.rows} == {"no difference"}
    assert all(row["difference"] == 0 and row["p_holm"] == 1 for row in card.rows)


def synthetic(values: np.ndarray) -> Verification:
    """A verification whose CRPS by field and initial time (F, I) is given, at one lead."""
    fields = []
    for number, series in enumerate(values):
        totals = {"crps": Totals({"crps": series[:, None, None]}, {"crps": np.ones((series.size, 1, 1))})}
        entry = entries(2, None)[:1]
        fields.append(FieldScores(f"x{number}", None, "", "", entry, totals, {}, None))
    times = stores.START + np.arange(values.shape[1]) * stores.STEP
    return Verification(fields, {"globe": np.ones(1)}, times, np.array([stores.STEP]), 2, np.empty(0), "")


def test_equal_forecasts_are_rarely_called_different_though_times_are_alike() -> None:
    """Differences of AR(1) in time (0.5), 20 fields: the share of cards with any finding is near 5 %, not 60 %."""
    generator = np.random.default_rng(0)
    n, cards, fields, wrong, naive = 120, 60, 20, 0, 0
    for _ in range(cards):
        noise = generator.normal(size=(2, fields, n))
        for t in range(1, n):
            noise[..., t] += 0.5 * noise[..., t - 1]
        one, two = (synthetic(10 + part) for part in noise)
        counts = scorecard.compare(one, two, ("a", "b")).summary
        wrong += counts["significantly_better"] + counts["significantly_worse"] > 0
        counts = scorecard.compare(one, two, ("a", "b"), block_length=1).summary
        naive += counts["significantly_better"] + counts["significantly_worse"] > 0
    assert wrong / cards < 0.25
    assert naive / cards > 0.4


def test_pairs_are_compared_on_common_cases_alone(truth_path: Path, tmp_path: Path) -> None:
    whole = verified(truth_path, tmp_path)
    part = stores.forecast().isel(time=slice(3, 20), prediction_timedelta=slice(0, 2), level=[1])
    other = verify_stores(stores.written(part, tmp_path / "part.zarr"), str(truth_path), Choice())
    card = scorecard.compare(whole, other, ("whole", "part"))
    assert {row["variable"] for row in card.rows} == {"mean_sea_level_pressure", "temperature 500"}
    assert {row["lead_hours"] for row in card.rows} == {12.0, 24.0}
    assert all(row["cases"] == 17 and row["difference"] == pytest.approx(0, abs=1e-12) for row in card.rows)


def test_ensembles_of_other_sizes_are_comparable(truth_path: Path, tmp_path: Path) -> None:
    """The fair CRPS of five and of twenty members of one law do not differ; the biased one would, by 15 %."""
    small, large = verified(truth_path, tmp_path), verified(truth_path, tmp_path, members=20)
    card = scorecard.compare(small, large, ("5", "20"))
    assert card.summary["members"] == {"a": 5, "b": 20}
    assert np.abs([row["relative"] for row in card.rows]).max() < 0.08


def test_what_cannot_be_compared_is_refused(truth_path: Path, tmp_path: Path) -> None:
    one = verified(truth_path, tmp_path)
    with pytest.raises(ConfigError, match="less is better, not 'bias'"):
        scorecard.compare(one, one, ("a", "b"), score="bias")
    with pytest.raises(ConfigError, match="no region 'moon'"):
        scorecard.compare(one, one, ("a", "b"), region="moon")
    late = stores.forecast().assign_coords(time=stores.forecast()["time"] + stores.STEP / 2)
    known = stores.truth().assign_coords(time=stores.truth()["time"] + stores.STEP / 2)
    folder = tmp_path / "late"
    folder.mkdir()
    truth = stores.written(known, folder / "t.nc")
    other = verify_stores(stores.written(late, folder / "f.zarr"), str(truth), Choice())
    with pytest.raises(DataError, match="against different truths"):
        scorecard.compare(one, other, ("a", "b"))
    other.settings.clear()
    with pytest.raises(DataError, match="no variable, lead and initial time in common"):
        scorecard.compare(one, other, ("a", "b"))


def test_commands_write_their_files(truth_path: Path, forecast_path: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    options = ["--variable", "temperature", "--climatology", "2018-01-01", "2018-01-10", "--percentile", "90"]
    done = runner.invoke(
        cli,
        ["verify", str(forecast_path), str(truth_path), "--out", str(tmp_path / "a"), *options],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    assert "temperature 500 24 h: CRPS" in done.output
    worse = stores.written(stores.forecast(error=0.8), tmp_path / "worse.zarr")
    command = [
        "scorecard",
        str(tmp_path / "a"),
        str(worse),
        "--truth",
        str(truth_path),
        "--out",
        str(tmp_path / "card"),
    ]
    done = runner.invoke(cli, [*command, "--score", "twcrps_above_p90", *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert "a has the lower twcrps_above_p90 in 100.0% of 6 pairs" in done.output
    content = json.loads((tmp_path / "card" / "scorecard.json").read_text())
    with (tmp_path / "card" / "scorecard.csv").open(newline="") as handle:
        assert len(list(csv.DictReader(handle))) == len(content["pairs"]) == 6
    assert (tmp_path / "card" / "scorecard.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(DataError, match="give --truth"):
        runner.invoke(cli, [*command[:3], "--out", str(tmp_path / "c")], catch_exceptions=False)
    assert report.read(tmp_path / "a").settings["percentiles"] == [90]
