"""A group of comparisons, asked for by name: planned, refused with file, line and key, made, tracked, reported."""

import json
import sqlite3
from contextlib import closing

import pytest

from .conftest import TASK, SmallProject

pytestmark = pytest.mark.workflow

METHODS = ["knowledge_distillation", "pld"]
GROUP = {
    "title": "Which <objective>?",
    "tasks": ["patterns", "stripes"],
    "goals": {"accuracy": ["accuracy"], "calibration & more": ["ece"]},
    "reference": "knowledge_distillation",
}


def grouped(project: SmallProject, **changes) -> None:
    """Two tasks, neither in the main job, and a group of both."""
    project.write("config/tasks/stripes.yaml", TASK | {"name": "stripes", "title": "The same once more"})
    comparisons = [{"task": task, "methods": METHODS, "main": False} for task in ("patterns", "stripes")]
    group = GROUP | changes
    project.write(
        "config/config.yaml",
        {"scale": "smoke", "seeds": [0, 1], "comparisons": comparisons, "groups": {"which_objective": group}},
    )


def test_a_group_is_planned_by_its_name(project: SmallProject):
    grouped(project)
    jobs = project.planned("which_objective")
    assert jobs["overview"] == jobs["which_objective"] == 1
    assert jobs["page"] == jobs["compare"] == jobs["claims"] == jobs["figures"] == 2
    assert jobs["student"] == jobs["evaluate"] == 2 * 2 * len(METHODS)
    assert jobs["track"] == 0
    only = project.planned("which_objective", "--config", "tasks=stripes")
    assert only["overview"] == only["page"] == 1


def test_a_wrong_group_is_refused_before_any_job(project: SmallProject):
    grouped(project, tasks=["patterns", "stripe"])
    done = project.snakemake("which_objective", check=False)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("relent: ")]
    assert line.startswith("relent: config/config.yaml:")
    assert line.endswith("groups.which_objective.tasks.1: no task 'stripe' (did you mean 'stripes'?)")
    assert done.returncode != 0
    assert not (project.folder / "results").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_group_runs_is_tracked_and_reported(continued: SmallProject):
    """From one task's runs to the group's page; then it is in the store and in the report, and nothing runs again."""
    grouped(continued)
    done = continued.snakemake("which_objective", "--quiet", "all")
    assert "which_objective: better than the baseline" in done.stdout + done.stderr
    folder = continued.folder / "results" / "which_objective"
    overview = json.loads((folder / "overview.json").read_text())
    assert [task["name"] for task in overview["tasks"]] == GROUP["tasks"]
    assert [goal["goal"] for goal in overview["goals"]] == list(GROUP["goals"])
    assert "Which &lt;objective&gt;?" in (folder / "overview.html").read_text()
    assert "calibration & more" in (folder / "overview.csv").read_text()

    shown = " ".join(continued.relent("show", "pld").stdout.split())
    assert "what to use when: which_objective, scale smoke" in shown
    again = continued.relent("overview", "which_objective")
    assert again.returncode == 0, again.stderr

    report = continued.folder / "report.zip"
    continued.snakemake("results/tracking.json", "--quiet", "all")
    with closing(sqlite3.connect(continued.folder / "mlflow" / "mlflow.db")) as store:
        names = {name for (name,) in store.execute("select name from experiments")}
        runs = {name for (name,) in store.execute("select name from runs")}
    assert {"which_objective", "patterns", "stripes"} <= names
    assert "overview smoke" in runs
    continued.snakemake("which_objective", "--report", str(report), "--quiet", "all")
    assert report.stat().st_size > 10_000

    continued.edit("config/config.yaml", "Which <objective>?", "Which one?")
    jobs = continued.planned("which_objective")
    assert jobs["overview"] == 1
    assert not {"compare", "page", "student"} & set(jobs)
