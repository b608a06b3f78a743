"""The dask scheduler: the same results on threads, processes and a cluster, also where a worker dies; SLURM."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import dask.array
import pytest

from relent.errors import ConfigError, DataError
from relent.manifest.models import Config, Dask
from relent.scheduler import configured, scheduler, slurm_cluster


def squared(item: int, common: dict[str, int]) -> int:
    """What the tests compute."""
    return item**2 + common["plus"]


def fails(item: int, common: None) -> int:
    """A task that cannot be done."""
    raise DataError(f"item {item} is broken")


def dies_once(item: int, folder: str) -> int:
    """Ends its worker at the first call with item 3, as a machine that fails does."""
    mark = Path(folder, "died")
    if item == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item**2


ALL = ["threads", "processes", "distributed"]


@pytest.mark.parametrize("name", ALL)
def test_every_scheduler_gives_the_same(name: str) -> None:
    done: list[int] = []
    with scheduler(Dask(scheduler=name, workers=2)) as workers:
        found = workers.map(squared, range(20), {"plus": 1}, lambda: done.append(1))
        assert found == [n**2 + 1 for n in range(20)]
        assert len(done) == 20
        assert float(dask.array.arange(10, chunks=3).sum().compute()) == 45
        with pytest.raises(DataError, match="item 0 is broken"):
            workers.map(fails, range(1), None)


def test_a_worker_that_dies_costs_no_result(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with scheduler(Dask(scheduler="distributed", workers=2)) as workers:
        assert workers.map(dies_once, range(8), str(tmp_path)) == [n**2 for n in range(8)]
    assert (tmp_path / "died").exists()


def test_settings_come_from_the_environment_or_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELENT_DASK", raising=False)
    assert configured(tmp_path / "none.yaml") == Dask()
    (tmp_path / "config.yaml").write_text("comparisons: []\ndask: {scheduler: processes, workers: 3, memory: 2GB}\n")
    assert configured(tmp_path / "config.yaml").workers == 3
    monkeypatch.setenv("RELENT_DASK", Dask(workers=5).model_dump_json())
    assert configured(tmp_path / "config.yaml").workers == 5
    monkeypatch.delenv("RELENT_DASK")
    (tmp_path / "config.yaml").write_text("dask: {scheduler: threads, worker: 3}\n")
    with pytest.raises(ConfigError, match=r"config.yaml:1: dask.worker: unknown key \(did you mean 'workers'"):
        configured(tmp_path / "config.yaml")


def test_what_a_job_asks_for_its_workers() -> None:
    assert Config(comparisons=[{"task": "t", "methods": ["m"]}]).dask.job_threads == 1
    local = Dask(scheduler="distributed", workers=4, threads=2, memory="1.5 GiB")
    assert (local.job_threads, local.job_mb) == (8, 6000)
    slurm = Dask(scheduler="slurm", workers=4, threads=2, memory="8GB")
    assert (slurm.job_threads, slurm.job_mb) == (1, 0)
    with pytest.raises(ValueError, match="slurm needs the memory of a worker"):
        Dask(scheduler="slurm")
    for bad in ({"partition": "a; rm -rf /"}, {"directives": ["--qos=a\nrm -rf /"]}, {"memory": "much"}):
        with pytest.raises(ValueError, match="pattern"):
            Dask(**{"scheduler": "slurm", "memory": "8GB", **bad})


def test_the_job_script_of_a_slurm_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.chdir(tmp_path)
    settings = Dask(
        scheduler="slurm",
        workers=1,
        threads=4,
        memory="16GB",
        partition="cpu",
        account="weather",
        walltime="02:00:00",
        directives=["--qos=normal"],
    )
    with slurm_cluster(settings, start=False) as cluster:
        script = cluster.job_script()
    for line in (
        "#SBATCH -p cpu",
        "#SBATCH -A weather",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=15G",
        "#SBATCH -t 02:00:00",
        "#SBATCH --qos=normal",
    ):
        assert line in script
    assert f"{sys.executable} -m distributed.cli.dask_worker tls://" in script
    assert "--tls-cert" in script  # nobody else on the network can run code on the workers
    assert "--nthreads 4" in script
    assert "--memory-limit 14.90GiB" in script
