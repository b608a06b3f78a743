"""`relent docs`: writes the generated pages and schemas, or checks that they are up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("docs")
@click.option("--check", is_flag=True, help="Write nothing; fail if a page or schema is out of date.")
@click.option(
    "--root",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The project's folder.",
)
def docs_command(check: bool, root: Path) -> None:
    """Write docs/configuration.md, docs/methods.md and workflow/schemas/ from the models and manifests."""
    from relent.inform.generated import generated, out_of_date

    if not (root / "config").is_dir():
        raise click.UsageError(
            f"there is no folder {str(root / 'config')!r}; run this in the project's folder or give --root"
        )
    files = generated(root)
    changed = out_of_date(root, files)
    if check:
        for name in changed:
            click.echo(f"{name} is out of date", err=True)
        if changed:
            click.echo("run `relent docs` and commit what it writes", err=True)
            sys.exit(1)
        return
    for name in changed:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name], encoding="utf-8")
    click.echo("\n".join(changed) if changed else "all pages are up to date")
