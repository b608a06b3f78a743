"""Figures of a comparison of policies: reward against KL with the exact frontier, and diversity."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from relent.compare.results import RunResult, by_label
from relent.figures import plain, styles
from relent.tasks.preference_alignment.evaluation import draw_frontier


def draw(runs: list[RunResult], into: Path) -> dict[str, str]:
    """Draw the frontier and the diversity of all runs.

    Args:
        runs: All runs of the comparison.
        into: Folder for the PNG files.

    Returns:
        File name → caption.
    """
    from matplotlib.figure import Figure

    grouped = by_label(runs)
    look = styles(list(grouped))
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if "frontier" in runs[0].tables:
        draw_frontier(left, runs[0].tables["frontier"])
    for label, members in grouped.items():
        kl, reward, entropy = (
            np.array([run.scores[name] for run in members])
            for name in ("kl_to_reference", "expected_reward", "entropy")
        )
        left.plot(kl, reward, ls="", ms=5, alpha=0.7, label=label, **look[label])
        right.plot(entropy, reward, ls="", ms=5, alpha=0.7, label=label, **look[label])
    furthest = max(run.scores["kl_to_reference"] for run in runs)
    left.set(xlabel="KL to the reference (nats)", ylabel="expected reward", xlim=(0, 1.15 * furthest + 0.1))
    right.set(xlabel="entropy (nats)", ylabel="expected reward")
    plain(left)
    plain(right)
    left.legend(frameon=False, fontsize=8)
    figure.savefig(into / "frontier.png", dpi=120)
    return {
        "frontier.png": "Expected reward over KL to the reference and over entropy; a point is one seed. The line is "
        "the exact optimum over β: no policy lies above it."
    }
