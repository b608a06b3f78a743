from pathlib import Path

import pytest
import torch
from synthetic_atmosphere import prepared


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared synthetic data set."""
    return prepared(tmp_path_factory.mktemp("weather"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
