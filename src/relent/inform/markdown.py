"""Small pieces of Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def cell(text: str) -> str:
    """Text of a table's cell: one line, bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Text in code style; empty stays empty."""
    return f"`{text}`" if text else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; columns that are empty in all rows are left out."""
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [[columns[i] for i in kept], ["---"] * len(kept), *([cell(row[i]) for i in kept] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]
