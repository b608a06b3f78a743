"""The one place where a dask scheduler is made: the same code on threads, processes, a local cluster, or SLURM.

    with scheduler(settings) as scheduler_:
        results = scheduler_.map(function, items, common)

Inside the block plain dask collections (lazy xarray) are computed by the same scheduler. `configured` reads the
settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dask
from dask.utils import parse_bytes

from relent.errors import ConfigError, RelentError
from relent.manifest.models import Dask
from relent.manifest.yamlfile import Document, parse, read_yaml

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")
Done = Callable[[], None]
RETRIES = 2
"""How often a task is tried again after it failed in the system (a lost file, a lost connection)."""
ENVIRONMENT = "RELENT_DASK"
NO_DASHBOARD = "127.0.0.1:0"
"""Dask insists on a port for its pages: any, on this machine alone."""


def configured(file: Path) -> Dask:
    """The settings that the workflow passes on in `RELENT_DASK` (JSON), or the section `dask` of a configuration.

    Args:
        file: The configuration; it may be missing.

    Raises:
        ConfigError: A setting is wrong.
    """
    if ENVIRONMENT in os.environ:
        return parse(Dask, Document(Path(ENVIRONMENT), json.loads(os.environ[ENVIRONMENT])))
    document = read_yaml(file) if file.is_file() else Document(file, {})
    return parse(Dask, document, document.data.get("dask", {}), at=("dask",))


@dataclass(frozen=True)
class Scheduler:
    """Runs functions of items on the workers that the configuration names."""

    settings: Dask
    client: Client | None = None

    @property
    def worker_mb(self) -> float | None:
        """Memory of a worker in MB, where it is limited."""
        return parse_bytes(self.settings.memory) / 1e6 if self.settings.memory else None

    def map(
        self, function: Callable[[Item, Any], Result], items: Sequence[Item], common: Any, done: Done = lambda: None
    ) -> list[Result]:
        """`function(item, common)` of every item.

        A task may run twice (its worker died): it must write whole files by rename, or bytes that do not depend on how
        often they are written.

        Args:
            function: Of a module, so that workers find it.
            items: What differs.
            common: What all need; sent once, and from worker to worker.
            done: Called after each item, in this process.

        Returns:
            Results in the order of the items.

        Raises:
            RelentError: What a task raised, or a worker died again and again.
        """
        if self.client is not None:
            return self._map_distributed(function, items, common, done)
        return self._map_local(function, items, common, done)

    def _map_local(self, function: Any, items: Sequence[Any], common: Any, done: Done) -> list[Any]:
        from dask.callbacks import Callback

        call = partial(_call, function, common)
        # The names make dask begin with the first item.
        tasks = [
            dask.delayed(call, pure=False)(item, dask_key_name=f"{function.__name__}-{number:08d}")
            for number, item in enumerate(items)
        ]
        with Callback(posttask=lambda *_: done()):
            return list(dask.compute(*tasks, optimize_graph=False))

    def _map_distributed(self, function: Any, items: Sequence[Any], common: Any, done: Done) -> list[Any]:
        from distributed import KilledWorker, as_completed

        assert self.client is not None
        # A task and no scattered data: those are lost with the workers that hold them, a task is done again.
        shared = self.client.submit(_same, common, pure=False)
        futures = [
            self.client.submit(
                _call, function, shared, item, retries=RETRIES, pure=False, key=f"{function.__name__}-{n}"
            )
            for n, item in enumerate(items)
        ]
        try:
            for future in as_completed(futures):
                future.result()
                done()
            return list(self.client.gather(futures))
        except KilledWorker as error:
            raise RelentError(
                f"workers died again and again at {error.task}: most often memory; raise `dask.memory` or lower the "
                "size of a block"
            ) from None
        finally:
            self.client.cancel([*futures, shared])


def _same(common: Any) -> Any:
    return common


def _call(function: Callable[[Any, Any], Any], common: Any, item: Any) -> Any:
    return function(item, common)


@contextmanager
def scheduler(settings: Dask) -> Iterator[Scheduler]:
    """Start the workers that the configuration names; they end with the block.

    Raises:
        ConfigError: The library for this scheduler is not installed.
    """
    if settings.scheduler in ("threads", "processes"):
        with dask.config.set(scheduler=settings.scheduler, num_workers=settings.workers * settings.threads):
            yield Scheduler(settings)
        return
    try:
        from distributed import Client
    except ImportError:
        raise _missing(settings.scheduler, "distributed") from None
    with _cluster(settings) as cluster, Client(cluster, security=cluster.security) as client:
        yield Scheduler(settings, client)


def _cluster(settings: Dask) -> Any:
    if settings.scheduler == "slurm":
        return slurm_cluster(settings)
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=settings.workers,
        threads_per_worker=settings.threads,
        memory_limit=settings.memory or "auto",
        host="127.0.0.1",
        dashboard_address=NO_DASHBOARD,
        # Whoever reaches a dask scheduler can run code as its user: other users of the machine must not.
        security=True,
    )


def slurm_cluster(settings: Dask, start: bool = True) -> Any:
    """A SLURM cluster; one job a worker.

    Args:
        settings: Resources of a worker.
        start: Whether to submit the workers' jobs; else they are only described.

    Raises:
        ConfigError: dask-jobqueue is not installed.
    """
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise _missing("slurm", "dask-jobqueue") from None
    logs = Path("logs/dask").resolve()
    logs.mkdir(parents=True, exist_ok=True)
    cluster = SLURMCluster(
        cores=settings.threads,
        processes=1,
        memory=settings.memory,
        queue=settings.partition,
        account=settings.account,
        walltime=settings.walltime,
        interface=settings.interface,
        job_extra_directives=list(settings.directives),
        log_directory=str(logs),
        shared_temp_directory=str(logs),
        scheduler_options={"dashboard_address": NO_DASHBOARD},
        security=True,
    )
    if start:
        cluster.scale(jobs=settings.workers)
    return cluster


def _missing(name: str, package: str) -> ConfigError:
    return ConfigError(
        f"{name!r} needs the package {package}: install relent[dask], or choose threads or processes",
        key="dask.scheduler",
    )
