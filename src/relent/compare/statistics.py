"""Compares the runs of one task: means over seeds, paired differences to the baseline, a ranking with its ties.

Methods are paired by seed, for runs of one seed share the order of the data and the initial weights (common random
numbers). Every interval is a Student t interval over seeds on one test set: it answers "other seeds, these data".
Tables hold unadjusted intervals and Holm-adjusted p-values. No torch, no Lightning.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import relent
from relent.compare.results import RunResult, by_label
from relent.compare.words import answer
from relent.errors import DataError
from relent.files import whole, write_json
from relent.manifest.models import Direction, Method, Task
from relent.manifest.steps import advice_module
from relent.scores.inference import holm, holm_confidence, paired_difference, seeds_needed

COLUMNS = (
    *("task", "scale", "label", "method", "variant", "metric", "unit", "direction", "rank", "seeds", "mean", "sd"),
    *("low", "high", "baseline", "paired_seeds", "difference", "difference_low", "difference_high", "p", "p_holm"),
    *("relative_change_percent", "verdict", "seeds_needed", "training_seconds", "peak_memory_mb", "parameters"),
    "values",
)
MEASURED = ("training_seconds", "peak_memory_mb", "parameters")
"""Facts of a run that training measured, and that differ between runs."""
MOST_SEEDS = 10_000
"""Beyond this many seeds an answer of `seeds_needed` is no plan; it is reported as this number."""


@dataclass(frozen=True)
class Sample:
    """One method's scores on one metric."""

    values: dict[int, float]
    """Seed → score."""
    fixed: bool
    """Whether the score does not depend on the seed, so that one run stands for every seed."""


@dataclass(frozen=True)
class Difference:
    """A paired difference over seeds, in the metric's unit; `None` where one seed can tell nothing."""

    seeds: list[int]
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    exact: bool
    """Neither side depends on the seed: the difference holds on these data without an interval."""
    broadcast: bool
    """One side does not depend on the seed and was set against every seed of the other."""

    @property
    def testable(self) -> bool:
        return self.p is not None


def pair(first: Sample, second: Sample) -> tuple[list[int], list[float], list[float]]:
    """Scores of two methods at their common seeds; a fixed score is set against every seed of the other method."""
    if first.fixed and not second.fixed:
        seeds = sorted(second.values)
    elif second.fixed:
        seeds = sorted(first.values)
    else:
        seeds = sorted(first.values.keys() & second.values.keys())
    return seeds, [_at(first, seed) for seed in seeds], [_at(second, seed) for seed in seeds]


def _at(sample: Sample, seed: int) -> float:
    return next(iter(sample.values.values())) if sample.fixed else sample.values[seed]


def difference(first: Sample, second: Sample, confidence: float) -> Difference | None:
    """Paired difference `first - second` with its t interval; None when no seed is common to both.

    Two fixed scores give an exact difference without an interval: repeating one run would be no evidence.
    """
    seeds, a, b = pair(first, second)
    if not seeds:
        return None
    exact, broadcast = first.fixed and second.fixed, first.fixed != second.fixed
    interval = paired_difference(a, b, confidence)
    if len(seeds) == 1 or exact:
        return Difference(seeds, interval.estimate, None, None, None, None, exact, broadcast)
    sd = float(np.std(np.subtract(a, b), ddof=1))
    return Difference(seeds, interval.estimate, sd, interval.low, interval.high, interval.p_value, exact, broadcast)


def seeds_to_decide(distance: float, sd: float | None, level: float) -> int | None:
    """Seeds that decide at a confidence `level`, with a power of 80 %, if a difference and its spread stay as they are.

    Args:
        distance: Of the difference from the value that is to be excluded.
        sd: Standard deviation of the paired difference over seeds; None or 0 where the seeds say nothing of it.
        level: Confidence of the interval that has to exclude that value.

    Returns:
        A number up to `MOST_SEEDS`, which stands for all beyond; None if no number decides.
    """
    if not sd or not distance:
        return None
    if abs(distance) / sd < 1 / np.sqrt(MOST_SEEDS):
        return MOST_SEEDS
    return seeds_needed(distance, sd, level)


def samples(runs: Iterable[RunResult]) -> dict[str, dict[str, Sample]]:
    """Scores by label and metric."""
    return {label: _samples(members) for label, members in by_label(runs).items()}


def _samples(runs: Sequence[RunResult]) -> dict[str, Sample]:
    fixed = len(runs) == 1 and not runs[0].trained
    metrics = dict.fromkeys(metric for run in runs for metric in run.scores)
    return {m: Sample({run.seed: run.scores[m] for run in runs if m in run.scores}, fixed) for m in metrics}


def check_comparable(task: Task, runs: Sequence[RunResult]) -> None:
    """Refuse runs that may not be compared.

    Raises:
        DataError: No run, a run of another task, two scales, two data sets, or two runs of one label and seed.
    """
    if not runs:
        raise DataError(f"task {task.name!r}: there is no run to compare")
    seen: dict[tuple[str, int], RunResult] = {}
    for run in runs:
        if run.config["task"] != task.name:
            raise DataError(f"{run.folder}: is a run of task {run.config['task']!r}, not of {task.name!r}")
        other = seen.setdefault((run.label, run.seed), run)
        if other is not run:
            raise DataError(
                f"{run.folder}: {other.folder} is {run.label!r} at seed {run.seed} too; compare each run once"
            )
        for what, mine, first in (
            ("scale", run.config["scale"], runs[0].config["scale"]),
            ("data checksum", data_checksum(run), data_checksum(runs[0])),
        ):
            if mine != first:
                raise DataError(
                    f"{run.folder}: has {what} {mine!r} but {runs[0].folder} has {first!r}; "
                    "compare runs of one scale on the same data"
                )


def data_checksum(run: RunResult) -> str:
    """Checksum of the data set that a run read, from its facts; empty where it recorded none."""
    return str(run.facts.get("data_checksum", ""))


def compare(
    task: Task, runs: Sequence[RunResult], confidence: float, out: Path, methods: Mapping[str, Method] | None = None
) -> dict[str, Any]:
    """Compare the runs of one task; writes `comparison.csv` and `comparison.json` into `out`.

    Args:
        task: The task; its metrics give the order and the direction, its baseline what differences are taken to.
        runs: The runs, of any number of seeds; a method without a metric is left out of that metric.
        confidence: Of every interval; `1 - confidence` is the level of the Holm-corrected tests.
        out: The comparison's folder.
        methods: Manifests, for titles and papers.

    Returns:
        The content of `comparison.json`.

    Raises:
        DataError: The runs may not be compared (see `check_comparable`).
    """
    check_comparable(task, runs)
    scores = samples(runs)
    members = [_method(label, runs, methods or {}) for label in scores]
    comparison = {
        "task": task.name,
        "scale": runs[0].config["scale"],
        "confidence": confidence,
        **task.model_dump(
            mode="json",
            include={
                "title",
                "kind",
                "summary",
                "notice",
                "tuning_budget",
                "checkpoint_rule",
                "baseline",
                "primary_metric",
            },
        ),
        "relent": relent.__version__,
        "folder": Path(out).as_posix(),
        "seeds": sorted({seed for m in members if not m["fixed"] for seed in m["seeds"]} or {run.seed for run in runs}),
        "metrics": [{"name": name} | metric.model_dump(mode="json") for name, metric in task.metrics.items()],
        "methods": members,
        "table": table(task, scores, confidence),
        "ranking": ranking(task, scores, confidence),
        "runs": [_run(task, run) for run in runs],
        "facts": _common_facts(runs),
    }
    comparison["notes"] = notes(comparison)
    comparison["sections"] = _sections(task, runs, comparison)
    comparison["answer"] = answer(comparison)
    write_json(Path(out) / "comparison.json", comparison)
    _write_csv(Path(out) / "comparison.csv", comparison)
    return comparison


def table(task: Task, scores: Mapping[str, Mapping[str, Sample]], confidence: float) -> list[dict[str, Any]]:
    """One row a label and metric; `p_holm` is adjusted over all tests of the table (methods × directed metrics).

    `seeds_needed` of a difference that is not told from none is at the level at which Holm's procedure stopped.
    """
    rows = [
        _row(task, label, metric, scores, confidence)
        for metric in task.metrics
        for label in scores
        if scores[label].get(metric) and scores[label][metric].values
    ]
    tested = [row for row in rows if row["difference"] and row["difference"]["p"] is not None and row["direction"]]
    p = [row["difference"]["p"] for row in tested]
    adjusted, levels = (holm(p), holm_confidence(p, confidence)) if p else (np.empty(0), np.empty(0))
    for row, p_holm in zip(tested, adjusted, strict=True):
        row["p_holm"] = float(p_holm)
    for row in rows:
        row["verdict"] = _better_or_worse(row, confidence)
    for row, level in zip(tested, levels, strict=True):
        if row["verdict"] == "not distinguishable":
            found = row["difference"]
            row["seeds_needed"] = seeds_to_decide(found["mean"], found["sd"], float(level))
    for metric in task.metrics:
        _rank([row for row in rows if row["metric"] == metric])
    return rows


def _row(
    task: Task, label: str, metric: str, scores: Mapping[str, Mapping[str, Sample]], confidence: float
) -> dict[str, Any]:
    sample, direction = scores[label][metric], task.metrics[metric].direction
    reference = scores.get(task.baseline, {}).get(metric)
    compared = difference(sample, reference, confidence) if reference and label != task.baseline else None
    change = None
    if compared and reference:
        at_baseline = float(np.mean([_at(reference, seed) for seed in compared.seeds]))
        change = 100 * compared.mean / abs(at_baseline) if at_baseline else None
    return {
        "label": label,
        "metric": metric,
        "direction": direction,
        **mean_interval(sample, confidence),
        "values": {str(seed): value for seed, value in sorted(sample.values.items())},
        "fixed": sample.fixed,
        "difference": asdict(compared) if compared else None,
        "p_holm": None,
        "seeds_needed": None,
        "relative_change_percent": change,
        "rank": None,
    }


def mean_interval(sample: Sample, confidence: float) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and t interval of a score over seeds; one seed has a mean only."""
    values = [sample.values[seed] for seed in sorted(sample.values)]
    if len(values) == 1:
        return {"n": 1, "mean": values[0], "sd": None, "low": None, "high": None}
    interval = paired_difference(values, np.zeros(len(values)), confidence)
    sd = float(np.std(values, ddof=1))
    return {"n": len(values), "mean": interval.estimate, "sd": sd, "low": interval.low, "high": interval.high}


def _better_or_worse(row: Mapping[str, Any], confidence: float) -> str:
    """What the Holm-corrected test says about a row against the baseline; empty where there is nothing to test."""
    found = row["difference"]
    if not found or not row["direction"]:
        return ""
    if found["exact"]:
        decided = found["mean"] != 0
    elif row["p_holm"] is None:
        return "one seed"
    else:
        decided = row["p_holm"] <= 1 - confidence
    if not decided:
        return "not distinguishable"
    return "better" if (found["mean"] > 0) == (row["direction"] == "higher") else "worse"


def _rank(rows: Sequence[dict[str, Any]]) -> None:
    """Number the rows of one metric from the best mean; equal means share a number."""
    for row in rows:
        if row["direction"]:
            sign = 1 if row["direction"] == "higher" else -1
            row["rank"] = 1 + sum(sign * other["mean"] > sign * row["mean"] for other in rows)


def ranking(task: Task, scores: Mapping[str, Mapping[str, Sample]], confidence: float) -> list[dict[str, Any]]:
    """Methods in the order of the primary metric; see `ranked`."""
    return ranked(scores, task.primary_metric, task.metrics[task.primary_metric].direction, confidence)


def ranked(
    scores: Mapping[str, Mapping[str, Sample]], metric: str, direction: Direction | None, confidence: float
) -> list[dict[str, Any]]:
    """Methods in the order of a metric, with those that the seeds do not tell from the best marked `tied`.

    The best is chosen by the data, so every pair of methods belongs to the Holm family, not only the pairs with the
    best: then the chance to call any of several equal methods worse than the best stays below `1 - confidence`.
    """
    sign = 1 if direction == "higher" else -1
    known = {label: by[metric] for label, by in scores.items() if metric in by and by[metric].values}
    means = {label: mean_interval(sample, confidence) for label, sample in known.items()}
    order = sorted(known, key=lambda label: -sign * means[label]["mean"])
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    found = {key: difference(known[key[1]], known[key[0]], confidence) for key in pairs}
    tested = {key: d.p for key, d in found.items() if d and d.p is not None}
    p_values = list(tested.values())
    adjusted = dict(zip(tested, holm(p_values) if tested else [], strict=True))
    levels = dict(zip(tested, holm_confidence(p_values, confidence) if tested else [], strict=True))
    entries = []
    for label in order:
        to_best = found.get((order[0], label))
        p, needed = adjusted.get((order[0], label)), None
        told_apart = (p is not None and p <= 1 - confidence) or bool(to_best and to_best.exact and to_best.mean)
        if to_best and p is not None and not told_apart:
            needed = seeds_to_decide(to_best.mean, to_best.sd, float(levels[order[0], label]))
        entries.append(
            {
                "label": label,
                "rank": 1 + sum(sign * means[other]["mean"] > sign * means[label]["mean"] for other in order),
                **means[label],
                "fixed": known[label].fixed,
                "tied": label == order[0] or not told_apart,
                "to_best": asdict(to_best) if to_best else None,
                "p_holm": None if p is None else float(p),
                "seeds_needed": needed,
            }
        )
    return entries


def _sections(task: Task, runs: Sequence[RunResult], comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the task's kind has to say of its own, if anything."""
    name = advice_module(task.kind)
    return importlib.import_module(name).sections(task, runs, comparison) if name else []


def _method(label: str, runs: Sequence[RunResult], methods: Mapping[str, Method]) -> dict[str, Any]:
    own = [run for run in runs if run.label == label]
    config, manifest = own[0].config, methods.get(own[0].method)
    return {
        "label": label,
        "method": config["method"],
        "variant": config["variant"],
        "family": config["family"],
        "title": manifest.title if manifest else "",
        "paper": manifest.paper.model_dump(mode="json") if manifest and manifest.paper else None,
        "fixed": len(own) == 1 and not own[0].trained,
        "seeds": sorted(run.seed for run in own),
        "earlier_stages": list(manifest.stages)[:-1] if manifest else [],
        "training_seconds": _mean_fact(own, "training_seconds"),
        "peak_memory_mb": _mean_fact(own, "peak_memory_mb"),
        "parameters": own[0].facts.get("parameters"),
        "code": config["code"],
    }


def _mean_fact(runs: Sequence[RunResult], name: str) -> float | None:
    values = [run.facts[name] for run in runs if name in run.facts]
    return float(np.mean(values)) if values else None


def _run(task: Task, run: RunResult) -> dict[str, Any]:
    return {
        "label": run.label,
        "seed": run.seed,
        "folder": run.folder.as_posix(),
        "plan": run.config["plan"],
        "score": run.scores.get(task.primary_metric),
    }


def _common_facts(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Facts and evaluation settings that all runs share, without measurements; versions that differ are all listed."""
    merged = [run.facts | run.settings for run in runs]
    found: dict[str, list[Any]] = {}
    for facts in merged:
        for key, value in facts.items():
            if key not in MEASURED and value not in found.setdefault(key, []):
                found[key].append(value)
    versions = ("torch", "python", "threads")
    return {k: v[0] if len(v) == 1 else v for k, v in found.items() if len(v) == 1 or k in versions}


def notes(comparison: Mapping[str, Any]) -> list[str]:
    """What a reader must know to read the numbers aright, in whole sentences."""
    said = []
    fixed = [m["label"] for m in comparison["methods"] if m["fixed"]]
    labels = [m["label"] for m in comparison["methods"]]
    if len(comparison["seeds"]) == 1:
        said.append("One seed was run, so there are no intervals and no tests: differences may be chance.")
    if fixed and len(comparison["seeds"]) > 1:
        said.append(f"{', '.join(fixed)}: nothing is trained, so one run was set against every seed of the others.")
    if comparison["baseline"] not in labels:
        said.append(f"The baseline {comparison['baseline']} was not run, so no differences are shown.")
    missing = sorted(
        {m["label"] for m in comparison["methods"] if not m["fixed"] and m["seeds"] != comparison["seeds"]} - set(fixed)
    )
    if missing:
        said.append(f"{', '.join(missing)}: not all seeds were run; differences use the common seeds.")
    same = [
        r for r in comparison["table"] if r["difference"] and r["difference"]["sd"] == 0 and r["difference"]["mean"]
    ]
    if same:
        said.append(
            f"{', '.join(sorted({r['label'] for r in same}))}: a difference is the same at every seed, so its interval "
            "has no width; either the seed does not act on it or the score is too coarse to show that it does."
        )
    return said


def _write_csv(path: Path, comparison: Mapping[str, Any]) -> None:
    methods = {m["label"]: m for m in comparison["methods"]}
    metrics = {m["name"]: m for m in comparison["metrics"]}
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="")
        writer.writeheader()
        for row in comparison["table"]:
            method, found = methods[row["label"]], row["difference"] or {}
            line = {key: row[key] for key in row.keys() & set(COLUMNS)} | {
                **{key: comparison[key] for key in ("task", "scale", "baseline")},
                **{key: method[key] for key in ("method", "variant", *MEASURED)},
                "unit": metrics[row["metric"]]["unit"],
                "seeds": row["n"],
                "paired_seeds": len(found["seeds"]) if found else None,
                "difference": found.get("mean"),
                "difference_low": found.get("low"),
                "difference_high": found.get("high"),
                "p": found.get("p") if row["direction"] else None,
                "values": " ".join(f"{seed}:{value!r}" for seed, value in row["values"].items()),
            }
            writer.writerow({key: "" if value is None else value for key, value in line.items()})
