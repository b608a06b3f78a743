"""Maps and meteograms of one forecast: members, mean, spread and truth, in the variable's units.

Plate carrée; the sides of a regional map are drawn so that a kilometre is equally long along both at its middle
latitude. There are no coastlines: the files that they come from would have to be downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from relent.figures import COLOURS, DPI, legend_below, plain, with_units
from relent.grid import Topology

QUANTILES = ((0.05, 0.95, 0.18), (0.25, 0.75, 0.38))
"""Bands of a meteogram: from, to, opacity."""


@dataclass(frozen=True)
class Case:
    """One forecast of one variable: `members` (M, H, W) and `truth` (H, W)."""

    variable: str
    long_name: str
    units: str
    window: str
    """Valid time and lead in words."""
    latitude: np.ndarray
    longitude: np.ndarray
    topology: Topology
    members: np.ndarray
    truth: np.ndarray


def window(valid: np.datetime64, hours: float) -> str:
    """Valid time and lead in words."""
    return f"{np.datetime_as_string(valid, unit='m').replace('T', ' ')} UTC, {hours:g} h ahead"


def _latitude(value: float, _: Any = None) -> str:
    return "0°" if value == 0 else f"{abs(value):g}°{'N' if value > 0 else 'S'}"


def _longitude(value: float, _: Any = None) -> str:
    value = (value + 180) % 360 - 180
    return f"{abs(value):g}°" if abs(value) in (0, 180) else f"{abs(value):g}°{'E' if value > 0 else 'W'}"


def place_name(latitude: float, longitude: float, topology: Topology) -> str:
    """A grid point in words."""
    if topology is Topology.torus:
        return f"x {longitude:.3g}, y {latitude:.3g}"
    return f"{_latitude(round(latitude, 2))} {_longitude(round(longitude, 2))}"


def map_axes(axes: Axes, case: Case, title: str) -> None:
    """Degrees on both axes of a map (none on a plane), and its aspect."""
    axes.set_title(title, fontsize=9, pad=3)
    axes.tick_params(labelsize=7, length=2)
    axes.label_outer()
    if case.topology is Topology.torus:
        axes.set_aspect(1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        return
    axes.xaxis.set_major_formatter(FuncFormatter(_longitude))
    axes.yaxis.set_major_formatter(FuncFormatter(_latitude))
    if case.topology is Topology.globe:
        axes.set_aspect(1)
        axes.xaxis.set_major_locator(MultipleLocator(60))
        axes.yaxis.set_major_locator(MultipleLocator(30))
        return
    axes.set_aspect(1 / max(0.2, float(np.cos(np.deg2rad(case.latitude.mean())))))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


class MapScale:
    """Colours of one variable, the same for truth, members and mean.

    A field that takes both signs (wind, potential vorticity, stream function) is drawn about zero in blue and red,
    which colour-blind readers can tell apart; any other from low to high in cividis. Ends are percentiles of the truth.
    """

    def __init__(self, case: Case):
        self.case = case
        low, high = (float(value) for value in np.nanpercentile(case.truth, [0.5, 99.5]))
        self.diverging = low < 0 < high and min(-low, high) > 0.1 * max(-low, high)
        largest = max(-low, high)
        self.low, self.high = (-largest, largest) if self.diverging else (low, high)

    def draw(self, axes: Axes, values: np.ndarray, title: str) -> Any:
        """Draw a field; of potential vorticity also ±2 PVU, the dynamical tropopause."""
        case = self.case
        image = axes.pcolormesh(
            case.longitude,
            case.latitude,
            values,
            cmap="RdBu_r" if self.diverging else "cividis",
            vmin=self.low,
            vmax=self.high,
            rasterized=True,
        )
        if case.variable == "PV":
            axes.contour(case.longitude, case.latitude, values, levels=[-2, 2], colors="k", linewidths=0.5)
        map_axes(axes, case, title)
        return image

    def draw_size(self, axes: Axes, values: np.ndarray, title: str, top: float) -> Any:
        """Draw a field that is not negative (spread, absolute error), from zero to `top`."""
        case = self.case
        image = axes.pcolormesh(
            case.longitude, case.latitude, values, cmap="viridis", vmin=0, vmax=top, rasterized=True
        )
        map_axes(axes, case, title)
        return image


def _colour_bar(figure: Figure, image: Any, axes: Sequence[Axes], label: str, extend: str) -> None:
    """A horizontal bar under the axes, so that all maps of a figure are equally wide."""
    bar = figure.colorbar(image, ax=list(axes), location="bottom", pad=0.02, shrink=0.8, aspect=40, extend=extend)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _panel_size(case: Case) -> tuple[float, float]:
    """Inches of a panel: as wide as the map is, in kilometres, within reason."""
    if case.topology is Topology.torus:
        return 2.7, 2.75
    height = abs(float(np.ptp(case.latitude)))
    width = abs(float(np.ptp(case.longitude)))
    if case.topology is not Topology.globe:
        width *= max(0.2, float(np.cos(np.deg2rad(case.latitude.mean()))))
    ratio = float(np.clip(width / max(height, 1e-6), 0.6, 2.4))
    return (3.8, 3.8 / ratio + 0.1) if ratio > 1.2 else (2.9, 2.9 / ratio + 0.1)


def stamp_map(case: Case, label: str) -> Figure:
    """Truth, ensemble mean and its error; under them members and the spread."""
    members, truth = case.members, case.truth
    mean = "ensemble mean" if len(members) > 1 else "forecast"
    panels = [("truth", truth), (mean, members.mean(0))]
    if len(members) > 1:
        panels += [(f"member {m + 1}", members[m]) for m in range(min(5, len(members)))]
    n_rows = min(3, len(members))
    width, height = _panel_size(case)
    figure = Figure(figsize=(3 * width, 1.0 + height * n_rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(n_rows, 3, sharex=True, sharey=True, squeeze=False)
    places = ([*grid[:, :2].flat, *grid[2:, 2]], list(grid[:2, 2]))
    bars = (list(grid[-1, :2]), list(grid[-1, 2:]))
    _draw_panels(figure, MapScale(case), places, (panels, _sizes(members, truth, mean)), bars)
    figure.suptitle(f"{label}: {case.long_name}, {case.window}", fontsize=10)
    return figure


def truth_and_forecasts(cases: Mapping[str, Case]) -> Figure:
    """Truth, two members of the first method, every method's mean; error of the mean and spread of the first method."""
    first_label, first = next(iter(cases.items()))
    members, truth = first.members, first.truth
    panels = [("truth", truth)]
    panels += [(f"{first_label}: member {m + 1}", members[m]) for m in range(min(2, len(members)))]
    for label, case in cases.items():
        ensemble = case.members
        panels.append((label if len(ensemble) == 1 else f"{label}: mean of {len(ensemble)}", ensemble.mean(0)))
    sizes = [(f"{first_label}: {title}", values) for title, values in _sizes(members, truth, "mean")]
    n_rows = -(-(len(panels) + len(sizes)) // 3)
    width, height = _panel_size(first)
    figure = Figure(figsize=(3 * width, 1.0 + height * n_rows), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(n_rows, 3, sharex=True, sharey=True, squeeze=False).flat)
    places = (axes[: -len(sizes)], axes[-len(sizes) :])
    bars = (axes[-3 : -len(sizes)], axes[-len(sizes) :])
    _draw_panels(figure, MapScale(first), places, (panels, sizes), bars)
    figure.suptitle(f"{first.long_name}, {first.window}", fontsize=10)
    return figure


Panels = list[tuple[str, np.ndarray]]


def _sizes(members: np.ndarray, truth: np.ndarray, mean: str) -> Panels:
    """Absolute error of the mean and, of an ensemble, its spread."""
    sizes = [(f"|{mean} − truth|", np.abs(members.mean(0) - truth))]
    if len(members) > 1:
        sizes.append((f"spread ({len(members)} members)", members.std(0, ddof=1)))
    return sizes


def _draw_panels(
    figure: Figure,
    scale: MapScale,
    places: tuple[list[Axes], list[Axes]],
    panels: tuple[Panels, Panels],
    bars: tuple[list[Axes], list[Axes]],
) -> None:
    """Draw fields and sizes on their axes, remove the axes that are left, and put a colour bar under each kind.

    Args:
        figure: The figure.
        scale: Colours of the fields.
        places: Axes of the fields and of the sizes.
        panels: Titles and values of both.
        bars: Axes under which the colour bars of both stand.
    """
    top = float(np.nanpercentile(panels[1][0][1], 99))
    for axes, (title, values) in zip(places[0], panels[0]):
        image = scale.draw(axes, values, title)
    for axes, (title, values) in zip(places[1], panels[1]):
        size = scale.draw_size(axes, values, title, top)
    unused = [axes for place, panel in zip(places, panels) for axes in place[len(panel) :]]
    for axes in unused:
        axes.remove()
    drawn = (
        (size, places[1], bars[1], "error and spread", "max"),
        (image, places[0], bars[0], scale.case.variable, "both"),
    )
    for mesh, place, under, label, extend in drawn:
        left = [axes for axes in under if axes not in unused] or [axes for axes in place if axes not in unused]
        _colour_bar(figure, mesh, left, with_units(label, scale.case.units), extend)


@dataclass(frozen=True)
class Series:
    """A variable at one place: `members` (M, L) and `truth` (L,) at valid times (L,); NaN where unknown."""

    name: str
    units: str
    members: np.ndarray
    truth: np.ndarray


def meteogram(series: Sequence[Series], valid: np.ndarray, place: str, initial: np.datetime64, label: str) -> Figure:
    """Quantiles of the members and the truth along valid time at one place, one panel a variable."""
    figure = Figure(figsize=(8.2, 0.9 + 1.75 * len(series)), dpi=DPI, layout="constrained")
    times = valid.astype("datetime64[ms]").astype(object)
    for axes, one in zip(figure.subplots(len(series), 1, sharex=True, squeeze=False).flat, series):
        if len(one.members) > 1:
            for low, high, opacity in QUANTILES:
                band = np.quantile(one.members, [low, high], axis=0)
                name = f"{low:.0%} to {high:.0%}"
                axes.fill_between(times, *band, color=COLOURS[0], alpha=opacity, lw=0, label=name)
        middle = np.median(one.members, axis=0)
        axes.plot(
            times,
            middle,
            color=COLOURS[0],
            lw=1.8,
            marker="s",
            ms=3,
            label="median" if len(one.members) > 1 else "forecast",
        )
        axes.plot(times, one.truth, color="k", marker="o", ms=3.5, lw=1, ls="--", label="truth")
        plain(axes)
        axes.set_ylabel(with_units(one.name, one.units), fontsize=8)
    figure.align_ylabels()
    locator = AutoDateLocator(minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("valid time (UTC)", fontsize=9)
    legend_below(figure, figure.axes[0])
    start = np.datetime_as_string(initial, unit="m").replace("T", " ")
    count = f"{len(series[0].members)} members" if len(series[0].members) > 1 else "one member"
    figure.suptitle(f"{label}: {place}, from {start} UTC, {count}", fontsize=10)
    return figure
