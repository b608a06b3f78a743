"""The executor's job arrays, with an `sbatch` that writes down what it gets."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snakemake_executor_plugin_slurm_arrays import Executor, ExecutorSettings

SBATCH = """#!/bin/sh
for word in "$@"; do echo "$word" >> {folder}/words; done
cat > {folder}/script
echo 17
"""


class Silent:
    """A logger."""

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **more: None


def job(rule: str, seed: int, **resources: Any) -> Any:
    """What the executor asks of a job of Snakemake."""
    resources = {"mem_mb": 1000, "runtime": 5, "tmpdir": "/tmp", **resources}
    known = SimpleNamespace(get=resources.get, items=resources.items, keys=resources.keys, **resources)
    facts = {"rule": SimpleNamespace(name=rule), "name": rule, "wildcards": ["task", str(seed)], "seed": seed}
    return SimpleNamespace(**facts, threads=1, resources=known, is_group=lambda: False)


class Recorder(Executor):
    """The executor, without Snakemake around it."""

    def __init__(self, folder: Path, arrays: set[str], limit: int = 1000):
        settings = ExecutorSettings(requeue=True, status_command="squeue")
        self.workflow = SimpleNamespace(executor_settings=settings, workdir_init=str(folder))
        self.in_arrays, self.array_jobs, self.max_array_size = arrays, set(), limit
        self.slurm_logdir, self.run_uuid, self.logger = folder / "logs", "workflow", Silent()
        self._failed_nodes, self._submitted_job_clusters, self._main_event_loop = set(), set(), None
        self.submitted: list[list[int]] = []
        self.reported: dict[int, tuple[str, str]] = {}
        self.failed: dict[int, str] = {}

    def _submit_job(self, job: Any) -> None:
        self.submitted.append([job.seed])

    def _submit_array_jobs(self, jobs: list[Any]) -> None:
        self.submitted.append([job.seed for job in jobs])

    def get_account_arg(self, job: Any) -> Any:
        yield ""

    def get_partition_arg(self, job: Any) -> str:
        return " -p main"

    def format_job_exec(self, job: Any) -> str:
        return f"echo 'run \"{job.seed}\"'"

    def report_job_submission(self, info: Any, *more: Any) -> None:
        self.reported[info.job.seed] = (info.external_jobid, info.aux["slurm_logfile"].name)

    def report_job_error(self, info: Any, msg: str) -> None:
        self.failed[info.job.seed] = msg


def test_jobs_that_ask_for_the_same_are_an_array(tmp_path: Path) -> None:
    executor = Recorder(tmp_path, {"all"})
    more = [job("student", n, mem_mb=2000) for n in (3, 4)]
    executor.run_jobs([job("student", 0), *more, job("student", 1), job("evaluate", 2)])
    assert executor.submitted == [[2], [0, 1], [3, 4]]


@pytest.mark.parametrize(("rules", "submitted"), [(set(), [[0], [1]]), ({"student"}, [[0, 1]])])
def test_rules_in_arrays_are_a_setting(tmp_path: Path, rules: set[str], submitted: list[list[int]]) -> None:
    executor = Recorder(tmp_path, rules)
    executor.run_jobs([job("student", 0), job("student", 1)])
    assert executor.submitted == submitted


def test_arrays_are_no_larger_than_the_limit(tmp_path: Path) -> None:
    executor = Recorder(tmp_path, {"all"}, limit=3)
    executor.run_jobs([job("student", n) for n in range(7)])
    assert executor.submitted == [[0, 1, 2], [3, 4, 5], [6]]


def test_each_task_runs_the_command_of_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text(SBATCH.format(folder=tmp_path))
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    executor = Recorder(tmp_path, {"all"})
    executor.run_array_jobs([job("student", n) for n in (5, 6)])
    words = (tmp_path / "words").read_text().split("\n")
    assert {"--array=0-1", "--requeue", "--cpus-per-task=1", "/dev/stdin"} <= set(words)
    assert words[words.index("--mem") + 1] == "1000"
    assert executor.reported == {5: ("17_0", "17_0.log"), 6: ("17_1", "17_1.log")}
    for task, seed in enumerate((5, 6)):
        done = subprocess.run(
            ["sh", tmp_path / "script"], env={"SLURM_ARRAY_TASK_ID": str(task)}, capture_output=True, text=True
        )
        assert done.stdout == f'run "{seed}"\n'


def test_refused_array_fails_each_of_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2; exit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    executor = Recorder(tmp_path, {"all"})
    executor.run_array_jobs([job("student", n) for n in (5, 6)])
    assert executor.failed.keys() == {5, 6}
    assert all("invalid partition" in words for words in executor.failed.values())
    assert not executor.reported
