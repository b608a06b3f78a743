"""Plots of a comparison as inline SVG: scores by method with their seeds, and paired differences to the baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from relent.compare.words import finer, number

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP, _AXIS = 860, 210, 230, 28, 26, 34
"""Pixels: whole width, label column, number column, row height, room above the rows and below them."""
_SQUEEZE = 0.4
"""Marks are left beyond the axis if that shrinks it to this share of its length."""


@dataclass(frozen=True)
class Mark:
    """One row of a plot: an estimate with its interval and the single values behind it, in the metric's unit."""

    label: str
    text: str
    mean: float
    low: float | None
    high: float | None
    style: str
    points: list[float] = field(default_factory=list)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) between two bounds."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def score_plot(comparison: Mapping[str, Any]) -> str:
    """The primary metric of each method, best first: mean, interval over seeds, and one dot a seed."""
    metric = next(m for m in comparison["metrics"] if m["name"] == comparison["primary_metric"])
    values = {row["label"]: row["values"] for row in comparison["table"] if row["metric"] == metric["name"]}
    marks = [
        Mark(
            entry["label"],
            _with_interval(entry["mean"], entry["low"], entry["high"], metric["digits"]),
            entry["mean"],
            entry["low"],
            entry["high"],
            "best" if position == 0 else "tied" if entry["tied"] else "plain",
            list(values[entry["label"]].values()),
        )
        for position, entry in enumerate(comparison["ranking"])
    ]
    return _svg(marks, metric, f"{metric['title']} by method", None)


def difference_plot(comparison: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """Paired differences of one metric to the baseline, with their intervals; empty when there are none."""
    marks = []
    for row in comparison["table"]:
        found = row["difference"]
        if row["metric"] != metric["name"] or not found:
            continue
        style = row["verdict"] if row["verdict"] in ("better", "worse") else "plain"
        text = _with_interval(found["mean"], found["low"], found["high"], finer(metric["digits"]), sign=True)
        marks.append(Mark(row["label"], text, found["mean"], found["low"], found["high"], style))
    return _svg(marks, metric, f"{metric['title']}: difference to {comparison['baseline']}", 0.0) if marks else ""


def _with_interval(mean: float, low: float | None, high: float | None, digits: int, sign: bool = False) -> str:
    plus = "+" if sign and mean > 0 else ""
    if low is None:
        return plus + number(mean, digits)
    return f"{plus}{number(mean, digits)} [{number(low, digits)}, {number(high, digits)}]"


def _svg(marks: Sequence[Mark], metric: Mapping[str, Any], title: str, zero: float | None) -> str:
    low, high = _bounds(marks, zero)
    bottom = _TOP + _ROW * len(marks)

    def x(value: float) -> float:
        return _LEFT + min(max((value - low) / (high - low), 0.0), 1.0) * (_WIDTH - _LEFT - _RIGHT)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {bottom + _AXIS}" role="img" aria-label="{escape(title)}">']
    for tick in ticks(low, high):
        style = "zero" if zero is not None and abs(tick - zero) < 1e-12 * (high - low) else "grid"
        parts.append(f'<line class="{style}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP - 6}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 14}">{_tick(tick)}</text>')
    parts.append(_heading(metric))
    for position, mark in enumerate(marks):
        beyond = -1 if mark.mean < low else int(mark.mean > high)
        parts.append(_mark(mark, _TOP + _ROW * position + _ROW / 2, x, beyond))
    return "".join([*parts, "</svg>"])


def _bounds(marks: Sequence[Mark], zero: float | None) -> tuple[float, float]:
    """Ends of the axis; up to a third of the marks may lie beyond one end, where they would squeeze all others."""

    def span(kept: Sequence[Mark]) -> tuple[float, float]:
        ends = [x for m in kept for x in (m.mean, m.low, m.high, *m.points) if x is not None]
        ends += [] if zero is None else [zero]
        return min(ends), max(ends)

    ordered, n = sorted(marks, key=lambda mark: mark.mean), len(marks)
    full = low, high = span(ordered)
    for cut in range(1, n // 3 + 1):
        ends = min(span(ordered[cut:]), span(ordered[: n - cut]), key=lambda ends: ends[1] - ends[0])
        if ends[1] - ends[0] <= _SQUEEZE * (full[1] - full[0]):
            low, high = ends
            break
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _heading(metric: Mapping[str, Any]) -> str:
    """Above the rows: which way is better; below the axis: the metric with its unit."""
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    title, middle = escape(metric["title"] + unit), (_LEFT + _WIDTH - _RIGHT) / 2
    name = f'<text class="tick" x="{middle}" y="{_TOP - 12}">{title}</text>'
    if not metric["direction"]:
        return name
    right = metric["direction"] == "higher"
    place = _WIDTH - _RIGHT if right else _LEFT
    text = "better →" if right else "← better"
    return name + f'<text class="better {"end" if right else ""}" x="{place}" y="{_TOP - 12}">{text}</text>'


def _tick(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _mark(mark: Mark, y: float, x: Callable[[float], float], beyond: int) -> str:
    parts = [
        f'<g class="mark {mark.style}">',
        f'<text class="name" x="{_LEFT - 14}" y="{y + 4}">{escape(mark.label)}</text>',
    ]
    if beyond:
        tip, back = x(mark.mean) + 9 * beyond, x(mark.mean)
        parts.append(f'<path class="mean" d="M{tip:.1f} {y} L{back:.1f} {y - 6} L{back:.1f} {y + 6} Z"/>')
    elif mark.low is not None and mark.high is not None:
        left, right = x(mark.low), x(mark.high)
        parts.append(f'<line class="bar" x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}"/>')
        parts += [f'<line class="bar" x1="{e:.1f}" x2="{e:.1f}" y1="{y - 4}" y2="{y + 4}"/>' for e in (left, right)]
    if not beyond:
        parts += [f'<circle class="seed" cx="{x(value):.1f}" cy="{y + 9}" r="2.2"/>' for value in mark.points]
        parts.append(f'<circle class="mean" cx="{x(mark.mean):.1f}" cy="{y}" r="4.5"/>')
    parts.append(f'<text class="value" x="{_WIDTH - _RIGHT + 14}" y="{y + 4}">{escape(mark.text)}</text></g>')
    return "".join(parts)
