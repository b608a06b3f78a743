"""`relent check-method`: the contract test of one method."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relent.cli.options import catalogue_options, find
from relent.manifest.catalogue import Catalogue

if TYPE_CHECKING:
    from relent.contract.result import CheckResult

STYLES = {"pass": "green", "fail": "bold red", "not applicable": "dim"}


@click.command("check-method")
@click.argument("name")
@click.option("--task", help="Task to check it on [the first that it fits].")
@click.option("--variant", help="Variant to check [the method's default].")
@click.option("--scale", default="smoke", show_default=True, help="Scale whose settings and data are used.")
@catalogue_options
def check_method_command(name: str, task: str | None, variant: str | None, scale: str, catalogue: Catalogue) -> None:
    """Check that method NAME keeps the contract: manifest, finite loss and gradient, seeds, resume, baseline limit.

    Trains it a few steps at a time on one CPU, in a temporary folder, on the prepared data of the task. Each check that
    fails says what to do; the exit status is then 1. Where the variant reads the run of another method, such as a
    reward model, that one is trained first, a few steps too.
    """
    find(catalogue, "method", name)
    from relent.contract.check import check_method

    with tempfile.TemporaryDirectory(prefix="relent-check-") as folder:
        results = check_method(catalogue, name, task, Path(folder), scale, variant)
    show(f"{name}:{variant}" if variant else name, results)
    sys.exit(any(result.outcome == "fail" for result in results))


def show(name: str, results: list[CheckResult]) -> None:
    """Print a table of the results, what to do below what failed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "outcome", "found", title=f"Contract of {name}", title_justify="left")
    for result in results:
        found = Text(result.detail)
        if result.advice:
            found.append(f"\nTo do: {result.advice}", style="bold")
        table.add_row(result.check, Text(result.outcome, style=STYLES[result.outcome]), found)
    Console().print(table)
    failures = sum(result.outcome == "fail" for result in results)
    click.echo(f"{name}: {f'{failures} of {len(results)} checks failed' if failures else 'keeps the contract'}")
