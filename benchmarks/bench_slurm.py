"""What SLURM costs and how fast a run comes back from a fault, on a SLURM of two nodes on this machine.

    python benchmarks/bench_slurm.py [--small] [--rounds 3] [--only throughput|recovery]

Brings up munge, slurmctld and two slurmd (needs root on Debian; see tests/cluster/slurm.py).

- *throughput*: the small comparison of the tests (three methods, two seeds) through two slurmd, with the executor's own
  pauses between its looks at the queue and with pauses of one second; and the same on this machine without SLURM.
- *a job*: seconds from a SLURM job's start to its end beside the seconds of the command inside.
- *recovery*: from a fault to the line in the run's log that says that training goes on from the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from common import ROOT, Row, print_rows, results_path, write_rows

sys.path.insert(0, str(ROOT / "tests"))
from cluster.project import STEPS, ClusterProject, wait
from cluster.slurm import Slurm, run

METHODS, SEEDS = ["cross_entropy", "knowledge_distillation", "pld"], [0, 1]


def finished(project: ClusterProject, *arguments: str) -> float:
    """Wall seconds of a workflow through SLURM.

    Raises:
        RuntimeError: It failed.
    """
    began = time.perf_counter()
    workflow = project.start(*arguments)
    output = workflow.finish(900)
    if workflow.process.returncode:
        raise RuntimeError(output[-4000:])
    return time.perf_counter() - began


def throughput(folder: Path, small: bool) -> list[Row]:
    project = ClusterProject(folder / "whole")
    project.config(methods=METHODS[:1] if small else METHODS, seeds=SEEDS[:1] if small else SEEDS)
    began = time.perf_counter()
    project.snakemake("--quiet", "all")
    local = time.perf_counter() - began
    jobs = len(list((project.folder / "logs").rglob("*.tsv")))
    rows = [row("throughput", "this machine, 2 cores, no SLURM", "`snakemake --cores 2`", jobs, local)]
    kinds = {"two slurmd, a look each second": "what SLURM and the jobs themselves take"}
    if not small:
        kinds["two slurmd, the executor's pauses"] = "first look after 40 s, then 10 s later each time"
    for name, words in kinds.items():
        other = ClusterProject(folder / name.replace(" ", "-"))
        other.config(methods=METHODS[:1] if small else METHODS, seeds=SEEDS[:1] if small else SEEDS)
        if "pauses" in name:
            (other.folder / "bin" / "snakemake").unlink()
        seconds = finished(other)
        rows.append(row("throughput", name, words, jobs, seconds))
        rows[-1]["overhead_seconds_per_job"] = (seconds - local) / jobs
        if "pauses" not in name:
            rows += [one_job(other)]
    return rows


def row(name: str, contender: str, variant: str, jobs: int, seconds: float) -> Row:
    facts = {"jobs": jobs, "seconds": seconds, "jobs_per_hour": jobs * 3600 / seconds}
    return {"name": name, "contender": contender, "variant": variant, **facts}


def one_job(project: ClusterProject) -> Row:
    """Medians over the training jobs: the SLURM job, and the command in it as its benchmark file tells."""
    spans = []
    for line in run("squeue", "--array", "--states=CD", "-h", "-o", "%i|%Z|%k").splitlines():
        job, place, comment = line.split("|", 2)
        if place == str(project.folder) and comment.startswith("rule_student"):
            facts = dict(
                word.split("=", 1) for word in run("scontrol", "show", "job", "-o", job).split() if "=" in word
            )
            spans.append(
                (datetime.fromisoformat(facts["EndTime"]) - datetime.fromisoformat(facts["StartTime"])).seconds
            )
    inside = [
        float(path.read_text().splitlines()[1].split("\t")[0])
        for path in (project.folder / "logs" / "student").rglob("*.tsv")
    ]
    job, command = statistics.median(spans), statistics.median(inside)
    facts = {
        "jobs": len(spans),
        "seconds": float(job),
        "job_seconds": command,
        "overhead_seconds_per_job": job - command,
    }
    return {"name": "a job", "contender": "training, two at a time on a node", "variant": "start to end", **facts}


# ------------------------------------------------------------------------------------------- recovery


def recovery(slurm: Slurm, folder: Path, rounds: int) -> list[Row]:
    base = ClusterProject(folder / "base")
    base.config(methods=["pld"], seeds=[0])
    base.edit("config/tasks/patterns.yaml", "max_steps: 30\n      batch_size", f"max_steps: {STEPS}\n      batch_size")
    base.snakemake("teachers/patterns/wide/smoke/config.json", "--quiet", "all")
    rows: list[Row] = []
    for name, (words, fault) in FAULTS.items():
        seconds = [once(slurm, base, folder / f"{fault.__name__}{number}", fault) for number in range(rounds)]
        facts = {"rounds": rounds, "seconds": statistics.median(seconds), "slowest_seconds": max(seconds)}
        rows.append({"name": "recovery", "contender": name, "variant": words, **facts})
    return rows


def once(slurm: Slurm, base: ClusterProject, folder: Path, fault: Callable[..., Any]) -> float:
    """Seconds from a fault in the middle of a training until the training goes on."""
    project = ClusterProject.copied(base, folder)
    try:
        workflow = project.start(project.target())
        project.hold()
        began = time.perf_counter()
        workflow = fault(slurm, project, workflow) or workflow
        wait(lambda: "resuming" in project.log(), "does not come back", seconds=400, pause=0.1)
        seconds = time.perf_counter() - began
        output = workflow.finish()
        if workflow.process.returncode:
            raise RuntimeError(output[-4000:])
        return seconds
    finally:
        project.stop()
        slurm.clear()


def cancelled(slurm: Slurm, project: ClusterProject, workflow: Any) -> None:
    run("scancel", project.job())


def pre_empted(slurm: Slurm, project: ClusterProject, workflow: Any) -> None:
    options = ["sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "-t", "5", "-o", "/dev/null"]
    run(*options, "--wrap", "sleep 1")


def dead_node(slurm: Slurm, project: ClusterProject, workflow: Any) -> None:
    job = project.job()
    slurm.fail_node(next(node for i, _, node, _ in slurm.jobs() if i == job))


def killed_snakemake(slurm: Slurm, project: ClusterProject, workflow: Any) -> Any:
    workflow.kill()
    return project.start(project.target())


def killed_training(slurm: Slurm, project: ClusterProject, workflow: Any) -> None:
    for process in project.training("pld", 0):
        os.kill(process, signal.SIGKILL)


def restarted_controller(slurm: Slurm, project: ClusterProject, workflow: Any) -> None:
    slurm.kill("slurmctld")
    time.sleep(5)
    slurm.start_controller()
    run("scancel", project.job())


FAULTS = {
    "killed process": ("SIGKILL of the training, as the kernel does when memory is out", killed_training),
    "scancel": ("the job is cancelled; Snakemake submits it again", cancelled),
    "pre-emption": ("by a job of a second; SLURM requeues", pre_empted),
    "dead node": ("slurmd and the job gone at once; SlurmdTimeout is 10 s here, 300 s by default", dead_node),
    "killed Snakemake": ("SIGKILL, then the same command; the orphaned job is ended first", killed_snakemake),
    "slurmctld away for 5 s": ("and a job that is cancelled right after", restarted_controller),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one round, a main job of one run; replaces no results")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("throughput", "recovery"), help="one part; the other's results stay")
    options = parser.parse_args()
    parts = {
        "throughput": lambda slurm, folder: throughput(folder, options.small),
        "recovery": lambda slurm, folder: recovery(slurm, folder, 1 if options.small else options.rounds),
    }
    path = results_path("slurm", options.small)
    rows: list[Row] = json.loads(path.read_text()) if options.only and path.exists() else []
    with tempfile.TemporaryDirectory() as name, Slurm.up() as slurm:
        for part in [options.only] if options.only else parts:
            rows = [row for row in rows if (row["name"] == "recovery") != (part == "recovery")]
            rows += parts[part](slurm, Path(name))
            write_rows("slurm", rows, options.small, threads=2)  # the rest takes a while
    print_rows(rows, ("name", "contender", "seconds", "jobs", "jobs_per_hour", "overhead_seconds_per_job"))


if __name__ == "__main__":
    main()
