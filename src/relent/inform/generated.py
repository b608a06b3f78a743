"""All generated files of the repository, as text by path."""

from __future__ import annotations

import re
from pathlib import Path

from relent.inform.methods_index import methods_page
from relent.inform.reference import configuration_page, schemas
from relent.manifest.catalogue import Catalogue

EXAMPLE_PAGE = "docs/adding_a_method.md"
_INCLUDED = re.compile(r"(<!-- file: (?P<path>\S+) -->\n```(?P<language>\w+)\n).*?(```\n)", flags=re.DOTALL)


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
        EXAMPLE_PAGE: with_files(root, (root / EXAMPLE_PAGE).read_text(encoding="utf-8")),
    }


def with_files(root: Path, page: str) -> str:
    """A page whose code blocks under `<!-- file: PATH -->` hold the files that they name."""

    def included(block: re.Match[str]) -> str:
        text = (root / block["path"]).read_text(encoding="utf-8").rstrip("\n")
        return f"{block.group(1)}{text}\n{block.group(4)}"

    return _INCLUDED.sub(included, page)


def out_of_date(root: Path, files: dict[str, str]) -> list[str]:
    """Files that are missing or hold something else."""

    def differs(name: str, text: str) -> bool:
        path = root / name
        return not path.is_file() or path.read_text(encoding="utf-8") != text

    return [name for name, text in files.items() if differs(name, text)]
