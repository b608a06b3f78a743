"""Differences to the baseline over the tasks of a group together, where a single task has too few seeds to tell.

Tasks that are made from the same sources may move together, seed by seed: their differences are averaged at each seed
first and count as one stratum, whose spread over seeds holds whatever they share. Strata of different sources are taken
as independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from relent.scores.inference import holm
from relent.scores.strata import mean_over_strata


def linked_by_source(tasks: Iterable[str], sources: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Tasks in sets that no source connects with each other, in order."""
    linked: list[tuple[list[str], set[str]]] = []
    for task in tasks:
        own = set(sources.get(task, ()))
        joined = [entry for entry in linked if entry[1] & own]
        names = [name for entry in joined for name in entry[0]] + [task]
        linked = [entry for entry in linked if entry not in joined]
        linked.append((names, own.union(*(entry[1] for entry in joined))))
    return [names for names, _ in linked]


def differences_together(
    goals: Iterable[str], rows: Sequence[Mapping[str, Any]], sources: Mapping[str, Sequence[str]], confidence: float
) -> dict[str, list[dict[str, Any]]]:
    """Mean difference of every method over the tasks that share a baseline and a metric, goal by goal.

    One test a method and goal, on the largest such set of two tasks or more; Holm's correction is over all of them.

    Args:
        goals: Names of the goals.
        rows: Rows of the group's table.
        sources: Task → sources of its data.
        confidence: 1 - α of the family, and of every interval (not adjusted).

    Returns:
        Goal → one entry a method: `label`, `tasks`, `baseline`, `title`, `unit`, `digits`, `difference`, `low`, `high`,
        `p`, `p_holm` and `verdict` (`better`, `worse`, `not distinguishable`).
    """
    sets = {goal: _sets(goal, rows) for goal in goals}
    found = {
        goal: [entry for members in chosen if (entry := _together(members, sources, confidence))]
        for goal, chosen in sets.items()
    }
    entries = [entry for members in found.values() for entry in members]
    for entry, p in zip(entries, holm([e["p"] for e in entries]) if entries else (), strict=True):
        entry["p_holm"] = float(p)
        better = (entry["difference"] > 0) == (entry.pop("direction") == "higher")
        told = p <= 1 - confidence
        entry["verdict"] = ("better" if better else "worse") if told else "not distinguishable"
    return found


def _sets(goal: str, rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """For each method the largest set of its rows that can be put together."""
    by_label: dict[str, dict[tuple[str, str], list[Mapping[str, Any]]]] = {}
    for row in rows:
        if goal in row["goals"] and len(row["difference_by_seed"]) > 1:
            alike = by_label.setdefault(row["label"], {})
            alike.setdefault((row["baseline"], row["metric"]), []).append(row)
    largest = [max(alike.values(), key=len) for alike in by_label.values()]
    return [members for members in largest if len(members) > 1]


def _together(
    rows: Sequence[Mapping[str, Any]], sources: Mapping[str, Sequence[str]], confidence: float
) -> dict[str, Any] | None:
    """One method over its tasks; None where tasks of the same sources have fewer than two seeds in common."""
    by_task = {row["task"]: row["difference_by_seed"] for row in rows}
    strata, weights = [], []
    for tasks in linked_by_source(by_task, sources):
        common = set.intersection(*(set(by_task[task]) for task in tasks))
        if len(common) < 2:
            return None
        strata.append([float(np.mean([by_task[task][seed] for task in tasks])) for seed in sorted(common)])
        weights.append(len(tasks))
    interval = mean_over_strata(strata, weights, confidence)
    return {
        **{key: rows[0][key] for key in ("label", "baseline", "title", "unit", "digits", "direction")},
        "tasks": list(by_task),
        "strata": len(strata),
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "p": interval.p_value,
    }
