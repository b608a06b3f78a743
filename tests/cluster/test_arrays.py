"""Job arrays: like runs are one submission, unlike ones are not, and each task lives and dies alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from .conftest import assert_undisturbed
from .project import ClusterProject
from .slurm import Slurm, run
from .test_faults import facts

pytestmark = pytest.mark.timeout(400)


def students(project: ClusterProject) -> dict[str, str]:
    """Id of each training job that SLURM remembers → number of its array, or its own."""
    lines = run("squeue", "--array", "--states=all", "-h", "-o", "%i|%F|%Z|%k").splitlines()
    rows = [line.split("|", 3) for line in lines]
    return {job: base for job, base, place, words in rows if place == str(project.folder) and "rule_student" in words}


def test_like_runs_are_one_array(project: ClusterProject, slurm: Slurm) -> None:
    """Two methods that ask for the same, and one that asks for more; a task that is cancelled is submitted alone."""
    path = "config/methods/distillation/dkd.yaml"
    method = yaml.safe_load((project.folder / path).read_text())
    method["resources"] = {"smoke": {"mem_mb": 1500, "runtime": 5, "threads": 1}}
    project.write(path, method)
    project.config(methods=["cross_entropy", "pld", "dkd"], seeds=[0, 1])
    workflow = project.start()
    held = project.hold(seconds=200)
    jobs = students(project)
    assert sorted(Counter(jobs.values()).values()) == [2, 4]
    shared = Counter(jobs.values()).most_common(1)[0][0]
    memory = {base: facts(job)["MinMemoryNode"] for job, base in jobs.items()}
    assert sorted(memory.values()) == ["2000M", "2500M"]
    tasks = [job for job, base in jobs.items() if base == shared]
    assert set(project.submitted()) >= set(jobs)
    mine = task_of(held[0])
    assert mine in tasks
    run("scancel", mine)
    output = workflow.finish(seconds=380)
    assert workflow.process.returncode == 0, output[-4000:]
    again = {job: base for job, base in students(project).items() if job not in jobs}
    assert len(again) == 1
    (job,) = again
    assert "_" not in job
    assert facts(job)["MinMemoryNode"] == "4500M"
    states = {task: facts(task)["JobState"] for task in tasks}
    assert states == {task: "CANCELLED" if task == mine else "COMPLETED" for task in tasks}
    assert "resuming" in project.log()
    assert_undisturbed(project)


def task_of(process: int) -> str:
    """The array's task that a process belongs to."""
    words = Path(f"/proc/{process}/environ").read_text().split("\0")
    values = dict(word.split("=", 1) for word in words if "=" in word)
    return f"{values['SLURM_ARRAY_JOB_ID']}_{values['SLURM_ARRAY_TASK_ID']}"
