"""Writes the comparison page: one self-contained HTML file with inline style, plots and figures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from relent.compare.plots import difference_plot, score_plot
from relent.compare.words import finer, number, open_in_words, p_value, seeds_in_words
from relent.errors import DataError
from relent.files import read_json, whole

_TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    comparison: Mapping[str, Any], claims: Sequence[Mapping[str, Any]], figures: Path, out: Path | str
) -> Path:
    """Render the page.

    Args:
        comparison: Content of `comparison.json`.
        claims: Content of `claims.json`.
        figures: Folder of PNG figures with `captions.json` (file name → caption).
        out: The HTML file; it holds everything and refers to nothing outside.

    Raises:
        DataError: A figure or the captions are missing.
    """
    html = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            comparison=comparison,
            metrics={metric["name"]: metric for metric in comparison["metrics"]},
            methods={method["label"]: method for method in comparison["methods"]},
            cells={(row["label"], row["metric"]): row for row in comparison["table"]},
            claims=claims,
            figures=_figures(figures),
            score_plot=Markup(score_plot(comparison)),
            differences=_differences(comparison),
            open=open_in_words(comparison),
            style=style("page.css"),
        )
    )
    with whole(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return Path(out)


def environment() -> Environment:
    """Where the templates are, and how they print numbers; whatever they are given is escaped."""
    found = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    found.filters |= {"number": number, "finer": finer, "p_value": p_value, "count": count, "seconds": seconds}
    found.filters |= {"in_seeds": seeds_in_words, "seeds_needed": seeds_needed}
    found.trim_blocks = found.lstrip_blocks = True
    return found


def style(*names: str) -> Markup:
    """Style sheets to stand inside a page."""
    return Markup("\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in names))


def _differences(comparison: Mapping[str, Any]) -> list[Markup]:
    """A forest plot for each directed metric, the primary one first."""
    directed = [metric for metric in comparison["metrics"] if metric["direction"]]
    directed.sort(key=lambda metric: metric["name"] != comparison["primary_metric"])
    return [Markup(plot) for metric in directed if (plot := difference_plot(comparison, metric))]


def _figures(folder: Path) -> list[dict[str, str]]:
    found = []
    for name, caption in read_json(folder / "captions.json").items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{folder / name}: cannot be read ({error.strerror}); draw the figures again") from None
        found.append({"caption": caption, "data": base64.b64encode(content).decode("ascii")})
    return found


def seeds_needed(value: int | None) -> str:
    """Seeds that would decide, in a table."""
    return "–" if value is None else seeds_in_words(value).removeprefix("about ").replace(" seeds", "")


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return "–" if value is None else f"{round(value):,}".replace(",", "\u202f")


def seconds(value: float | None) -> str:
    """A duration: seconds below two minutes, else minutes, else hours."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
