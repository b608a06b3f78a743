"""Figures of ensemble forecasts: maps, lines by lead time, rank histograms.

Colours can be told apart by colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from relent.tasks.ensemble_forecast.forecasts import Forecasts

Rows = list[dict[str, Any]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's palette."""
MARKERS = "osD^vPX*"
UNITS = {"1e-6 K m2 kg-1 s-1": "PVU", "m s-1": "m s$^{-1}$"}
DPI = 110


def display_units(units: str) -> str:
    """Units as they are written in a figure."""
    return UNITS.get(units, units)


def styles(labels: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and marker of each method, the same in every figure of a comparison."""
    return {
        label: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, label in enumerate(labels)
    }


# ---------------------------------------------------------------------------------------------------------- maps


def _latitude(value: float, _: Any = None) -> str:
    return "0°" if value == 0 else f"{abs(value):.0f}°{'N' if value > 0 else 'S'}"


def _longitude(value: float, _: Any = None) -> str:
    return f"{abs(value):.0f}°" if abs(value) in (0, 180) else f"{abs(value):.0f}°{'E' if value > 0 else 'W'}"


def map_axes(axes: Axes, title: str) -> None:
    """Degrees on both axes of a map."""
    axes.set_title(title, fontsize=9, pad=3)
    axes.xaxis.set_major_locator(MultipleLocator(60))
    axes.yaxis.set_major_locator(MultipleLocator(30))
    axes.xaxis.set_major_formatter(FuncFormatter(_longitude))
    axes.yaxis.set_major_formatter(FuncFormatter(_latitude))
    axes.tick_params(labelsize=7, length=2)
    axes.label_outer()


class MapScale:
    """Colours of one variable: symmetric about zero, up to the 99.5th percentile of the truth."""

    def __init__(self, forecasts: Forecasts, variable: str, truth: np.ndarray):
        fields = forecasts.fields
        self.variable, self.latitude, self.longitude = variable, fields.latitude, fields.longitude
        self.limit = float(np.percentile(np.abs(truth), 99.5))
        self.units = display_units(fields.attributes[variable]["units"])

    def draw(self, axes: Axes, values: np.ndarray, title: str) -> Any:
        """Draw a field; of potential vorticity also ±2 PVU, the dynamical tropopause."""
        image = axes.pcolormesh(
            self.longitude, self.latitude, values, cmap="RdBu_r", vmin=-self.limit, vmax=self.limit, rasterized=True
        )
        if self.variable == "PV":
            axes.contour(self.longitude, self.latitude, values, levels=[-2, 2], colors="k", linewidths=0.5)
        map_axes(axes, title)
        return image

    def draw_size(self, axes: Axes, values: np.ndarray, title: str, top: float) -> Any:
        """Draw a field that is not negative (spread, absolute error), from zero to `top`."""
        image = axes.pcolormesh(
            self.longitude, self.latitude, values, cmap="viridis", vmin=0, vmax=top, rasterized=True
        )
        map_axes(axes, title)
        return image


def _colour_bar(figure: Figure, image: Any, axes: Sequence[Axes], label: str) -> None:
    """A horizontal bar under the axes, so that all maps of a figure are equally wide."""
    extend = "both" if image.norm.vmin else "max"
    bar = figure.colorbar(image, ax=list(axes), location="bottom", pad=0.02, shrink=0.8, aspect=40, extend=extend)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def stamp_map(forecasts: Forecasts, variable: str, initial: int, lead: int, label: str) -> Figure:
    """Truth, ensemble mean and its error; under them members and the spread."""
    members, truth = (value.numpy() for value in forecasts.pair(variable, initial, lead))
    mean = "ensemble mean" if len(members) > 1 else "forecast"
    panels = [("truth", truth), (mean, members.mean(0))]
    if len(members) > 1:
        panels += [(f"member {m + 1}", members[m]) for m in range(min(5, len(members)))]
    n_rows = min(3, len(members))
    figure = Figure(figsize=(11.5, 0.9 + 1.95 * n_rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(n_rows, 3, sharex=True, sharey=True, squeeze=False)
    places = ([*grid[:, :2].flat, *grid[2:, 2]], list(grid[:2, 2]))
    bars = (list(grid[-1, :2]), list(grid[-1, 2:]))
    _draw_panels(figure, MapScale(forecasts, variable, truth), places, (panels, _sizes(members, truth, mean)), bars)
    figure.suptitle(f"{label}: {_long_name(forecasts, variable)}, {forecasts.window(initial, lead)}", fontsize=10)
    return figure


def truth_and_forecasts(runs: Mapping[str, Forecasts], variable: str, initial: int, lead: int) -> Figure:
    """Truth, two members of the first method, every method's mean; error of the mean and spread of the first method."""
    first_label, first = next(iter(runs.items()))
    members, truth = (value.numpy() for value in first.pair(variable, initial, lead))
    panels = [("truth", truth)]
    panels += [(f"{first_label}: member {m + 1}", members[m]) for m in range(min(2, len(members)))]
    for label, run in runs.items():
        ensemble = run.pair(variable, initial, lead)[0].numpy()
        panels.append((label if len(ensemble) == 1 else f"{label}: mean of {len(ensemble)}", ensemble.mean(0)))
    sizes = [(f"{first_label}: {title}", values) for title, values in _sizes(members, truth, "mean")]
    n_rows = -(-(len(panels) + len(sizes)) // 3)
    figure = Figure(figsize=(12, 0.9 + 2.0 * n_rows), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(n_rows, 3, sharex=True, sharey=True, squeeze=False).flat)
    places = (axes[: -len(sizes)], axes[-len(sizes) :])
    bars = (axes[-3 : -len(sizes)], axes[-len(sizes) :])
    _draw_panels(figure, MapScale(first, variable, truth), places, (panels, sizes), bars)
    figure.suptitle(f"{_long_name(first, variable)}, {first.window(initial, lead)}", fontsize=10)
    return figure


Panels = list[tuple[str, np.ndarray]]


def _long_name(forecasts: Forecasts, variable: str) -> str:
    return forecasts.fields.attributes[variable]["long_name"]


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
    top = float(np.percentile(panels[1][0][1], 99))
    for axes, (title, values) in zip(places[0], panels[0]):
        image = scale.draw(axes, values, title)
    for axes, (title, values) in zip(places[1], panels[1]):
        size = scale.draw_size(axes, values, title, top)
    unused = [axes for place, panel in zip(places, panels) for axes in place[len(panel) :]]
    for axes in unused:
        axes.remove()
    for drawn, place, under, label in zip(
        (size, image), places[::-1], bars[::-1], ("error and spread", scale.variable)
    ):
        left = [axes for axes in under if axes not in unused] or [axes for axes in place if axes not in unused]
        _colour_bar(figure, drawn, left, f"{label} ({scale.units})")


# ---------------------------------------------------------------------------------------------------------- lines


def _variables(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["variable"] for row in rows))


def _line(rows: Rows, variable: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    chosen = sorted((row["lead_hours"], row[column]) for row in rows if row["variable"] == variable)
    return np.array([hours for hours, _ in chosen]), np.array([value for _, value in chosen])


def _lead_axes(axes: Axes, hours: np.ndarray, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xticks(hours)
    axes.set_xlabel("lead time (h)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def spread_skill(rows: Rows, members: int) -> Figure:
    """RMSE of the ensemble mean and spread of one run by lead, one panel a variable."""
    variables = _variables(rows)
    figure = Figure(figsize=(3.6 * len(variables), 3.1), dpi=DPI, layout="constrained")
    for axes, variable in zip(figure.subplots(1, len(variables), squeeze=False).flat, variables):
        hours, rmse = _line(rows, variable, "rmse")
        _lead_axes(axes, hours, variable)
        axes.plot(hours, rmse, marker="o", color=COLOURS[0], label="RMSE of the mean")
        if members > 1:
            # The sampling error of the mean of M members is part of the RMSE; with the factor both agree if calibrated.
            spread = np.sqrt((members + 1) / members) * _line(rows, variable, "spread")[1]
            axes.plot(
                hours, spread, marker="s", ls="--", color=COLOURS[1], label=f"spread × √({members + 1}/{members})"
            )
        axes.set_ylim(bottom=0)
        units = next(row["units"] for row in rows if row["variable"] == variable)
        axes.set_ylabel(display_units(units), fontsize=9)
    figure.axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def by_lead(
    tables: Mapping[str, list[Rows]],
    column: str,
    title: str,
    look: Mapping[str, dict[str, str]],
    reference: float | None = None,
) -> Figure:
    """One column of the scores by lead, one panel a variable: the mean over seeds as a line, their range as a band.

    Args:
        tables: Method → the `by_lead` table of each seed.
        column: Column to draw.
        title: Label of the vertical axis; `{units}` is filled in.
        look: Method → colour and marker (`styles`).
        reference: Value of a horizontal line, if any.
    """
    first = next(iter(tables.values()))[0]
    variables = _variables(first)
    figure = Figure(figsize=(3.7 * len(variables), 3.7), dpi=DPI, layout="constrained")
    for axes, variable in zip(figure.subplots(1, len(variables), squeeze=False).flat, variables):
        for label, seeds in tables.items():
            hours = _line(seeds[0], variable, column)[0]
            values = np.stack([_line(rows, variable, column)[1] for rows in seeds])
            axes.plot(hours, values.mean(0), label=label, lw=1.6, ms=5, **look[label])
            if len(seeds) > 1:
                axes.fill_between(hours, values.min(0), values.max(0), color=look[label]["color"], alpha=0.2, lw=0)
        _lead_axes(axes, hours, variable)
        if reference is not None:
            axes.axhline(reference, color="k", lw=0.8, ls=":")
        axes.set_ylim(bottom=0)
        units = next(row["units"] for row in first if row["variable"] == variable)
        axes.set_ylabel(title.format(units=display_units(units)), fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=9, frameon=False)
    return figure


def rank_histograms(tables: Mapping[str, list[Rows]], look: Mapping[str, dict[str, str]], hours: int) -> Figure:
    """Frequency of each rank over its expectation, one row a method, one column a variable; bars are means over seeds.

    Args:
        tables: Method → the `ranks` table of each seed.
        look: Method → colour and marker (`styles`).
        hours: Lead time.
    """
    first = next(iter(tables.values()))[0]
    variables = _variables(first)
    size = (3.4 * len(variables), 0.6 + 1.9 * len(tables))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(tables), len(variables), squeeze=False, sharey="row")
    for row, (label, seeds) in zip(grid, tables.items()):
        for axes, variable in zip(row, variables):
            shares = np.stack([_ranks(rows, variable, hours) for rows in seeds])
            relative = shares * shares.shape[1]
            axes.bar(np.arange(shares.shape[1]), relative.mean(0), width=0.9, color=look[label]["color"])
            axes.axhline(1, color="k", lw=0.8, ls=":")
            axes.set_title(f"{label}: {variable}, {hours} h", fontsize=9)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("frequency /\nexpected", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("members below the truth", fontsize=8)
    return figure


def _ranks(rows: Rows, variable: str, hours: int) -> np.ndarray:
    chosen = sorted((r["rank"], r["frequency"]) for r in rows if r["variable"] == variable and r["lead_hours"] == hours)
    return np.array([frequency for _, frequency in chosen])
