"""`mlflow server` with PostgreSQL behind it: 64 runs at once, kills in the middle, two workflows, live streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from process_list import ProcessList
from servers import BIN, MlflowServer, postgresql
from stored import Store
from synthetic_runs import write_run
from test_track_faults import assert_whole
from test_track_live import train

from relent.track.locks import tree_id
from workflow.conftest import SmallProject

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
HISTORY = [(step, key, step / 3) for step in range(500) for key in ("train/loss", "train/pld")]
RUNS = 64


def finished(results: Path, count: int = RUNS) -> list[Path]:
    """Runs that have all just ended."""
    return [write_run(results, "pld", seed, {"accuracy": 0.5 + seed / 1000}, history=HISTORY) for seed in range(count)]


def track(folders: list[Path], uri: str, receipt: Path, *more: str) -> subprocess.Popen[str]:
    """`relent track` as the rule calls it."""
    return subprocess.Popen(
        [str(BIN / "relent"), "track", *map(str, folders), "--receipt", str(receipt), *more],
        env={**os.environ, "RELENT_TRACKING_URI": uri},
        stderr=subprocess.PIPE,
        text=True,
    )


def counts(receipt: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(receipt.read_text())["experiments"]["images"]
    return found


def test_64_jobs_that_end_at_once(
    server: MlflowServer, tmp_path: Path, record_property: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stream live and end together; one replay adds scores and files. Then as many that have not streamed."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a training sets MLflow's variables for good
    streamed, unseen = finished(tmp_path / "streamed"), finished(tmp_path / "unseen")
    began = time.monotonic()
    with ThreadPoolExecutor(RUNS) as pool:
        list(pool.map(lambda folder: train(folder, server.uri), streamed))
    record_property("seconds_to_stream", time.monotonic() - began)
    for folders, name in ((streamed, "streamed"), (unseen, "unseen")):
        began = time.monotonic()
        job = track(folders, server.uri, tmp_path / f"{name}.json")
        _, said = job.communicate(timeout=400)
        assert job.returncode == 0, said
        record_property(f"seconds_to_replay_{name}", time.monotonic() - began)
        print(name, "replayed in", round(time.monotonic() - began, 1), "s", counts(tmp_path / f"{name}.json"))
        assert_whole(server.uri, folders)
    assert counts(tmp_path / "unseen.json")["written"] == RUNS
    found = counts(tmp_path / "streamed.json")
    assert found["completed"] + found["written"] == RUNS


def test_a_server_that_is_killed_and_comes_back_in_the_middle(server: MlflowServer, tmp_path: Path) -> None:
    folders = finished(tmp_path / "results", 16)
    job = track(folders, server.uri, tmp_path / "receipt.json")
    query = f"tags.`relent.tree` = '{tree_id(tmp_path / 'results')}'"
    deadline = time.monotonic() + 120
    while len(Store(server.uri).runs(query)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for _ in range(2):
        server.kill()
        time.sleep(2)
        server.start()
        time.sleep(2)
    _, said = job.communicate(timeout=500)
    assert job.returncode == 0, said
    assert_whole(server.uri, folders)


def test_two_workflows_on_one_server(server: MlflowServer, tmp_path: Path) -> None:
    """One tree tracked twice at once, and another tree with the same run names."""
    one, two = finished(tmp_path / "one", 12), finished(tmp_path / "two", 12)
    jobs = [track(folders, server.uri, tmp_path / f"{i}.json") for i, folders in enumerate((one, one, two))]
    said = [job.communicate(timeout=400)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], said
    assert sorted(counts(tmp_path / f"{i}.json")["written"] for i in range(3)) == [0, 12, 12]
    assert_whole(server.uri, one)
    assert_whole(server.uri, two)


def test_three_workflows_write_into_one_sqlite_store_at_once(tmp_path: Path) -> None:
    """One results tree that two ask to be tracked, and another tree, by the command that the rule calls."""
    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    history = [(step, "train/loss", step / 3) for step in range(50)]
    trees = {
        name: [write_run(tmp_path / name, "pld", seed, {"accuracy": seed}, history=history) for seed in range(RUNS)]
        for name in ("one", "two")
    }
    more = ("--artifacts", str(tmp_path / "artifacts"))
    jobs = [
        track(trees[name], uri, tmp_path / f"{name}{i}.json", *more) for name, i in (("one", 0), ("one", 1), ("two", 0))
    ]
    said = [job.communicate(timeout=500)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], said
    assert "locked" not in "".join(said)
    receipts = [json.loads(path.read_text())["experiments"]["images"] for path in sorted(tmp_path.glob("*.json"))]
    assert sorted((r["written"], r["unchanged"]) for r in receipts) == [(0, RUNS), (RUNS, 0), (RUNS, 0)]
    for name in trees:
        assert_whole(uri, trees[name])
    assert len(Store(uri).runs()) == 2 * RUNS


def test_two_workflows_make_one_database_at_once(tmp_path: Path) -> None:
    """Straight into PostgreSQL, without a server: both find no tables. The password is told nowhere."""
    with postgresql() as address:
        password = address.split(":")[2].split("@")[0]
        trees = [finished(tmp_path / name, 6) for name in ("one", "two")]
        shown = ProcessList(password)
        more = ("--artifacts", str(tmp_path / "artifacts"))
        with shown:
            jobs = [track(folders, address, tmp_path / f"{i}.json", *more) for i, folders in enumerate(trees)]
            said = [job.communicate(timeout=400)[1] for job in jobs]
        assert [job.returncode for job in jobs] == [0, 0], said
        for i, folders in enumerate(trees):
            assert counts(tmp_path / f"{i}.json")["written"] == 6
            assert len(Store(address).content(f"tags.`relent.tree` = '{tree_id(folders[0].parents[4])}'")) == 6
        wrong = track(trees[0], address.replace(password, "wr0ngpassw0rd"), tmp_path / "wrong.json")
        _, refused = wrong.communicate(timeout=60)
        assert wrong.returncode == 1
        assert "password authentication failed" in refused
        assert not [text for text in [*said, refused] if password in text or "wr0ngpassw0rd" in text]
        assert not shown.seen
        assert all(password not in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())


LIVE = """
import sys
from relent.track import live
live._AFTER, live._EVERY = 0.1, 0.2
from relent.cli import run
sys.argv[0] = "relent"
run()
"""


def test_a_training_that_is_killed_streams_into_one_run(server: MlflowServer, tmp_path: Path) -> None:
    """`relent train` by itself, SIGKILL in the middle, the same again; then evaluated and tracked."""
    (tmp_path / "project").mkdir()
    project = SmallProject(tmp_path / "project")
    project.config(methods=["pld"], seeds=[0])
    steps = 12000
    project.long_training(steps)
    project.snakemake("teachers/patterns/wide/smoke/config.json", "--quiet", "all")
    environment = {**project.environment, "RELENT_TRACKING_URI": server.uri}
    command = [sys.executable, "-c", LIVE, "train", "patterns", "pld", "--scale", "smoke"]
    store = Store(server.uri)

    def there() -> Any:
        query = f"tags.`relent.tree` = '{tree_id(project.folder / 'results')}'"
        return store.runs(query, "patterns") if store.client.get_experiment_by_name("patterns") else []

    first = subprocess.Popen(command, cwd=project.folder, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not any("train/loss" in run.data.metrics for run in there()):
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (run,) = there()
    assert run.info.status == "RUNNING"
    assert not (project.run("pld") / "config.json").exists()
    second = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=500)
    assert second.returncode == 0, second.stderr
    assert "resuming" in second.stderr
    folder = project.run("pld")
    teacher = ("--teacher-outputs", "teachers/patterns/wide/smoke")
    assert project.relent("evaluate", str(folder.relative_to(project.folder)), *teacher).returncode == 0
    job = track([folder], server.uri, tmp_path / "receipt.json")
    assert (job.communicate(timeout=200), job.returncode)[1] == 0
    assert json.loads((tmp_path / "receipt.json").read_text())["experiments"]["patterns"]["completed"] == 1
    (same,) = there()
    assert same.info.run_id == run.info.run_id
    history = store.client.get_metric_history(same.info.run_id, "train/loss")
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    expected = [(int(row[0]), float(row[2])) for row in rows if row[1] == "train/loss"]
    assert sorted((metric.step, metric.value) for metric in history) == expected
