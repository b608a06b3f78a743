"""The whole comparison through SLURM, against the same on this machine; runs of several nodes; GPUs."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from .project import ClusterProject, WholeProject, Workflow, wait
from .slurm import Slurm, run

pytestmark = pytest.mark.timeout(400)
MEASURED = {"training_seconds", "peak_memory_mb"}  # of the machine and not of the method
METHODS = ["cross_entropy", "knowledge_distillation", "pld"]


def scores(folder: Path) -> dict[str, dict[str, float]]:
    """Run → its scores."""
    files = sorted(folder.glob("*/*/*/smoke/seed*/scores.json"))
    found = {str(path.parent.relative_to(folder)): json.loads(path.read_text())["scores"] for path in files}
    return {run: {name: value for name, value in own.items() if name not in MEASURED} for run, own in found.items()}


def table(folder: Path) -> list[dict[str, str]]:
    """Rows of a comparison, without the numbers that are of the machine."""
    with (folder / "comparison.csv").open() as handle:
        rows = [row for row in csv.DictReader(handle) if row["metric"] not in MEASURED]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def test_comparison_equals_the_local_one_number_for_number(slurm: Slurm, tmp_path: Path) -> None:
    project = ClusterProject(tmp_path / "project")
    project.config(methods=METHODS, seeds=[0])
    project.snakemake("--quiet", "all")
    for name in ("results", "teachers"):
        (project.folder / name).rename(project.folder / f"local-{name}")
    output = project.submit()
    ours, local = project.folder / "results", project.folder / "local-results"
    assert len(scores(ours)) == len(METHODS)
    assert scores(ours) == scores(local)
    assert table(ours / "patterns") == table(local / "patterns")
    assert json.loads((ours / "patterns/claims.json").read_text()) == json.loads(
        (local / "patterns/claims.json").read_text()
    )
    assert (ours / "patterns/comparison.html").is_file()
    assert (ours / "tracking.json").is_file()
    assert "best Accuracy" in output
    ended = run("squeue", "--states=all", "-h", "-o", "%T|%k|%Z").splitlines()
    jobs = [line.split("|")[:2] for line in ended if line.endswith(str(project.folder))]
    assert {state for state, _ in jobs} == {"COMPLETED"}
    assert sum(words.startswith("rule_student") for _, words in jobs) == len(METHODS)
    assert "Nothing to be done" in project.submit()


@pytest.mark.timeout(3600)
def test_main_job_equals_the_local_one_number_for_number(slurm: Slurm, tmp_path: Path) -> None:
    """All that plain `snakemake` runs, at smoke scale: every method of the main job, on images and weather."""
    project = WholeProject(tmp_path / "project")
    smoke = ("--config", "scale=smoke", "seeds=[0]")
    alone = Workflow(project, ["snakemake", "--cores", "2", *smoke], project.environment)
    output = alone.finish(seconds=1500)
    assert alone.process.returncode == 0, output[-6000:]
    for name in ("results", "teachers"):
        (project.folder / name).rename(project.folder / f"local-{name}")
    workflow = project.start(*smoke)
    output = workflow.finish(seconds=3000)
    assert workflow.process.returncode == 0, output[-6000:]
    ours, local = project.folder / "results", project.folder / "local-results"
    assert len(scores(local)) > 20
    assert scores(ours) == scores(local)
    for task in ("images", "weather_isentropic"):
        assert table(ours / task) == table(local / task)
    lines = run("squeue", "--array", "--states=all", "-h", "-o", "%F|%k|%Z").splitlines()
    jobs = [line.split("|")[0] for line in lines if "rule_student" in line and line.endswith(str(project.folder))]
    assert len(set(jobs)) < len(jobs) / 2


def test_two_nodes_equal_one_process(project: ClusterProject, slurm: Slurm) -> None:
    """Two processes on two nodes, killed in the middle and resumed, with the same global batch as one process."""
    project.scale(execution={"nodes": 2, "devices": 1, "strategy": "ddp"})
    workflow = project.start(project.target())
    held = project.hold(seconds=120)
    assert len(held) == 2
    job = project.job()
    assert re.search(r"NumNodes=2 .*NumTasks=2 ", run("scontrol", "show", "job", "-o", job))
    run("scancel", job)
    output = workflow.finish()
    assert workflow.process.returncode == 0, output[-4000:]
    assert "resuming" in project.log()
    config = json.loads((project.run("pld") / "config.json").read_text())
    assert config["execution"]["nodes"] == 2
    ours = load_file(project.run("pld") / "weights.safetensors")
    reference = load_file(project.folder / "reference" / "weights.safetensors")
    for name, value in reference.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-3, atol=2e-4, err_msg=name)


def test_gpus_come_from_the_manifest_and_their_type_from_the_profile(project: ClusterProject, slurm: Slurm) -> None:
    project.profile("# - gpu_type=a100  ", "- gpu_type=fake  ")
    project.profile("# - gpu_partition=gpu  ", "- gpu_partition=main  ")
    project.scale(resources={"gpus": 1, "mem_mb": 1000, "threads": 1})
    workflow = project.start(project.target())
    wait(lambda: project.job(), "no job")
    facts = run("scontrol", "show", "job", "-o", project.job())
    assert "gpu:fake:1" in facts.replace("gres:", "").replace("gres/", "")
    assert "Partition=main" in facts
    workflow.finish()
    assert workflow.process.returncode == 0, workflow.text()
    project.scale(resources={"gpus": 9, "mem_mb": 1000, "threads": 1})
    refused = project.start("-n")
    output = refused.finish()
    assert refused.process.returncode != 0
    assert "asks for 9 GPUs a node, the profile says that a node has 8" in output
    assert "Traceback" not in output
