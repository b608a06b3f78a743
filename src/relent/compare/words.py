"""Says in words what a comparison found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | None, digits: int) -> str:
    """A score in a table: fixed decimals with a true minus sign, and a dash where there is none.

    A value that the decimals would show as zero is written in scientific notation instead.
    """
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    if value and not float(text):
        text = f"{value:.1e}"
    return text.replace("-", "−")


def p_value(value: float | None) -> str:
    """A p-value as tables print it: three digits, `<0.001` below that, a dash where there is no test."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3g}"


def finer(digits: int) -> int:
    """Decimals of a difference: one more than the score's, up to four."""
    return max(digits, min(digits + 1, 4))


def seeds_in_words(number: int | None, most: int = 10_000) -> str:
    """How many seeds would decide: `about 12 seeds`, `10 000 seeds or more`, `no number of seeds`."""
    if number is None:
        return "no number of seeds"
    return f"{most:,} seeds or more".replace(",", "\u202f") if number >= most else f"about {number} seeds"


def open_in_words(comparison: Mapping[str, Any]) -> str:
    """What the seeds do not tell from the baseline on the primary metric, and how many would; empty if nothing."""
    rows = [r for r in comparison["table"] if r["metric"] == comparison["primary_metric"]]
    rows = [r for r in rows if r["verdict"] == "not distinguishable"]
    if not rows:
        return ""
    rows.sort(key=lambda row: (row["seeds_needed"] is None, row["seeds_needed"] or 0))
    told = [f"{row['label']} ({seeds_in_words(row['seeds_needed'])})" for row in rows]
    return (
        f"Not told apart from {comparison['baseline']}, with the seeds that would decide it if difference and spread "
        f"stay as they are: {enumerate_words(told)}"
    )


NAMED = 6
"""Methods that the answer names where there are many."""


def enumerate_words(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def best_in_words(comparison: Mapping[str, Any]) -> str:
    """The answer of a comparison in one line, with the first sentence of the task's notice.

    Args:
        comparison: Content of `comparison.json`.
    """
    first = re.split(r"(?<=[.!?])\s", comparison["notice"], maxsplit=1)[0]
    notice = f" ({first})" if first else ""
    return f"{comparison['task']}: {comparison['answer']}{notice}"


def answer(comparison: Mapping[str, Any]) -> str:
    """The best method of a comparison, its interval, and what the seeds cannot tell from it."""
    metric = next(m for m in comparison["metrics"] if m["name"] == comparison["primary_metric"])
    entries = comparison["ranking"]
    if not entries:
        return f"no run has {metric['title']}, so nothing can be ranked"
    best, others = entries[0], entries[1:]
    tied = [entry["label"] for entry in others if entry["tied"]]
    value = value_in_words(comparison, metric, best)
    return f"{best['label']} has the best {metric['title']} ({value}){_tail(comparison, others, tied)}"


def value_in_words(comparison: Mapping[str, Any], metric: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Mean of an entry of a ranking, its interval, and the seeds."""
    digits, interval = metric["digits"], ""
    if entry["low"] is not None:
        low, high = number(entry["low"], digits), number(entry["high"], digits)
        interval = f", {100 * comparison['confidence']:g} % interval {low} to {high}"
    unit = f" {metric['unit']}" if metric["unit"] else ""
    return f"{number(entry['mean'], digits)}{interval}{unit}, {_seeds(entry)}"


def _seeds(entry: Mapping[str, Any]) -> str:
    if entry["fixed"]:
        return "the same at every seed"
    return f"{entry['n']} seed{'s' if entry['n'] > 1 else ''}"


def _tail(comparison: Mapping[str, Any], others: Sequence[Mapping[str, Any]], tied: Sequence[str]) -> str:
    if not others:
        return "; no other method was run"
    if len(comparison["seeds"]) == 1 and tied:
        return "; with one seed nothing says whether that is more than chance"
    if not tied:
        return f"; distinguishable from {'the other method' if len(others) == 1 else f'all {len(others)} others'}"
    if len(tied) == len(others) > 1:
        return f"; not distinguishable from any of the {len(others)} others"
    named = list(tied) if len(tied) <= NAMED + 1 else [*tied[:NAMED], f"{len(tied) - NAMED} more"]
    return f"; not distinguishable from {enumerate_words(named)}"
