"""Real tracking servers, and a project whose comparison is in a store.

These tests want what `pip install` does not bring (PostgreSQL, a browser) and take minutes: they run where their mark
is asked for, `pytest -m services` and `pytest -m browser`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in ("track", "compare"):  # the faulty server and the made-up run folders are shared
    sys.path.insert(0, str(HERE.parent / folder))

from servers import MlflowServer, Unavailable, mlflow_server, postgresql  # noqa: E402

from workflow.conftest import SmallProject  # noqa: E402


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """Address of an empty PostgreSQL database."""
    try:
        with postgresql() as address:
            yield address
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """`mlflow server` with PostgreSQL behind it."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), database) as server:
        yield server


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    """A project whose smoke comparison has run, and is in its SQLite store."""
    project = SmallProject(tmp_path_factory.mktemp("compared"))
    project.config(methods=["cross_entropy", "knowledge_distillation", "pld"], seeds=[0, 1])
    project.snakemake("--quiet", "all")
    return project
