"""What the workflow itself costs: start of a training job, planning, orchestration, and a clean clone to the report.

    python benchmarks/bench_workflow.py [--small] [--rounds 5] [--clone]

- *start of a training job*: wall time of `relent train` at smoke scale, part by part, in a process of its own.
- *planning*: `snakemake -n` over this project's catalogue and over a synthetic one of 50 methods × 5 seeds, in copies
  of the project; that no torch is imported is checked in the list of imports of such a run.
- *orchestration*: the main job at smoke scale, its wall time against the seconds of its jobs, on one core (nothing
  waits for a free core, so that the rest is Snakemake's) and on all.
- *clone* (`--clone`, about ten minutes, needs a network): `git clone`, then `make run`, part by part, with an empty
  package cache. Only what is committed is in the clone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from common import (
    BIN,
    ROOT,
    Row,
    copy_project,
    environment,
    fetch_sources,
    mark_stage,
    medians,
    prepare_images,
    print_rows,
    timed,
    write_rows,
)  # fmt: skip

METHODS, SEEDS = 50, 5
IMPORTS_SHOWN = 8
RULES = ("fetch", "prepare", "teacher", "student", "evaluate", "compare", "claims", "figures", "page", "track")


# ------------------------------------------------------------------------------------------- start of a training job

PARTS = {
    "interpreter": "Python until the first line of the job",
    "import torch": "",
    "import lightning": "`lightning.pytorch`",
    "other imports": "zarr, pydantic, our own modules",
    "plan": "manifests, hyperparameters, fingerprint of the code",
    "data and network": "the data set read and checked, the network built",
    "trainer": "Lightning's Trainer and its set-up, until the first batch",
    "training": "60 steps",
    "writing": "predictions, weights, metrics, config.json",
    "exit": "end of the interpreter",
}


def job(folder: Path, began: float) -> None:
    """In the worker: what `relent train` does, with the clock read between the parts."""
    first = time.time() - began, time.process_time()
    at = [(0.0, 0.0), first]  # wall and processor seconds
    origin = time.perf_counter() - first[0]

    def read() -> None:
        at.append((time.perf_counter() - origin, time.process_time()))

    import torch  # noqa: F401

    read()
    import lightning.pytorch  # noqa: F401

    read()
    import relent.cli.train
    import relent.methods.distillation.knowledge_distillation
    import relent.tasks.classification.training
    import relent.train.stage  # noqa: F401

    read()
    marks: dict[str, tuple[float, float]] = {}
    mark_stage(marks)
    from relent.cli import main

    main(train_arguments(folder))
    for name in ("run", "built", "train", "write", "written"):
        at.append((marks[name][0] - origin, marks[name][1]))
    print(json.dumps(at))


def train_arguments(folder: Path) -> list[str]:
    places = [word for name in ("data", "teachers", "results") for word in (f"--{name}", str(folder / name))]
    return ["train", "images", "knowledge_distillation", "--scale", "smoke", *places]


def start_of_a_job(folder: Path, rounds: int) -> list[Row]:
    prepare_images(folder / "data", "smoke")
    teacher = next(iter(yaml.safe_load((ROOT / "config/tasks/images.yaml").read_text())["teachers"]))
    arguments = train_arguments(folder)
    timed([BIN / "relent", "train", "images", "--teacher", teacher, *arguments[3:]])
    split, whole = [], []
    for _ in range(rounds):
        began = time.time()
        done = timed([sys.executable, __file__, "--worker", began, "--folder", folder])
        at = [*json.loads(done.stdout.splitlines()[-1]), (done.seconds, done.cpu_seconds)]
        steps = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(at)]
        names = [(part, key) for part in PARTS for key in ("seconds", "cpu_seconds")]
        split.append(dict(zip(names, [value for step in steps for value in step])))
        done = timed([BIN / "relent", *arguments])
        facts = json.loads(next((folder / "results").rglob("config.json")).read_text())["facts"]
        whole.append({"seconds": done.seconds, "training": facts["training_seconds"], "cpu_seconds": done.cpu_seconds})
        whole[-1] |= {"peak_mb": done.peak_mb, "start": done.seconds - facts["training_seconds"]}
    middle, parts = medians(whole), medians(split)  # type: ignore[arg-type]
    name = "start of a training job"
    rows: list[Row] = []
    for part, words in PARTS.items():
        row = {key: parts[part, key] for key in ("seconds", "cpu_seconds")}  # type: ignore[index]
        rows.append({"name": name, "contender": part, "variant": words, **row})
    total = {"seconds": middle["seconds"], "cpu_seconds": middle["cpu_seconds"], "peak_mb": middle["peak_mb"]}
    rows.append({"name": name, "contender": "`relent train`, whole", "variant": "the command itself", **total})
    start = {"seconds": middle["start"], "share": middle["start"] / middle["seconds"]}
    rows.append({"name": name, "contender": "its start-up", "variant": "whole minus training_seconds", **start})
    return [*rows, *imports_of_a_job(rounds)]


def imports_of_a_job(rounds: int) -> list[Row]:
    """Own import time of the packages that cost most; the list itself slows imports down by about a tenth."""
    lists: list[Counter[str]] = []
    for _ in range(rounds):
        packages: Counter[str] = Counter()
        for module, own in imports(["-c", "import relent.train.stage"], ROOT).items():
            packages[module.partition(".")[0]] += own  # type: ignore[assignment]
        lists.append(packages)
    middle = {package: statistics.median(packages[package] for packages in lists) for package in lists[0]}
    largest = sorted(middle, key=middle.__getitem__, reverse=True)[:IMPORTS_SHOWN]
    rows = [{"contender": f"`{package}`", "seconds": middle[package]} for package in largest]
    rows.append({"contender": "all others", "seconds": sum(middle.values()) - sum(middle[name] for name in largest)})
    return [{"name": "imports of a training job", **row} for row in rows]


# ------------------------------------------------------------------------------------------- planning


def synthetic_catalogue(folder: Path) -> None:
    """Replace a copy's comparisons by one of METHODS methods × SEEDS seeds, over the implementations there are."""
    place = folder / "config" / "methods" / "distillation"
    models = [yaml.safe_load(path.read_text()) for path in sorted(place.glob("*.yaml"))]
    names = [f"synthetic_{number:02d}" for number in range(METHODS)]
    for number, name in enumerate(names):
        manifest = {**models[number % len(models)], "name": name, "title": f"Synthetic method {number}"}
        (place / f"{name}.yaml").write_text(yaml.safe_dump(manifest, allow_unicode=True))
    comparison = {"task": "images", "methods": names}
    config = {"scale": "smoke", "seeds": list(range(SEEDS)), "comparisons": [comparison]}
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config))


def planned_jobs(text: str) -> int:
    """Jobs of a dry run, from the table that Snakemake prints."""
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("total "))


def imports(arguments: list[str], folder: Path, env: dict[str, str] | None = None) -> dict[str, float]:
    """Modules that a Python process imports → own seconds, from the interpreter's list (`-X importtime`)."""
    listed = timed([sys.executable, "-X", "importtime", *arguments], folder, env).stderr.splitlines()
    lines = [line.removeprefix("import time:").split("|") for line in listed if line.startswith("import time:")]
    return {module.strip(): int(own) / 1e6 for own, _, module in lines if own.strip().isdigit()}


def torch_free(folder: Path, env: dict[str, str]) -> bool:
    """Whether a dry run imported neither torch nor Lightning nor transformers."""
    imported = imports(["-m", "snakemake", "-n", "--quiet", "all"], folder, env)
    if "snakemake" not in imported or "relent.project" not in imported:
        raise RuntimeError("the list of imports is not that of a dry run")
    return not {"torch", "lightning", "transformers"} & set(imported)


def planning(folder: Path, rounds: int) -> list[Row]:
    contenders = {"this catalogue": folder / "own", "synthetic catalogue": folder / "synthetic"}
    environments = {name: copy_project(place) for name, place in contenders.items()}
    synthetic_catalogue(contenders["synthetic catalogue"])
    load = "from relent.project import Project; print(len(Project.load().runs()))"
    commands: dict[str, list[str | Path]] = {
        "snakemake -n": [BIN / "snakemake", "-n"],
        "Project.load()": [sys.executable, "-c", load],
        "snakemake --version": [BIN / "snakemake", "--version"],
    }
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    facts: dict[str, Row] = {}
    for _ in range(rounds):
        for name, place in contenders.items():
            for label, command in commands.items():
                done = timed(command, place, environments[name])
                times = {"seconds": done.seconds, "cpu_seconds": done.cpu_seconds, "peak_mb": done.peak_mb}
                samples.setdefault((name, label), []).append(times)
                if label == "snakemake -n":
                    facts.setdefault(name, {})["jobs"] = planned_jobs(done.stdout + done.stderr)
                elif label == "Project.load()":
                    facts[name]["runs"] = int(done.stdout)
    rows: list[Row] = []
    words = {"snakemake -n": "the whole plan", "Project.load()": "our part: manifests read and checked"}
    for (name, label), taken in samples.items():
        if label != "snakemake --version":
            row: Row = {"name": "planning", "contender": f"{label}, {name}", "variant": words[label]}
            row |= {**facts[name], **medians(taken)}
            if label == "snakemake -n":
                row["imports_torch"] = not torch_free(contenders[name], environments[name])
            rows.append(row)
    floor = medians([sample for name in contenders for sample in samples[name, "snakemake --version"]])
    variant = "Snakemake's own imports: nothing can be faster"
    return [*rows, {"name": "planning", "contender": "snakemake --version", "variant": variant, **floor}]


# ------------------------------------------------------------------------------------------- orchestration


def job_times(folder: Path) -> dict[str, list[tuple[float, float, float]]]:
    """Jobs of a finished workflow, by rule: (start, end, processor seconds); start and end in seconds since 1970."""
    jobs: dict[str, list[tuple[float, float, float]]] = {}
    for path in (folder / "logs").rglob("*.tsv"):
        header, line = (text.split("\t") for text in path.read_text().splitlines()[:2])
        row, end = dict(zip(header, line)), path.stat().st_mtime
        rule = path.relative_to(folder / "logs").parts[0].removesuffix(".tsv")
        cpu = row.get("cpu_time", "NA")
        jobs.setdefault(rule, []).append((end - float(row["s"]), end, float("nan") if cpu == "NA" else float(cpu)))
    return jobs


def shares(folder: Path, seconds: float, cores: int) -> Row:
    """How much of a finished main job's core seconds its jobs had, and its trainings."""
    jobs = [job for taken in job_times(folder).values() for job in taken]
    running = sum(end - start for start, end, _ in jobs)
    configs = [*folder.glob("results/**/config.json"), *folder.glob("teachers/**/config.json")]
    training = sum(json.loads(path.read_text())["facts"]["training_seconds"] for path in configs)
    available = seconds * cores
    return {
        "seconds": seconds, "jobs": len(jobs), "cores": cores, "job_seconds": running,
        "overhead_share": 1 - running / available, "overhead_seconds_per_job": (available - running) / len(jobs),
        "training_share": training / available,
    }  # fmt: skip


def orchestration(folder: Path, small: bool, rounds: int) -> list[Row]:
    """The main job at smoke scale, one seed, in a copy; sources are fetched before: a download is no orchestration."""
    cores = len(os.sched_getaffinity(0))
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    if small:
        config["comparisons"] = [{"task": "images", "methods": ["cross_entropy", "knowledge_distillation"]}]
    config |= {"scale": "smoke", "seeds": [0]}
    tasks = [yaml.safe_load((ROOT / f"config/tasks/{c['task']}.yaml").read_text()) for c in config["comparisons"]]
    fetched = folder / "fetched"
    fetch_sources(fetched, [source for task in tasks for source in task["sources"]])
    samples: dict[int, list[dict[str, float]]] = {}
    for turn in range(rounds):
        for used in {1, cores}:
            place = folder / f"run{turn}_{used}"
            env = copy_project(place)
            (place / "config" / "config.yaml").write_text(yaml.safe_dump(config))
            (place / "data").mkdir()
            (place / "data" / "sources").symlink_to(fetched / "sources")
            command = [BIN / "snakemake", "--cores", used, "--rerun-triggers", "mtime", "--quiet", "all"]
            done = timed(command, place, env)
            samples.setdefault(used, []).append(shares(place, done.seconds, used))
    rows: list[Row] = []
    for used, taken in samples.items():
        words = "the rest is Snakemake's" if used == 1 else "the rest is Snakemake's, and cores that wait"
        contender = f"smoke scale, {used} core{'s' if used > 1 else ''}"
        rows.append({"name": "orchestration", "contender": contender, "variant": words, **medians(taken)})
    return rows


# ------------------------------------------------------------------------------------------- from a clone


def clone(folder: Path) -> list[Row]:
    """`git clone` and `make run`; the parts of the main job are read from its jobs' benchmark files."""
    place = folder / "relent"
    env = environment(XDG_CONFIG_HOME=str(folder / "config"), PIP_CACHE_DIR=str(folder / "pip"))
    env = {key: value for key, value in env.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    env["PATH"] = os.pathsep.join(part for part in env["PATH"].split(os.pathsep) if Path(part) != BIN)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        del env[name]
    cloned = timed(["git", "clone", "--quiet", ROOT, place], folder, env)
    setup = timed(["make", "setup"], place, env)
    began = time.time()
    main_job = timed(["make", "run"], place, env)
    jobs = job_times(place)
    end_of_jobs = max(end for taken in jobs.values() for _, end, _ in taken)
    total = cloned.seconds + setup.seconds + main_job.seconds

    def row(part: str, words: str, seconds: float, **more: Any) -> Row:
        named = {"name": "clone to report", "contender": part, "variant": words}
        return {**named, "seconds": seconds, "share": seconds / total, **more}

    rows = [
        row("git clone", "from a local repository", cloned.seconds),
        row("make setup", "environment and packages, nothing in pip's cache", setup.seconds),
    ]
    for rule in [*RULES, *(rule for rule in jobs if rule not in RULES)]:
        if rule in jobs:
            taken = jobs[rule]
            span = max(end for _, end, _ in taken) - min(start for start, _, _ in taken)
            words = f"{len(taken)} job{'s' if len(taken) > 1 else ''}, first start to last end; rules overlap"
            rows.append(row(rule, words, span, job_seconds=sum(end - start for start, end, _ in taken)))
    report = main_job.seconds - (end_of_jobs - began)
    rows.append(row("report", "`snakemake --report` and the summary", report))
    rows.append(row("`make run` after set-up", "all but clone and set-up", main_job.seconds))
    rows.append(row("whole", "clone to report", total))
    cores = len(os.sched_getaffinity(0))
    named = {"name": "orchestration", "contender": f"laptop scale, {cores} cores"}
    words = "the main job from a clone; the rest is Snakemake's, and cores that wait"
    return [*rows, {**named, "variant": words, **shares(place, end_of_jobs - began, cores)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one round, a main job of two runs; replaces no results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clone", action="store_true", help="measure a clean clone, and nothing else")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        job(options.folder, options.worker)
        return
    columns = ("name", "contender", "seconds", "cpu_seconds", "peak_mb", "jobs", "job_seconds", "overhead_share")
    with tempfile.TemporaryDirectory() as name:
        folder, rounds = Path(name), 1 if options.small else options.rounds
        if options.clone:
            rows = clone(folder)
            write_rows("clone", rows, options.small, len(os.sched_getaffinity(0)))
        else:
            rows = start_of_a_job(folder / "job", rounds) + planning(folder / "plan", rounds)
            write_rows("workflow", rows, options.small)  # the rest takes a while
            rows += orchestration(folder / "main", options.small, min(rounds, 2))
            write_rows("workflow", rows, options.small)
    print_rows(rows, columns)


if __name__ == "__main__":
    main()
