"""What befalls jobs on a cluster: a run ends with the weights of an undisturbed one, or fails with words that help."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

from .conftest import assert_undisturbed
from .project import ClusterProject, signal_all, wait
from .slurm import NODES, Slurm, run

OUTAGE_S = float(os.environ.get("RELENT_OUTAGE_S", 65))
"""How long SLURM cannot be asked: longer than the executor waits for one answer."""
pytestmark = pytest.mark.timeout(280 + OUTAGE_S)


# The real command, except that it says it cannot: once before (`refused`) or after (`lost`) a submission,
# or for a time.
BUSY = """\
#!/bin/sh
cd {folder}
if [ {name} = sbatch ] && [ -e refused ]; then
    rm refused; echo 'sbatch: error: Batch job submission failed: Unexpected message received' >&2; exit 1
fi
if [ {name} = sbatch ] && [ -e lost ]; then
    rm lost; /usr/bin/sbatch "$@" > /dev/null
    echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1
fi
if [ -e busy ]; then
    echo '{name}: error: Unable to contact slurm controller (connect failure)' >&2; exit 1
fi
exec /usr/bin/{name} "$@"
"""

# A method whose memory grows in the middle of its training, for longer than SLURM takes to see it.
HUNGRY = '''\
"""Cross-entropy that takes 1 GB in the middle of its training."""

import time

from relent.methods.config import MethodConfig
from relent.methods.distillation.cross_entropy import CrossEntropy


class Config(MethodConfig):
    """That of cross-entropy."""


class Hungry(CrossEntropy):
    """Cross-entropy."""

    def training_step(self, batch, batch_idx):
        """One step."""
        if self.global_step == 200:
            eaten = bytearray(2**30)
            time.sleep(4)
            del eaten
        return super().training_step(batch, batch_idx)
'''


def ended(project: ClusterProject) -> list[str]:
    """Ids of all training jobs of a project that SLURM remembers, in the order of their submission."""
    rows = [line.split("|", 2) for line in run("squeue", "--states=all", "-h", "-o", "%i|%Z|%k").splitlines()]
    jobs = [j for j, place, words in rows if place == str(project.folder) and words.startswith("rule_student")]
    return sorted(jobs, key=int)


def facts(job: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    words = run("scontrol", "show", "job", "-o", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


@pytest.mark.parametrize("command", ["sacct", "squeue"])
def test_cancelled_job_is_submitted_again_and_resumes(project: ClusterProject, command: str) -> None:
    """With SLURM's accounting, and without."""
    workflow = project.start(project.target(), "--slurm-arrays-status-command", command)
    project.hold()
    run("scancel", project.job())
    output = workflow.finish()
    assert workflow.process.returncode == 0, output[-4000:]
    assert "resuming" in project.log()
    assert_undisturbed(project)


def test_preempted_job_is_requeued_by_slurm_alone(project: ClusterProject, slurm: Slurm) -> None:
    workflow = project.start(project.target())
    project.hold()
    job = project.job()
    urgent = ["sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "-t", "5", "-o", "/dev/null"]
    other = run(*urgent, "--wrap", "sleep 300").strip()
    wait(lambda: facts(job)["Restarts"] == "1", "not pre-empted")
    wait(lambda: facts(other)["JobState"] == "RUNNING", "the urgent job does not start")
    assert project.submitted() == [job]
    run("scancel", other)
    output = workflow.finish()
    assert workflow.process.returncode == 0, output[-4000:]
    assert "Error" not in output
    assert [i for i, *_ in slurm.jobs()] == []
    assert facts(job)["JobState"] == "COMPLETED"
    assert "resuming" in project.log()
    assert_undisturbed(project)


def test_dead_node(project: ClusterProject, slurm: Slurm) -> None:
    workflow = project.start(project.target())
    project.hold()
    job = project.job()
    first = facts(job)["NodeList"]
    slurm.fail_node(first)
    output = workflow.finish()
    assert workflow.process.returncode == 0, output[-4000:]
    other = next(node for node in NODES if node != first)
    assert (facts(job)["NodeList"], facts(job)["Restarts"]) == (other, "1")
    assert "Error" not in output
    assert "resuming" in project.log()
    assert_undisturbed(project)


def test_time_limit(project: ClusterProject) -> None:
    """The limit is reached, the training is told to end, and the next attempt has twice the time."""
    project.profile("""  - slurm_extra="'--signal=TERM@60'"\n""", "")
    project.scale(resources={"runtime": 1, "mem_mb": 1000})
    workflow = project.start(project.target())
    project.hold()
    job = project.job()
    output = workflow.finish()
    assert workflow.process.returncode == 0, output[-4000:]
    # "COMPLETING" comes between, until the node has reported that nothing of the job is left.
    wait(lambda: facts(job)["JobState"] != "COMPLETING", f"job {job} is still COMPLETING")
    assert facts(job)["JobState"] == "TIMEOUT"
    assert "'TIMEOUT'" in output
    second = next(other for other in ended(project) if other != job)
    assert (facts(job)["TimeLimit"], facts(second)["TimeLimit"]) == ("00:01:00", "00:02:00")
    assert "resuming" in project.log()
    assert_undisturbed(project)


def test_warning_before_the_time_limit_reaches_the_training(project: ClusterProject) -> None:
    """A job that is told to end a minute before its limit has this minute for its checkpoint."""
    project.scale(resources={"runtime": 2, "mem_mb": 1000})
    workflow = project.start(project.target())
    project.hold()
    job = project.job()
    assert facts(job)["TimeLimit"] == "00:02:00"
    output = workflow.finish()
    assert workflow.process.returncode == 0, output[-4000:]
    assert facts(job)["JobState"] == "FAILED"
    assert "resuming" in project.log()
    assert_undisturbed(project)


def test_memory_limit(slurm: Slurm, prepared: ClusterProject, tmp_path: Path) -> None:
    """A training that grows is killed by SLURM for its memory, and has more at the next attempt."""
    project = ClusterProject.copied(prepared, tmp_path / "project")
    (project.folder / "mine").mkdir()
    (project.folder / "mine" / "hungry.py").write_text(HUNGRY)
    method = yaml.safe_load((project.folder / "config/methods/distillation/cross_entropy.yaml").read_text())
    method |= {"name": "hungry", "implementation": "hungry.py:Hungry", "claims": []}
    project.write("mine/hungry.yaml", method)
    project.config(methods=["hungry"], seeds=[0], plugins=["mine"])
    project.scale(resources={"mem_mb": 700, "runtime": 10})
    target = project.target("hungry")
    project.snakemake(target.replace("results/", "alone/"), "--quiet", "all", "--config", "results=alone")
    output = project.submit(target)
    jobs = ended(project)
    assert len(jobs) > 1
    assert facts(jobs[0])["MinMemoryNode"] == "1200M"
    assert facts(jobs[1])["MinMemoryNode"] == "1900M"
    log = project.folder / f".snakemake/slurm_logs/rule_student/patterns_hungry_default_smoke_0/{jobs[0]}.log"
    assert "exceeded memory limit" in log.read_text()
    assert "Error in rule student" in output
    assert "resuming" in project.log("hungry")
    alone = load_file(project.folder / "alone/patterns/hungry/default/smoke/seed0/weights.safetensors")
    ours = load_file(project.run("hungry") / "weights.safetensors")
    assert all((alone[name] == ours[name]).all() for name in alone)


def test_failure_names_the_run_and_the_log(project: ClusterProject) -> None:
    project.profile("retries: 3", "retries: 0")
    workflow = project.start(project.target())
    project.hold()
    run("scancel", project.job())
    output = workflow.finish()
    assert workflow.process.returncode == 1
    assert "SLURM status is: 'CANCELLED'" in output
    assert project.target() in output
    assert "logs/student/patterns/pld/default/smoke/seed0.log" in output
    assert "SIGTERM" in project.log()
    assert not (project.run("pld") / "config.json").exists()


def test_snakemake_killed_while_its_job_runs(project: ClusterProject, slurm: Slurm) -> None:
    """The job that is left is ended, with a checkpoint, before the run is submitted again."""
    workflow = project.start(project.target())
    project.hold()
    job = project.job()
    workflow.kill()
    output = project.submit(project.target())
    assert f"1 SLURM jobs of an earlier workflow in this folder are cancelled: {job}" in output
    assert facts(job)["JobState"] == "CANCELLED"
    assert len(ended(project)) == 2
    assert "resuming" in project.log()
    assert_undisturbed(project)


def test_job_that_ends_while_no_snakemake_looks_is_not_trained_again(project: ClusterProject) -> None:
    workflow = project.start(project.target())
    held = project.hold()
    job = project.job()
    workflow.kill()
    signal_all(held, signal.SIGCONT)
    wait(lambda: facts(job)["JobState"] == "COMPLETED", "does not end")
    before = (project.run("pld") / "weights.safetensors").stat()
    project.submit(project.target())
    assert ended(project) == [job]
    assert (project.run("pld") / "weights.safetensors").stat().st_ino == before.st_ino
    assert_undisturbed(project)


def test_busy_slurm(project: ClusterProject, slurm: Slurm) -> None:
    """A submission whose answer is lost is not given twice; a status that cannot be had for long loses no job."""
    project.profile("# - slurm_account=project  ", "- slurm_account=lab  ")
    for name in ("sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo", "sacctmgr", "sshare"):
        path = project.folder / "bin" / name
        path.write_text(BUSY.format(folder=project.folder, name=name))
        path.chmod(0o755)
    (project.folder / "refused").touch()
    (project.folder / "lost").touch()
    workflow = project.start(project.target())
    held = project.hold()
    job = project.job()
    assert project.submitted() == [job]
    (project.folder / "busy").touch()
    slurm.kill("slurmdbd")
    signal_all(held, signal.SIGCONT)
    wait(lambda: facts(job)["JobState"] == "COMPLETED", "does not end")
    time.sleep(OUTAGE_S)
    (project.folder / "busy").unlink()
    slurm.start_accounting()
    output = workflow.finish()
    assert workflow.process.returncode == 0, output[-4000:]
    assert set(ended(project)) <= {job}  # after ten minutes SLURM has forgotten it
    assert "Error" not in output
    assert_undisturbed(project)
