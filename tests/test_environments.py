"""Conda environments and the container recipe: their pins, and the workflow with them.

Small commands stand in the place of conda and apptainer: Snakemake calls them as it calls the real ones, and they note
how, and run the job with this Python.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from workflow.conftest import SmallProject

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("cpu", "gpu")


def pins(lines: list[str]) -> dict[str, str]:
    return dict(line.strip().lower().split("==") for line in lines if "==" in line)


def dependencies(kind: str) -> tuple[list[str], list[str]]:
    """What conda installs, and what pip does."""
    environment = yaml.safe_load((ROOT / "envs" / f"{kind}.yaml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    return [item for item in environment["dependencies"] if isinstance(item, str)], pip


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("kind", KINDS)
def test_conda_environment_agrees_with_the_constraints(kind):
    conda, pip = dependencies(kind)
    packages = [line for line in pip if not line.startswith("--")]
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    assert packages
    assert all(constraints[name] == version for name, version in pins(packages).items())
    assert len(pins(packages)) == len(packages), "every package is pinned"
    assert conda == ["python=3.11", "pip"]
    assert project()["requires-python"] == ">=3.11,<3.12"


def test_the_environments_differ_in_where_torch_comes_from_alone():
    cpu, gpu = (dependencies(kind)[1] for kind in KINDS)
    assert [line for line in cpu if line.startswith("--")] == ["--extra-index-url https://download.pytorch.org/whl/cpu"]
    assert cpu[1:] == gpu


def test_every_direct_dependency_is_in_the_environments():
    named = {re.split("[<>=]", dependency)[0].strip().lower() for dependency in project()["dependencies"]}
    for kind in KINDS:
        # Jobs train and score; only the Snakemake outside submits.
        assert named - set(pins(dependencies(kind)[1])) <= {"snakemake-executor-plugin-slurm"}


def test_container_recipe_installs_the_constraints():
    recipe = (ROOT / "Containerfile").read_text()
    (base,) = re.findall(r"^FROM (\S+)$", recipe, flags=re.M)
    assert "python:3.11-" in base
    (install,) = re.findall(r"pip install [^\n]*", recipe)
    assert "--constraint /opt/relent/constraints.txt /opt/relent" in install
    (index,) = re.findall(r"^ARG TORCH=(\S+)$", recipe, flags=re.M)
    assert f"--extra-index-url {index}" == dependencies("cpu")[1][0]
    for line in re.findall(r"^COPY (.+) \S+$", recipe, flags=re.M):
        assert all((ROOT / name).is_file() for name in line.split())
    assert "secret" not in recipe.lower()


CONDA = """#!/bin/sh
echo "conda $*" >> "{calls}"
case "$1" in
info) echo '{{"conda_prefix": "{base}", "platform": "linux-64"}}' ;;
--version) echo "conda 24.9.2" ;;
config) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
env)
    for word; do last="$word"; done
    mkdir -p "$last/bin" "$last/conda-meta"
    printf '#!/bin/sh\necho ran >> "{calls}"\nexec "{python}" "$@"\n' > "$last/bin/python"
    chmod +x "$last/bin/python" ;;
esac
"""
APPTAINER = """#!/bin/bash
echo "apptainer $*" >> "{calls}"
case "$1" in
--version) echo "apptainer version 1.3.4" ;;
exec) while [ "$1" != "-c" ]; do shift; done; PATH="{base}/bin:$PATH" exec bash -c "$2" ;;
esac
"""


def install(project: SmallProject, name: str, text: str) -> Path:
    """Put a command into the project's own folder of commands; returns the file of its calls."""
    calls, base = project.folder / f"{name}.calls", project.folder / name
    (base / "bin").mkdir(parents=True)
    filled = text.format(calls=calls, base=base, python=sys.executable)
    (base / "bin" / "activate").write_text('export PATH="$1/bin:$PATH" CONDA_PREFIX="$1"\n')
    python = base / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho ran >> "{calls}"\nexec "{sys.executable}" "$@"\n')
    command = project.folder / "bin" / name
    command.write_text(filled)
    for path in (python, command):
        path.chmod(0o755)
    # So that `relent` is found by what the workflow sets and in no other way.
    (project.folder / "bin" / "relent").unlink()
    return calls


RECEIPT = "data/patterns/smoke/receipt.json"


@pytest.mark.workflow
def test_workflow_makes_conda_environments_and_runs_in_them(tmp_path):
    project = SmallProject(tmp_path)
    calls = install(project, "conda", CONDA)
    method = ("--software-deployment-method", "conda", "--quiet", "all")
    project.snakemake(*method, "--conda-create-envs-only")
    made = list((tmp_path / ".snakemake" / "conda").glob("*.yaml"))
    assert [path.read_text() for path in made] == [(ROOT / "envs" / "cpu.yaml").read_text()]
    assert calls.read_text().count("conda env create") == 1
    assert "ran" not in calls.read_text().split()
    project.snakemake(*method, "--", RECEIPT)
    assert (tmp_path / RECEIPT).is_file()
    assert calls.read_text().split().count("ran") == 1
    assert calls.read_text().count("conda env create") == 1


@pytest.mark.workflow
def test_jobs_with_gpus_get_the_environment_with_cuda(tmp_path):
    project = SmallProject(tmp_path)
    install(project, "conda", CONDA)
    task = yaml.safe_load((tmp_path / "config/tasks/patterns.yaml").read_text())
    task["scales"]["smoke"]["resources"] = {"gpus": 1}
    project.write("config/tasks/patterns.yaml", task)
    project.snakemake("--software-deployment-method", "conda", "--conda-create-envs-only", "--quiet", "all")
    made = {path.read_text() for path in (tmp_path / ".snakemake" / "conda").glob("*.yaml")}
    assert made == {(ROOT / "envs" / f"{kind}.yaml").read_text() for kind in KINDS}


@pytest.mark.workflow
def test_workflow_runs_in_a_container(tmp_path):
    project = SmallProject(tmp_path)
    calls = install(project, "apptainer", APPTAINER)
    (tmp_path / "envs" / "relent.sif").touch()
    project.snakemake("--software-deployment-method", "apptainer", "--quiet", "all", "--", RECEIPT)
    assert (tmp_path / RECEIPT).is_file()
    (run,) = [line for line in calls.read_text().splitlines() if line.startswith("apptainer exec")]
    assert f"--home {tmp_path} " in run
    assert " envs/relent.sif bash -c " in run
    assert calls.read_text().split().count("ran") == 1
