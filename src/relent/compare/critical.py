"""Average ranks over tasks: which methods and tasks are taken, what the tests say, and what must be said with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from relent.compare.together import linked_by_source
from relent.compare.words import enumerate_words
from relent.scores.ranks import FEWEST_METHODS, cliques, critical_difference, friedman, ranks_within

ENOUGH_TASKS, ENOUGH_METHODS = 10, 5
"""The χ² of Friedman's test wants more tasks and more methods than that (Demšar 2006, section 3.2.2)."""


@dataclass(frozen=True)
class CriticalDifference:
    """What a critical-difference figure shows; without ranks where there is too little to rank."""

    says: str
    """The result in words."""
    tasks: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    """Best first."""
    ranks: list[float] = field(default_factory=list)
    """Average rank of each method, 1 the best possible."""
    statistic: float | None = None
    p_value: float | None = None
    p_permutation: float | None = None
    difference: float | None = None
    """Nemenyi's critical difference."""
    cliques: list[list[str]] = field(default_factory=list)
    """Methods that it does not tell apart."""
    warnings: list[str] = field(default_factory=list)


def largest_block(ran: Mapping[str, set[str]], tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tasks and the methods that ran on all of them, such that methods × tasks is largest; then the more tasks.

    Only blocks of two tasks and three methods or more count; without one both lists are empty.

    Args:
        ran: Method → the tasks that it ran on.
        tasks: All tasks, in order.
    """
    shared: set[frozenset[str]] = set()
    for own in ran.values():
        shared |= {frozenset(own)} | {frozenset(own & other) for other in shared}
    blocks = [(chosen, [m for m, own in ran.items() if chosen <= own]) for chosen in shared]
    blocks = [(chosen, methods) for chosen, methods in blocks if len(chosen) > 1 and len(methods) >= FEWEST_METHODS]
    if not blocks:
        return [], []
    best, methods = max(blocks, key=lambda b: (len(b[0]) * len(b[1]), len(b[0]), sorted(b[0])))
    return [task for task in tasks if task in best], methods


def critical_difference_of(
    scores: NDArray[np.float64],
    tasks: Sequence[str],
    labels: Sequence[str],
    confidence: float,
    sources: Mapping[str, Sequence[str]],
) -> CriticalDifference:
    """Rank methods over tasks.

    Args:
        scores: (N, k) higher is better; rows are `tasks`, columns `labels`.
        tasks: (N,) names.
        labels: (k,) names.
        confidence: 1 - α of both tests.
        sources: Task → sources of its data.
    """
    if not tasks:
        return CriticalDifference("No three methods ran on two tasks, so that no ranks over tasks can be compared")
    average = ranks_within(scores).mean(0)
    order = np.argsort(average, kind="stable")
    test, needed = friedman(scores), critical_difference(len(labels), len(tasks), confidence)
    differ = test.p_permutation <= 1 - confidence
    groups = [[labels[i] for i in clique] for clique in cliques(average, needed)]
    return CriticalDifference(
        says=_words(differ, test.p_permutation, len(groups) == 1 and len(groups[0]) == len(labels)),
        tasks=list(tasks),
        methods=[labels[i] for i in order],
        ranks=[float(average[i]) for i in order],
        statistic=test.statistic,
        p_value=test.p_value,
        p_permutation=test.p_permutation,
        difference=needed,
        cliques=groups,
        warnings=_warnings(len(labels), tasks, needed, confidence, sources),
    )


def _words(differ: bool, p: float, all_joined: bool) -> str:
    tested = f"(Friedman's test, p {p:.2g} by permutation)"
    if not differ:
        return f"Over these tasks the methods are not told apart at all {tested}: their order may be chance"
    if all_joined:
        return f"The methods differ over these tasks {tested}, but Nemenyi's test does not say which"
    return f"The methods differ over these tasks {tested}; those that no bar joins are told apart by Nemenyi's test"


def _warnings(
    methods: int, tasks: Sequence[str], needed: float, confidence: float, sources: Mapping[str, Sequence[str]]
) -> list[str]:
    said = []
    if needed > methods - 1:
        enough = next(n for n in count(len(tasks)) if critical_difference(methods, n, confidence) <= methods - 1)
        said.append(
            f"With {len(tasks)} tasks nothing can be told: average ranks would have to differ by more than "
            f"{needed:.2f}, and {methods} methods differ by {methods - 1} at most. At least {enough} tasks are needed"
        )
    elif len(tasks) <= ENOUGH_TASKS or methods <= ENOUGH_METHODS:
        said.append(
            f"{len(tasks)} tasks and {methods} methods are few for these tests, which want more than {ENOUGH_TASKS} "
            f"tasks and {ENOUGH_METHODS} methods: read the figure as a description of these tasks"
        )
    alike = [names for names in linked_by_source(tasks, sources) if len(names) > 1]
    if alike:
        said.append(
            f"{'; '.join(enumerate_words(names) for names in alike)} are made from the same sources: they are no "
            "independent evidence, and the tests take them for it"
        )
    return said
