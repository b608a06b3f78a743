from __future__ import annotations

from pathlib import Path

import pytest
import torch
from synthetic_era5 import options, write_era5

from relent.data.gridded.prepare import prepare
from relent.data.gridded.stores import _open


@pytest.fixture(autouse=True)
def fresh() -> None:
    """One thread, and no store that an earlier test has opened."""
    torch.set_num_threads(1)
    _open.cache_clear()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store as WeatherBench 2 lays it out."""
    return write_era5(tmp_path_factory.mktemp("store") / "era5.zarr")


@pytest.fixture(scope="session")
def prepared(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store, laid out."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare({}, folder, options(store))
    return folder
