"""The conda environments pin what the constraints file pins."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def pins(lines: list[str]) -> dict[str, str]:
    return dict(line.strip().lower().split("==") for line in lines if "==" in line)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_conda_environment_agrees_with_the_constraints(kind):
    environment = yaml.safe_load((ROOT / "envs" / f"{kind}.yaml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    assert pip
    assert all(constraints[name] == version for name, version in pins(pip).items())
    assert len(pins(pip)) == len(pip), "every package is pinned"


def test_every_direct_dependency_is_in_the_environments():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {d.split("=")[0].split(">")[0].split("<")[0].strip().lower() for d in project["dependencies"]}
    environment = yaml.safe_load((ROOT / "envs" / "cpu.yaml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert named - set(pins(pip)) <= {"snakemake-executor-plugin-slurm"}
