from pathlib import Path

import pytest
import stores
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def truth_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stores.written(stores.truth(), tmp_path_factory.mktemp("truth") / "truth.nc")


@pytest.fixture(scope="session")
def forecast_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stores.written(stores.forecast(), tmp_path_factory.mktemp("forecast") / "forecast.zarr")
