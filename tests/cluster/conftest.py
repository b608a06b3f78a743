"""A SLURM for the session, and a project in which everything up to the training is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from .project import STEPS, ClusterProject
from .slurm import Slurm, Unavailable


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A SLURM of our own, with accounting as a user's cluster has it."""
    try:
        with Slurm.up(accounting=True) as slurm:
            yield slurm
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> ClusterProject:
    """Data, teacher, and in `reference/` the undisturbed run of PLD: made on this machine, without SLURM."""
    project = ClusterProject(tmp_path_factory.mktemp("cluster") / "prepared")
    project.config(methods=["pld"], seeds=[0])
    project.edit(
        "config/tasks/patterns.yaml", "max_steps: 30\n      batch_size", f"max_steps: {STEPS}\n      batch_size"
    )
    project.snakemake(project.target(), "--quiet", "all")
    project.run("pld").rename(project.folder / "reference")
    return project


@pytest.fixture
def project(slurm: Slurm, prepared: ClusterProject, tmp_path: Path) -> Iterator[ClusterProject]:
    """A copy in which PLD is not trained yet; afterwards nothing of it is left in SLURM."""
    project = ClusterProject.copied(prepared, tmp_path / "project")
    yield project
    project.stop()
    slurm.clear()


def assert_undisturbed(project: ClusterProject, run: Path | None = None) -> None:
    """The run ended with bitwise the weights of the undisturbed one."""
    ours = load_file((run or project.run("pld")) / "weights.safetensors")
    reference = load_file(project.folder / "reference" / "weights.safetensors")
    assert ours.keys() == reference.keys()
    for name, value in reference.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
