"""A small project in a folder of its own: manifests, one synthetic data set without a network, Snakemake to run it."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from synthetic_patterns import TASK as PATTERNS
from synthetic_patterns import copy_methods

from . import forked

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# A data module that needs no network, in a package of its own copy: what the other tests use, with `prepare`.
PREPARE = '''

def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write the patterns."""
    write_patterns(out, classes=4, each=options["per_class"], size=8, seed=seed)
'''
SMOKE = {
    "data": {"per_class": 50},
    "model": {"network": "mlp", "hidden": [8, 8]},
    "training": {"max_steps": 30, "batch_size": 16, "learning_rate": 0.01, "checkpoint_every": 5},
}
TASK = PATTERNS | {"data_module": "relent.data.patterns", "scales": {"smoke": SMOKE}}


class SmallProject:
    """A copy of the workflow whose code and manifests a test may change."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copytree(ROOT / "workflow", folder / "workflow")
        shutil.copytree(ROOT / "envs", folder / "envs")
        copy_methods(ROOT / "config", folder / "config")
        shutil.copy(ROOT / "Snakefile", folder / "Snakefile")
        generator = (ROOT / "tests" / "synthetic_patterns.py").read_text() + PREPARE
        (folder / "src" / "relent" / "data" / "patterns.py").write_text(generator)
        (folder / "config" / "tasks").mkdir()
        self.write("config/tasks/patterns.yaml", TASK)
        self.config(methods=["cross_entropy", "knowledge_distillation", "pld"], seeds=[0, 1])
        profile = folder / "bin"
        profile.mkdir()
        relent = profile / "relent"
        relent.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from relent.cli import main; main()' \"$@\"\n")
        relent.chmod(0o755)

    @classmethod
    def at(cls, folder: Path) -> "SmallProject":
        """The project that a folder holds already."""
        project = cls.__new__(cls)
        project.folder = folder
        return project

    def copy(self, folder: Path) -> "SmallProject":
        """The project with all that it has made, once more."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        return SmallProject.at(folder)

    def write(self, name: str, values: dict) -> None:
        (self.folder / name).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def config(self, methods: list[str], seeds: list[int], **more) -> None:
        comparisons = [{"task": "patterns", "methods": methods}]
        self.write("config/config.yaml", {"scale": "smoke", "seeds": seeds, "comparisons": comparisons, **more})

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        path.write_text(text.replace(old, new))

    @property
    def environment(self) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = f"{self.folder / 'bin'}:{BIN}:{os.environ['PATH']}"
        return {
            **os.environ,
            **threads,
            "PATH": path,
            "PYTHONPATH": str(self.folder / "src"),
            "XDG_CACHE_HOME": str(self.folder),
        }

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        arguments = ("--cores", "2", "--show-failed-logs", *arguments)
        if "-n" in arguments:
            done = forked.snakemake(arguments, self.folder, self.environment)
        else:
            command = [str(BIN / "snakemake"), *arguments]
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=280
            )
        if check and done.returncode:
            raise AssertionError(done.stdout[-3000:] + done.stderr[-6000:])
        return done

    def start(self, *arguments: str) -> subprocess.Popen:
        """Snakemake in a session of its own, to be stopped by a test."""
        output = (self.folder / "snakemake.out").open("w")
        return subprocess.Popen(
            [str(BIN / "snakemake"), "--cores", "1", *arguments],
            cwd=self.folder,
            env=self.environment,
            start_new_session=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def long_training(self, steps: int) -> None:
        """Make every run (not the teacher) as long as a test needs to interfere."""
        task = yaml.safe_load((self.folder / "config/tasks/patterns.yaml").read_text())
        task["scales"]["smoke"]["training"] |= {"max_steps": steps, "checkpoint_every": 50}
        task["teachers"]["wide"]["training"]["smoke"]["checkpoint_every"] = SMOKE["training"]["checkpoint_every"]
        self.write("config/tasks/patterns.yaml", task)

    def planned(self, *arguments: str) -> Counter:
        """Jobs that a dry run would run: one entry a rule, and one a rule with its method and seed."""
        done = self.snakemake("-n", *arguments)
        jobs: Counter = Counter()
        rule = ""
        for line in done.stdout.splitlines() + done.stderr.splitlines():
            if line.startswith(("rule ", "localrule ")):
                rule = line.split()[1].rstrip(":")
                jobs[rule] += 1
            elif line.strip().startswith("wildcards:") and "method=" in line:
                values = dict(part.strip().split("=") for part in line.split(":", 1)[1].split(","))
                jobs[f"{rule} {values['method']} {values['seed']}"] += 1
        return jobs

    def relent(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(self.folder / "bin" / "relent"), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
        )

    def scores(self, method: str, seed: int = 0) -> dict:
        return json.loads((self.run(method, seed) / "scores.json").read_text())["scores"]

    def run(self, method: str, seed: int = 0) -> Path:
        return self.folder / "results" / "patterns" / method / "default" / "smoke" / f"seed{seed}"


@pytest.fixture
def project(tmp_path: Path) -> SmallProject:
    """A fresh small project."""
    return SmallProject(tmp_path)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> SmallProject:
    """A small project whose main job has run, for all processes that share the tests; not to be changed."""
    place = tmp_path_factory.getbasetemp()
    folder = (place if worker_id == "master" else place.parent) / "made"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            project = SmallProject(tmp_path_factory.mktemp("making"))
            project.snakemake("--quiet", "all")
            project.folder.rename(folder)
    return SmallProject.at(folder)


@pytest.fixture(scope="session")
def finished(made: SmallProject, tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    """The finished project; tests of partial reruns restore what they change."""
    return made.copy(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def continued(made: SmallProject, tmp_path: Path) -> SmallProject:
    """The finished project in a folder of the test's own, which goes on from there."""
    return made.copy(tmp_path)


@pytest.fixture
def taught(made: SmallProject, project: SmallProject) -> SmallProject:
    """A small project with its data and its teacher, and no run."""
    for name in ("data", "teachers"):
        shutil.copytree(made.folder / name, project.folder / name)
    return project
