"""Figures of a verification: scores by lead, rank histograms, reliability, spectra, the scorecard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from relent.figures import COLOURS, DPI, display_units, lead_axes, legend_below, plain

Rows = list[dict[str, Any]]
LOOK = Mapping[str, dict[str, Any]]
"""Label → colour, marker and line (`relent.figures.styles`)."""
COLUMNS = 4
"""Panels side by side."""
LEAST_POWER = 1e-6
"""Of the truth, relative to its largest, at which a ratio to it is still drawn."""


def names(rows: Rows) -> list[str]:
    """The fields of a table, in its order."""
    return list(dict.fromkeys(row["variable"] for row in rows))


def panels(count: int, size: tuple[float, float], extra: float = 0.0, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most four side by side."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + extra), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _line(rows: Rows, variable: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    chosen = sorted(
        (row["lead_hours"], row[column]) for row in rows if row["variable"] == variable and row.get(column) is not None
    )
    return np.array([hours for hours, _ in chosen]), np.array([value for _, value in chosen])


def _units(rows: Rows, variable: str) -> str:
    return str(next(row["units"] for row in rows if row["variable"] == variable))


def spread_skill(rows: Rows, members: int) -> Figure:
    """RMSE of the ensemble mean and spread of one forecast by lead, one panel a field.

    Args:
        rows: With `variable`, `units`, `lead_hours`, `rmse` and `spread`.
        members: M; the spread is drawn times √((M + 1)/M): the sampling error of the mean of M members is part of the
            RMSE, so that both agree if the ensemble is calibrated.
    """
    figure, grid = panels(len(names(rows)), (3.6, 2.9), 0.3)
    for axes, variable in zip(grid, names(rows)):
        hours, rmse = _line(rows, variable, "rmse")
        lead_axes(axes, hours, variable)
        axes.plot(hours, rmse, marker="o", ms=4, color=COLOURS[0], label="RMSE of the mean")
        if members > 1:
            spread = np.sqrt((members + 1) / members) * _line(rows, variable, "spread")[1]
            label = f"spread × √({members + 1}/{members})"
            axes.plot(hours, spread, marker="s", ms=4, ls="--", color=COLOURS[1], label=label)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(display_units(_units(rows, variable)), fontsize=9)
    legend_below(figure, grid[0])
    return figure


def by_lead(
    tables: Mapping[str, list[Rows]], column: str, title: str, look: LOOK, reference: float | None = None
) -> Figure:
    """One column of the scores by lead, one panel a field: the mean over seeds as a line, their range as a band.

    Args:
        tables: Label → the table of each seed.
        column: Column to draw.
        title: Label of the vertical axis; `{units}` is filled in.
        look: Colours and markers.
        reference: Value of a horizontal line, if any.
    """
    first = next(iter(tables.values()))[0]
    figure, grid = panels(len(names(first)), (3.7, 3.2), 0.4)
    for axes, variable in zip(grid, names(first)):
        for label, seeds in tables.items():
            hours = _line(seeds[0], variable, column)[0]
            values = np.stack([_line(rows, variable, column)[1] for rows in seeds])
            axes.plot(hours, values.mean(0), label=label, lw=1.6, ms=5, **look[label])
            if len(seeds) > 1:
                axes.fill_between(hours, values.min(0), values.max(0), color=look[label]["color"], alpha=0.2, lw=0)
        lead_axes(axes, hours, variable)
        if reference is not None:
            axes.axhline(reference, color="k", lw=0.8, ls=":")
        axes.set_ylim(bottom=0)
        units = display_units(_units(first, variable))
        axes.set_ylabel(title.format(units=units).replace(" ()", ""), fontsize=9)
    legend_below(figure, grid[0])
    return figure


def rank_histograms(tables: Mapping[str, list[Rows]], look: LOOK, hours: float) -> Figure:
    """Frequency of each rank over its expectation, one row a label, one column a field; bars are means over seeds.

    Args:
        tables: Label → the ranks of each seed.
        look: Colours.
        hours: Lead time.
    """
    first = next(iter(tables.values()))[0]
    variables = names(first)[: 2 * COLUMNS]
    size = (max(3.4, min(3.4, 16 / len(variables))) * len(variables), 0.6 + 1.9 * len(tables))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(tables), len(variables), squeeze=False, sharey="row")
    for row, (label, seeds) in zip(grid, tables.items()):
        for axes, variable in zip(row, variables):
            shares = np.stack([_ranks(rows, variable, hours) for rows in seeds])
            relative = shares * shares.shape[1]
            axes.bar(np.arange(shares.shape[1]), relative.mean(0), width=0.9, color=look[label]["color"])
            axes.axhline(1, color="k", lw=0.8, ls=":")
            axes.set_title(f"{label}: {variable}, {hours:g} h", fontsize=9)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("frequency /\nexpected", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("members below the truth", fontsize=8)
    return figure


def _ranks(rows: Rows, variable: str, hours: float) -> np.ndarray:
    chosen = sorted((r["rank"], r["frequency"]) for r in rows if r["variable"] == variable and r["lead_hours"] == hours)
    return np.array([frequency for _, frequency in chosen])


def reliability(rows: Rows, hours: float) -> Figure:
    """Observed frequency against forecast probability of each event at one lead; size: how often it is forecast."""
    rows = [row for row in rows if row["lead_hours"] == hours]
    figure, grid = panels(len(names(rows)), (3.2, 3.1), 0.5, sharex=True, sharey=True)
    events = list(dict.fromkeys(row["event"] for row in rows))
    for axes, variable in zip(grid, names(rows)):
        axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
        for number, event in enumerate(events):
            chosen = [row for row in rows if row["variable"] == variable and row["event"] == event]
            x, y, share = (np.array([row[key] for row in chosen]) for key in ("probability", "frequency", "share"))
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(x, y, color=colour, lw=1.2, label=event.replace("_p", " percentile "))
            axes.scatter(x, y, s=4 + 60 * np.sqrt(share), color=colour, alpha=0.7, lw=0)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set_title(f"{variable}, {hours:g} h", fontsize=10)
        axes.set_xlabel("forecast probability", fontsize=8)
        plain(axes)
    grid[0].set_ylabel("observed frequency", fontsize=8)
    legend_below(figure, grid[0])
    return figure


def spectra(rows: Rows, unit: str, leads: Sequence[float]) -> Figure:
    """Power of members (lines by lead), of the ensemble mean at the last lead and of the truth, one panel a field.

    A member that loses power at high wavenumbers is smoother than the truth; a mean does so rightly, as its members
    part.
    """
    figure, grid = panels(len(names(rows)), (3.7, 3.2), 0.4)
    for axes, variable in zip(grid, names(rows)):
        own = [row for row in rows if row["variable"] == variable and row["wavenumber"] > 0]
        for number, hours in enumerate(leads):
            k, member = _spectrum(own, hours, "member")
            axes.plot(k, member, color=COLOURS[number], lw=1.4, label=f"members, {hours:g} h")
        k, mean = _spectrum(own, leads[-1], "mean")
        axes.plot(k, mean, color=COLOURS[len(leads) - 1], lw=1.2, ls=":", label=f"ensemble mean, {leads[-1]:g} h")
        k, truth = _spectrum(own, leads[-1], "truth")
        axes.plot(k, truth, color="k", lw=1.2, ls="--", label="truth")
        axes.set(xscale="log", yscale="log")
        axes.set_title(variable, fontsize=10)
        axes.set_xlabel(unit, fontsize=9)
        _log_ticks(axes.xaxis)
        plain(axes)
    grid[0].set_ylabel("power (squared units)", fontsize=9)
    legend_below(figure, grid[0])
    return figure


def _log_ticks(axis: Axis) -> None:
    """Plain numbers at 1, 2, 5 times powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _spectrum(rows: Rows, hours: float, kind: str) -> tuple[np.ndarray, np.ndarray]:
    chosen = sorted((row["wavenumber"], row[kind]) for row in rows if row["lead_hours"] == hours)
    return np.array([k for k, _ in chosen]), np.array([power for _, power in chosen])


def power_ratio(tables: Mapping[str, list[Rows]], look: LOOK, hours: float, unit: str) -> Figure:
    """Power of members over that of the truth at one lead, one panel a field, one line a label (mean over seeds).

    Wavenumbers at which the truth has next to no power are left out.
    """
    first = next(iter(tables.values()))[0]
    figure, grid = panels(len(names(first)), (3.7, 3.2), 0.4)
    for axes, variable in zip(grid, names(first)):
        for label, seeds in tables.items():
            own = [[row for row in rows if row["variable"] == variable and row["wavenumber"] > 0] for rows in seeds]
            k, truth = _spectrum(own[0], hours, "truth")
            ratio = np.mean([_spectrum(rows, hours, "member")[1] for rows in own], axis=0) / truth
            known = truth > LEAST_POWER * truth.max()
            line = {key: look[label][key] for key in ("color", "ls")}
            axes.plot(k[known], ratio[known], lw=1.6, label=label, **line)
        axes.axhline(1, color="k", lw=0.8, ls=":")
        axes.set(xscale="log", yscale="log")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 1e-3), min(high, 1e2))
        axes.set_title(f"{variable}, {hours:g} h", fontsize=10)
        axes.set_xlabel(unit, fontsize=9)
        _log_ticks(axes.xaxis)
        _log_ticks(axes.yaxis)
        plain(axes)
    grid[0].set_ylabel("power of members / truth", fontsize=9)
    legend_below(figure, grid[0])
    return figure


def scorecard(rows: Rows, summary: Mapping[str, Any]) -> Figure:
    """Relative difference of the score of A to B for each field and lead; a dot marks what is significant.

    Blue: A is better (its score is lower); red: B is. Colours end at the 95th percentile of the size.
    """
    fields, hours = names(rows), sorted({row["lead_hours"] for row in rows})
    values, marks = np.full((2, len(fields), len(hours)), np.nan)
    for row in rows:
        place = fields.index(row["variable"]), hours.index(row["lead_hours"])
        values[place] = np.nan if row["relative"] is None else 100 * row["relative"]
        marks[place] = row["verdict"] != "no difference"
    limit = float(np.nanpercentile(np.abs(values), 95)) or 1.0
    width = 2.2 + max(4.5, 0.55 * len(hours))
    figure = Figure(figsize=(min(width, 16), 2.0 + 0.34 * len(fields)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    image = axes.pcolormesh(values, cmap="RdBu_r", vmin=-limit, vmax=limit, edgecolors="white", linewidth=1.5)
    y, x = np.nonzero(marks == 1)
    axes.plot(x + 0.5, y + (0.25 if len(hours) <= 14 else 0.5), ls="", marker="o", ms=3.6, color="k", mec="w", mew=0.5)
    if len(hours) <= 14:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.7 * limit else "black"
                axes.text(
                    column + 0.5,
                    row + 0.62,
                    f"{value:+.1f}".replace("-", "−"),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=colour,
                )
    days = max(hours) > 72
    labelled = [i for i, h in enumerate(hours) if not days or h % 24 == 0] or list(range(len(hours)))
    labelled = labelled[:: max(1, -(-len(labelled) // 15))]
    shown = [f"{hours[i] / 24 if days else hours[i]:g}" for i in labelled]
    axes.set_xticks(np.array(labelled) + 0.5, shown, fontsize=8)
    axes.set_yticks(np.arange(len(fields)) + 0.5, fields, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"lead time ({'days' if days else 'h'})", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, extend="both", pad=0.02)
    bar.set_label("difference (%), blue: A lower", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    low, high = summary["share_low"], summary["share_high"]
    interval = "" if low is None else f" [{low:.0%}, {high:.0%}]"
    share = f"A lower in {summary['share_better']:.1%}{interval} of {summary['pairs']} pairs"
    found = f"{summary['significantly_better']} significantly better, {summary['significantly_worse']} worse"
    title = f"{summary['score']}, {summary['region']}: A = {summary['a']}, B = {summary['b']}"
    figure.suptitle(f"{title}\n{share}; {found}\n(dots: {summary['multiplicity']})", fontsize=9)
    return figure


def distance(
    tables: Mapping[str, Mapping[float, list[float]]], look: LOOK, label: str, limit: float = math.inf
) -> Figure:
    """What is known relative to the perfect ensemble by lead, whose own value is 1: mean over seeds and their range.

    Args:
        tables: Label → lead hours → number of each seed.
        look: Colours and markers.
        label: Of the vertical axis.
        limit: Where the axis ends at the latest, so that what is near 1 can be told apart.
    """
    figure = Figure(figsize=(5.4, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for name, ratios in tables.items():
        hours = np.array(sorted(ratios))
        values = [np.array(ratios[h]) for h in hours]
        axes.plot(hours, [v.mean() for v in values], label=name, lw=1.6, ms=5, **look[name])
        low, high = [v.min() for v in values], [v.max() for v in values]
        axes.fill_between(hours, low, high, color=look[name]["color"], alpha=0.2, lw=0)
    lead_axes(axes, hours, "")
    axes.axhline(1, color="k", lw=0.8, ls=":")
    axes.set_ylabel(label, fontsize=9)
    lowest = min(min(seeds) for ratios in tables.values() for seeds in ratios.values())
    axes.set_ylim(min(0.95, lowest - 0.03), min(limit, axes.get_ylim()[1]))
    legend_below(figure, axes)
    return figure
