"""Writes the page of a group of comparisons: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from relent.compare.advice import cost_bands
from relent.compare.critical_plot import critical_plot
from relent.compare.page import environment, style
from relent.files import whole


def write_overview_page(overview: Mapping[str, Any], out: Path | str) -> Path:
    """Render the page.

    Args:
        overview: Content of `overview.json`.
        out: The HTML file; it holds everything and refers to nothing outside.
    """
    primary = {(row["label"], row["task"]): row for row in overview["table"] if row["primary"]}
    standings = {(e["label"], goal["goal"]): e for goal in overview["goals"] for e in goal["entries"]}
    html = (
        environment()
        .get_template("overview.html.j2")
        .render(
            overview=overview,
            cells=primary,
            standings=standings,
            costs=cost_bands(overview),
            uncounted=[m for m in overview["methods"] if m["earlier_stages"]],
            ranks=Markup(critical_plot(overview["ranks"])),
            style=style("page.css", "overview.css"),
        )
    )
    with whole(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return Path(out)
