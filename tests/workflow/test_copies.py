"""Copies of a project and of its results, and wrong clocks: what the files hold decides, and not their age."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import SmallProject

pytestmark = pytest.mark.workflow

CODE = ("Snakefile", "bin", "config", "envs", "src", "workflow")
TREES = ("data", "teachers", "results", "mlflow")
MEASURED = ("training_seconds", "peak_memory_mb")
TABLES = {"compare", "claims", "figures", "page", "track", "all"}


def copy(source: SmallProject, folder: Path, *names: str) -> SmallProject:
    """`cp -r`, which gives every file the time of the copy, in the order of the directory."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["cp", "-r", *(str(source.folder / name) for name in names), str(folder)], check=True)
    return SmallProject.at(folder)


def shuffle_ages(project: SmallProject, *names: str) -> None:
    """Date everything into one moment of the past, then what is read after what is made of it."""
    moment = time.time() - 1000
    for name in names:
        for path in (project.folder / name).rglob("*"):
            os.utime(path, (moment, moment))
    for place, later in (("results", 1), ("teachers", 2), ("data", 3)):
        for path in (project.folder / place).rglob("*.json"):
            os.utime(path, (moment + later, moment + later))


def test_copied_project_does_nothing(finished, tmp_path):
    """`cp -r` of the whole folder, Snakemake's records among it."""
    moved = copy(finished, tmp_path / "moved", *CODE, *TREES, "logs", ".snakemake")
    assert moved.planned() == {}
    shuffle_ages(moved, *TREES, "logs")
    assert moved.planned() == {}


def test_archive_unpacked_with_new_ages_does_nothing(finished, tmp_path):
    archive = tmp_path / "project.tar"
    subprocess.run(["tar", "-cf", archive, "-C", finished.folder, "."], check=True)
    (tmp_path / "moved").mkdir()
    subprocess.run(["tar", "-xmf", archive, "-C", tmp_path / "moved"], check=True)
    assert SmallProject.at(tmp_path / "moved").planned() == {}


def test_copied_results_alone_are_not_trained_again(finished, tmp_path):
    """Without Snakemake's records nothing is known of tables and figures; they take seconds. Then one run is lost."""
    moved = copy(finished, tmp_path / "moved", *CODE, *TREES)
    shuffle_ages(moved, *TREES)
    assert set(moved.planned()) == TABLES
    shutil.rmtree(moved.run("pld", 1))
    jobs = moved.planned()
    assert set(jobs) == TABLES | {"student", "student pld 1", "evaluate", "evaluate pld 1"}
    kept = (moved.run("pld", 0) / "weights.safetensors").read_bytes()
    lost = moved.run("pld", 1).relative_to(moved.folder) / "scores.json"
    moved.snakemake("--quiet", "all", "--", str(lost))
    assert set(moved.planned()) == TABLES
    for seed in (0, 1):
        mine, theirs = moved.scores("pld", seed), finished.scores("pld", seed)
        assert all(mine.pop(name) > 0 and theirs.pop(name) > 0 for name in MEASURED)
        assert mine == theirs
    assert (moved.run("pld", 0) / "weights.safetensors").read_bytes() == kept


def test_copied_results_of_other_settings_are_not_kept(finished, tmp_path):
    """Snakemake without records would take them for what is asked for."""
    moved = copy(finished, tmp_path / "moved", *CODE, *TREES)
    moved.edit(
        "config/methods/distillation/pld.yaml",
        "hyperparameters: {}}\n  cifar100",
        "hyperparameters: {teacher_temperature: 2.0}}\n  cifar100",
    )
    jobs = moved.planned()
    assert jobs["student"] == jobs["evaluate"] == 2
    assert jobs["student pld 0"] == jobs["student pld 1"] == 1


def test_teacher_put_in_from_elsewhere_trains_its_students_again(finished, tmp_path):
    """A teacher of the same plan that was trained another time is another file than its students have read."""
    moved = copy(finished, tmp_path / "moved", *CODE, *TREES)
    path = moved.folder / "teachers/patterns/wide/smoke/config.json"
    config = json.loads(path.read_text())
    config["facts"]["training_seconds"] += 1
    path.write_text(json.dumps(config))
    jobs = moved.planned()
    assert jobs["teacher"] == 0
    assert jobs["student"] == 4
    assert jobs["student cross_entropy 0"] == 0
    assert jobs["evaluate"] == 6


@pytest.mark.parametrize("moment", ["2001-01-01", "2038-01-01"])
def test_wrong_clock_neither_trains_nor_fails(finished, tmp_path, moment):
    """Everything is dated into the past or the future; then a run is added, whose inputs are younger than now."""
    moved = copy(finished, tmp_path / "moved", *CODE, *TREES, "logs", ".snakemake")
    trees = [str(moved.folder / name) for name in (*TREES, "logs")]
    subprocess.run(["find", *trees, "-exec", "touch", "-h", "-d", moment, "{}", "+"], check=True)
    assert moved.planned() == {}
    if moment > "2030":
        scores = moved.run("cross_entropy", 2).relative_to(moved.folder) / "scores.json"
        moved.snakemake("--quiet", "all", "--", str(scores))
        assert (moved.folder / scores).is_file()


# The command ends by `os._exit`, which waits for no clean-up of the libraries.
JUMP = """
import os, pathlib, sys, time

def end(status, end=os._exit):
    marker = pathlib.Path("jump")
    if marker.exists() and "train" in sys.argv:
        marker.unlink()
        written = list(pathlib.Path("results").rglob("seed2/*"))
        for path in written:
            os.utime(path, (time.time() - 7200,) * 2)
        pathlib.Path("jumped").write_text(" ".join(path.name for path in written))
    end(status)

os._exit = end
"""


def test_clock_that_jumps_back_during_a_job_costs_nothing(finished, tmp_path):
    """What a training wrote is dated two hours before its inputs: it counts, is scored and not trained again."""
    moved = copy(finished, tmp_path / "moved", *CODE, *TREES, "logs", ".snakemake")
    (moved.folder / "src" / "sitecustomize.py").write_text(JUMP)
    (moved.folder / "jump").touch()
    scores = str(moved.run("cross_entropy", 2).relative_to(moved.folder) / "scores.json")
    moved.snakemake("--quiet", "all", "--", scores)
    assert "config.json" in (moved.folder / "jumped").read_text()
    assert (moved.folder / scores).is_file()
    assert moved.planned("--", scores) == {}
