"""`relent train` in two processes, as a laptop and as `srun` start it: SIGTERM, exit status, resume, equality."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from relent.cli import main
from synthetic_patterns import TASK

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-c", "from relent.cli import run; run()"]
TRAINING = TASK["scales"]["smoke"]["training"] | {"max_steps": 200, "checkpoint_every": 10, "learning_rate": 0.001}
LAPTOP, NODES = {"devices": 2}, {"nodes": 2}


class Project:
    """Manifests whose run has the given execution, and commands on them."""

    def __init__(self, folder: Path, manifests: Path, data: Path, execution: dict):
        shutil.copytree(manifests, folder / "config")
        smoke = TASK["scales"]["smoke"] | {"training": TRAINING, "execution": execution}
        (folder / "config/tasks/patterns.yaml").write_text(yaml.safe_dump(TASK | {"scales": {"smoke": smoke}}))
        self.folder, self.run = folder, folder / "results/patterns/cross_entropy/default/smoke/seed0"
        places = {"manifests": folder / "config", "data": data, "results": folder / "results"}
        self.arguments = ["train", "patterns", "cross_entropy", "--scale", "smoke"]
        self.arguments += [f"--{name}={place}" for name, place in places.items()]

    def start(self, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *self.arguments],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def started(self, by_srun: bool, job: int) -> list[subprocess.Popen[str]]:
        """One process that starts another, or two with the variables that `srun` sets."""
        if not by_srun:
            return [self.start()]
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": str(job)}
        step |= {"SLURM_STEP_NODELIST": "localhost"}
        return [self.start(**step, SLURM_PROCID=str(rank), SLURM_NODEID=str(rank)) for rank in range(2)]

    def wait_for_checkpoint(self, running: list[subprocess.Popen[str]]) -> None:
        deadline = time.monotonic() + 120
        while not list(self.run.glob("checkpoints/*/last.ckpt")):
            if time.monotonic() > deadline or any(process.poll() is not None for process in running):
                for process in running:
                    process.kill()
                raise AssertionError(f"no checkpoint was written: {ended(running)}")
            time.sleep(0.02)


def ended(running: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Exit statuses, and all that was said."""
    said = "".join(process.communicate(timeout=120)[1] for process in running)
    return [process.returncode for process in running], said


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, manifests: Path, patterns: Path) -> dict[str, torch.Tensor]:
    """Weights of the run of one process."""
    project = Project(tmp_path_factory.mktemp("alone"), manifests, patterns, {})
    main(project.arguments)
    return load_file(project.run / "weights.safetensors")


@pytest.mark.parametrize("by_srun", [False, True], ids=["laptop", "srun"])
def test_sigterm_checkpoint_resume_equality(tmp_path, manifests, patterns, alone, by_srun):
    project = Project(tmp_path, manifests, patterns, NODES if by_srun else LAPTOP)
    running = project.started(by_srun, job=os.getpid())
    project.wait_for_checkpoint(running)
    asked = time.monotonic()
    # SLURM sends the signal to every task; one of them alone is enough.
    running[-1].send_signal(signal.SIGTERM)
    statuses, said = ended(running)
    assert time.monotonic() - asked < 60
    assert set(statuses) == {143}, said
    assert "Traceback" not in said
    told = [line for line in said.splitlines() if line.startswith("relent: ")]
    assert len(told) == 1, said
    assert "seed0: stopped by SIGTERM at step" in told[0]
    assert "last.ckpt is of step" in told[0]
    assert not (project.run / "config.json").exists()

    statuses, said = ended(project.started(by_srun, job=os.getpid() + 1))
    assert set(statuses) == {0}, said
    assert said.count("resuming") == 1
    weights = load_file(project.run / "weights.safetensors")
    for name, tensor in alone.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_process_that_dies_ends_the_run_with_its_name(tmp_path, manifests, patterns):
    project = Project(tmp_path, manifests, patterns, LAPTOP)
    running = project.started(by_srun=False, job=0)
    project.wait_for_checkpoint(running)
    main = running[0].pid
    (other,) = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    os.kill(int(other), signal.SIGKILL)
    statuses, said = ended(running)
    assert statuses == [1]
    assert "Traceback" not in said
    assert "seed0: process 1 of 2 was ended by SIGKILL" in said.splitlines()[-1]


def test_no_process_outlives_the_first(tmp_path, manifests, patterns):
    project = Project(tmp_path, manifests, patterns, LAPTOP)
    running = project.started(by_srun=False, job=0)
    project.wait_for_checkpoint(running)
    main = running[0].pid
    (other,) = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    os.kill(main, signal.SIGKILL)
    ended(running)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{other}").exists():
        assert time.monotonic() < deadline, "the second process lives on"
        time.sleep(0.05)
