"""A small project that is run as a user of a cluster runs it: `snakemake --profile slurm`, in a home of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from workflow.conftest import BIN, ROOT, SmallProject

from .slurm import MEMORY_MB, MINUTES, processes, run

STEPS = 400
# The executor asks for states after 40 s at the earliest and adds ten seconds to each further pause, up to three
# minutes; a test cannot wait for that. Nothing else differs from the command that a user gives.
SNAKEMAKE = f"""\
#!{sys.executable}
import asyncio
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
RemoteExecutor.sleep = lambda self: asyncio.sleep(1)
from snakemake.cli import main
main()
"""


class ClusterProject(SmallProject):
    """A small project with the profile registered, one method and a training that is long enough to be disturbed."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.add_profile()

    def add_profile(self) -> None:
        """Put the profile for SLURM into the folder, with the limits of this cluster."""
        folder = self.folder
        shutil.copytree(ROOT / "profiles", folder / "profiles", symlinks=True)
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        self.profile("max_mem_mb=256000", f"max_mem_mb={MEMORY_MB}")
        self.profile("max_runtime=1440", f"max_runtime={MINUTES}")
        self.install()

    @classmethod
    def copied(cls, other: ClusterProject, folder: Path) -> ClusterProject:
        """A copy of a project with all that it has made."""
        shutil.copytree(other.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("home", "locks"))
        project = cls.__new__(cls)
        project.folder = folder
        project.install()
        return project

    def install(self) -> None:
        """Put the commands and the registered profile into place."""
        self.workflows: list[Workflow] = []
        for name, text in {
            "snakemake": SNAKEMAKE,
            "relent": f"#!/bin/sh\nexec {sys.executable} -c 'from relent.cli import run; run()' \"$@\"\n",
        }.items():
            (self.folder / "bin" / name).write_text(text)
            (self.folder / "bin" / name).chmod(0o755)
        subprocess.run(["scripts/register_profile.sh"], cwd=self.folder, env=self.environment, check=True)

    @property
    def environment(self) -> dict[str, str]:
        home = self.folder / "home"
        own = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "XDG_CACHE_HOME": str(home / ".cache")}
        clean = {key: value for key, value in super().environment.items() if not key.startswith(("SLURM", "SNAKEMAKE"))}
        return {**clean, **own, "PATH": f"{self.folder / 'bin'}:{BIN}:{os.environ['PATH']}"}

    def profile(self, old: str, new: str) -> None:
        """Change a line of the profile, as a user does."""
        self.edit("profiles/slurm/config.yaml", old, new)

    def scale(self, **changes: dict[str, Any]) -> None:
        """Change the smoke scale of the task: `resources` and `execution` leave the plan of a run of one process."""
        path = "config/tasks/patterns.yaml"
        task = yaml.safe_load((self.folder / path).read_text())
        task["scales"]["smoke"] |= changes
        self.write(path, task)

    def start(self, *arguments: str, **environment: str) -> Workflow:
        """`snakemake --profile slurm`, in the background."""
        command = ["snakemake", "--profile", "slurm", *arguments]
        workflow = Workflow(self, command, {**self.environment, **environment})
        self.workflows.append(workflow)
        return workflow

    def stop(self) -> None:
        """End the workflows that a test has left."""
        for workflow in self.workflows:
            if workflow.process.poll() is None:
                workflow.kill()

    def submit(self, *arguments: str, **environment: str) -> str:
        """`snakemake --profile slurm` to its end, which must be good; returns what it printed."""
        workflow = self.start(*arguments, **environment)
        output = workflow.finish()
        assert workflow.process.returncode == 0, output[-6000:]
        return output

    def target(self, method: str = "pld", seed: int = 0) -> str:
        """The file that marks a run as trained."""
        return str((self.run(method, seed) / "config.json").relative_to(self.folder))

    def log(self, method: str = "pld", seed: int = 0) -> str:
        """What the last job of a run wrote; nothing between two attempts, when Snakemake has removed the first log."""
        path = self.folder / f"logs/student/patterns/{method}/default/smoke/seed{seed}.log"
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        return ""

    def training(self, method: str, seed: int) -> list[int]:
        """Processes that train a run now; `srun`, which starts them, is none."""
        found = processes(lambda words: f"train patterns {method} " in words and f"--seed {seed} " in words)
        return [p for p in found if _place(p) == self.folder and _command(p) not in ("srun", "sh", "bash")]

    def hold(self, method: str = "pld", seed: int = 0, seconds: float = 90) -> list[int]:
        """Stop (SIGSTOP) the processes of a run as soon as it has written a checkpoint; returns them."""
        folder = self.run(method, seed)
        wait(lambda: any(folder.glob("checkpoints/*/last.ckpt")), f"{folder}: no checkpoint", seconds, pause=0.005)
        held = self.training(method, seed)
        signal_all(held, signal.SIGSTOP)
        assert held, f"{folder}: ended before it could be stopped\n{self.log(method, seed)}"
        assert not (folder / "config.json").exists(), "the training is too short to be disturbed"
        return held

    def submitted(self) -> list[str]:
        """Ids of the jobs that the running workflow has submitted (a workflow that ended well has forgotten them)."""
        records = sorted((self.folder / ".snakemake" / "relent-slurm").glob("*"))
        return [job for record in records for job in record.read_text().split()]

    def job(self, rule: str = "student") -> str:
        """Id of the job of a rule that is in SLURM now."""
        found: list[str] = []

        def there() -> bool:
            lines = run("squeue", "-h", "-o", "%i|%Z|%k").splitlines()
            rows = [line.split("|", 2) for line in lines]
            found[:] = [j for j, place, words in rows if place == str(self.folder) and words.startswith(f"rule_{rule}")]
            return bool(found)

        wait(there, f"no job of rule {rule}")
        return found[0]


class WholeProject(ClusterProject):
    """All of this repository's tasks and methods."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("src", "workflow", "envs", "config"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copy(ROOT / "Snakefile", folder / "Snakefile")
        (folder / "bin").mkdir()
        self.add_profile()


class Workflow:
    """A Snakemake that runs in the background, in a process group of its own."""

    def __init__(self, project: ClusterProject, command: list[str], environment: dict[str, str]):
        self.output = project.folder / f"snakemake-{time.monotonic_ns()}.out"
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=project.folder, env=environment, stdout=out, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def finish(self, seconds: float = 300) -> str:
        """Wait for its end; returns what it printed."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"does not end\n{self.text()[-6000:]}") from None
        return self.text()

    def kill(self) -> None:
        """SIGKILL, to all its processes on this machine: a login node that goes down."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")


def wait(condition: Callable[[], Any], trouble: str, seconds: float = 90, pause: float = 0.2) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: It does not come true in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, trouble
        time.sleep(pause)


def signal_all(processes: list[int], number: signal.Signals) -> None:
    """Send a signal to processes that may be gone."""
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def _place(process: int) -> Path | None:
    try:
        return Path(f"/proc/{process}/cwd").readlink()
    except OSError:
        return None


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""
