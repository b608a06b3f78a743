"""Prints headings, paragraphs and tables: coloured and fitted on a terminal, plain and unwrapped in a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

PARAGRAPH = 100
NARROW = 100
"""On a terminal with fewer columns, a table that does not fit is printed as records: folded columns cannot be read."""
LONG = 240
"""In a pipe a longer table is printed as records."""


class Page:
    """One page of output.

    Args:
        console: Where to print; default: standard output, as wide as the terminal, or without a limit in a pipe.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self.terminal = self.console.is_terminal
        if not self.terminal:
            self.console.width = LONG

    def title(self, name: str, title: str = "") -> None:
        """The first line of a page."""
        self._print(Text.assemble((name, "bold"), f"  {title}" if title else ""))

    def heading(self, text: str) -> None:
        """A heading, after an empty line."""
        self._print(Text(""))
        self._print(Text(text, style="bold cyan"))

    def paragraph(self, text: str, indent: int = 2, hanging: int = 0) -> None:
        """A paragraph, wrapped for reading even in a pipe."""
        width = min(PARAGRAPH, self.console.width) if self.terminal else PARAGRAPH
        first, later = " " * indent, " " * (indent + hanging)
        for line in textwrap.wrap(text, max(20, width), initial_indent=first, subsequent_indent=later):
            self._print(Text(line))

    def pairs(self, values: Sequence[tuple[str, str]]) -> None:
        """Names and values; empty values are left out."""
        shown = [(name, value) for name, value in values if value]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.paragraph(f"{name:{width}s}  {value}", hanging=width + 2)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table without box art; columns that are empty in all rows are left out."""
        if not rows:
            return
        kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
        names, cells = [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]
        width = sum(max(map(cell_len, column)) + 2 for column in zip(names, *cells))
        if width > self.console.width and not (self.terminal and self.console.width >= NARROW):
            self._records(names, cells)
            return
        grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for name in names:
            first = name == names[0]
            grid.add_column(name, style="bold" if first else "", no_wrap=first, overflow="fold")
        for row in cells:
            grid.add_row(*map(Text, row))
        self._print(Padding(grid, (0, 0, 0, 2)))

    def _records(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        for row in rows:
            self._print(Text(f"  {row[0]}", style="bold"))
            for name, value in zip(columns[1:], row[1:]):
                if value:
                    self.paragraph(f"{name}: {value}", indent=4, hanging=2)

    def _print(self, what: Any) -> None:
        with self.console.capture() as captured:
            self.console.print(what)
        lines = captured.get().rstrip("\n").split("\n")
        self.console.file.write("\n".join(line.rstrip() for line in lines) + "\n")
