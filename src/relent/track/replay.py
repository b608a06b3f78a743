"""Replays run folders into MLflow so that doing it twice adds nothing, and so that faults on the way lose nothing.

A run is known by the tags `relent.tree` and `relent.run_id`: the results tree, and the folder in it. The tag
`relent.digest` over its content says what it holds or is being filled with, and the status FINISHED that it is whole:

- one with the record's digest that is finished is left alone;
- one with that digest that is not, or one that its training has streamed and ended (no digest), is continued if all
  that it holds is in the record: what is absent is added. A stream without an end may have a batch on its way, which a
  busy server writes later: that run is replaced;
- any other is replaced: a new one is written, then the old one deleted (as MLflow deletes: it can be restored).

The store is looked at before anything is written and again after it, until a look finds everything in its place. So
nothing depends on the answer to one request: a server that goes away in the middle, or does the work and fails to say
so, costs one more look.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from relent.errors import RelentError
from relent.files import write_json
from relent.track.address import Address, understand
from relent.track.locks import alone
from relent.track.records import Point, Record, batches, comparison_record, overview_record, run_record
from relent.track.store import Patience, StoreAway, opened, told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LOG = logging.getLogger("relent.track")
Known = dict[tuple[str, str], list["Run"]]
"""Runs of an experiment by tree and id."""


@dataclass
class Counts:
    """What a replay found and did."""

    written: int = 0
    completed: int = 0
    """Begun before: streamed by the training, or by a replay that was cut off."""
    replaced: int = 0
    unchanged: int = 0


def replay_all(
    runs: Sequence[Path],
    comparisons: Sequence[Path],
    uri: str,
    artifacts: Path | str | None,
    receipt: Path,
    overviews: Sequence[Path] = (),
) -> dict[str, Any]:
    """Replay runs and comparisons of any number of tasks, and overviews of groups, and write a receipt.

    Args:
        runs: Run folders.
        comparisons: Comparison folders.
        uri: MLflow tracking address: `sqlite:///FILE`, a database or a tracking server.
        artifacts: Folder of artifacts beside a SQLite store or a database; None, or a server: the store's own place.
        receipt: JSON file of counts by experiment.
        overviews: Folders of groups.

    Returns:
        The receipt: `{"uri": …, "experiments": {task: {"written": …, "completed": …, "replaced": …, "unchanged": …}}}`.

    Raises:
        DataError: A folder is not whole; nothing was written then.
        RelentError: The store or server cannot be used.
    """
    address = understand(uri)
    records = [run_record(folder) for folder in runs] + [comparison_record(folder) for folder in comparisons]
    records += [overview_record(folder) for folder in overviews]
    trees = {folder.absolute().parents[4] for folder in runs}
    trees |= {folder.absolute().parent for folder in (*comparisons, *overviews)}
    with ExitStack() as locks:
        for tree in sorted(trees):
            locks.enter_context(alone(tree / ".tracking.lock", f"tracking of {tree.name}"))
        done = replay(records, uri, artifacts)
    content = {"uri": address.shown, "experiments": {task: asdict(counts) for task, counts in done.items()}}
    write_json(receipt, content)
    return content


def replay(records: Iterable[Record], uri: str, artifacts: Path | str | None = None) -> dict[str, Counts]:
    """Bring records into the store at `uri`; returns counts by experiment.

    Raises:
        RelentError: The store or server cannot be used.
    """
    address = understand(uri)
    by_experiment: dict[str, list[Record]] = {}
    for record in records:
        by_experiment.setdefault(record.experiment, []).append(record)
    local = Path(artifacts).resolve() if artifacts is not None and address.kind != "server" else None
    done: dict[str, Counts] = {}
    with opened(uri) as client:
        for name, members in sorted(by_experiment.items()):
            done[name] = _replay_experiment(client, address, name, members, local / name if local else None)
            LOG.info("%s: %s", name, done[name])
    return done


def _replay_experiment(
    client: MlflowClient, address: Address, name: str, records: list[Record], artifacts: Path | None
) -> Counts:
    """Look, write what is not there, and look again, until a look finds all of it."""
    first: Known | None = None
    left, patience, idle = len(records) + 1, Patience(), 0
    while True:
        try:
            with told(address):
                experiment = experiment_of(client, name, artifacts)
                known = _known(client, experiment, {record.tree for record in records})
                first = known if first is None else first
                open_ = [record for record in records if not _is_settled(known, record)]
                if not open_:
                    _describe(client, experiment, records)
                    return _counts(first, records)
                idle = 0 if len(open_) < left else idle + 1
                left = len(open_)
                if idle == 3:
                    raise RelentError(f"tracking store {address.shown}: does not keep what it is given ({open_[0].id})")
                for record in open_:
                    _bring(client, experiment, record, known.get((record.tree, record.id), []))
                    patience.progress()
        except StoreAway as error:
            patience.wait(error)
            idle = 0


def experiment_of(client: MlflowClient, name: str, artifacts: Path | None = None) -> str:
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
    if found:
        return str(found.experiment_id)
    return str(client.create_experiment(name, wanted))


def _known(client: MlflowClient, experiment: str, trees: set[str]) -> Known:
    """Runs of an experiment that belong to the given results trees."""
    known: Known = {}
    for tree in trees:
        for run in runs_of(client, experiment, f"tags.`relent.tree` = '{tree}'"):
            known.setdefault((tree, run.data.tags.get("relent.run_id", "")), []).append(run)
    return known


def runs_of(client: MlflowClient, experiment: str, query: str) -> list[Run]:
    """All active runs that a query finds."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], query, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _is_current(run: Run, record: Record) -> bool:
    """Whether a stored run is finished, has the record's content, and its local artifacts still exist."""
    place = urlsplit(run.info.artifact_uri)
    gone = place.scheme == "file" and record.artifacts and not Path(url2pathname(place.path)).is_dir()
    return run.info.status == "FINISHED" and run.data.tags.get("relent.digest") == record.digest and not gone


def _is_settled(known: Known, record: Record) -> bool:
    """Whether the store has the record, once, and nothing else that is to go."""
    there = [run for run in known.get((record.tree, record.id), []) if not _is_newer(run, record)]
    return len(there) == 1 and _is_current(there[0], record)


def _is_newer(run: Run, record: Record) -> bool:
    """Whether a run is being streamed by a later training of the same folder, which is not to be touched."""
    tags = run.data.tags
    other = tags.get("relent.plan") != record.tags.get("relent.plan")
    return other and "relent.digest" not in tags and run.info.start_time > record.end


def _bring(client: MlflowClient, experiment: str, record: Record, there: list[Run]) -> None:
    """Make the store hold the record once."""
    chosen = min((run for run in there if _is_current(run, record)), key=lambda run: run.info.run_id, default=None)
    if chosen is None:
        chosen = _continued(client, record, there) or _created(client, experiment, record)
    for run in there:
        if run.info.run_id != chosen.info.run_id and not _is_newer(run, record):
            client.delete_run(run.info.run_id)


def _created(client: MlflowClient, experiment: str, record: Record) -> Run:
    tags = record.tags | {"relent.tree": record.tree, "relent.run_id": record.id, "relent.digest": record.digest}
    run = client.create_run(experiment, record.start, tags, record.name)
    _fill(client, run.info.run_id, record, record.params, record.points)
    return run


def _continued(client: MlflowClient, record: Record, there: list[Run]) -> Run | None:
    """Fill a run that was begun, if there is one that holds nothing but what the record has too."""
    from mlflow.entities import RunTag

    for run in there:
        digest, status = run.data.tags.get("relent.digest"), run.info.status
        streamed = digest is None and status != "RUNNING"
        cut_off = digest == record.digest and status == "RUNNING"
        absent = _absent(client, run, record) if streamed or cut_off else None
        if absent is None:
            continue
        run_id = run.info.run_id
        client.update_run(run_id, "RUNNING", record.name)
        client.log_batch(
            run_id, tags=[RunTag(k, v) for k, v in {**record.tags, "relent.digest": record.digest}.items()]
        )
        params = {key: value for key, value in record.params.items() if key not in run.data.params}
        _fill(client, run_id, record, params, absent)
        return run
    return None


def _absent(client: MlflowClient, run: Run, record: Record) -> list[Point] | None:
    """Points of the record that a stored run lacks; None if it holds anything that the record does not, or twice.

    A training that was killed and resumed may have streamed other values for the steps that it did twice. The times of
    absent points depend on nothing but run and record: a request that is sent twice then adds nothing, for MLflow keeps
    one of points that are alike in all.
    """
    same_plan = run.data.tags.get("relent.plan") == record.tags.get("relent.plan")
    if not same_plan or any(not record.params.get(k, "").startswith(v) for k, v in run.data.params.items()):
        return None
    stored = Counter(
        Point(key, metric.value, metric.step, 0).place
        for key in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, key)
    )
    absent = []
    begin, scale = run.info.start_time, 1 / max(record.end - record.start, 1)
    for point in record.points:
        if stored[point.place] > 0:
            stored[point.place] -= 1
        else:
            share = (point.time - record.start) * scale
            absent.append(replace(point, time=round(begin + share * (record.end - begin))))
    return None if any(stored.values()) else absent


def _fill(client: MlflowClient, run_id: str, record: Record, params: dict[str, str], points: list[Point]) -> None:
    """Write parameters, points and files, and mark the run as whole."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

    pairs = batches([Param(key, value) for key, value in params.items()], 100)
    metrics = batches([Metric(point.key, point.value, point.time, point.step) for point in points], 900)
    for some_params, some_metrics in zip_longest(pairs, metrics, fillvalue=()):
        client.log_batch(run_id, metrics=some_metrics, params=some_params)
    if record.dataset:
        name, checksum = record.dataset
        dataset = Dataset(name, checksum[:8], "relent", f'{{"sha256": "{checksum}"}}')
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    for path, folder in record.artifacts:
        client.log_artifact(run_id, str(path), folder or None)
    client.set_terminated(run_id, "FINISHED", record.end)


def _describe(client: MlflowClient, experiment: str, records: list[Record]) -> None:
    """Give the experiment a description, unless somebody has written one, and its kind.

    The kind tells MLflow's pages that this is training, not the making of a chat application.
    """
    wanted = {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": next((record.description for record in records if record.description), ""),
    }
    there = client.get_experiment(experiment).tags
    for key, value in wanted.items():
        if value and key not in there:
            client.set_experiment_tag(experiment, key, value)


def _counts(first: Known, records: list[Record]) -> Counts:
    """What the first look found says what was done since."""
    counts = Counts()
    for record in records:
        there = [run for run in first.get((record.tree, record.id), []) if not _is_newer(run, record)]
        if any(_is_current(run, record) for run in there):
            counts.unchanged += 1
        elif any(run.info.status == "FINISHED" and "relent.digest" in run.data.tags for run in there):
            counts.replaced += 1
        elif there:
            counts.completed += 1
        else:
            counts.written += 1
    return counts
