"""Real ensembles in GRIB: ECMWF's ENS and ERA5's ensemble of data assimilations.

Needs cfgrib and a folder, named by RELENT_WEATHER_SAMPLES, with `ecmwf_ens/z500_ens.grib` (metview-python's
examples) and `era5-levels-members.grib` (tests of cfgrib). One member stands for the truth: it is a draw from the law
of the others, so that ranks and spread must fit.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from relent.verify import scorecard
from relent.verify.command import Choice, verify_stores
from relent.verify.layout import open_dataset
from relent.verify.report import rank_rows, score_rows, spectrum_rows

SAMPLES = Path(os.environ.get("RELENT_WEATHER_SAMPLES", "nowhere"))
ENS, EDA = SAMPLES / "ecmwf_ens" / "z500_ens.grib", SAMPLES / "era5-levels-members.grib"


@pytest.mark.skipif(not ENS.is_file(), reason="RELENT_WEATHER_SAMPLES names no folder with ECMWF's ENS")
def test_ens_against_one_of_its_members(tmp_path: Path) -> None:
    pytest.importorskip("cfgrib")
    ensemble = open_dataset(ENS)
    assert ensemble.sizes["number"] == 51  # control and fifty members, from two kinds of messages
    valid = ensemble["time"].values + ensemble["step"].values
    truth = ensemble.isel(number=7).drop_vars(["number", "time", "step", "valid_time"]).expand_dims(time=[valid])
    truth.to_netcdf(tmp_path / "truth.nc")
    ensemble.isel(number=[m for m in range(51) if m != 7]).to_netcdf(tmp_path / "others.nc")
    found = verify_stores(tmp_path / "others.nc", str(tmp_path / "truth.nc"), Choice())
    assert found.fields[0].level == 500
    values = {row["score"]: row["value"] for row in score_rows(found, None)}
    assert 0.4 < values["spread_skill_ratio"] < 2.5
    assert 100 < values["spread"] < 2000  # m2 s-2: some ten to two hundred metres, at four days
    assert found.lead_hours.tolist() == [96]
    assert len(rank_rows(found)) == 51
    power = [row["truth"] for row in spectrum_rows(found)]
    assert power[0] > 100 * power[-1]


@pytest.mark.skipif(not EDA.is_file(), reason="RELENT_WEATHER_SAMPLES names no folder with ERA5's ensemble")
def test_era5_ensemble_by_variable_level_and_region(tmp_path: Path) -> None:
    pytest.importorskip("cfgrib")
    ensemble = open_dataset(EDA)
    truth = ensemble.isel(number=9).drop_vars(["number", "step", "valid_time"])
    truth.to_netcdf(tmp_path / "truth.nc")
    ensemble.isel(number=slice(0, 9)).to_netcdf(tmp_path / "others.nc")
    found = verify_stores(tmp_path / "others.nc", str(tmp_path / "truth.nc"), Choice())
    assert {field.name for field in found.fields} == {"z 850", "z 500", "t 850", "t 500"}
    rows = [row for row in score_rows(found, None) if row["score"] == "spread_skill_ratio"]
    assert {row["region"] for row in rows} == {"globe", "northern extratropics", "tropics", "southern extratropics"}
    globe = [row["value"] for row in rows if row["region"] == "globe"]
    np.testing.assert_allclose(globe, 1, atol=0.25)
    few = verify_stores(EDA, str(tmp_path / "truth.nc"), Choice(("t",)))  # the truth is among them
    card = scorecard.compare(few, found, ("with", "without"))
    assert card.summary["pairs"] == 2
    assert card.summary["share_better"] == 1
