"""How far a policy is from a target distribution of its run's own: exactly, and by step as training estimated it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl, jensen_shannon, reverse_kl, total_variation
from relent.figures import COLOURS, plain
from relent.tasks.stored import open_extras, read_array

Rows = list[dict[str, Any]]
ESTIMATES = {
    "forward_kl": "KL(target ‖ policy), nats",
    "total_variation": "total variation",
    "jensen_shannon": "Jensen–Shannon, nats",
}
PREFIX = "estimate/"


def evaluate_target(
    folder: Path, checksum: str, table: Tensor, reference: Tensor
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores and settings of a run that wrote its target; both empty for any other.

    `target_…` are divergences between target p and policy π, means over the test prompts; KL(π ‖ p) is left out where p
    rules something out. `constraint_rate` is the probability of completions that meet the constraint, if there is one.

    Args:
        folder: The run.
        checksum: Of its data set.
        table, reference: log π(y|x) and log π_ref(y|x), (P, N) float64.

    Raises:
        DataError: The target is incomplete, or of another data set.
    """
    place = folder / "target.zarr"
    group = open_extras(place, checksum)
    if group is None:
        return {}, {}
    target = torch.from_numpy(read_array(group, "probs", place)).log()
    scores = {
        "target_forward_kl": forward_kl(target, table),
        "target_reverse_kl": reverse_kl(target, table),
        "target_total_variation": total_variation(target, table),
        "target_jensen_shannon": jensen_shannon(target, table),
    }
    found = {name: float(values.mean()) for name, values in scores.items() if bool(values.isfinite().all())}
    if "satisfied" not in group:
        return found, {}
    satisfied = torch.from_numpy(read_array(group, "satisfied", place)).double()
    rates = {name: float((v.exp() @ satisfied).mean()) for name, v in (("target", target), ("reference", reference))}
    settings = {"constraint": group.attrs["word"]} | {f"{name}_constraint_rate": rate for name, rate in rates.items()}
    return found | {"constraint_rate": float((table.exp() @ satisfied).mean())}, settings


def read_estimates(folder: Path) -> Rows:
    """The divergences that a training estimated, one row a logged step; empty for a method that estimates none."""
    steps: dict[int, dict[str, float]] = {}
    with (folder / "metrics.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            name = row["metric"].removeprefix(PREFIX)
            if row["metric"].startswith(PREFIX) and name in ESTIMATES:
                steps.setdefault(int(row["step"]), {})[name] = float(row["value"])
    return [{"step": step} | values for step, values in sorted(steps.items())]


def draw_estimates(rows: Rows, path: Path) -> None:
    """Figure of a run: its estimated divergences over the steps, the first ones spread out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    steps = [row["step"] + 1 for row in rows]
    for axes, colour, (name, title) in zip(figure.subplots(1, len(ESTIMATES)), COLOURS, ESTIMATES.items()):
        axes.plot(steps, [row.get(name, float("nan")) for row in rows], color=colour, lw=1.2, marker="o", ms=2)
        axes.set(xscale="log", xlabel="step", title=title)
        axes.title.set_fontsize(10)
        plain(axes)
    figure.savefig(path, dpi=110)
