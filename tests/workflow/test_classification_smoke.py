"""The whole group `classification` at smoke scale: every method on every real task, scored, compared and summed up.

The commands of the workflow's rules, one after the other in this process, so that a run costs no start.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from relent.cli import main as relent
from relent.errors import RelentError
from relent.manifest.catalogue import Catalogue
from relent.project import Project

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with folders of its own, whose group has been run."""
    place = tmp_path_factory.mktemp("classification")
    folders = {name: str(place / name) for name in ("data", "teachers", "results")}
    values = {"scale": "smoke", "seeds": [0], **folders}
    project = Project.load(values, file=ROOT / "config" / "config.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalogue, "load", lambda *_: project.catalogue)  # which every command would read again
        patch.setenv("RELENT_MANIFESTS", str(ROOT / "config"))
        for name, folder in folders.items():
            patch.setenv(f"RELENT_{name.upper()}", folder)
        _run(project)
    return project


def _run(project: Project) -> None:
    tasks = project.groups()["classification"]
    for source in sorted({name for task in tasks for name in project.catalogue.tasks[task].sources}):
        try:
            relent(["fetch", source])
        except RelentError as error:
            pytest.skip(f"the real data cannot be had here: {error}")
    for comparison in project.comparisons:
        if comparison.task in tasks:
            _compare(project, comparison.task, [project.run_folder(run) for run in comparison.runs], comparison.runs)
    relent(["overview", "classification", "--settings", project.overview_json("classification")])


def _compare(project: Project, task: str, folders: list[str], runs) -> None:
    relent(["prepare", task, "--scale", "smoke"])
    teachers = project.catalogue.tasks[task].teachers
    for teacher in teachers:
        relent(["train", task, "--teacher", teacher, "--scale", "smoke"])
    for run, folder in zip(runs, folders, strict=True):
        for stage in project.catalogue.methods[run.method].stages:
            options = ["--variant", run.variant, "--scale", "smoke", "--seed", "0", "--stage", stage]
            relent(["train", task, run.method, *options])
        taught = [project.layout.teacher(task, next(iter(teachers)), "smoke")] if teachers else []
        dataset = project.layout.dataset(task, "smoke")
        relent(["evaluate", folder, "--dataset", dataset, *(f"--teacher-outputs={t}" for t in taught)])
    for command in ("compare", "claims", "figures"):
        relent([command, task, *folders])
    relent(["page", project.layout.comparison(task)])


def test_every_run_has_a_finite_primary_score(group):
    runs = [run for c in group.comparisons if c.task in group.groups()["classification"] for run in c.runs]
    assert len({run.method for run in runs}) == 23
    for run in runs:
        scores = json.loads(Path(group.run_folder(run), "scores.json").read_text())["scores"]
        assert math.isfinite(scores[group.catalogue.tasks[run.task].primary_metric])


def test_runs_are_scored_by_what_their_task_lists_and_by_nothing_else(group):
    for comparison in group.comparisons:
        if comparison.task in group.groups()["classification"]:
            folders = [Path(group.run_folder(run)) for run in comparison.runs]
            made = {name for folder in folders for name in json.loads((folder / "scores.json").read_text())["scores"]}
            assert made == group.catalogue.tasks[comparison.task].metrics.keys(), comparison.task


def test_every_claim_finds_its_metric_and_its_baseline(group):
    """One seed decides nothing, but every claim that a comparison can check is there with a difference."""
    checked = set()
    for task in group.groups()["classification"]:
        for claim in json.loads(Path(group.layout.comparison(task), "claims.json").read_text()):
            if claim["difference"] is not None:
                checked.add(claim["label"].partition(":")[0])
    papers = {"pld", "bd_kd", "nd_loss", "nkd", "uskd", "lelp", "sinkd", "z_loss", "opl", "harmonic", "saf", "mesa"}
    assert papers | {"done_at"} <= checked


def test_the_page_of_the_group_names_every_method(group):
    page = Path(group.overview("classification")).read_text()
    for comparison in group.comparisons:
        if comparison.task in group.groups()["classification"]:
            for run in comparison.runs:
                assert run.method in page
