"""Draws docs/images/main_job.png, the README's figure, from the finished main job.

python docs/figures/make_main_job.py [results]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from relent.files import read_json

HERE = Path(__file__).resolve().parents[1]


def rank(axis: Axes, comparison: dict[str, Any]) -> None:
    """Mean, interval and single seeds of the primary metric, best method on top."""
    name = comparison["primary_metric"]
    metric = next(m for m in comparison["metrics"] if m["name"] == name)
    rows = [row for row in comparison["table"] if row["metric"] == name]
    rows.sort(key=lambda row: row["mean"], reverse=metric["direction"] == "lower")
    for height, row in enumerate(rows):
        best = height == len(rows) - 1
        colour = "#0072b2" if best else "0.45"
        if row["low"] is not None:
            axis.plot([row["low"], row["high"]], [height, height], color=colour, lw=2)
        axis.plot(row["mean"], height, "o", color=colour, ms=6)
        axis.plot(
            list(row["values"].values()), [height - 0.22] * len(row["values"]), ".", color=colour, ms=4, alpha=0.6
        )
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    arrow = "higher is better" if metric["direction"] == "higher" else "lower is better"
    axis.set_title(comparison["task"], fontsize=11, loc="left")
    axis.set_xlabel(f"{metric['title']} {'(' + metric['unit'] + ')' if metric['unit'] else ''} — {arrow}")
    axis.grid(axis="x", color="0.92")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def main() -> None:
    """Draw the figure."""
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    figure = Figure(figsize=(12, 11.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.8, 2.3))
    left, right = above.subplots(1, 2)
    rank(left, read_json(results / "images" / "comparison.json"))
    rank(right, read_json(results / "weather_isentropic" / "comparison.json"))
    maps = below.subplots()
    maps.imshow(imread(results / "weather_isentropic" / "figures" / "forecast_PV.png"), interpolation="lanczos")
    maps.axis("off")
    (HERE / "images").mkdir(exist_ok=True)
    path = HERE / "images" / "main_job.png"
    figure.savefig(path, dpi=110)
    Image.open(path).convert("RGB").quantize(200).save(path, optimize=True)


if __name__ == "__main__":
    main()
