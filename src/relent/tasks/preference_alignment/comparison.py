"""Figures of a comparison of policies: reward against KL with the exact frontier, and against entropy.

The variants of a method that differ in its strength alone (β of most, λ, or n of best-of-n) are one line, in the order
of the strength; other variants are hollow marks of the method's look.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relent.compare.results import RunResult, by_label
from relent.figures import STEPS, joined, plain, styles
from relent.tasks.preference_alignment.advice import seeks_reward, strength
from relent.tasks.preference_alignment.evaluation import draw_frontier
from relent.tasks.preference_alignment.image_samples import draw_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAINS = (
    ("expected_reward", "expected reward"),
    ("wanted_rate", "share of samples that are wanted"),
    ("preference_accuracy", "share of preferences agreed with"),
)
"""Scores that a policy gains by leaving the reference, the first that there is, and their words."""
PANELS, SAMPLES = 6, 4
"""Models side by side, at most, and samples of a caption, in the figure of samples."""
Curve = list[list[RunResult]]
"""Runs by variant: each entry is the seeds of one variant, entries in the order of their strength."""


def draw(runs: list[RunResult], into: Path) -> dict[str, str]:
    """Draw the frontier and the diversity of all runs, and what they sample where that can be seen.

    Args:
        runs: All runs of the comparison.
        into: Folder for the PNG files.

    Returns:
        File name → caption.
    """
    # A reward model that cannot be judged as a policy has no KL.
    runs = [run for run in runs if "kl_to_reference" in run.scores and seeks_reward(run)]
    if not runs:
        return {}
    figure, words = frontier_figure(runs)
    figure.savefig(into / "frontier.png", dpi=120)
    known = "frontier" in runs[0].tables
    line = " The grey line is the exact optimum over β: no policy lies above its left panel's." if known else ""
    captions = draw_pictures(runs, into)
    return captions | {
        "frontier.png": f"{words.capitalize()} over KL to the reference (the axis grows as its root) and over entropy. "
        "A line joins the variants of a method that differ in strength alone (β, λ, or n); hollow marks are its other "
        f"variants; a mark is the mean over seeds, a dot one seed. Runs towards a constraint are left out.{line}"
    }


def draw_pictures(runs: list[RunResult], into: Path) -> dict[str, str]:
    """Draw samples of the reference and of one run of each label side by side; returns file name → caption."""
    from matplotlib.figure import Figure

    shown = {label: members[0] for label, members in by_label(runs).items() if "pictures" in members[0].tables}
    if not shown:
        return {}
    first = next(iter(shown.values()))
    panels = {"reference": _pictures(first, "reference")}
    panels |= {label: _pictures(run, "policy") for label, run in shown.items()}
    rows = -(-len(panels) // PANELS)
    columns = -(-len(panels) // rows)
    figure = Figure(figsize=(2.4 * columns, 6.1 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for number, (axes, (title, found)) in enumerate(zip(places, panels.items())):
        draw_grid(axes, found, title, captions=number % columns == 0)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(into / "samples.png", dpi=110)
    return {
        "samples.png": f"Samples of the reference and of each method at seed {first.seed}, the first of each caption."
    }


def _pictures(run: RunResult, of: str) -> list[dict[str, Any]]:
    """The first samples of each caption of one model."""
    return [row for row in run.tables["pictures"] if row["of"] == of and row["sample"] < SAMPLES]


def frontier_figure(runs: list[RunResult]) -> tuple[Figure, str]:
    """The figure, and the words for what is gained.

    Args:
        runs: At least one; all with `kl_to_reference`.
    """
    from matplotlib.figure import Figure

    gained, words = next(gain for gain in GAINS if gain[0] in runs[0].scores)
    figure = Figure(figsize=(13.5, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    if "frontier" in runs[0].tables:
        draw_frontier(left, runs[0].tables["frontier"])
        draw_frontier(right, runs[0].tables["frontier"], over="entropy")
    grouped = curves(runs)
    for method, look in styles(list(grouped)).items():
        look |= {"ms": 5, "lw": 1.1}
        for axes, over in ((left, "kl_to_reference"), (right, "entropy")):
            for place, curve in enumerate(grouped[method]):
                _draw_curve(axes, curve, over, gained, look | ({"mfc": "white"} if place else {}))
        left.plot([], [], label=method, **look)
    _frame(left, "KL to the reference (nats)", words, runs, "kl_to_reference", gained)
    left.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    left.set_xlim(left=0)
    _frame(right, "entropy (nats)", words, runs, "entropy", gained)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return figure, words


def curves(runs: list[RunResult]) -> dict[str, list[Curve]]:
    """Variants of each method that differ in nothing but its strength, ordered by it; longest curve first."""
    found: dict[str, dict[str, Curve]] = {}
    for members in by_label(runs).values():
        first = members[0]
        rest = {k: v for k, v in first.config["hyperparameters"].items() if k != strength(first)[0]}
        alike = repr((sorted(rest.items()), sorted(first.config.get("inputs", {}))))
        found.setdefault(first.method, {}).setdefault(alike, []).append(members)
    ordered = {
        method: [sorted(curve, key=lambda members: strength(members[0])[1]) for curve in groups.values()]
        for method, groups in found.items()
    }
    return {method: sorted(groups, key=len, reverse=True) for method, groups in ordered.items()}


def _draw_curve(axes: Axes, curve: Curve, over: str, gained: str, look: dict[str, Any]) -> None:
    """Means over seeds, joined where there is more than one variant, and the seeds themselves."""
    points = [np.array([[run.scores[over], run.scores[gained]] for run in members]) for members in curve]
    means = np.array([values.mean(0) for values in points])
    axes.plot(*joined(means).T, alpha=0.9, markevery=STEPS, **look)
    for values in points:
        if len(values) > 1:
            axes.plot(*values.T, ls="", marker=".", ms=3, alpha=0.5, color=look["color"])


def _frame(axes: Axes, title: str, words: str, runs: list[RunResult], over: str, gained: str) -> None:
    """Axes that end where the runs do, whatever the optimum's line reaches."""
    for name, limits in ((over, axes.set_xlim), (gained, axes.set_ylim)):
        values = [run.scores[name] for run in runs]
        margin = 0.06 * (max(values) - min(values)) or 0.1
        limits(min(values) - margin, max(values) + margin)
    axes.set(xlabel=title, ylabel=words)
    plain(axes)
