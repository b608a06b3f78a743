from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.runspec import RunSpec
from relent.train.stage import run_stage


@pytest.fixture(scope="session")
def trained(shared_catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """A student trained by knowledge distillation, its teacher too; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    layout = Layout(shared_catalogue.layout.data, f"{root}/teachers", f"{root}/results")
    catalogue = replace(shared_catalogue, layout=layout)
    run_stage(catalogue.teacher_spec("patterns", "wide", "smoke"))
    spec = catalogue.stage_spec(Run("patterns", "knowledge_distillation", "default", "smoke", 0))
    run_stage(spec)
    return spec


@pytest.fixture
def own_run(trained: RunSpec, tmp_path: Path) -> RunSpec:
    """A copy of the run that a test may damage or add to."""
    shutil.copytree(trained.output, tmp_path / "run")
    return replace(trained, output=str(tmp_path / "run"), inputs=dict(trained.inputs))
