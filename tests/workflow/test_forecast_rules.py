"""Forecasts, their verification and fine-tuning, asked of Snakemake by the names of their files."""

import csv
import json
import shutil

import pytest
import xarray as xr

from .conftest import ROOT, SmallProject

pytestmark = pytest.mark.workflow

RUNS = "results/weather_twin/{}/{}/smoke/seed0"


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    """A project with the weather tasks; the twin needs no download."""
    project = SmallProject(tmp_path_factory.mktemp("twin"))
    shutil.copytree(ROOT / "config/methods/weather", project.folder / "config/methods/weather")
    shutil.copytree(ROOT / "config/sources", project.folder / "config/sources")
    for task in (ROOT / "config/tasks").glob("weather_*.yaml"):
        shutil.copy(task, project.folder / "config/tasks")
    methods = ["damped_persistence", "fuxi_ens"]
    comparisons = [{"task": "weather_twin", "methods": methods}]
    project.write("config/config.yaml", {"scale": "smoke", "seeds": [0], "comparisons": comparisons})
    return project


def test_a_verification_makes_data_run_and_forecast(twin: SmallProject) -> None:
    run = RUNS.format("fuxi_ens", "default")
    wanted = f"{run}/verification-3steps-4members/scores.csv"
    assert dict(twin.planned(wanted)) == {
        "prepare": 1,
        "student": 1,
        "student fuxi_ens 0": 1,
        "forecast": 1,
        "forecast fuxi_ens 0": 1,
        "verify": 1,
        "verify fuxi_ens 0": 1,
    }
    twin.snakemake("--quiet", "all", "--", wanted)
    with xr.open_zarr(twin.folder / run / "forecast-3steps-4members.zarr", consolidated=False) as forecast:
        assert forecast.sizes["lead_time"] == 3
        assert forecast.sizes["member"] == 4
    with (twin.folder / wanted).open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["score"] == "crps"]
    assert len(rows) == 2 * 3  # layers and leads
    assert all(0 < float(row["value"]) < 2 for row in rows)
    assert list((twin.folder / run / "verification-3steps-4members/figures").glob("*.png"))
    assert twin.planned(wanted) == {}


def test_more_members_need_another_forecast_and_no_training(twin: SmallProject) -> None:
    jobs = twin.planned(f"{RUNS.format('fuxi_ens', 'default')}/verification-3steps-6members/scores.csv")
    assert {rule for rule in jobs if " " not in rule} == {"forecast", "verify"}


def test_fine_tunings_read_one_training(twin: SmallProject) -> None:
    variants = ("rollout_1", "rollout_4", "rollout_truncated")
    wanted = [f"{RUNS.format('fuxi_ens', variant)}/config.json" for variant in variants]
    jobs = twin.planned(*wanted)
    assert jobs["student"] == len(variants)  # the single-step training is there already
    twin.snakemake("--quiet", "all", "--", wanted[1])
    own = json.loads((twin.folder / wanted[1]).read_text())
    before = json.loads((twin.folder / RUNS.format("fuxi_ens", "default") / "config.json").read_text())
    assert own["upstream"] == {"start": before["plan"]}
    assert own["hyperparameters"]["max_steps"] == before["hyperparameters"]["max_steps"] // 4
    assert twin.planned(wanted[1]) == {}
    task = "config/tasks/weather_twin.yaml"
    twin.edit(task, "max_steps: 40", "max_steps: 44")
    jobs = twin.planned(wanted[1])
    assert jobs["student fuxi_ens 0"] == 2  # what was fine-tuned is trained anew, and so is what it starts from
