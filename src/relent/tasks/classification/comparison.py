"""Figures of a comparison of classifiers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from relent.compare.results import RunResult, by_label
from relent.figures import COLOURS

FEWEST = 10
"""Items that a bin of the reliability figure must have, over all seeds."""


def draw(runs: list[RunResult], into: Path) -> dict[str, str]:
    """Draw scores of each seed, reliability and accuracy by class.

    Args:
        runs: All runs of the comparison.
        into: Folder for the PNG files.

    Returns:
        File name → caption.
    """
    grouped = by_label(runs)
    captions = {
        "scores.png": _scores(grouped, into / "scores.png"),
        "reliability.png": _reliability(grouped, into / "reliability.png"),
        "classes.png": _classes(grouped, into / "classes.png"),
    }
    return captions


def _scores(grouped: dict[str, list[RunResult]], path: Path) -> str:
    from matplotlib.figure import Figure

    panels = {"accuracy": "Accuracy", "nll": "NLL (nats)", "ece": "ECE", "teacher_kl": "KL to teacher (nats)"}
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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    for number, (label, runs) in enumerate(grouped.items()):
        rows = [row for run in runs for row in run.tables.get("reliability", [])]
        edges = np.clip((np.array([row["confidence"] for row in rows]) * 15).astype(int), 0, 14)
        counts = np.array([row["count"] for row in rows], dtype=float)
        confidence = np.bincount(edges, counts * [row["confidence"] for row in rows], 15)
        accuracy = np.bincount(edges, counts * [row["accuracy"] for row in rows], 15)
        total = np.bincount(edges, counts, 15)
        kept = total >= FEWEST  # a bin of a few items says nothing
        axis.plot(
            confidence[kept] / total[kept],
            accuracy[kept] / total[kept],
            "o-",
            ms=3.5,
            lw=1.3,
            color=COLOURS[number % len(COLOURS)],
            label=label,
        )
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return (
        "Reliability of the most probable class, all seeds together: below the diagonal a classifier is overconfident. "
        f"Bins of fewer than {FEWEST} images are left out."
    )


def _classes(grouped: dict[str, list[RunResult]], path: Path) -> str:
    from matplotlib.figure import Figure

    names = [row["class"] for row in next(iter(grouped.values()))[0].tables["class_accuracy"]]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(grouped)
    for number, (label, runs) in enumerate(grouped.items()):
        values = np.mean([[row["accuracy"] for row in run.tables["class_accuracy"]] for run in runs], axis=0)
        axis.bar(
            np.arange(len(names)) + (number - (len(grouped) - 1) / 2) * width,
            values,
            width,
            color=COLOURS[number % len(COLOURS)],
            label=label,
        )
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axis.set(ylabel="accuracy", ylim=(0, 1))
    axis.legend(frameon=False, fontsize=8, ncols=len(grouped), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return "Accuracy by class, mean over seeds."
