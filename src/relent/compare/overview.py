"""Puts the comparisons of a group together: what to use when, all methods on all tasks, average ranks over tasks.

Nothing is tested anew but the ranks over tasks: whether a method is better than a task's baseline is what that task's
comparison says after its own correction. No torch, no Lightning.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import relent
from relent.compare.advice import goal_advice, overall_answer
from relent.compare.critical import critical_difference_of, largest_block
from relent.compare.together import differences_together
from relent.errors import DataError
from relent.files import read_json, whole, write_json
from relent.manifest.models import Group, Task

COLUMNS = (
    *("task", "scale", "label", "method", "variant", "metric", "primary", "goals", "unit", "direction", "n", "mean"),
    *("low", "high", "rank", "baseline", "difference", "difference_low", "difference_high", "p_holm", "verdict"),
    *("seeds_needed", "relative_time", "relative_memory"),
)
COSTS = {"time": "training_seconds", "memory": "peak_memory_mb"}


def run_overview(name: str, group: Group, tasks: Mapping[str, Task], folders: Mapping[str, Path], out: Path) -> Path:
    """Write `overview.json`, `overview.csv` and `overview.html` of a group into `out`; returns the page.

    Args:
        name: The group's.
        group: Its tasks, goals and reference.
        tasks: Manifests of its tasks, for what data they share.
        folders: Folder of each task's comparison.
        out: The group's folder.

    Raises:
        DataError: A comparison is missing or not whole, or they are of different scales or confidences.
    """
    from relent.compare.overview_page import write_overview_page

    comparisons = {task: read_json(folders[task] / "comparison.json") for task in group.tasks}
    claims = {task: read_json(folders[task] / "claims.json") for task in group.tasks}
    overview = make_overview(name, group, comparisons, claims, {task: tasks[task].sources for task in group.tasks})
    write_json(out / "overview.json", overview)
    _write_csv(out / "overview.csv", overview)
    return write_overview_page(overview, out / "overview.html")


def make_overview(
    name: str,
    group: Group,
    comparisons: Mapping[str, Mapping[str, Any]],
    claims: Mapping[str, Sequence[Mapping[str, Any]]],
    sources: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The content of `overview.json`.

    Args:
        name: The group's.
        group: Its tasks, goals and reference.
        comparisons: Task → content of `comparison.json`.
        claims: Task → content of `claims.json`.
        sources: Task → the sources of its data: tasks that share one are no independent evidence.

    Raises:
        DataError: The comparisons are of different scales or confidences.
    """
    _check_alike(comparisons)
    first = next(iter(comparisons.values()))
    goals = {goal: _metric_by_task(metrics, comparisons) for goal, metrics in group.goals.items()}
    costs = {task: _costs(comparison, group.reference) for task, comparison in comparisons.items()}
    rows = [row for task in comparisons for row in _rows(task, comparisons[task], goals, costs[task])]
    methods = _methods(comparisons, claims, costs)
    together = differences_together(goals, rows, sources, first["confidence"])
    overview = {
        "group": name,
        "title": group.title,
        "relent": relent.__version__,
        "scale": first["scale"],
        "confidence": first["confidence"],
        "reference": group.reference,
        "tasks": [_task(comparison) for comparison in comparisons.values()],
        "methods": methods,
        "goals": [
            goal_advice(goal, by_task, rows, together[goal], methods, group.reference)
            for goal, by_task in goals.items()
            if by_task
        ],
        "table": rows,
        "ranks": _ranks_over_tasks(comparisons, sources),
    }
    overview["answer"] = overall_answer(overview["goals"])
    return overview


def _check_alike(comparisons: Mapping[str, Mapping[str, Any]]) -> None:
    for what in ("scale", "confidence"):
        found = {task: comparison[what] for task, comparison in comparisons.items()}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{task} {value}" for task, value in found.items())
            raise DataError(f"the comparisons have different values of {what}: {told}; run them alike")


def _metric_by_task(metrics: Sequence[str], comparisons: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """On each task the first of a goal's metrics that a run of it has."""
    found = {}
    for task, comparison in comparisons.items():
        reported = {row["metric"] for row in comparison["table"]}
        chosen = next((metric for metric in metrics if metric in reported), None)
        if chosen:
            found[task] = chosen
    return found


def _costs(comparison: Mapping[str, Any], reference: str) -> dict[str, dict[str, float | None]]:
    """Label → training time and memory over the reference's; None where one of them is not known."""
    methods = {method["label"]: method for method in comparison["methods"]}

    def ratio(label: str, what: str) -> float | None:
        own, base = methods[label].get(what), methods.get(reference, {}).get(what)
        return own / base if own is not None and base else None

    return {label: {cost: ratio(label, what) for cost, what in COSTS.items()} for label in methods}


def _rows(
    task: str,
    comparison: Mapping[str, Any],
    goals: Mapping[str, Mapping[str, str]],
    costs: Mapping[str, Mapping[str, float | None]],
) -> list[dict[str, Any]]:
    """The rows of a comparison's table that the group shows: the primary metric, and those of the goals."""
    metrics = {metric["name"]: metric for metric in comparison["metrics"]}
    methods = {method["label"]: method for method in comparison["methods"]}
    found = []
    for row in comparison["table"]:
        named, primary = row["metric"], row["metric"] == comparison["primary_metric"]
        served = [goal for goal, by_task in goals.items() if by_task.get(task) == named]
        if not (primary or served):
            continue
        difference = row["difference"] or {}
        found.append(
            {
                "task": task,
                **{key: methods[row["label"]][key] for key in ("method", "variant")},
                **{key: row[key] for key in ("label", "metric", "direction", "n", "mean", "low", "high", "rank")},
                **{key: metrics[named][key] for key in ("title", "unit", "digits")},
                "primary": primary,
                "goals": served,
                "baseline": comparison["baseline"],
                "difference": difference.get("mean"),
                "difference_low": difference.get("low"),
                "difference_high": difference.get("high"),
                "difference_by_seed": _by_seed(row, comparison) if difference.get("p") is not None else {},
                **{key: row[key] for key in ("p_holm", "verdict", "seeds_needed")},
                **{f"relative_{cost}": value for cost, value in costs[row["label"]].items()},
            }
        )
    return found


def _by_seed(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> dict[str, float]:
    """Paired difference to the baseline at each seed; a score that does not depend on it is set against every seed."""
    (base,) = (r for r in comparison["table"] if (r["label"], r["metric"]) == (comparison["baseline"], row["metric"]))

    def at(side: Mapping[str, Any], seed: str) -> float:
        return float(next(iter(side["values"].values())) if side["fixed"] else side["values"][seed])

    return {str(seed): at(row, str(seed)) - at(base, str(seed)) for seed in row["difference"]["seeds"]}


def _methods(
    comparisons: Mapping[str, Mapping[str, Any]],
    claims: Mapping[str, Sequence[Mapping[str, Any]]],
    costs: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> list[dict[str, Any]]:
    """Every label with its tasks, what it costs over the reference, and the verdicts on its claims."""
    described: dict[str, dict[str, Any]] = {}
    for task, comparison in comparisons.items():
        for method in comparison["methods"]:
            keys = ("label", "method", "variant", "family", "title", "paper", "earlier_stages")
            entry = described.setdefault(method["label"], {key: method[key] for key in keys} | {"tasks": []})
            entry["tasks"].append(task)
    for label, entry in described.items():
        for cost in COSTS:
            entry[cost] = _spread([costs[task][label][cost] for task in entry["tasks"]])
        entry["claims"] = dict(
            Counter(claim["verdict"] for task in entry["tasks"] for claim in claims[task] if claim["label"] == label)
        )
    return list(described.values())


def _spread(ratios: Sequence[float | None]) -> dict[str, Any] | None:
    """Geometric mean and extremes of a ratio over tasks."""
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return None
    middle = float(np.exp(np.mean(np.log(known)))) if min(known) > 0 else 0.0
    return {"middle": middle, "low": min(known), "high": max(known), "tasks": len(known)}


def _task(comparison: Mapping[str, Any]) -> dict[str, Any]:
    metric = next(m for m in comparison["metrics"] if m["name"] == comparison["primary_metric"])
    return {
        "name": comparison["task"],
        **{key: comparison[key] for key in ("title", "notice", "baseline", "seeds", "answer", "folder")},
        "methods": len(comparison["methods"]),
        "metric": {key: metric[key] for key in ("name", "title", "unit", "direction", "digits", "description")},
    }


def _ranks_over_tasks(
    comparisons: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Average ranks by the primary metric, over the methods that ran on all tasks of the largest block."""
    scores: dict[str, dict[str, float]] = {}
    for task, comparison in comparisons.items():
        for entry in comparison["ranking"]:
            metric = next(m for m in comparison["metrics"] if m["name"] == comparison["primary_metric"])
            sign = 1 if metric["direction"] == "higher" else -1
            scores.setdefault(entry["label"], {})[task] = sign * entry["mean"]
    tasks, labels = largest_block({label: set(by_task) for label, by_task in scores.items()}, list(comparisons))
    confidence = next(iter(comparisons.values()))["confidence"]
    table = np.array([[scores[label][task] for label in labels] for task in tasks])
    found = critical_difference_of(table, tasks, labels, confidence, sources)
    return asdict(found) | {"left_out": [label for label in scores if label not in labels]}


def _write_csv(path: Path, overview: Mapping[str, Any]) -> None:
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        for row in overview["table"]:
            line = row | {"scale": overview["scale"], "goals": "; ".join(row["goals"]), "primary": int(row["primary"])}
            writer.writerow({key: "" if line[key] is None else line[key] for key in COLUMNS})
