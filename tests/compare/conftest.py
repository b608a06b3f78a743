from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_runs import write_run

from relent.compare.results import RunResult, read_run

ACCURACY = {
    "hinton": (0.80, 0.82, 0.81),
    "pld": (0.86, 0.87, 0.88),
    "nkd": (0.85, 0.88, 0.875),
    "smoothing": (0.70, 0.71, 0.735),
}


@pytest.fixture
def runs(tmp_path: Path) -> list[RunResult]:
    """Four methods at three seeds, and one that trains nothing at one seed and has no NLL."""
    found = []
    for method, scores in ACCURACY.items():
        for seed, accuracy in enumerate(scores):
            values = {"accuracy": accuracy, "nll": 1 - accuracy + 0.013 * seed, "spread": 0.1 * accuracy}
            found.append(read_run(write_run(tmp_path, method, seed, values), method))
    chance = write_run(tmp_path, "chance", 0, {"accuracy": 0.5}, hyperparameters={"max_steps": 0})
    return [*found, read_run(chance, "chance")]
