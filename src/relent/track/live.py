"""Streams a long run to a tracking server while it trains; whatever happens to the server, training does not notice.

The training loop puts numbers into a queue of bounded length and goes on. A thread takes them out in batches. A server
that is away or slow is asked ever more rarely; numbers that find the queue full are dropped. The replay after the run
fills what is absent, so that nothing here has to be complete.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from relent.errors import RelentError
from relent.runspec import RunSpec
from relent.track.address import Address, understand
from relent.track.locks import tree_id
from relent.track.records import Point, Record, begun, metric_name
from relent.track.replay import experiment_of, runs_of
from relent.track.store import StoreAway, client_of, settle_mlflow, told

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG = logging.getLogger("relent.track")
_BATCH = 1000
_LENGTH = 100_000
"""Numbers that may wait: a few MB."""
_AFTER = 30.0
"""Seconds of training before anything is sent: a shorter run is left to the replay, and pays for nothing."""
_EVERY = 5.0
"""Seconds between two batches."""
_GOODBYE = 5.0
"""Seconds that the end of a training waits for the last batch."""


def live_logger(spec: RunSpec, uri: str | None = None) -> LiveLogger | None:
    """A logger that streams a run, if there is a tracking server; None for every other address and stage.

    Args:
        spec: The stage that is trained; only a method's last one, whose folder is the run, is streamed.
        uri: Tracking address; default: the variable RELENT_TRACKING_URI, which the workflow sets.
    """
    uri = uri or os.environ.get("RELENT_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")) or not spec.final or spec.role == "teacher":
        return None
    try:
        return LiveLogger(spec, understand(uri), _AFTER, _EVERY)
    except RelentError as error:
        LOG.warning("live tracking is off: %s", error)
        return None


class LiveLogger(Logger):
    """Sends metrics to an MLflow run of its own thread's making.

    A run that was killed and resumed goes on in the MLflow run that it had; steps that are there already are not sent
    again.

    Args:
        spec: The run.
        address: A server.
        after: Seconds of training before anything is sent.
        every: Seconds between two batches.
    """

    def __init__(self, spec: RunSpec, address: Address, after: float, every: float):
        super().__init__()
        self._record: Record = begun(
            spec.to_json(), tree_id(Path(spec.output).absolute().parents[4]), round(1000 * time.time())
        )
        self._address, self._after, self._every = address, after, every
        # Here and for good: a thread that changes the environment while torch reads it can crash the process.
        address.put_credentials()
        settle_mlflow(timeout=5, retries=0)
        self._queue: queue.Queue[Point] = queue.Queue(_LENGTH)
        self._stop, self._status = threading.Event(), "FINISHED"
        self._thread: threading.Thread | None = None
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._sent: set[tuple[str, int]] = set()
        """Steps that the server held when this training was resumed."""

    @property
    def name(self) -> str:
        return "live"

    @property
    def version(self) -> str:
        return "0"

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: they are sent when the MLflow run is made."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue numbers; never waits."""
        now = round(1000 * time.time())
        for key, value in metrics.items():
            if key != "epoch" and not self._queue.full():
                self._queue.put_nowait(Point(metric_name(key), float(value), step or 0, now))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="live tracking", daemon=True)
            self._thread.start()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is left, if the server takes it in a few seconds."""
        self._status = "FINISHED" if status == "success" else "FAILED"
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_GOODBYE)

    # ------------------------------------------------------------------------------------------ in the thread

    def _work(self) -> None:
        if self._stop.wait(self._after):
            return
        batch: list[Point] = []
        failures = 0
        while True:
            ending = self._stop.is_set()
            batch += self._taken(_BATCH - len(batch))
            try:
                with told(self._address):
                    self._send(batch)
                    batch = []
                    if ending and self._queue.empty():
                        self._connected().set_terminated(self._run_id, self._status)
                        return
                if failures:
                    LOG.info("live tracking goes on")
                failures = 0
            except Exception as error:
                failures += 1
                if ending or not isinstance(error, StoreAway):
                    LOG.warning("live tracking ends: %s", self._address.clean(str(error).partition(";")[0]))
                    return
                if failures == 1:
                    LOG.warning(
                        "live tracking: %s; training goes on", self._address.clean(str(error).partition(";")[0])
                    )
            full = self._queue.qsize() >= _BATCH and not failures
            self._stop.wait(0.0 if full else min(300.0, self._every * 2**failures))

    def _taken(self, most: int) -> list[Point]:
        taken: list[Point] = []
        while len(taken) < most:
            try:
                taken.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return taken

    def _send(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        client = self._connected()
        fresh = [point for point in points if (point.key, point.step) not in self._sent]
        if fresh:
            client.log_batch(self._run_id, [Metric(p.key, p.value, p.time, p.step) for p in fresh])

    def _connected(self) -> MlflowClient:
        """The client, once the MLflow run is found or made."""
        if self._client is None:
            client = client_of(self._address)
            self._run_id = self._resumed(client) or self._new(client)
            self._client = client
        return self._client

    def _resumed(self, client: MlflowClient) -> str | None:
        """The MLflow run that this run had before it was killed."""
        record = self._record
        mine = {"relent.tree": record.tree, "relent.run_id": record.id, "relent.plan": record.tags["relent.plan"]}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in mine.items())
        found = runs_of(client, experiment_of(client, record.experiment), query)
        run = next((run for run in found if "relent.digest" not in run.data.tags), None)
        if run is None:
            return None
        history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        self._sent = {(key, metric.step) for key, metrics in history.items() for metric in metrics}
        client.update_run(run.info.run_id, "RUNNING")
        return str(run.info.run_id)

    def _new(self, client: MlflowClient) -> str:
        from mlflow.entities import Param

        record = self._record
        tags = record.tags | {"relent.tree": record.tree, "relent.run_id": record.id}
        run_id = client.create_run(
            experiment_of(client, record.experiment), record.start, tags, record.name
        ).info.run_id
        client.log_batch(run_id, params=[Param(key, value) for key, value in list(record.params.items())[:100]])
        return str(run_id)
