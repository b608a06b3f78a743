from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from stored import Store
from synthetic_runs import make_method, make_task, write_run

from relent.compare import command
from relent.compare.overview import run_overview
from relent.errors import DataError
from relent.manifest.models import Group
from relent.track import records
from relent.track.replay import replay_all
from relent.track.store import opened


def counts(**given: int) -> dict[str, int]:
    return dict.fromkeys(("written", "completed", "replaced", "unchanged"), 0) | given


def _replay(folders: list[Path], uri: str, root: Path, comparisons: list[Path] | None = None) -> dict[str, int]:
    receipt = replay_all(folders, comparisons or [], uri, root / "mlflow" / "artifacts", root / "tracking.json")
    assert json.loads((root / "tracking.json").read_text()) == receipt
    found: dict[str, int] = receipt["experiments"]["images"]
    return found


def test_a_run_is_whole_in_the_store(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    assert _replay(run_folders, uri, tmp_path) == counts(written=4)
    run = Store(uri).content()["images/pld/default/laptop/seed1"]
    assert run["params"] == {
        "run.method": "pld",
        "run.variant": "default",
        "run.scale": "laptop",
        "run.seed": "1",
        "max_steps": "200",
        "temperature": "4.0",
        "betas": "0.9, 0.99",
        "data.items": "5000",
        "model.network.width": "16",
        "model.network.kernels": "3, 3",
    }
    steps = [step for step, _, _ in run["history"]["train/loss"]]
    assert steps == list(range(0, 1200, 2))
    assert [float(value) for _, value, _ in run["history"]["val/nll"]] == [step / 7 for step in steps]
    assert run["history"]["test/accuracy"][0][:2] == (0, "0.81")
    assert run["history"]["cost/training_seconds"][0][1] == "12.5"
    name, status, start, end = run["info"]
    assert (name, status, end - start) == ("pld s1", "FINISHED", 12500)
    assert abs(end / 1000 - (run_folders[1] / "config.json").stat().st_mtime) < 0.01
    assert all(start <= time <= end for rows in run["history"].values() for _, _, time in rows)
    for file in ("config.json", "scores.json", "figures/curve.png"):
        assert run["files"][file] == (run_folders[1] / file).read_bytes()
    expected = {"kind": "run", "task": "images", "method": "pld", "variant": "default", "seed": "1", "scale": "laptop"}
    expected |= {"family": "distillation", "code": f"{'pld':f<16}", "data_checksum": "c0ffee", "torch": "2.13.0"}
    assert {key: run["tags"][f"relent.{key}"] for key in expected} == expected
    assert run["tags"]["relent.plan"] == json.loads((run_folders[1] / "config.json").read_text())["plan"]


def test_twice_adds_nothing(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    _replay(run_folders, uri, tmp_path)
    before = Store(uri).content()
    assert _replay(run_folders, uri, tmp_path) == counts(unchanged=4)
    assert Store(uri).content() == before


def test_a_deleted_store_is_rebuilt_whole(run_folders: list[Path], uri: str, tmp_path: Path, empty_store: Path) -> None:
    _replay(run_folders, uri, tmp_path)
    before = Store(uri).content()
    shutil.rmtree(tmp_path / "mlflow")
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty_store, tmp_path / "mlflow" / "again.db")  # MLflow holds the deleted file open in this process
    again = f"sqlite:///{tmp_path}/mlflow/again.db"
    assert _replay(run_folders, again, tmp_path) == counts(written=4)
    assert Store(again).content() == before


def test_search_by_parameter_tag_and_score(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    _replay(run_folders, uri, tmp_path)
    store = Store(uri)
    assert {r.data.tags["relent.method"] for r in store.runs("params.temperature = '4.0'")} == {"pld"}
    assert len(store.runs("tags.`relent.seed` = '1' and tags.`relent.method` = 'nkd'")) == 1
    assert len(store.runs("metrics.`test/accuracy` > 0.805")) == 2
    assert len(store.runs("params.`data.items` = '5000'")) == 4


def test_not_a_number_is_kept(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    _replay(run_folders, uri, tmp_path)
    ((_, value, _),) = Store(uri).content()["images/nkd/default/laptop/seed0"]["history"]["train/loss"]
    assert math.isnan(float(value))


def test_a_changed_run_is_replaced_and_the_old_one_deleted(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    from mlflow.entities import ViewType

    _replay(run_folders, uri, tmp_path)
    write_run(tmp_path / "results", "nkd", 1, {"accuracy": 0.9}, hyperparameters={"temperature": 2.0})
    assert _replay(run_folders, uri, tmp_path) == counts(replaced=1, unchanged=3)
    store = Store(uri)
    (new,) = store.runs("tags.`relent.run_id` = 'images/nkd/default/laptop/seed1'")
    assert (new.data.params["temperature"], new.data.metrics["test/accuracy"]) == ("2.0", 0.9)
    everything = store.client.search_runs([new.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert [run.data.params["temperature"] for run in everything] == ["1.0"]


@pytest.mark.parametrize("call", ["log_artifact", "log_batch", "set_terminated"])
def test_a_replay_killed_in_the_middle_is_mended(
    run_folders: list[Path], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    from mlflow import MlflowClient

    _replay(run_folders[:1], uri, tmp_path)
    original, calls = getattr(MlflowClient, call), 0

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 or call == "set_terminated":
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, call, killed)
    with pytest.raises(KeyboardInterrupt):
        _replay(run_folders, uri, tmp_path)
    monkeypatch.undo()
    assert _replay(run_folders, uri, tmp_path) == counts(written=2, completed=1, unchanged=1)
    found = Store(uri).runs()
    assert sorted(run.data.tags["relent.run_id"] for run in found) == sorted(
        f"images/{m}/default/laptop/seed{s}" for m in ("nkd", "pld") for s in (0, 1)
    )
    assert {run.info.status for run in found} == {"FINISHED"}


def test_runs_of_others_in_the_experiment_are_left_alone(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    _replay(run_folders, uri, tmp_path)
    store = Store(uri)
    own = store.client.create_run(store.client.get_experiment_by_name("images").experiment_id)
    _replay(run_folders, uri, tmp_path)
    assert own.info.run_id in {run.info.run_id for run in store.runs()}


def test_lost_artifacts_and_a_deleted_experiment_come_back(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    _replay(run_folders, uri, tmp_path)
    before = Store(uri).content()
    shutil.rmtree(tmp_path / "mlflow" / "artifacts")
    assert _replay(run_folders, uri, tmp_path)["replaced"] == 4
    assert Store(uri).content() == before
    client = Store(uri).client
    client.delete_experiment(client.get_experiment_by_name("images").experiment_id)
    _replay(run_folders, uri, tmp_path)
    assert Store(uri).content() == before


def test_a_moved_project_fills_a_new_experiment(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    _replay(run_folders, uri, tmp_path)
    replay_all(run_folders, [], uri, tmp_path / "moved", tmp_path / "tracking.json")
    store = Store(uri)
    assert all(run.info.artifact_uri.startswith((tmp_path / "moved").as_uri()) for run in store.runs())
    assert sum("artifacts in" in experiment.name for experiment in store.client.search_experiments()) == 1


def test_two_replays_at_once_write_each_run_once(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    counts: list[dict[str, int]] = []

    def work(name: str) -> None:
        receipt = replay_all(run_folders, [], uri, tmp_path / "artifacts", tmp_path / name)
        counts.append(receipt["experiments"]["images"])

    threads = [threading.Thread(target=work, args=(f"{i}.json",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(c["written"] for c in counts) == [0, 4]
    assert sorted(c["unchanged"] for c in counts) == [0, 4]
    assert len(Store(uri).runs()) == 4


def test_a_comparison_is_a_run_of_its_own(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    task, out = make_task(baseline="nkd"), tmp_path / "results" / "images"
    labelled = [(folder, folder.parts[-4]) for folder in run_folders]
    command.run_compare(task, labelled, 0.95, out)
    command.run_claims(task, {"pld": make_method("pld", [{"baseline": "nkd"}, {}])}, labelled, 0.95, out)
    (out / "figures").mkdir()
    shutil.copy(run_folders[0] / "figures" / "curve.png", out / "figures")
    (out / "comparison.html").write_text("<p>page</p>")
    receipt = command.run_track(run_folders, [out], uri, tmp_path / "artifacts", tmp_path / "tracking.json")
    assert receipt["experiments"]["images"]["written"] == 5
    store = Store(uri)
    (run,) = store.runs("tags.`relent.kind` = 'comparison'")
    content = store.content()["images/comparison/laptop"]
    assert set(content["files"]) == {*records.COMPARISON_FILES, "figures/curve.png"}
    assert "best Accuracy" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics == {}  # the charts of the page are the runs' own
    assert sum(int(value) for key, value in run.data.tags.items() if key.startswith("relent.claims_")) == 2
    about = store.client.get_experiment_by_name("images").tags
    assert about["mlflow.note.content"].startswith("**Image distillation**")
    assert about["mlflow.experimentKind"] == "custom_model_development"
    again = command.run_track(run_folders, [out], uri, tmp_path / "artifacts", tmp_path / "tracking.json")
    assert again["experiments"]["images"]["unchanged"] == 5


def test_a_group_is_an_experiment_with_one_run(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    task, results = make_task(baseline="nkd"), tmp_path / "results"
    labelled = [(folder, folder.parts[-4]) for folder in run_folders]
    command.run_compare(task, labelled, 0.95, results / "images")
    command.run_claims(task, {}, labelled, 0.95, results / "images")
    group = Group(title="Which one?", tasks=["images"], goals={"accuracy": ["accuracy"]}, reference="nkd")
    out = results / "classification"
    run_overview("classification", group, {"images": task}, {"images": results / "images"}, out)
    receipt = command.run_track([], [], uri, tmp_path / "artifacts", tmp_path / "tracking.json", [out])
    assert receipt["experiments"]["classification"]["written"] == 1
    store = Store(uri)
    (run,) = store.runs("tags.`relent.kind` = 'overview'", "classification")
    assert {file.path for file in store.client.list_artifacts(run.info.run_id)} == set(records.OVERVIEW_FILES)
    assert run.info.run_name == "overview laptop"
    assert run.data.tags["relent.tasks"] == "images"
    assert "nowhere worse for accuracy" in run.data.tags["mlflow.note.content"]
    about = store.client.get_experiment_by_name("classification").tags
    assert about["mlflow.note.content"].startswith("**Which one?**")
    again = command.run_track([], [], uri, tmp_path / "artifacts", tmp_path / "tracking.json", [out])
    assert again["experiments"]["classification"]["unchanged"] == 1


def test_tasks_get_an_experiment_each(run_folders: list[Path], uri: str, tmp_path: Path) -> None:
    other = write_run(tmp_path / "results", "fuxi_ens", 0, {"crps": 0.2}, task="weather")
    receipt = replay_all([*run_folders, other], [], uri, tmp_path / "artifacts", tmp_path / "tracking.json")
    assert {task: counts["written"] for task, counts in receipt["experiments"].items()} == {"images": 4, "weather": 1}
    assert len(Store(uri).runs(experiment="weather")) == 1


@pytest.mark.parametrize("broken", ["scores.json", "config.json", "metrics.csv"])
def test_a_broken_run_stops_the_replay_before_it_writes(
    run_folders: list[Path], uri: str, tmp_path: Path, broken: str
) -> None:
    (run_folders[2] / broken).write_text("step,metric,value\n1,loss" if broken == "metrics.csv" else '{"a": ')
    with pytest.raises(DataError, match=broken.replace(".", r"\.")):
        _replay(run_folders, uri, tmp_path)
    assert not (tmp_path / "tracking.json").exists()
    with opened(uri) as client:
        assert client.get_experiment_by_name("images") is None


def test_names_that_mlflow_refuses_are_mended(uri: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "results", "pld", 0, {"pass@1": 0.5}, history=[(1, "train/loss [nats]", 0.1)])
    _replay([run], uri, tmp_path)
    assert set(Store(uri).runs()[0].data.metrics) >= {"test/pass_1", "train/loss _nats_"}


def test_a_thousand_parameters_and_long_values_fit(uri: str, tmp_path: Path) -> None:
    many = {f"weight_{i}": i for i in range(250)} | {"prompt": "x" * 9000}
    run = write_run(tmp_path / "results", "pld", 0, {"accuracy": 0.5}, hyperparameters=many)
    _replay([run], uri, tmp_path)
    params = Store(uri).runs()[0].data.params
    assert params["weight_249"] == "249"
    assert params["prompt"].startswith("xxx")


def test_a_fresh_store_is_made_quietly_and_without_torch(run_folders: list[Path], tmp_path: Path) -> None:
    code = f"""
import logging, sys
from pathlib import Path
from relent.track.replay import replay_all
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s")
replay_all([Path({str(run_folders[0])!r})], [], "sqlite:///deep/er/mlflow.db", "deep/artifacts", Path("tracking.json"))
print([name for name in ("torch", "lightning", "transformers") if name in sys.modules])
"""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("relent.track\n[]\n", "", 0)
    assert sorted(os.listdir(tmp_path)) == ["deep", "results", "tracking.json"]
    assert sorted(os.listdir(tmp_path / "deep")) == ["artifacts", "er"]
