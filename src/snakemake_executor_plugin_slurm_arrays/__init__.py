"""Snakemake's executor for SLURM, with job arrays for jobs that ask for the same.

A Snakemake executor plugin (the name of the package is how Snakemake finds it); `profiles/slurm` chooses it. All but
the making of arrays is `snakemake_executor_plugin_slurm`. Its own arrays are not used: they give all jobs of a rule
what the first one asks for, although methods differ and a further attempt asks for more; they hold jobs back for others
that never come, where `jobs` limits how many there are; and their tasks are no job steps, so that no warning before the
time limit reaches them.
"""

from __future__ import annotations

import shlex
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm import ExecutorSettings, common_settings
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_or_get_slurm_job_id, validate_slurm_extra
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


class Executor(SlurmExecutor):
    """Submits jobs that are ready together, of one rule and with equal resources, as one array; others one by one.

    `array_jobs` names the rules, or is `all`; `array_limit` is the most jobs of an array.
    """

    def __post_init__(self, test_mode: bool = False) -> None:
        super().__post_init__(test_mode)
        # Whatever is left to the base class is submitted one by one.
        self.in_arrays: set[str] = self.array_jobs
        self.array_jobs: set[str] = set()

    def run_jobs(self, jobs: list[JobExecutorInterface]) -> None:
        """Submit jobs; each is given to an executor once."""
        alike: dict[Any, list[JobExecutorInterface]] = defaultdict(list)
        for job in jobs:
            alike[asked(job) if self._fits_array(job) else id(job)].append(job)
        super().run_jobs([group[0] for group in alike.values() if len(group) == 1])
        for group in alike.values():
            for start in range(0, len(group) if len(group) > 1 else 0, self.max_array_size):
                self._submit_array_jobs(group[start : start + self.max_array_size])

    def _fits_array(self, job: JobExecutorInterface) -> bool:
        return not job.is_group() and ("all" in self.in_arrays or job.rule.name in self.in_arrays)

    def run_array_jobs(self, jobs: list[JobExecutorInterface]) -> None:
        """Submit jobs as one array; the script runs, in each task, the command that a single job would have."""
        try:
            for job in jobs:
                validate_slurm_extra(job)
            folder = self.slurm_logdir / f"rule_{jobs[0].name}"
            folder.mkdir(parents=True, exist_ok=True)
            array = self._sbatch(jobs, folder / "%A_%a.log")
        except Exception as error:
            for job in jobs:
                self._report_job_error_threadsafe(SubmittedJobInfo(job), f"an array was not submitted: {error}")
            return
        # A job on another cluster of several is cancelled only if the executor knows of it.
        named = (jobs[0].resources.get(name) for name in ("cluster", "clusters", "slurm_cluster"))
        self._submitted_job_clusters |= {cluster for cluster in named if cluster}
        self.logger.info(f"{len(jobs)} jobs of rule {jobs[0].name} are SLURM's array {array} (logs: {folder}).")
        for task, job in enumerate(jobs):
            number = f"{array}_{task}"
            info = SubmittedJobInfo(job, external_jobid=number, aux={"slurm_logfile": folder / f"{number}.log"})
            self._report_job_submission_threadsafe(info)

    def _sbatch(self, jobs: list[JobExecutorInterface], output: Path) -> str:
        """Number of the array that SLURM has taken."""
        first = jobs[0]
        settings = {
            "run_uuid": self.run_uuid,
            "slurm_logfile": output,
            "comment_str": f"rule_{first.name}_wildcards_{get_job_wildcards(first)}",
            "account": next(self.get_account_arg(first)),
            "partition": self.get_partition_arg(first),
            "workdir": self.workflow.workdir_init,
        }
        call = get_submit_command(first, settings, self.workflow.executor_settings, self._failed_nodes)
        call += f"{set_gres_string(first)} --array=0-{len(jobs) - 1} /dev/stdin"
        tasks = "".join(f"{task}) {self.format_job_exec(job)} ;;\n" for task, job in enumerate(jobs))
        script = f"#!/bin/sh\ncase $SLURM_ARRAY_TASK_ID in\n{tasks}esac\n"
        done = subprocess.run(shlex.split(call), text=True, input=script, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"{done.stderr.strip()} ({call})")
        return str(validate_or_get_slurm_job_id(done.stdout.strip().split(";")[0], done.stdout))


def asked(job: JobExecutorInterface) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What jobs of one array have in common: rule, threads and resources."""
    return job.rule.name, tuple(sorted((name, str(value)) for name, value in job.resources.items()))
