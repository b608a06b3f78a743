"""Fixtures that several folders share: a small classification data set and a catalogue around it, without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from relent.manifest.catalogue import Catalogue
from relent.manifest.paths import Layout
from relent.manifest.yamlfile import Document, read_yaml
from relent.runspec import RunSpec
from synthetic_patterns import TASK, copy_methods, write_patterns

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "tests" / "plugins" / "toy"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: `make test` deals files out in this order, and short ones level the end."""
    long = {item.path for item in items if item.get_closest_marker("workflow") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that holds the prepared `patterns` data set; not to be changed."""
    data = tmp_path_factory.mktemp("patterns") / "data"
    write_patterns(data / "patterns" / "smoke")
    return data


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `config` folder with the task `patterns` and the project's classification methods."""
    folder = tmp_path_factory.mktemp("manifests") / "config"
    copy_methods(ROOT / "config", folder)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "patterns.yaml").write_text(yaml.safe_dump(TASK, sort_keys=False))
    return folder


@pytest.fixture(scope="session")
def shared_catalogue(manifests: Path, patterns: Path) -> Catalogue:
    """The catalogue of `patterns` with the toy plug-in, read once."""
    return Catalogue.load(manifests, [str(TOY)], Layout(str(patterns)))


@pytest.fixture
def catalogue(shared_catalogue: Catalogue, tmp_path: Path) -> Catalogue:
    """The same with teachers and results in a folder of the test's own."""
    data = shared_catalogue.layout.data
    return replace(shared_catalogue, layout=Layout(data, f"{tmp_path}/teachers", f"{tmp_path}/results"))


@pytest.fixture(scope="session")
def read_once() -> Callable[[Path], Document]:
    """`read_yaml` that parses a text once: each command reads all manifests, of which a test changes one at most."""
    known: dict[str, Document] = {}

    def read(path: Path) -> Document:
        text = path.read_text(encoding="utf-8")
        if text not in known:
            known[text] = read_yaml(path)
        return replace(known[text], path=path)

    return read


@pytest.fixture
def changed() -> Callable[..., RunSpec]:
    """Give a function that changes hyperparameters of a specification."""

    def change(spec: RunSpec, **hyperparameters: Any) -> RunSpec:
        return replace(spec, hyperparameters=spec.hyperparameters | hyperparameters)

    return change
