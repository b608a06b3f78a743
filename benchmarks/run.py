"""Runs the benchmarks one after another and writes docs/benchmarks.md from the numbers they leave in results/.

    python benchmarks/run.py [--small] [--only NAME ...] [--clone] [--page]

Each benchmark is a process of its own and can be run by hand. With `--small` every one is run on sizes that take
seconds, to see that it works: the page and the real numbers stay as they are. `--page` measures nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import ROOT, Row, environment, number, results_path
from relent.inform.markdown import cell

PAGE = ROOT / "docs" / "benchmarks.md"
WORDS = """\
<!-- Written by benchmarks/run.py from benchmarks/results/*.json; changes here are lost. -->
# Benchmarks

Measured times of this project and of its peers, in one run on the same data; `make bench` measures them again. Nothing
here is asserted in a test: numbers belong to a machine, which stands below each table with its load at the end of the
measurement. Seconds are wall time, CPU seconds what the processor spent: where the machine was shared (a load above the
number of threads), compare CPU seconds. Times are medians over interleaved rounds. Where a peer is faster or smaller
than we are, the line under the table says so.
"""


@dataclass(frozen=True)
class Benchmark:
    """A script, and how its rows become tables: one table for each value of `group`."""

    script: str
    title: str
    words: str
    columns: dict[str, str]
    """Key of a row → heading."""
    arguments: tuple[str, ...] = ()
    group: Callable[[Row], str] = lambda row: row["name"]
    label: Callable[[Row], str] = lambda row: row["contender"]
    ours: Callable[[Row], bool] | None = None
    """Which rows are ours; the first of a group is compared with the others. None: there are no peers."""
    compared: dict[str, str] = field(default_factory=lambda: {"seconds": "faster", "cpu_seconds": "fewer CPU seconds"})


TIMES = {"seconds": "s", "cpu_seconds": "CPU s"}
RATIOS = {"seconds_ratio": "s, ratio", "cpu_seconds_ratio": "CPU s, ratio"}
BENCHMARKS = {
    "workflow": Benchmark(
        "bench_workflow.py",
        "The workflow itself",
        "Start of a job, planning, and what Snakemake adds to the main job. The synthetic catalogue has 50 methods × 5 "
        "seeds over the implementations there are. *Overhead* is the share of the core seconds of the main job that no "
        "job had; on one core nothing waits for a free core, so that it is Snakemake's own. *Training* is the share "
        "spent between the first and the last batch of a training.",
        {
            "variant": "what",
            "jobs": "jobs",
            "runs": "runs",
            **TIMES,
            "peak_mb": "peak MB",
            "job_seconds": "s in jobs",
            "overhead_share": "overhead",
            "overhead_seconds_per_job": "overhead, s a job",
            "training_share": "training",
            "share": "share",
            "imports_torch": "imports torch",
        },
    ),
    "clone": Benchmark(
        "bench_workflow.py",
        "From a clone to the report",
        "`git clone` and `make run` with nothing in pip's cache: laptop scale, both comparisons, three seeds. Rules "
        "overlap, so that their spans do not add up to the whole.",
        {
            "variant": "what",
            "jobs": "jobs",
            "seconds": "s",
            "share": "share of the whole",
            "job_seconds": "s in jobs",
            "overhead_share": "overhead",
            "training_share": "training",
        },
        ("--clone",),
    ),
    "slurm": Benchmark(
        "bench_slurm.py",
        "On SLURM",
        "A SLURM of two nodes with two processors each, all here. *Recovery* is from a fault in the middle of "
        "a training to the line in its log that says that it goes on from its checkpoint: SLURM's own delays, "
        "Snakemake's look at the queue (each second here), and the start of a job. Needs root on Debian.",
        {
            "variant": "what",
            "jobs": "jobs",
            "seconds": "s",
            "jobs_per_hour": "jobs / hour",
            "job_seconds": "s in the command",
            "overhead_seconds_per_job": "overhead, s a job",
            "slowest_seconds": "slowest, s",
            "rounds": "rounds",
        },
    ),
    "soak": Benchmark(
        "soak.py",
        "A soak",
        "The smoke comparison on that SLURM, again and again, while random jobs, nodes, the tracking server and "
        "Snakemake itself are killed. *Equal*: runs with bitwise weights and scores of an undisturbed workflow, "
        "and in the tracking store once. *Calls*: how often the command was given in all.",
        {
            "variant": "what",
            "minutes": "minutes",
            "runs": "runs",
            "equal": "equal",
            "calls": "calls",
            "faults": "faults",
        },
    ),
    "training": Benchmark(
        "bench_training.py",
        "A training job",
        "Knowledge distillation on images at laptop scale, from the first batch to the last. The hand-written loops "
        "start from the same weights and see the same batches; one logs, validates and saves as our job does, the rest "
        "do nothing but train. Ratios are to the first row of a table, taken within a round. *Weights* is the largest "
        "difference of any end weight to *loop, relent's loss* (first table) or to the first row (second): at 0 both "
        "did the same work to the last bit. Loops with torch's own loss functions round differently, which grows over "
        "a training.",
        {
            "variant": "what",
            "steps": "steps",
            **TIMES,
            "steps_per_second": "steps / s",
            "cpu_ms_per_step": "CPU ms a step",
            "cpu_seconds_per_epoch": "CPU s an epoch",
            **RATIOS,
            "weight_difference": "weights",
        },
        ours=lambda row: row["contender"].startswith(("relent", "stored", "storing")),
    ),
    "forecast": Benchmark(
        "bench_forecast.py",
        "Training and rolling out the forecast network",
        "`fuxi_ens` on the quasi-geostrophic twin, the network of its laptop scale. Training: our job against the same "
        "step in a hand-written loop over a batch that is in memory already. Roll-out: 20 members over ten steps, in "
        "one batch and one after the other.",
        {
            "variant": "what",
            **TIMES,
            "steps_per_second": "steps / s",
            "member_steps_per_second": "member steps / s",
            **RATIOS,
        },
        ours=lambda row: row["contender"].startswith(("relent", "one batch")),
    ),
    "neural_lam": Benchmark(
        "bench_neural_lam.py",
        "Scores on the storm: neural-lam's GraphEFM",
        "The January 1996 blizzard, the same training triplets, validation and test times, and the same processor "
        "seconds of training on one thread for each. Scores by one function: fair CRPS of 20 members weighted with "
        "cos(latitude), in training standard deviations, and spread-skill ratio (1 is calibrated), means over "
        "variables and seeds. One episode: no evidence on other weather. neural-lam 0.7.0 has no loss and no training "
        "for this network; the objective is assembled after its paper, and no boundary values are given to either.",
        {
            "variant": "what",
            "seeds": "seeds",
            "steps": "steps",
            "parameters": "parameters",
            "crps_6h": "CRPS, 6 h",
            "crps_24h": "CRPS, 24 h",
            "spread_skill_ratio_6h": "spread/skill, 6 h",
            "spread_skill_ratio_24h": "spread/skill, 24 h",
        },
        ours=lambda row: row["contender"].startswith("relent, fuxi_ens"),
        compared={"crps_6h": "lower CRPS at 6 h", "crps_24h": "lower CRPS at 24 h"},
    ),
    "tiles": Benchmark(
        "bench_tiles.py",
        "Tiles of a field on disk",
        "Layout of a generated field as tiles, and reading its training samples against the raw bytes, zarr and "
        "xbatcher on the same store.",
        {
            **TIMES,
            "mb_per_second": "MB/s",
            "samples_per_second": "samples/s",
            "peak_mb": "peak MB",
            "seconds_ratio": "s, ratio",
            "note": "note",
        },
        ours=lambda row: row["contender"].startswith("relent"),
    ),
    "objectives": Benchmark(
        "bench_objectives.py",
        "Losses of classifiers",
        "The whole loss of each classification method, forward and backward, on the same random tensors; nothing of "
        "the network. Ratios are of CPU seconds within a round, to cross-entropy (tables of all losses) or to ours "
        "(tables with a peer). *Difference* is the largest of values and gradients, float64. `sinkd, sample-wise` and "
        "`lelp` are for few classes and have no row beyond that. Our losses stay finite for logits of any size and for "
        "impossible classes; mdistiller's form does not.",
        {
            "variant": "what",
            **TIMES,
            "cpu_seconds_ratio": "CPU s, ratio",
            "ratio_lowest": "lowest",
            "ratio_highest": "highest",
            "value_and_gradient_difference": "difference",
            "note": "note",
        },
        ours=lambda row: row["contender"] == "relent",
        compared={"cpu_seconds": "fewer CPU seconds"},
    ),
    "alignment": Benchmark(
        "bench_alignment.py",
        "Aligning a language model",
        "DPO and sampling with a small GPT-2 of random weights, on pairs of random words: our workflow's stages "
        "against TRL's trainer and `transformers`. The reference's log-probabilities are computed once and read from a "
        "store, or by a second network on every batch. Peak memory is that of the whole process, its libraries "
        "included. Ratios are to the first row of a table, taken within a round.",
        {
            "variant": "what",
            **TIMES,
            "pairs_per_second": "pairs / s",
            "tokens_per_second": "tokens / s",
            **RATIOS,
            "peak_mb": "peak MB",
            "peak_mb_ratio": "peak MB, ratio",
        },
        ours=lambda row: row["contender"].startswith("relent"),
        compared={"seconds": "faster", "cpu_seconds": "fewer CPU seconds", "peak_mb": "less memory"},
    ),
    "output_layer": Benchmark(
        "bench_output_layer.py",
        "Output layers over the number of classes",
        "CPU seconds of a training step of the output layer alone: loss of 128 features, gradient by the features, SGD "
        "step. *We win from* is the number of classes, interpolated, beyond which the factored layer is the fastest of "
        "the two. It holds float64 factors of twice the weights' size. The adaptive and the sampled softmax do less "
        "than the full one: another model, a biased gradient.",
        {
            "variant": "what",
            **{f"cpu_seconds_{10**power}": f"{10**power:,} classes, CPU s" for power in (3, 4, 5, 6)},
            "working_mb": "working MB, 1,000,000 classes",
            "crossing": "we win from",
            "fold_seconds": "folding, CPU s",
        },
        ours=lambda row: row["contender"].startswith("relent"),
        compared={f"cpu_seconds_{10**power}": f"fewer CPU seconds at {10**power:,} classes" for power in (3, 4, 5, 6)},
    ),
    "harmonic": Benchmark(
        "bench_harmonic.py",
        "The harmonic loss by distance",
        "An output layer of width 64 with its loss of 128 features and all gradients. *Operations* are counted kernel "
        "by kernel: numbers read or written, whichever are more, multiplications and additions of products; they stand "
        "for energy, which no meter here measures.",
        {
            "operations": "operations",
            "operations_ratio": "operations, ratio",
            "cpu_seconds": "CPU s",
            "cpu_seconds_ratio": "CPU s, ratio",
            "ratio_lowest": "lowest",
            "ratio_highest": "highest",
        },
    ),
    "sharpness": Benchmark(
        "bench_sharpness.py",
        "The cost of flat minima",
        "An epoch of SGD with cross-entropy, SAF, MESA and SAM, the workflow's own jobs on the image task; ratios are "
        "to cross-entropy. *Tables* are SAF's past outputs: (lag + 1) × items × classes × 4 bytes, for ImageNet-1K at "
        "lag 2 15.4 GB.",
        {
            "variant": "what",
            "seconds": "s an epoch",
            "cpu_seconds": "CPU s an epoch",
            "cpu_seconds_ratio": "CPU s, ratio",
            "ratio_lowest": "lowest",
            "ratio_highest": "highest",
            "peak_mb": "peak MB",
            "memory_table_mb": "tables in memory, MB",
            "disk_table_mb": "tables on disk, MB",
        },
    ),
    "crps": Benchmark(
        "bench_crps.py",
        "Fair CRPS",
        "Ensembles of M members on a million points, float32. Ratios are to our first row. The biased estimator is "
        "another, cheaper score; forms with M² numbers a point run in blocks, and their times at large M are scaled up "
        "from fewer points.",
        {
            **TIMES,
            "ratio": "s, ratio",
            "cpu_ratio": "CPU s, ratio",
            "peak_mb": "peak MB over the input",
            "note": "note",
        },
        group=lambda row: f"M = {row['M']}",
        label=lambda row: f"{row['name']}, {row['variant']}",
        ours=lambda row: row["name"] == "relent",
        compared={"seconds": "faster", "cpu_seconds": "fewer CPU seconds", "peak_mb": "less memory"},
    ),
    "verify": Benchmark(
        "bench_verify.py",
        "Verification",
        "Five scores of an ensemble forecast, read lazily from zarr, weighted and by lead, against xskillscore on "
        "dask: CRPS (biased: the peer has no other), RMSE, spread, Brier score, ranks. *Over imports* is the peak "
        "minus that of a process that only imports the same packages. Neither may hold more than 1.5 GB of data "
        "(RLIMIT_DATA), less than the forecast has.",
        {**TIMES, "peak_mb": "peak MB", "over_imports_mb": "peak MB over imports", "forecast_mb": "forecast MB"},
        ours=lambda row: row["contender"] == "relent",
        compared={
            "seconds": "faster",
            "cpu_seconds": "fewer CPU seconds",
            "peak_mb": "smaller peak",
            "over_imports_mb": "less memory over imports",
        },
    ),
    "fused": Benchmark(
        "bench_fused.py",
        "Forward KL from hidden states",
        "Forward and backward, float32, against the plain form and the peers' chunked ones; ratios are to the plain "
        "form.",
        {
            "variant": "what",
            **TIMES,
            **RATIOS,
            "peak_mb": "peak MB",
            "peak_mb_ratio": "peak, ratio",
            "working_mb": "working MB",
            "loss_ratio": "loss, ratio",
            "cpu_distance_to_bound": "CPU s over bound",
            "note": "note",
        },
        group=lambda row: f"{row['name']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}",
        ours=lambda row: row["contender"].startswith("fused"),
        compared={"seconds": "faster", "cpu_seconds": "fewer CPU seconds", "peak_mb": "less memory"},
    ),
    "sinkhorn": Benchmark(
        "bench_sinkhorn.py",
        "Entropic optimal transport",
        "256 × 256 points, float64. Ratios are within a table, to its first row. Errors are to a solution converged to "
        "1e-13: of the dual objective and of the marginals.",
        {
            "variant": "what",
            **TIMES,
            **RATIOS,
            "iterations": "iterations",
            "objective_error": "objective error",
            "marginal_error": "marginal error",
            "working_mb": "working MB",
            "cpu_distance_to_bound": "CPU s over bound",
            "note": "note",
        },
        ours=lambda row: row["contender"].startswith("relent"),
    ),
}


# Long, and with wishes of their own: measured when they are asked for.
BY_NAME = ("clone", "slurm", "soak", "neural_lam")


def measure(name: str, small: bool) -> None:
    """Run one benchmark; its rows get the day on which they were measured.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    benchmark = BENCHMARKS[name]
    command = [sys.executable, str(Path(__file__).parent / benchmark.script), *benchmark.arguments]
    print(f"{benchmark.title} ({' '.join(Path(word).name for word in command[1:])})", flush=True)
    began = time.perf_counter()
    subprocess.run([*command, *(["--small"] if small else [])], env=environment(), check=True)
    print(f"  {time.perf_counter() - began:.0f} s\n", flush=True)


def read_rows(path: Path) -> list[Row]:
    """Rows of a results file. Where they carry no date, they get that of the file, in the file too."""
    rows: list[Row] = json.loads(path.read_text())
    if any("date" not in row for row in rows):
        day = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
        rows = [{"date": day, **row} for row in rows]
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return rows


def shown(key: str, value: Any) -> str:
    """A cell: shares in per cent, errors and differences in powers of ten."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("share"):
        return f"{100 * value:.1f} %"
    if key.endswith(("_error", "_difference")):
        return "0" if value == 0 else f"{value:.0e}"
    if key.endswith(("_mb", "per_second")):
        return f"{abs(round(value)):,}"
    if isinstance(value, float) and "seconds" in key and value < 0.1 and "ratio" not in key and "epoch" not in key:
        return f"{value:.2g}"
    return number(value)


def machine_words(rows: list[Row]) -> str:
    """Machine and day of a table."""
    machine = next((row["machine"] for row in reversed(rows) if "machine" in row), "unknown machine")
    if isinstance(machine, dict):
        load = ", ".join(f"{value:.1f}" for value in machine["load_average"])
        versions = [f"{name} {machine[name]}" for name in ("python", "torch", "snakemake") if name in machine]
        words = [machine["cpu"], f"{machine['cores']} cores", f"threads: {machine['threads']}", *versions]
        machine = ", ".join([*words, f"load {load} (1, 5, 15 minutes)"])
    days = sorted({row["date"] for row in rows})
    return f"{machine}; {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def bound_words(rows: list[Row]) -> str:
    """What bounds the work of a table, where the benchmark has measured it."""
    row = next((row for row in rows if "bound_seconds" in row), None)
    if row is None:
        return ""
    what = row.get("bound_by") or row["bound"]
    return f"Bound by {what}: at least {shown('seconds', row['bound_seconds'])} s on this machine."


def lost_words(benchmark: Benchmark, rows: list[Row]) -> str:
    """Peers that beat our first row, by what and how far."""
    if benchmark.ours is None:
        return ""
    ours = next((row for row in rows if benchmark.ours(row)), None)
    peers = [row for row in rows if not benchmark.ours(row) and "seconds" in row]
    if ours is None or not peers:
        return ""
    found = []
    for key, word in benchmark.compared.items():
        better = [row for row in peers if key in row and row[key] < 0.995 * ours[key]]
        if better:
            names = ", ".join(f"{benchmark.label(row)} ({row[key] / ours[key]:.2f}×)" for row in better)
            found.append(f"{word}: {names}")
    label = benchmark.label(ours)
    return f"Better than *{label}* — {'; '.join(found)}." if found else f"Nothing here is better than *{label}*."


def section(name: str) -> list[str]:
    """Lines of one benchmark's section."""
    benchmark, path = BENCHMARKS[name], results_path(name, small=False)
    lines = [f"## {benchmark.title}", "", benchmark.words, "", f"`benchmarks/{benchmark.script}`", ""]
    if not path.is_file():
        command = " ".join(["python", f"benchmarks/{benchmark.script}", *benchmark.arguments])
        return [*lines, f"Not measured yet: `{command}`.", ""]
    rows = read_rows(path)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(benchmark.group(row), []).append(row)
    for group, members in groups.items():
        keys = [key for key in benchmark.columns if any(row.get(key) not in (None, "") for row in members)]
        lines += [f"### {group if '_' in group else group[0].upper() + group[1:]}", ""]
        lines.append(f"| | {' | '.join(benchmark.columns[key] for key in keys)} |")
        lines.append(f"| --- | {' | '.join('---' if key in ('variant', 'note') else '---:' for key in keys)} |")
        for row in members:
            cells = [benchmark.label(row), *(shown(key, row.get(key)) for key in keys)]
            lines.append(f"| {' | '.join(map(cell, cells))} |")
        facts = [bound_words(members), lost_words(benchmark, members), f"{machine_words(members)}."]
        lines += ["", " ".join(fact for fact in facts if fact), ""]
    return lines


# (benchmark, row, key, sentence): what the page begins with.
HEADLINES = [
    ("clone", "whole", "seconds", "{} s from a clone to the report (laptop scale, both comparisons, three seeds)"),
    ("workflow", "its start-up", "seconds", "{} s to start one training job"),
    ("workflow", "snakemake -n, synthetic catalogue", "seconds", "{} s for `snakemake -n` over 50 methods × 5 seeds"),
    ("workflow", "smoke scale, 1 core", "overhead_seconds_per_job", "{} s of orchestration a job, on one core"),
    ("clone", "laptop scale, 2 cores", "overhead_share", "{} of the main job's core seconds had no job"),
    ("training", "relent", "cpu_seconds_ratio", "{} × the CPU time of a hand-written loop with the same duties"),
    ("training", "teacher each step", "cpu_seconds_ratio", "{} × the CPU time if the teacher ran on every batch"),
]


def headlines() -> list[str]:
    """The figures that are asked for most, as a list; those that were not measured are left out."""
    lines = []
    for name, contender, key, sentence in HEADLINES:
        path = results_path(name, small=False)
        rows = read_rows(path) if path.is_file() else []
        found = next((row[key] for row in rows if row["contender"] == contender and key in row), None)
        if found is not None:
            lines.append(f"- {sentence.format(shown(key, found))}")
    return ["In short:", "", *lines, ""] if lines else []


def page() -> str:
    """The whole page."""
    lines = [*headlines(), *(line for name in BENCHMARKS for line in section(name))]
    return WORDS + "\n" + "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="quick sizes; the page and the real numbers stay")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, help="these benchmarks alone")
    parser.add_argument("--clone", action="store_true", help="also time a clean clone (ten minutes, needs a network)")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    options = parser.parse_args()
    chosen = options.only or [name for name in BENCHMARKS if name not in BY_NAME or (name == "clone" and options.clone)]
    failed = []
    for name in [] if options.page else chosen:
        try:
            measure(name, options.small)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: exit {error.returncode}", file=sys.stderr)
        if options.small:
            results_path(name, small=True).unlink(missing_ok=True)
    if not options.small:
        PAGE.write_text(page(), encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
