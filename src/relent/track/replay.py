"""Replays run folders into MLflow so that doing it twice adds nothing.

A run is known by the tag `relent.run_id` (its folder relative to the results). The tag `relent.digest` over its files
is written last, just before the run is marked as finished: a run without it was cut off and is written anew, one with
the same digest is left alone, one with another digest is deleted (as MLflow deletes: it can be restored) and replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from relent.files import write_json
from relent.track.records import Record, batches, comparison_record, run_record
from relent.track.store import masked, opened, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LOG = logging.getLogger("relent.track")


@dataclass
class Counts:
    """What a replay did."""

    written: int = 0
    replaced: int = 0
    unchanged: int = 0


def replay_all(
    runs: Sequence[Path], comparisons: Sequence[Path], uri: str, artifacts: Path | str | None, receipt: Path
) -> dict[str, Any]:
    """Replay runs and comparisons of any number of tasks, and write a receipt.

    Args:
        runs: Run folders.
        comparisons: Comparison folders.
        uri: MLflow tracking address: `sqlite:///FILE`, a database or a tracking server.
        artifacts: Folder of artifacts beside a SQLite store; None, or a server: the store's own place.
        receipt: JSON file of counts by experiment.

    Returns:
        The receipt: `{"uri": …, "experiments": {task: {"written": …, "replaced": …, "unchanged": …}}}`.

    Raises:
        DataError: A folder is not whole; nothing was written then.
        RelentError: The store or server cannot be used.
    """
    records = [run_record(folder) for folder in runs] + [comparison_record(folder) for folder in comparisons]
    done = replay(records, uri, artifacts)
    content = {"uri": masked(uri), "experiments": {task: asdict(counts) for task, counts in done.items()}}
    write_json(receipt, content)
    return content


def replay(records: Iterable[Record], uri: str, artifacts: Path | str | None = None) -> dict[str, Counts]:
    """Bring records into the store at `uri`; returns counts by experiment.

    Raises:
        RelentError: The store or server cannot be used.
    """
    by_experiment: dict[str, list[Record]] = {}
    for record in records:
        by_experiment.setdefault(record.experiment, []).append(record)
    local = Path(artifacts).resolve() if artifacts is not None and sqlite_path(uri) else None
    done: dict[str, Counts] = {}
    with opened(uri) as client:
        for name, members in sorted(by_experiment.items()):
            done[name] = _replay_experiment(client, name, members, local / name if local else None)
            LOG.info("%s: %s", name, done[name])
    return done


def _replay_experiment(client: MlflowClient, name: str, records: list[Record], artifacts: Path | None) -> Counts:
    experiment = _experiment(client, name, artifacts)
    known = _known(client, experiment)
    counts = Counts()
    for record in records:
        there = known.get(record.id, [])
        current = next((run for run in there if _is_current(run, record)), None)
        for run in there:
            if run is not current:
                client.delete_run(run.info.run_id)
        if current:
            counts.unchanged += 1
            continue
        _write(client, experiment, record)
        counts.replaced += bool(there)
        counts.written += not there
    return counts


def _experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """Id of the task's experiment, made or restored where need be.

    A local store that was moved still names its old artifact folder, which MLflow cannot change: that experiment is
    renamed and kept, and a new one is filled from the results.
    """
    wanted = artifacts.as_uri() if artifacts else None
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if found and wanted and found.artifact_location != wanted:
        client.rename_experiment(found.experiment_id, f"{name} (artifacts in {found.artifact_location})")
        found = None
    return found.experiment_id if found else client.create_experiment(name, artifact_location=wanted)


def _known(client: MlflowClient, experiment: str) -> dict[str, list[Run]]:
    """Runs of an experiment that a replay wrote, by `relent.run_id`."""
    known: dict[str, list[Run]] = {}
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for run in page:
            if "relent.run_id" in run.data.tags:
                known.setdefault(run.data.tags["relent.run_id"], []).append(run)
        token = page.token
        if not token:
            return known


def _is_current(run: Run, record: Record) -> bool:
    """Whether a stored run is finished, has the record's content, and its local artifacts still exist."""
    place = urlsplit(run.info.artifact_uri)
    gone = place.scheme == "file" and record.artifacts and not Path(url2pathname(place.path)).is_dir()
    return run.info.status == "FINISHED" and run.data.tags.get("relent.digest") == record.digest and not gone


def _write(client: MlflowClient, experiment: str, record: Record) -> None:
    from mlflow.entities import Metric, Param, RunTag

    tags = record.tags | {"relent.run_id": record.id}
    run_id = client.create_run(experiment, record.start, tags, record.name).info.run_id
    for params in batches([Param(key, value) for key, value in record.params.items()], 100):
        client.log_batch(run_id, params=params)
    for metrics in batches([Metric(p.key, p.value, p.time, p.step) for p in record.points], 1000):
        client.log_batch(run_id, metrics=metrics)
    for path, folder in record.artifacts:
        client.log_artifact(run_id, str(path), folder or None)
    client.log_batch(run_id, tags=[RunTag("relent.digest", record.digest)])
    client.set_terminated(run_id, "FINISHED", record.end)
