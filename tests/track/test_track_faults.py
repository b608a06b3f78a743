"""A tracking server that is away, slow, answers 500, comes back in the middle; two workflows on one store."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faulty_server
import pytest
from faulty_server import Fault, FaultyServer
from stored import Store
from synthetic_runs import write_run

from relent.errors import RelentError
from relent.track import store
from relent.track.locks import tree_id
from relent.track.replay import replay_all

Replay = Callable[..., dict[str, int]]


@pytest.fixture
def replayed(tmp_path: Path) -> Replay:
    """Replay run folders into an address; returns the counts."""

    def replay(folders: list[Path], uri: str, receipt: str = "tracking.json") -> dict[str, int]:
        counts: dict[str, int] = replay_all(folders, [], uri, None, tmp_path / receipt)["experiments"]["images"]
        return counts

    return replay


def content(uri: str, results: Path) -> dict[str, Any]:
    """All that the server holds of a results tree; fails if any run stands twice."""
    return Store(uri).content(f"tags.`relent.tree` = '{tree_id(results)}'")


def expected(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Step metrics of a run's file."""
    found: dict[str, list[tuple[int, str]]] = {}
    for line in (folder / "metrics.csv").read_text().splitlines()[1:]:
        step, key, value = line.split(",")
        found.setdefault(key, []).append((int(step), repr(float(value))))
    return found


def assert_whole(uri: str, folders: list[Path]) -> None:
    """Every run is there once, finished, with every step once and every score and file."""
    results = folders[0].parents[4]
    there = content(uri, results)
    assert set(there) == {str(folder.relative_to(results)) for folder in folders}
    for folder in folders:
        run = there[str(folder.relative_to(results))]
        assert run["info"][1] == "FINISHED"
        assert set(run["files"]) == {"config.json", "scores.json", "figures/curve.png"}
        for key, rows in expected(folder).items():
            assert sorted((step, value) for step, value, _ in run["history"][key]) == sorted(rows)
        scores = json.loads((folder / "scores.json").read_text())["scores"]
        for key, value in scores.items():
            assert [v for _, v, _ in run["history"][f"test/{key}"]] == [repr(float(value))]


def test_a_thousand_steps_do_not_cost_a_thousand_requests(
    run_folders: list[Path], server: FaultyServer, replayed: Replay
) -> None:
    assert replayed(run_folders[:1], server.uri)["written"] == 1
    assert_whole(server.uri, run_folders[:1])
    server.heal()
    assert replayed(run_folders[1:2], server.uri)["written"] == 1  # 1200 points
    assert len(server.requests) <= 20
    server.heal()
    assert replayed(run_folders[:2], server.uri)["unchanged"] == 2
    assert len(server.requests) <= 5


FAULTS = [faulty_server.fail_before, faulty_server.fail_after, faulty_server.unavailable_json]


def test_any_one_answer_may_be_lost(
    tmp_path: Path, server: FaultyServer, replayed: Replay, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request of a replay in turn is answered by an error after the server has done its work."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    history = [(step, "train/loss", step / 3) for step in range(20)]
    number, lost = 0, faulty_server.fail_after
    while True:
        number += 1
        run = write_run(tmp_path / f"results{number}", "pld", 0, {"accuracy": 0.5}, history=history)
        server.heal()
        server.plan = lambda path, count, number=number: lost if count == number else None  # type: ignore[misc]
        replayed([run], server.uri)
        failed = len(server.requests) >= number
        server.heal()
        assert_whole(server.uri, [run])
        if not failed:
            break
    assert number > 10


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fourth_request_fails(
    fault: Fault, run_folders: list[Path], server: FaultyServer, replayed: Replay, hasty: None
) -> None:
    server.plan = lambda path, count: fault if count % 4 == 0 else None
    replayed(run_folders, server.uri)
    server.heal()
    assert_whole(server.uri, run_folders)


def test_a_server_that_restarts_in_the_middle(
    run_folders: list[Path],
    server: FaultyServer,
    replayed: Replay,
    hasty: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(store, "_PATIENCE", 60.0)
    threads: list[threading.Thread] = []

    def plan(path: str, count: int) -> Fault | None:
        if count == 15:
            threads.append(threading.Thread(target=restart))
            threads[0].start()
        return None

    def restart() -> None:
        server.stop()
        while "trying again" not in caplog.text:
            time.sleep(0.02)
        server.start()

    server.plan = plan
    with caplog.at_level(logging.INFO):
        replayed(run_folders, server.uri)
    threads[0].join(30)
    assert "connection refused; trying again in 1 s" in caplog.text
    server.heal()
    assert_whole(server.uri, run_folders)


def test_a_server_that_stays_away_in_the_middle_is_filled_by_the_next_replay(
    run_folders: list[Path], server: FaultyServer, replayed: Replay, hasty: None, tmp_path: Path
) -> None:
    server.plan = lambda path, count: faulty_server.fail_before if count > 20 else None
    with pytest.raises(RelentError, match=r"tracking store http://127.0.0.1:\d+: .*nothing is lost, run the tracking"):
        replayed(run_folders, server.uri)
    assert not (tmp_path / "tracking.json").exists()
    server.heal()
    counts = replayed(run_folders, server.uri)
    assert counts["completed"] == 1
    assert counts["unchanged"] + counts["written"] == 3
    assert_whole(server.uri, run_folders)


def test_a_server_too_slow_for_one_answer(
    run_folders: list[Path], server: FaultyServer, replayed: Replay, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is done, but the answer comes after the client has hung up."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    late = ["runs/create", "runs/log-batch", "runs/update"]

    def plan(path: str, count: int) -> Fault | None:
        if path not in late:
            return None
        late.remove(path)
        return faulty_server.slow(1.3)

    server.plan = plan
    replayed(run_folders[:2], server.uri)
    assert not late
    time.sleep(0.5)
    assert_whole(server.uri, run_folders[:2])


def test_a_refusal_is_told_at_once(run_folders: list[Path], server: FaultyServer, replayed: Replay) -> None:
    def refuse(path: str, work: Any, start: Any) -> list[bytes]:
        start("401 Unauthorized", [("Content-Type", "text/plain")])
        return [b"who are you?"]

    server.plan = lambda path, count: refuse
    began = time.monotonic()
    with pytest.raises(RelentError, match=r"401.*run the tracking step again when that is mended"):
        replayed(run_folders, server.uri)
    assert time.monotonic() - began < 2


def test_two_trees_with_the_same_run_names_keep_apart(tmp_path: Path, server: FaultyServer, replayed: Replay) -> None:
    """Two people of a group, or two results folders of one: neither replaces the other's runs."""
    runs = [write_run(tmp_path / name, "pld", 0, {"accuracy": value}) for name, value in (("a", 0.5), ("b", 0.6))]
    for _ in range(2):
        for run in runs:
            replayed([run], server.uri)
    for run, value in zip(runs, ("0.5", "0.6")):
        (found,) = content(server.uri, run.parents[4]).values()
        assert found["history"]["test/accuracy"][0][1] == value
    assert replayed(runs, server.uri)["unchanged"] == 2


def test_a_copied_tree_is_the_same_tree(tmp_path: Path, server: FaultyServer, replayed: Replay) -> None:
    run = write_run(tmp_path / "results", "pld", 0, {"accuracy": 0.5}, history=[(0, "train/loss", 1.0)])
    replayed([run], server.uri)
    subprocess.run(["cp", "-r", tmp_path / "results", tmp_path / "copy"], check=True)  # new time stamps
    copy = tmp_path / "copy" / run.relative_to(tmp_path / "results")
    assert replayed([copy], server.uri)["unchanged"] == 1
