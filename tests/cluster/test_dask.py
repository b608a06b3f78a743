"""The data steps on SLURM workers: a store that is laid out there is the one that is laid out here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from relent.data.gridded.prepare import prepare
from relent.data.receipt import check_receipt
from relent.manifest.models import Dask

from .slurm import Slurm

pytest.importorskip("dask_jobqueue")
STORES = Path(__file__).parents[1] / "data" / "gridded"


def test_tiles_laid_out_by_slurm_workers(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STORES))
    from synthetic_era5 import options, write_era5

    store = write_era5(tmp_path / "era5.zarr")
    prepare({}, tmp_path / "here", options(store))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    workers = Dask(scheduler="slurm", workers=2, memory="1GB", walltime="00:10:00", interface="lo")
    prepare({}, tmp_path / "there", options(store), workers=workers)
    here, there = (check_receipt(tmp_path / name, contents=True) for name in ("here", "there"))
    assert there["checksum"] == here["checksum"]
    slurm.clear()
