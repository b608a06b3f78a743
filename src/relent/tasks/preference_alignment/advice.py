"""Says which divergence to choose when: a table and sentences for the comparison page, from nothing but its runs.

A run says the divergence of its objective (`PolicyMethod.objective_divergence`). For each goal the runs are ranked as
on the whole page: the best is chosen by the data, every pair of runs belongs to one Holm family, and what the tests do
not tell from the best is said to be a tie. A divergence is as good as its best run, and tied if any of its runs is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from relent.compare.results import RunResult, by_label
from relent.compare.statistics import Sample, mean_interval, ranked, samples
from relent.compare.words import enumerate_words, seeds_in_words, value_in_words
from relent.manifest.models import Direction, Task

STRENGTHS = ("beta", "kl_weight", "n")
"""Hyperparameters that say how far a policy may go from the reference; a method has one of them, or none."""
DIVERGENCE = ("divergence", "alpha", "order", "objective", "direction")
"""Hyperparameters that choose the divergence, or a member of its family."""
COLUMNS = (
    *("expected_reward", "kl_to_reference", "regret", "frontier_gap", "entropy", "distinct"),
    *("preference_accuracy", "preference_ece"),
)
"""Metrics of the table, as far as the task has them."""
NAMES = {
    "forward_kl": "forward KL",
    "reverse_kl": "reverse KL",
    "jensen_shannon": "Jensen–Shannon",
    "jensen_shannon_unhalved": "Jensen–Shannon",
    "total_variation": "total variation",
    "squared_hellinger": "squared Hellinger",
    "pearson_chi2": "χ²(other ‖ policy)",
    "neyman_chi2": "χ²(policy ‖ other)",
    "jeffreys": "Jeffreys",
    "renyi": "Rényi",
    "bhattacharyya": "Bhattacharyya",
    "wasserstein": "Wasserstein",
}
OTHERS = {
    "reference": "to the reference",
    "tokens": "to the reference's next tokens",
    "target": "to the target",
    "demonstrations": "to the demonstrations",
}
NOTES = (
    "The divergence is that of a run's objective, between the policy and what its method holds it to or draws it to: "
    "reverse KL is KL(policy ‖ other), forward KL is KL(other ‖ policy). Methods differ in more than that: in whether "
    "they see rewards or preferences, and in how strongly they hold the policy. Runs of one method that differ in "
    "nothing else speak of the divergence alone. Runs towards a constraint do not seek reward and are left out.",
    "The best run is chosen by the data, so the tests of a sentence are Holm-corrected over all pairs of its runs. In "
    "brackets after what is not told apart: its best run, and the seeds that would decide.",
)
Scores = Mapping[str, Mapping[str, Sample]]


class Goal(NamedTuple):
    """What a divergence may be chosen for."""

    words: str
    metric: str
    direction: Direction
    among_better: bool
    """Whether only runs count that are better than the baseline: a policy that has not moved would win."""


GOALS = (
    Goal("the highest reward less KL", "objective", "higher", False),
    Goal("diverse completions", "entropy", "higher", True),
    Goal("the smallest drift from the reference", "kl_to_reference", "lower", True),
    Goal("calibrated preferences", "preference_ece", "lower", False),
)


def strength(run: RunResult) -> tuple[str, float]:
    """Name and value of a run's strength; ("", 0) for a method that has none."""
    values = run.config["hyperparameters"]
    return next(((name, float(values[name])) for name in STRENGTHS if values.get(name) is not None), ("", 0.0))


def seeks_reward(run: RunResult) -> bool:
    """Whether the run is one for more reward, and not one towards a constraint."""
    return "constraint_rate" not in run.scores


def sections(task: Task, runs: Sequence[RunResult], comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The section of the page; none where the runs have fewer than two divergences.

    Args:
        task: The task.
        runs: All runs of the comparison.
        comparison: Content of `comparison.json` so far, with its table.

    Returns:
        Sections with `title`, `notes`, `statements` (each with its `sentence`, the `best` label and divergence, and
        the labels `tied` with it), `columns` (metrics) and `rows` (labels with their means and intervals).
    """
    first = {label: members[0] for label, members in by_label(runs).items() if seeks_reward(members[0])}
    divergences = {label: words for label, run in first.items() if (words := divergence_in_words(run))}
    if len(set(divergences.values())) < 2:
        return []
    scores = {label: by for label, by in samples(runs).items() if label in divergences}
    statements = _overall(comparison, scores, divergences) + _within(comparison, scores, divergences, first)
    columns = [name for name in COLUMNS if name in task.metrics]
    rows = [
        {
            "divergence": divergences[label],
            "label": label,
            "strength": dict([strength(first[label])]) if strength(first[label])[0] else {},
            "cells": {
                m: mean_interval(scores[label][m], comparison["confidence"]) for m in columns if m in scores[label]
            },
        }
        for label in sorted(
            divergences, key=lambda label: (divergences[label], first[label].method, strength(first[label]))
        )
    ]
    found = {"title": "Which divergence, when", "notes": list(NOTES), "statements": statements}
    return [found | {"columns": columns, "rows": rows}]


def divergence_in_words(run: RunResult) -> str:
    """Such as `forward KL to the reference`; empty for a run that states no divergence."""
    if "divergence" not in run.tables:
        return ""
    (stated,) = run.tables["divergence"]
    family, _, parameter = stated["name"].removesuffix(")").partition("(")
    name = f"α-divergence (α {parameter})" if family == "alpha" else NAMES.get(family, family.replace("_", " "))
    return f"{name} {OTHERS[stated['to']]}"


def _overall(comparison: Mapping[str, Any], scores: Scores, divergences: Mapping[str, str]) -> list[dict[str, Any]]:
    """A statement a goal, over all runs."""
    primary, baseline = comparison["primary_metric"], comparison["baseline"]
    better = {row["label"] for row in comparison["table"] if row["metric"] == primary and row["verdict"] == "better"}
    title = _metric(comparison, primary)["title"]
    found = []
    for goal in GOALS:
        among = f", among runs told to be better than {baseline} in {title}" if goal.among_better else ""
        labels = {label for label in scores if label in better or not goal.among_better}
        statement = _statement(comparison, goal, f"For {goal.words}{among}", labels, scores, divergences)
        if statement is None and goal.among_better and any(goal.metric in by for by in scores.values()):
            sentence = f"For {goal.words} none is named: no run is told to be better than {baseline} in {title}"
            sentence += _nearest(comparison, scores)
            statement = {"goal": goal.words, "sentence": sentence, "best": None, "divergence": None, "tied": []}
        if statement:
            found.append(statement)
    return found


def _nearest(comparison: Mapping[str, Any], scores: Scores) -> str:
    """Which run the fewest seeds would tell to be better than the baseline; empty if there is none."""
    metric = _metric(comparison, comparison["primary_metric"])
    sign = 1 if metric["direction"] == "higher" else -1
    rows = [
        row
        for row in comparison["table"]
        if row["metric"] == metric["name"] and row["label"] in scores and row["seeds_needed"] is not None
    ]
    rows = sorted((r for r in rows if sign * r["difference"]["mean"] > 0), key=lambda row: row["seeds_needed"])
    return f"; {seeds_in_words(rows[0]['seeds_needed'])} would decide {rows[0]['label']}" if rows else ""


def _within(
    comparison: Mapping[str, Any], scores: Scores, divergences: Mapping[str, str], first: Mapping[str, RunResult]
) -> list[dict[str, Any]]:
    """A statement a goal over the runs of one method that differ in nothing but their divergences."""
    rests = {label: _rest(first[label]) for label in divergences}
    groups: dict[tuple[str, str], list[str]] = {}
    for label in divergences:
        groups.setdefault((first[label].method, repr(rests[label])), []).append(label)
    groups = {key: labels for key, labels in groups.items() if len({divergences[label] for label in labels}) > 1}
    found = []
    for (method, _), labels in groups.items():
        alike = [rests[others[0]] for (other, _), others in groups.items() if other == method]
        own = rests[labels[0]]
        # What tells the group from the method's other groups, and its strength.
        told = [name for name in own if name in STRENGTHS or any(rest.get(name) != own[name] for rest in alike)]
        words = enumerate_words(
            [f"{name} {own[name]:g}" if name in STRENGTHS else f"{name} {own[name]}" for name in told]
        )
        where = f"Within {method}" + (f" at {words}" if words else "")
        statements = (
            _statement(comparison, goal, f"{where}, for {goal.words}", labels, scores, divergences) for goal in GOALS
        )
        found += [statement for statement in statements if statement]
    return found


def _rest(run: RunResult) -> dict[str, Any]:
    """Hyperparameters that do not choose the divergence, those that are not set left out; by name."""
    values = run.config["hyperparameters"]
    return {name: values[name] for name in sorted(values) if name not in DIVERGENCE and values[name] is not None}


def _statement(
    comparison: Mapping[str, Any],
    goal: Goal,
    start: str,
    labels: Collection[str],
    scores: Scores,
    divergences: Mapping[str, str],
) -> dict[str, Any] | None:
    """What the runs `labels` say of a goal; None where none has its metric."""
    chosen = {label: by for label, by in scores.items() if label in labels}
    entries = ranked(chosen, goal.metric, goal.direction, comparison["confidence"])
    if not entries:
        return None
    best, of = entries[0], divergences[entries[0]["label"]]
    others = [entry for entry in entries if divergences[entry["label"]] != of]
    tied = [entry for entry in others if entry["tied"]]
    metric = _metric(comparison, goal.metric)
    value = f"{best['label']}: {metric['title']} {value_in_words(comparison, metric, best)}"
    sentence = f"{start}: {of} ({value}){_tail(best, others, tied, divergences)}"
    return {
        "goal": goal.words,
        "sentence": sentence,
        "best": best["label"],
        "divergence": of,
        "tied": [entry["label"] for entry in tied],
    }


def _tail(
    best: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]],
    tied: Sequence[Mapping[str, Any]],
    divergences: Mapping[str, str],
) -> str:
    """What is told apart from the best divergence, and what is not."""
    if not others:
        return "; no other divergence is among them"
    if best["n"] == 1 and tied:
        return " has the best score; with one seed nothing says whether that is more than chance"
    known = list(dict.fromkeys(divergences[entry["label"]] for entry in others))
    # Entries stand in the order of their means: the first tied run of a divergence is its best.
    ties = {divergences[entry["label"]]: entry for entry in reversed(tied)}
    apart = [name for name in known if name not in ties]
    if not tied:
        count = "the only other divergence" if len(known) == 1 else f"all {len(known)} other divergences"
        return f", told apart from {count}"
    said = [
        f"{name} ({ties[name]['label']}; {seeds_in_words(ties[name]['seeds_needed'])})"
        for name in known
        if name in ties
    ]
    rest = f"; told apart from {enumerate_words(apart)}" if apart else ""
    return f" has the best mean, but the seeds do not tell it from {enumerate_words(said)}{rest}"


def _metric(comparison: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(metric for metric in comparison["metrics"] if metric["name"] == name)
    return found
