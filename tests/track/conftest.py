from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))  # the made-up run folders are shared

from faulty_server import FaultyServer, settings
from synthetic_runs import write_run

from relent.track import store
from relent.track.store import opened


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with its tables and nothing in it: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with opened(f"sqlite:///{path}") as client:
        client.search_experiments()
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty_store, tmp_path / "mlflow" / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow/mlflow.db"


@pytest.fixture
def run_folders(tmp_path: Path) -> list[Path]:
    """Two methods at two seeds, one of them with a history that fills more than one batch."""
    history = [(step, name, step / 7) for step in range(0, 1200, 2) for name in ("train/loss", "val/nll")]
    return [
        write_run(
            tmp_path / "results",
            method,
            seed,
            {"accuracy": 0.8 + 0.01 * seed, "nll": 0.3},
            hyperparameters={"temperature": temperature, "betas": [0.9, 0.99]},
            history=history if method == "pld" else [(0, "train/loss", float("nan"))],
        )
        for method, temperature in (("pld", 4.0), ("nkd", 1.0))
        for seed in (0, 1)
    ]


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer's own shell says of a server is no part of the tests."""
    for name in ("USERNAME", "PASSWORD", "TOKEN", "URI"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts a hundred times as short; gives up after half a second without progress."""
    sleep = store.time.sleep
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setattr(store, "_PATIENCE", 0.5)
    monkeypatch.setattr(store.Patience, "_sleep", staticmethod(lambda seconds: sleep(seconds / 100)))


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[FaultyServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "server.db")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings(folder).items():
            patch.setenv(name, value)
        from mlflow.server import app

        server = FaultyServer(app, folder)
        yield server
        server.stop()


@pytest.fixture
def server(running_server: FaultyServer) -> FaultyServer:
    """A tracking server in good order; results trees of different tests do not meet in it."""
    running_server.heal()
    return running_server
