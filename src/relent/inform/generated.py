"""All generated files of the repository, as text by path."""

from __future__ import annotations

from pathlib import Path

from relent.inform.methods_index import methods_page
from relent.inform.reference import configuration_page, schemas
from relent.manifest.catalogue import Catalogue


def generated(root: Path) -> dict[str, str]:
    """What the generated files should hold: path relative to `root` → text.

    Raises:
        ConfigError: A manifest is wrong.
    """
    catalogue = Catalogue.load(root / "config")
    return {
        **schemas(),
        "docs/configuration.md": configuration_page(),
        "docs/methods.md": methods_page(catalogue),
    }


def out_of_date(root: Path, files: dict[str, str]) -> list[str]:
    """Files that are missing or hold something else."""

    def differs(name: str, text: str) -> bool:
        path = root / name
        return not path.is_file() or path.read_text(encoding="utf-8") != text

    return [name for name, text in files.items() if differs(name, text)]
