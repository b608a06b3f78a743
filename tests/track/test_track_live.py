"""Live streaming: training never waits for a server, and the replay fills what the stream left out."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty_server
import pytest
from faulty_server import FaultyServer
from stored import Store
from synthetic_runs import write_run
from test_track_faults import assert_whole

from relent.errors import RelentError
from relent.files import read_json
from relent.runspec import RunSpec
from relent.track import live
from relent.track.address import understand
from relent.track.live import LiveLogger, live_logger
from relent.track.locks import tree_id
from relent.track.replay import replay_all

Row = tuple[int, str, float]
STEPS: list[Row] = [(step, "train/loss", 1 / (step + 3)) for step in range(400)]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training sets variables for good."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run as it is when all is done."""
    return write_run(tmp_path / "results", "pld", 0, {"accuracy": 0.5}, history=[*STEPS, (399, "validation/nll", 0.4)])


@pytest.fixture
def spec(folder: Path) -> RunSpec:
    """What its training is told."""
    fields = {key: value for key, value in read_json(folder / "config.json").items() if key not in ("plan", "facts")}
    return RunSpec(**fields)


Stream = Callable[..., LiveLogger]


@pytest.fixture
def stream(spec: RunSpec, server: FaultyServer, seen: Seen) -> Iterator[Stream]:
    """Start a logger and feed it rows as a training does; one that is left open was killed."""
    made: list[LiveLogger] = []

    def start(rows: list[Row], points: int | None = None, **changes: Any) -> LiveLogger:
        logger = LiveLogger(replace(spec, **changes), understand(server.uri), after=0.0, every=0.02)
        made.append(logger)
        for step, key, value in rows:
            logger.log_metrics({key: value, "epoch": 0}, step)
        wait_for(lambda: points is None or seen.points() == points)
        return logger

    yield start
    for logger in made:
        logger.finalize("success")


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


class Seen:
    """The MLflow runs of one results tree."""

    def __init__(self, uri: str, results: Path):
        self.store, self.query = Store(uri), f"tags.`relent.tree` = '{tree_id(results)}'"

    def runs(self) -> list[Any]:
        return self.store.runs(self.query) if self.store.client.get_experiment_by_name("images") else []

    def one(self) -> Any:
        (run,) = self.runs()
        return run

    def points(self) -> int:
        return sum(len(self.store.client.get_metric_history(r.info.run_id, "train/loss")) for r in self.runs())


@pytest.fixture
def seen(server: FaultyServer, tmp_path: Path) -> Seen:
    return Seen(server.uri, tmp_path / "results")


def kill(logger: LiveLogger) -> None:
    """End the thread without a goodbye."""

    def dead(points: list[Any]) -> None:
        raise RelentError("killed")

    logger._send = dead  # type: ignore[method-assign]
    assert logger._thread is not None
    logger._stop.set()
    logger._thread.join(10)


def train(folder: Path, uri: str) -> None:
    """Stream what a run's file holds."""
    config = read_json(folder / "config.json")
    spec = RunSpec(**{key: value for key, value in config.items() if key not in ("plan", "facts")})
    logger = LiveLogger(spec, understand(uri), after=0.0, every=0.05)
    with (folder / "metrics.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            logger.log_metrics({row["metric"]: float(row["value"])}, int(row["step"]))
    logger.finalize("success")
    assert logger._thread is not None
    logger._thread.join(60)


def replay(folder: Path, uri: str, tmp_path: Path) -> dict[str, int]:
    counts: dict[str, int] = replay_all([folder], [], uri, None, tmp_path / "r.json")["experiments"]["images"]
    return counts


def test_the_streamed_run_becomes_the_run(
    folder: Path, server: FaultyServer, stream: Stream, tmp_path: Path, seen: Seen
) -> None:
    logger = stream(STEPS, 400)
    run = seen.one()
    assert (run.info.status, run.info.run_name) == ("RUNNING", "pld s0")
    assert run.data.params["temperature"] == "4.0"
    logger.finalize("success")
    assert seen.one().info.status == "FINISHED"
    assert replay(folder, server.uri, tmp_path) == {"written": 0, "completed": 1, "replaced": 0, "unchanged": 0}
    assert_whole(server.uri, [folder])
    assert seen.one().info.run_id == run.info.run_id
    assert replay(folder, server.uri, tmp_path)["unchanged"] == 1


def test_a_killed_and_resumed_training_streams_each_step_once(
    folder: Path, server: FaultyServer, stream: Stream, tmp_path: Path, seen: Seen
) -> None:
    """Killed at step 250, resumed from the checkpoint at step 200: 50 steps are trained twice."""
    kill(stream(STEPS[:250], 250))
    stream(STEPS[200:], 400).finalize("success")
    run = seen.one()
    assert replay(folder, server.uri, tmp_path)["completed"] == 1
    assert_whole(server.uri, [folder])
    assert seen.one().info.run_id == run.info.run_id


def test_steps_that_came_out_differently_are_replaced(
    folder: Path, server: FaultyServer, stream: Stream, tmp_path: Path, seen: Seen
) -> None:
    """On a GPU the steps that were trained twice may differ; the file of the run is what counts."""
    kill(stream([(step, key, value * 1.001) for step, key, value in STEPS[:250]], 250))
    stream(STEPS[200:], 400).finalize("success")
    replay(folder, server.uri, tmp_path)
    assert_whole(server.uri, [folder])
    assert seen.one()


def test_gaps_are_filled(
    folder: Path, server: FaultyServer, stream: Stream, tmp_path: Path, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    """The server goes away in the middle of the stream and comes back; what was queued comes late, the rest never."""
    with caplog.at_level(logging.INFO):
        logger = stream(STEPS[:100], 100)
        server.plan = lambda path, count: faulty_server.fail_before
        for step, key, value in STEPS[100:200]:
            logger.log_metrics({key: value}, step)
        wait_for(lambda: "training goes on" in caplog.text)
        server.heal()
        wait_for(lambda: seen.points() == 200)
        wait_for(lambda: "live tracking goes on" in caplog.text)
        server.plan = lambda path, count: faulty_server.fail_before
        for step, key, value in STEPS[200:300]:
            logger.log_metrics({key: value}, step)
        logger.finalize("success")
    server.heal()
    assert seen.points() == 200
    replay(folder, server.uri, tmp_path)
    assert_whole(server.uri, [folder])


def test_a_stream_without_an_end_is_replaced(
    folder: Path, server: FaultyServer, stream: Stream, tmp_path: Path
) -> None:
    """A busy server may write a batch long after its client has hung up: what it is written to must be gone."""
    seen = Seen(server.uri, tmp_path / "results")
    logger = stream(STEPS[:200], 200)
    late = seen.one()
    kill(logger)
    replay(folder, server.uri, tmp_path)
    with contextlib.suppress(Exception):
        Store(server.uri).client.log_metric(late.info.run_id, "train/loss", STEPS[300][2], step=300)
    assert seen.one().info.run_id != late.info.run_id
    assert_whole(server.uri, [folder])


def test_a_server_that_does_the_work_and_says_it_failed(
    folder: Path, server: FaultyServer, stream: Stream, tmp_path: Path
) -> None:
    server.plan = lambda path, count: faulty_server.fail_after if count % 3 == 0 else None
    first = stream(STEPS, None)
    time.sleep(0.5)
    first.finalize("failed")  # its thread is over, as that of a killed training is
    server.heal()
    stream(STEPS, None).finalize("success")
    replay(folder, server.uri, tmp_path)
    assert_whole(server.uri, [folder])


def test_training_does_not_wait_for_a_server_that_never_answers(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_GOODBYE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        logger = LiveLogger(spec, understand(f"http://127.0.0.1:{silent.getsockname()[1]}"), after=0.0, every=0.01)
        logger.log_metrics({"train/loss": 1.0}, 0)
        time.sleep(0.3)
        began = time.perf_counter()
        for step in range(20_000):
            logger.log_metrics({"train/loss": 1.0}, step)
        assert time.perf_counter() - began < 2.0
        began = time.perf_counter()
        logger.finalize("success")
        assert time.perf_counter() - began < 1.0


def test_a_full_queue_drops(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_LENGTH", 10)
    logger = LiveLogger(spec, understand("http://127.0.0.1:9"), after=60.0, every=1.0)
    for step in range(1000):
        logger.log_metrics({"train/loss": 1.0}, step)
    assert logger._queue.qsize() == 10
    logger.finalize("success")


def test_a_refusal_ends_the_stream_and_not_the_training(
    server: FaultyServer, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str, work: Any, start: Any) -> list[bytes]:
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"no"]

    server.plan = lambda path, count: refuse
    logger = stream(STEPS[:10])
    wait_for(lambda: "live tracking ends: tracking store http://127.0.0.1" in caplog.text)
    assert logger._thread is not None
    logger._thread.join(5)
    logger.log_metrics({"train/loss": 1.0}, 11)
    logger.finalize("success")


def test_a_short_run_is_left_to_the_replay(spec: RunSpec, server: FaultyServer) -> None:
    logger = LiveLogger(spec, understand(server.uri), live._AFTER, live._EVERY)
    threads = threading.active_count()
    for step in range(100):
        logger.log_metrics({"train/loss": 1.0}, step)
    logger.finalize("success")
    assert server.requests == []
    assert threading.active_count() <= threads


def test_numbers_that_are_none_stream_too(server: FaultyServer, stream: Stream, tmp_path: Path, seen: Seen) -> None:
    rows = [(0, "train/loss", math.nan), (1, "train/loss", math.inf), (2, "train/loss", -math.inf)]
    folder = write_run(tmp_path / "results", "pld", 0, {"accuracy": 0.5}, history=rows)
    stream(rows, 3).finalize("success")
    run = seen.one()
    assert replay(folder, server.uri, tmp_path)["completed"] == 1
    assert seen.one().info.run_id == run.info.run_id
    assert seen.points() == 3


def test_a_replay_leaves_a_newer_training_alone(
    folder: Path, server: FaultyServer, stream: Stream, tmp_path: Path, seen: Seen
) -> None:
    """The old results are tracked by hand while the run is trained again with another setting."""
    os.utime(folder / "config.json", (time.time() - 1000,) * 2)
    stream(STEPS[:50], 50, hyperparameters={"max_steps": 200, "temperature": 2.0})
    assert replay(folder, server.uri, tmp_path)["written"] == 1
    assert replay(folder, server.uri, tmp_path)["unchanged"] == 1
    assert {run.data.params["temperature"]: run.info.status for run in seen.runs()} == {
        "2.0": "RUNNING",
        "4.0": "FINISHED",
    }


def test_trainings_that_begin_at_once_make_one_experiment(tmp_path: Path, server: FaultyServer) -> None:
    made: dict[str, Any] = {"history": STEPS[:20], "task": "crowd"}
    crowd = [write_run(tmp_path / "many", "nkd", seed, {"accuracy": 0.5}, **made) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda folder: train(folder, server.uri), crowd))
    counts = replay_all(crowd, [], server.uri, None, tmp_path / "r.json")["experiments"]["crowd"]
    assert counts["completed"] == 8
    store = Store(server.uri)
    found = store.runs(experiment="crowd")
    assert len(found) == 8
    for run in found:
        assert [m.step for m in store.client.get_metric_history(run.info.run_id, "train/loss")] == [*range(20)]


@pytest.mark.parametrize("uri", ["", "sqlite:///mlflow/mlflow.db", "postgresql://host/db"])
def test_only_a_server_is_streamed_to(spec: RunSpec, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELENT_TRACKING_URI", uri)
    assert live_logger(spec) is None


def test_what_is_streamed(spec: RunSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("RELENT_TRACKING_URI", "http://ann:s3cret@host")
    assert isinstance(live_logger(spec), LiveLogger)
    assert live_logger(replace(spec, final=False)) is None
    assert live_logger(replace(spec, stage="teacher")) is None
    assert live_logger(spec, "http://ann:s3c/ret@host") is None
    assert "live tracking is off" in caplog.text
    assert "s3c" not in caplog.text
