"""What `snakemake` prints in this project: one line a job, which run of how many, and when it will probably end.

A Snakemake logger plugin (the name of the package is how Snakemake finds it); `profiles/default` switches it on.
Errors, warnings and dry runs are printed as Snakemake prints them.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter, defaultdict
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

RUN_RULE = "student"
KEPT = ("Nothing to be done", "Complete log", "Error", "Exiting", "Removing")


class Estimate:
    """Expected seconds until the end, from how long the finished jobs of each rule took."""

    def __init__(self, jobs: dict[str, int]):
        self.left = Counter(jobs)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.began = time.monotonic()

    def finish(self, rule: str, seconds: float) -> None:
        """Count a finished job."""
        self.left[rule] -= 1
        self.seconds[rule].append(seconds)

    def remaining(self) -> float | None:
        """Seconds left at the parallelism seen so far; None before anything has finished."""
        done = [value for values in self.seconds.values() for value in values]
        elapsed = time.monotonic() - self.began
        if not done or elapsed <= 0:
            return None
        overall = sum(done) / len(done)
        means = {rule: sum(values) / len(values) for rule, values in self.seconds.items()}
        work = sum(count * means.get(rule, overall) for rule, count in self.left.items() if count > 0)
        return work / max(1.0, sum(done) / elapsed)


def spoken(seconds: float) -> str:
    """A duration in words: `40 s`, `7 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def describe(rule: str, wildcards: dict[str, Any]) -> str:
    """A job in words: rule, task, method and seed."""
    names = [wildcards[key] for key in ("task", "source", "teacher", "method", "stage") if key in wildcards]
    variant = wildcards.get("variant", "default")
    names += [variant] if variant != "default" else []
    names += [f"seed {wildcards['seed']}"] if "seed" in wildcards else []
    return " · ".join([rule, *map(str, names)])


class LogHandler(LogHandlerBase):
    """Prints progress to standard error."""

    def __post_init__(self) -> None:
        self.jobs: dict[int, tuple[str, dict[str, Any]]] = {}
        self.starts: dict[int, float] = {}
        self.silent: set[int] = set()
        self.total, self.done, self.runs, self.runs_done = 0, 0, 0, 0
        self.estimate: Estimate | None = None

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False

    def emit(self, record: logging.LogRecord) -> None:
        """Print what a reader wants to know of an event."""
        event = getattr(record, "event", None)
        if (
            self.common_settings.dryrun
            or record.levelno >= logging.WARNING
            or event
            in (
                LogEvent.JOB_ERROR,
                LogEvent.GROUP_ERROR,
                LogEvent.ERROR,
            )
        ):
            self._say(self.format(record))
        elif event == LogEvent.RUN_INFO:
            self._plan(record.stats)  # type: ignore[attr-defined]
        elif event == LogEvent.JOB_INFO:
            self._start(record)
        elif event == LogEvent.JOB_FINISHED:
            self._finish(record.job_id)  # type: ignore[attr-defined]
        elif event is None and record.getMessage().startswith(KEPT):
            self._say(record.getMessage())

    def _plan(self, stats: dict[str, int]) -> None:
        jobs = {rule: int(count) for rule, count in stats.items() if rule != "total"}
        self.total, self.runs = sum(jobs.values()), jobs.get(RUN_RULE, 0)
        self.estimate = Estimate(jobs)
        listed = ", ".join(f"{count} {rule}" for rule, count in jobs.items() if rule.isidentifier() and rule != "all")
        self._say(f"{self.total} jobs, {self.runs} of them training runs: {listed}")

    def _start(self, record: Any) -> None:
        wildcards = dict(record.wildcards or {})
        self.jobs[record.jobid] = (record.rule_name, wildcards)
        self.silent |= set() if record.output else {record.jobid}
        self.starts[record.jobid] = time.monotonic()
        if record.output:
            self._say(f"{'':9s} start  {describe(record.rule_name, wildcards)}")

    def _finish(self, job: int) -> None:
        self.done += 1
        if job not in self.jobs:  # `--quiet rules`: Snakemake did not tell that it began
            return
        rule, wildcards = self.jobs.pop(job)
        seconds = time.monotonic() - self.starts.pop(job)
        self.runs_done += rule == RUN_RULE
        left = None
        if self.estimate is not None:
            self.estimate.finish(rule, seconds)
            left = self.estimate.remaining()
        if job in self.silent:
            return
        parts = [f"done   {describe(rule, wildcards)} ({spoken(seconds)})"]
        parts += [f"run {self.runs_done} of {self.runs}"] if rule == RUN_RULE else []
        if left is not None and self.done < self.total:
            end = time.strftime("%H:%M", time.localtime(time.time() + left))
            parts.append(f"about {spoken(left)} left, until {end}")
        self._say(f"{self.done:4d}/{self.total:<4d} {' — '.join(parts)}")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
