"""A workflow that is stopped, killed, started twice, or whose code is edited while jobs wait."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from .conftest import SmallProject

pytestmark = pytest.mark.workflow

RUN = ("--config", "methods=pld", "seeds=[0]", "--")


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come in time"
        time.sleep(0.02)


def training(project: SmallProject) -> list[int]:
    """Processes that train in this project, Snakemake's shells left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            here = os.readlink(entry / "cwd") == str(project.folder)
        except OSError:
            continue
        if here and b"train" in words and words[0].rpartition(b"/")[2].startswith(b"python"):
            found.append(int(entry.name))
    return found


def checkpoint(project: SmallProject) -> bool:
    return any(project.run("pld").glob("checkpoints/*/last.ckpt"))


def log(project: SmallProject) -> str:
    return (project.folder / "logs/student/patterns/pld/default/smoke/seed0.log").read_text()


@pytest.fixture
def interrupted(taught: SmallProject):
    """A project whose only long training is in the middle; what still runs afterwards is ended."""
    taught.long_training(4000)
    target = str(taught.run("pld").relative_to(taught.folder) / "config.json")
    process = taught.start(*RUN, target)
    wait_for(lambda: checkpoint(taught))
    yield taught, process, target
    for number in [process.pid, *training(taught)]:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def send(project: SmallProject, number: int) -> None:
    for process in training(project):
        os.kill(process, number)


def test_killed_and_started_again_ends_with_the_same_weights(interrupted):
    """Two Snakemakes at once; the first is killed and its job lives on; the job is killed; the same command goes on."""
    project, first, target = interrupted
    send(project, signal.SIGSTOP)
    second = project.snakemake(*RUN, target, check=False)
    assert second.returncode != 0
    assert "Directory cannot be locked" in second.stderr
    assert first.poll() is None, "the first is unharmed"

    first.kill()
    first.wait()
    assert training(project), "a killed Snakemake leaves its job at work"
    third = project.snakemake(*RUN, target, check=False)
    assert "relent: an earlier Snakemake was killed in this folder; its lock is removed" in third.stderr
    assert third.returncode != 0
    (line,) = log(project).splitlines()
    assert "is training this run already" in line

    send(project, signal.SIGKILL)
    wait_for(lambda: not training(project), 30)
    assert not (project.run("pld") / "config.json").exists()
    assert not (project.run("pld") / "weights.safetensors").exists()
    project.snakemake("--quiet", "all", *RUN, target)
    assert "resuming" in log(project)
    assert not (project.run("pld") / "checkpoints").exists()
    reference = project.folder / "reference"
    done = project.relent("train", "patterns", "pld", "--scale", "smoke", "--results", str(reference))
    assert done.returncode == 0, done.stderr
    resumed = load_file(project.run("pld") / "weights.safetensors")
    other = load_file(reference / "patterns/pld/default/smoke/seed0/weights.safetensors")
    assert other.keys() == resumed.keys()
    assert all((other[name] == resumed[name]).all() for name in other)


def test_terminated_workflow_leaves_a_checkpoint(interrupted):
    """SIGTERM to all of a session, as a machine that is shut down sends it."""
    project, process, _ = interrupted
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) != 0
    assert time.monotonic() - began < 30
    assert not training(project)
    assert checkpoint(project)
    assert not (project.run("pld") / "weights.safetensors").exists()
    (line,) = (line for line in log(project).splitlines() if "stopped by SIGTERM" in line)
    assert "results/patterns/pld/default/smoke/seed0" in line


def test_code_that_is_edited_while_jobs_wait_is_not_mixed(taught: SmallProject):
    """One run trains while a shared module is edited: no other starts, and the next call runs all anew."""
    taught.long_training(2000)
    taught.config(methods=["cross_entropy", "pld"], seeds=[0, 1])
    process = taught.start("--keep-going", "--config", "methods=pld")
    wait_for(lambda: any(taught.folder.glob("results/patterns/pld/default/smoke/seed*/checkpoints/*/last.ckpt")))
    taught.edit(
        "src/relent/divergences/ranking.py", "    steps = left - chosen\n", "    steps = 1.0 * (left - chosen)\n"
    )
    assert process.wait(200) != 0
    whole = list(taught.folder.glob("results/patterns/pld/default/smoke/seed*/weights.safetensors"))
    assert len(whole) == 1, "the run that trained when the code was edited; no other has begun"
    refused = [
        path
        for path in (taught.folder / "logs").rglob("*.log")
        if "changed after this job was planned" in path.read_text()
    ]
    assert any("student" in path.parts for path in refused)
    assert not list(taught.folder.glob("results/patterns/*.csv"))
    jobs = taught.planned("--config", "methods=pld")
    assert jobs["student pld 0"] == jobs["student pld 1"] == 1


def test_evaluation_and_comparison_refuse_other_code_than_planned(finished: SmallProject):
    """The steps after training are checked in the same way."""
    folder = str(finished.run("pld").relative_to(finished.folder))
    runs = [str(finished.run(method).relative_to(finished.folder)) for method in ("pld", "cross_entropy")]
    kept = {path: path.stat().st_mtime_ns for path in (finished.folder / "results").rglob("*") if path.is_file()}
    for command in (
        ("evaluate", folder),
        ("compare", "patterns", *runs),
        ("claims", "patterns", *runs),
        ("figures", "patterns", *runs),
        ("page", "results/patterns"),
        ("prepare", "patterns", "--scale", "smoke"),
    ):
        done = finished.relent(*command, "--code", "0123456789abcdef")
        assert done.returncode == 1, command
        (line,) = done.stderr.splitlines()
        assert "code changed after this job was planned" in line
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_signals_of_these_tests_reach_only_their_own_processes(tmp_path):
    """`training` finds nothing in a folder where nothing trains."""
    sleeping = subprocess.Popen(["sleep", "30"], cwd=tmp_path)
    try:
        assert training(SmallProject.at(tmp_path)) == []
    finally:
        sleeping.kill()
        sleeping.wait()
