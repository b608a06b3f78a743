from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))  # the made-up run folders are shared

from synthetic_runs import write_run

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
