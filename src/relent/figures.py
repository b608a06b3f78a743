"""What all figures share: one palette that colour-blind readers can tell apart, markers, units, plain axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's palette, without its yellow, which is too faint for lines on white; grey in its place."""
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":")
DPI = 110
STEPS = 16
"""Pieces of a line between two points (`joined`)."""
LEGEND_ENTRY, LEGEND_LETTER = 0.5, 0.055
"""Inches that an entry of a legend and each letter of it take at 8 points."""
UNITS = {
    "1e-6 K m2 kg-1 s-1": "PVU",
    "m s-1": "m s$^{-1}$",
    "m s**-1": "m s$^{-1}$",
    "m2 s-2": "m$^2$ s$^{-2}$",
    "m**2 s**-2": "m$^2$ s$^{-2}$",
    "kg kg-1": "kg kg$^{-1}$",
    "kg kg**-1": "kg kg$^{-1}$",
    "1": "",
}


def display_units(units: str) -> str:
    """Units as they are written in a figure."""
    return UNITS.get(units, units)


def with_units(text: str, units: str) -> str:
    """A label with its units in brackets, if it has any."""
    shown = display_units(units)
    return f"{text} ({shown})" if shown else text


def styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each label, the same in every figure that draws them.

    No pair of colour and marker comes twice among 64 labels, no pair of colour and line among 24.
    """
    return {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
            "ls": LINES[i // len(COLOURS) % len(LINES)],
        }
        for i, label in enumerate(labels)
    }


def legend_below(figure: Figure, axes: Axes) -> None:
    """The legend of one of its axes below a figure, in as many columns as its width has room for."""
    handles, labels = axes.get_legend_handles_labels()
    widest = LEGEND_ENTRY + LEGEND_LETTER * max(map(len, labels))
    columns = max(1, min(6, len(labels), int(figure.get_figwidth() / widest)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def joined(points: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Points (N, 2) with `steps` between each and the next, ((N − 1)·steps + 1, 2), by linear interpolation.

    A line through them is straight in the data's units whatever the scale of the axes is: on one that grows as the root
    a chord would lie above a concave curve through the same two points.
    """
    places = np.linspace(0, len(points) - 1, (len(points) - 1) * steps + 1)
    return np.stack([np.interp(places, np.arange(len(points)), column) for column in points.T], 1)


def plain(axes: Axes) -> None:
    """Light grid, no frame above and on the right."""
    axes.grid(alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def lead_axes(axes: Axes, hours: np.ndarray, title: str) -> None:
    """Lead time along x: hours up to two days, days beyond; not more ticks than fit."""
    days = max(hours) > 72
    scale = 24.0 if days else 1.0
    ticks = np.asarray(hours, dtype=float) / scale
    if len(ticks) > 8:
        steps = (1, 2, 3, 5, 10, 20) if days else (1, 2, 3, 6, 12)
        step = next((s for s in steps if (ticks[-1] - ticks[0]) / s <= 8), steps[-1])
        ticks = np.arange(np.ceil(ticks[0] / step) * step, ticks[-1] + 1e-9, step)
    axes.set_xticks(ticks * scale, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(f"lead time ({'days' if days else 'h'})", fontsize=9)
    axes.set_title(title, fontsize=10)
    plain(axes)
