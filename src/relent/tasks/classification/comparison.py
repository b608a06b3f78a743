"""Figures of a comparison of classifiers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from relent.compare.results import RunResult, by_label
from relent.figures import COLOURS, plain, styles
from relent.tasks.classification.subclasses import draw_shares, share_matrices

BINS = 15
FEWEST = 10
"""Items that a bin of the reliability figure must have, over all seeds."""


def draw(runs: list[RunResult], into: Path) -> dict[str, str]:
    """Draw scores of each seed, then whatever their evaluations hold.

    Reliability and accuracy by class, accuracy over k (very many classes), pseudo-subclasses.

    Args:
        runs: All runs of the comparison.
        into: Folder for the PNG files.

    Returns:
        File name → caption.
    """
    grouped = by_label(runs)
    captions = {"scores.png": _scores(grouped, into / "scores.png")}
    if all("reliability" in run.tables for run in runs):
        captions["reliability.png"] = _reliability(grouped, into / "reliability.png")
        captions["classes.png"] = _classes(grouped, into / "classes.png")
    if all("top_k" in run.tables for run in runs):
        captions["top_k.png"] = _top_k(grouped, into / "top_k.png")
    splitting = {label: found for label, found in grouped.items() if all("subclasses" in run.tables for run in found)}
    if splitting:
        captions["subclasses.png"] = _subclasses(splitting, into / "subclasses.png")
    return captions


def _scores(grouped: dict[str, list[RunResult]], path: Path) -> str:
    from matplotlib.figure import Figure

    panels = {"accuracy": "Accuracy", "nll": "NLL (nats)", "ece": "ECE", "teacher_kl": "KL to teacher (nats)"}
    measured = {metric for runs in grouped.values() for run in runs for metric in run.scores}
    panels = {metric: title for metric, title in panels.items() if metric in measured}
    figure = Figure(figsize=(11, 0.42 * len(grouped) + 1.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    labels = list(grouped)
    for axis, (metric, title) in zip(axes, panels.items()):
        for row, runs in enumerate(grouped.values()):
            values = [run.scores[metric] for run in runs if metric in run.scores]
            axis.plot(values, [row] * len(values), "o", color=COLOURS[row % len(COLOURS)], alpha=0.55, ms=5)
            if values:
                axis.plot(np.mean(values), row, "|", color="black", ms=16, mew=2)
        axis.set(title=title)
        axis.grid(axis="x", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)
    return "Scores on the test split: a dot is one seed, the bar their mean."


def _reliability(grouped: dict[str, list[RunResult]], path: Path) -> str:
    """One panel a method, so that many of them stay readable."""
    from matplotlib.figure import Figure

    columns = min(5, len(grouped))
    rows = math.ceil(len(grouped) / columns)
    figure = Figure(figsize=(2.3 * columns + 0.5, 2.3 * rows + 0.5), layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False))
    for axes, (label, runs) in zip(panels, grouped.items()):
        confidence, accuracy = reliability(runs)
        axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
        axes.fill_between(confidence, accuracy, confidence, color=COLOURS[0], alpha=0.15, lw=0)
        axes.plot(confidence, accuracy, "o-", ms=3.5, lw=1.3, color=COLOURS[0])
        axes.set_title(label, fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        plain(axes)
    for axes in panels[len(grouped) :]:
        axes.set_axis_off()
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    figure.savefig(path, dpi=120)
    return (
        "Reliability of the most probable class, all seeds together: below the diagonal a classifier is overconfident; "
        f"the shaded gaps, weighted by their items, are the ECE. Bins of fewer than {FEWEST} items are left out."
    )


def reliability(runs: list[RunResult]) -> tuple[np.ndarray, np.ndarray]:
    """Mean confidence and accuracy of the bins of all runs together, without those of fewer than `FEWEST` items."""
    rows = [row for run in runs for row in run.tables["reliability"]]
    edges = np.clip((np.array([row["confidence"] for row in rows]) * BINS).astype(int), 0, BINS - 1)
    counts = np.array([row["count"] for row in rows], dtype=float)
    total = np.bincount(edges, counts, BINS)
    kept = total >= FEWEST
    confidence, accuracy = (
        np.bincount(edges, counts * [row[key] for row in rows], BINS)[kept] / total[kept]
        for key in ("confidence", "accuracy")
    )
    return confidence, accuracy


def _classes(grouped: dict[str, list[RunResult]], path: Path) -> str:
    from matplotlib.figure import Figure

    names = [row["class"] for row in next(iter(grouped.values()))[0].tables["class_accuracy"]]
    values = np.array(
        [
            np.mean([[row["accuracy"] for row in run.tables["class_accuracy"]] for run in runs], axis=0)
            for runs in grouped.values()
        ]
    )
    figure = Figure(figsize=(2.4 + 0.42 * len(names), 1.4 + 0.26 * len(grouped)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="cividis", vmin=min(values.min(), 0.5), vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(grouped)), list(grouped), fontsize=8)
    middle = (min(values.min(), 0.5) + 1) / 2
    for (row, column), value in np.ndenumerate(values):
        shade = "black" if value > middle else "white"
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    figure.colorbar(image, ax=axes, label="accuracy (numbers: %)")
    figure.savefig(path, dpi=120)
    return "Accuracy by class, mean over seeds."


def _top_k(grouped: dict[str, list[RunResult]], path: Path) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, style in styles(list(grouped)).items():
        rows = [run.tables["top_k"] for run in grouped[label]]
        mean = np.mean([[row["accuracy"] for row in run] for run in rows], axis=0)
        axes.semilogx([row["k"] for row in rows[0]], mean, lw=1.3, ms=4, label=label, **style)
    axes.set(xlabel="k", ylabel="label among the first k")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plain(axes)
    figure.savefig(path, dpi=120)
    return "Share of test items whose label is among the first k, mean over seeds."


def _subclasses(grouped: dict[str, list[RunResult]], path: Path) -> str:
    from matplotlib.figure import Figure

    first = next(iter(grouped.values()))[0]
    matrices = share_matrices(first.tables["subclasses"])
    figure = Figure(figsize=(4.6 + 3.4 * len(matrices), max(3.4, 0.42 * len(grouped) + 1.6)), layout="constrained")
    information, *panels = figure.subplots(1, 1 + len(matrices))
    for end, style in (("floor", ":"), ("ceiling", "--")):
        information.axvline(first.settings[f"subclass_information_{end}"], color="0.4", ls=style, lw=1.2)
    for row, runs in enumerate(grouped.values()):
        values = [run.scores["subclass_information"] for run in runs]
        information.plot(values, [row] * len(values), "o", color=COLOURS[row % len(COLOURS)], alpha=0.55, ms=5)
        information.plot(np.mean(values), row, "|", color="black", ms=16, mew=2)
    information.set_yticks(range(len(grouped)), list(grouped))
    information.set(ylim=(len(grouped) - 0.5, -0.5), title="Information about what is shown", xlabel="nats")
    plain(information)
    for axes, (name, (shown, subclasses, matrix)) in zip(panels, matrices.items()):
        image = draw_shares(axes, f"{first.label}, seed {first.seed}: {name}", shown, subclasses, matrix)
    figure.colorbar(image, ax=panels, shrink=0.9, label="share of the images (numbers: %)")
    figure.savefig(path, dpi=120)
    return (
        "Pseudo-subclasses of test images. Left: what label and likeliest subclass tell about what an image shows; a "
        "dot is one seed, the bar their mean, the dotted line what the label tells alone, the dashed one the most that "
        "can be told. Right: how the images of each kind fall into the subclasses of their class, for one run; the "
        "numbers of the subclasses mean nothing."
    )
