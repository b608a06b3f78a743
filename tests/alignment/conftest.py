from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_ratings import prepare, write_archive, write_manifests

from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.runspec import RunSpec
from relent.train.stage import run_stage


@pytest.fixture(scope="session")
def ratings_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """The catalogue of a small task with prepared data; its teachers and results are not to be changed."""
    root = tmp_path_factory.mktemp("ratings")
    prepare(write_archive(root / "archive"), root / "data" / "ratings" / "smoke")
    layout = Layout(f"{root}/data", f"{root}/teachers", f"{root}/results")
    return Catalogue.load(write_manifests(root / "config"), (), layout)


@pytest.fixture(scope="session")
def base(ratings_catalogue: Catalogue) -> RunSpec:
    """The trained base model with its pairs."""
    spec = ratings_catalogue.teacher_spec("ratings", "base", "smoke")
    run_stage(spec)
    return spec


@pytest.fixture(scope="session")
def trained(ratings_catalogue: Catalogue, base: RunSpec) -> RunSpec:
    """A policy trained by DPO."""
    spec = ratings_catalogue.stage_spec(Run("ratings", "dpo", "default", "smoke", 0))
    run_stage(spec)
    return spec


@pytest.fixture
def student(ratings_catalogue: Catalogue, base: RunSpec, tmp_path: Path):
    """Give a function that makes the specification of a run in a folder of the test's own."""

    def make(method: str = "dpo", output: str = "run", **changes) -> RunSpec:
        spec = ratings_catalogue.stage_spec(Run("ratings", method, "default", "smoke", 0))
        hyperparameters = spec.hyperparameters | changes.pop("hyperparameters", {})
        return replace(spec, output=str(tmp_path / output), hyperparameters=hyperparameters, **changes)

    return make
