"""A critical-difference figure as inline SVG: average ranks over tasks, and bars that join what is not told apart.

Source: Demšar, "Statistical comparisons of classifiers over multiple data sets" (JMLR 7, 2006), figure 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _LEFT, _RIGHT = 1000, 250, 750
"""Pixels: whole width, and the ends of the axis of ranks."""
_AXIS, _BAR, _ROW = 62, 10, 21
"""Pixels: place of the axis, distance of two bars, height of a method's row."""
_LONGEST = 30
"""Characters of a method's name that are shown; a pointer over it shows all."""


def critical_plot(ranks: Mapping[str, Any]) -> str:
    """The figure; empty where nothing could be ranked.

    Args:
        ranks: `ranks` of `overview.json`, best method first.
    """
    labels, places = ranks["methods"], ranks["ranks"]
    if not labels:
        return ""
    k = len(labels)

    def x(rank: float) -> float:
        return _LEFT + (rank - 1) / (k - 1) * (_RIGHT - _LEFT)

    top = _AXIS + 14 + _BAR * len(ranks["cliques"]) + 14
    height = top + _ROW * ((k + 1) // 2)
    title = f"Average ranks of {k} methods over {len(ranks['tasks'])} tasks"
    parts = [f'<svg class="ranks" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    parts += _axis(k, x)
    parts += _difference(ranks["difference"], k, x)
    parts += [_bar(ranks, members, number, x) for number, members in enumerate(ranks["cliques"])]
    parts += [_method(labels[i], places[i], i, k, top, x) for i in range(k)]
    return "".join([*parts, "</svg>"])


def _axis(k: int, x: Callable[[float], float]) -> list[str]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if (k - 1) / s <= 12)
    ticks = [1, *range(step if step > 1 else 2, k + 1, step)]
    parts = [f'<line class="zero" x1="{x(1):.1f}" x2="{x(k):.1f}" y1="{_AXIS}" y2="{_AXIS}"/>']
    for tick in ticks:
        parts.append(f'<line class="zero" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_AXIS - 5}" y2="{_AXIS}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{_AXIS - 10}">{tick}</text>')
    parts.append(f'<text class="name" x="{_LEFT - 14}" y="{_AXIS + 4}">← better</text>')
    return parts


def _difference(difference: float, k: int, x: Callable[[float], float]) -> list[str]:
    """The critical difference to scale, or a word where it is longer than the axis."""
    text = f"critical difference {difference:.2f}"
    if difference > k - 1:
        return [f'<text x="{x(1):.1f}" y="20">{text}: longer than the axis</text>']
    left, right = x(1), x(1 + difference)
    ends = "".join(f'<line class="cd" x1="{e:.1f}" x2="{e:.1f}" y1="12" y2="22"/>' for e in (left, right))
    line = f'<line class="cd" x1="{left:.1f}" x2="{right:.1f}" y1="17" y2="17"/>'
    return [ends, line, f'<text x="{right + 10:.1f}" y="21">{text}</text>']


def _bar(ranks: Mapping[str, Any], members: Sequence[str], number: int, x: Callable[[float], float]) -> str:
    places = [ranks["ranks"][ranks["methods"].index(label)] for label in members]
    y = _AXIS + 14 + _BAR * number
    return (
        f'<line class="clique" x1="{x(min(places)) - 4:.1f}" x2="{x(max(places)) + 4:.1f}" y1="{y}" y2="{y}">'
        f"<title>{escape(', '.join(members))}</title></line>"
    )


def _method(label: str, rank: float, position: int, k: int, top: int, x: Callable[[float], float]) -> str:
    """A method's line from its place on the axis to its name: the better half on the left, the other on the right."""
    half = (k + 1) // 2
    left = position < half
    y = top + _ROW * (position if left else k - 1 - position)
    end = _LEFT - 14 if left else _RIGHT + 14
    name = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
    text = f"{escape(name)} {rank:.2f}" if left else f"{rank:.2f} {escape(name)}"
    anchor = ' class="name"' if left else ""
    return (
        f'<polyline class="rank" points="{x(rank):.1f},{_AXIS} {x(rank):.1f},{y} {end},{y}"/>'
        f'<text{anchor} x="{end + (-6 if left else 6)}" y="{y + 4}"><title>{escape(label)}</title>{text}</text>'
    )
