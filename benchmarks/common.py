"""What the benchmarks of this folder share: the machine, timed processes, medians, tables, results files.

A process that times others stays small (no torch): a child's peak memory as the kernel counts it is never below that
of the process that started it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """A finished process, its children included: wall and processor seconds, largest resident size of one process."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    stdout: str
    stderr: str


def machine(threads: int = 1) -> Row:
    """What the numbers were measured on; the load tells who else was there."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "snakemake": metadata.version("snakemake"),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def environment(threads: int = 1, **more: str) -> dict[str, str]:
    """This process's environment, with the virtual environment's commands first and a number of threads."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**os.environ, **limits, "PATH": f"{BIN}:{os.environ['PATH']}", **more}


def timed(command: Sequence[str | Path], cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Timing:
    """Run a command to its end and time it.

    Raises:
        RuntimeError: It failed; the message ends with what it wrote last.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen([*map(str, command)], cwd=cwd, env=env or environment(), stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {process.returncode}\n{''.join(texts)[-4000:]}")
    return Timing(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, *texts)


def worker(command: Sequence[str | Path | int | float], env: Mapping[str, str]) -> Row:
    """What a contender's process prints last, a JSON object; `missing` with the reason where it failed."""
    try:
        return json.loads(timed([str(part) for part in command], env=env).stdout.splitlines()[-1])
    except RuntimeError as error:
        return {"missing": f"failed: {str(error).strip().splitlines()[-1]}"}


def status_mb(key: str) -> float:
    """VmRSS or VmHWM of this process, MB; `forget_peak` starts the latter anew."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{key} is not in /proc/self/status: this benchmark needs Linux")


def forget_peak() -> None:
    """Let VmHWM count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def medians(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median of each number over repeats."""
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}


def copy_project(folder: Path) -> dict[str, str]:
    """Copy code, workflow and configuration into `folder`; returns an environment in which `relent` is the copy's."""
    for name in ("src", "workflow", "config", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "Snakefile", folder / "Snakefile")
    return environment(PYTHONPATH=str(folder / "src"), XDG_CACHE_HOME=str(folder / "cache"))


def fetch_sources(data: Path, names: Iterable[str]) -> None:
    """Put sources into a data folder: taken from the project's own where they are, else downloaded."""
    for name in names:
        own, wanted = ROOT / "data" / "sources" / name, data / "sources" / name
        if (own / "receipt.json").is_file():
            shutil.copytree(own, wanted, dirs_exist_ok=True)
        elif not (wanted / "receipt.json").is_file():
            timed([BIN / "relent", "fetch", name, "--data", data])


def prepare_images(data: Path, scale: str) -> None:
    """The data set of the image task in a data folder."""
    fetch_sources(data, ["mnist_5k", "animals"])
    timed([BIN / "relent", "prepare", "images", "--scale", scale, "--data", data])


def mark_stage(marks: dict[str, tuple[float, float]]) -> None:
    """Note wall and processor time where a training job passes from one part to the next, from now on.

    `run` (the plan is known), `built` (data and network are there), `train` (first batch), `write` (training is over),
    `written`.
    """
    import relent.train.stage as stage

    def note(name: str) -> None:
        marks[name] = time.perf_counter(), time.process_time()

    def around(function: Any, before: str | None, after: str | None) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before:
                note(before)
            result = function(*args, **kwargs)
            if after:
                note(after)
            return result

        return wrapped

    stage.run_stage = around(stage.run_stage, "run", None)
    stage.build = around(stage.build, None, "built")
    stage._write = around(stage._write, "write", "written")
    stage.Progress.on_train_start = around(stage.Progress.on_train_start, None, "train")  # type: ignore[method-assign]


def results_path(name: str, small: bool) -> Path:
    """Where a benchmark writes; a quick check never replaces real numbers."""
    return RESULTS / f"{name}{'_small' if small else ''}.json"


def write_rows(name: str, rows: Sequence[Row], small: bool, threads: int = 1) -> None:
    """Write rows, each with its machine and date, unless it has them from an earlier time."""
    facts = {"machine": machine(threads), "date": time.strftime("%Y-%m-%d")}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps([{**row, **facts, **row} for row in rows], indent=1, ensure_ascii=False)
    results_path(name, small).write_text(text + "\n")


def number(value: Any, digits: int = 2) -> str:
    """A number for a table: `digits` decimals, or three significant digits below one; a dash for none."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.{digits}f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def print_rows(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print rows as an aligned table."""
    table = [list(columns), *([number(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[position]) for line in table) for position in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
