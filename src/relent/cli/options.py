"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from relent.manifest.catalogue import Catalogue
from relent.manifest.paths import Layout, check_folder
from relent.manifest.yamlfile import read_yaml
from relent.project import CONFIG

CODE = click.option("--code", help="Fingerprint that this job was planned with; other code is refused.")


def catalogue_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the catalogue, found through `--manifests`, `--plugin`, `--data`, `--teachers`, `--results`.

    What is not given is taken from the variables RELENT_MANIFESTS, RELENT_PLUGINS, RELENT_DATA, RELENT_TEACHERS and
    RELENT_RESULTS, which the workflow sets, and then from `config/config.yaml`, where there is one.
    """

    @click.option(
        "--manifests",
        envvar="RELENT_MANIFESTS",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the manifests [config].",
    )
    @click.option(
        "--plugin",
        "plugins",
        envvar="RELENT_PLUGINS",
        type=click.Path(),
        multiple=True,
        help="Folder with methods of your own; may be repeated.",
    )
    @click.option("--data", envvar="RELENT_DATA", help="Folder of prepared data [data].")
    @click.option("--teachers", envvar="RELENT_TEACHERS", help="Folder of teachers [teachers].")
    @click.option("--results", envvar="RELENT_RESULTS", help="Folder of runs [results].")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        manifests: Path | None,
        plugins: tuple[str, ...],
        data: str | None,
        teachers: str | None,
        results: str | None,
        **kwargs: Any,
    ) -> Any:
        written = read_yaml(CONFIG).data if CONFIG.is_file() else {}
        given = {"data": data, "teachers": teachers, "results": results}
        folders = {name: folder or str(written.get(name, name)) for name, folder in given.items()}
        for name, folder in folders.items():
            try:
                check_folder(folder)
            except ValueError as error:
                raise click.BadParameter(str(error), param_hint=f"--{name}") from None
        layout = Layout(**folders)
        place = manifests or CONFIG.parent
        if not place.is_dir():
            raise click.UsageError(
                f"there is no folder {str(place)!r}; run this in the project's folder or give --manifests"
            )
        catalogue = Catalogue.load(place, plugins or written.get("plugins", []), layout)
        return command(*args, catalogue=catalogue, **kwargs)

    return wrapped


def find(catalogue: Catalogue, kind: str, name: str) -> Any:
    """A task, method or source by name.

    Raises:
        click.BadParameter: There is none; names the nearest one.
    """
    from relent.errors import nearest

    known: dict[str, Any] = getattr(catalogue, f"{kind}s")
    if name not in known:
        raise click.BadParameter(f"no {kind} {name!r}{nearest(name, known)}")
    return known[name]
