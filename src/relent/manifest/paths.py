"""Where every file lies: the one place that knows the layout of `data/`, `teachers/` and `results/`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

RUN_FILES = ("config.json", "metrics.csv", "weights.safetensors")
STEPS = frozenset({"fetch", "prepare", "teacher", "stage", "student", "evaluate"})
RULES = STEPS | {"all", "data", "compare", "claims", "figures", "page", "overview", "track", "forecast", "verify"}
"""Names of the workflow's rules: tasks, families and groups are asked for by name too, and may take none of these."""
RESERVED = {"task": RULES | {"sources"}, "family": RULES, "group": RULES, "method": {"figures"}}
"""Names that something else in the same place has: `data/sources/`, `results/TASK/figures/`, a rule."""


def check_folder(path: str) -> str:
    """A folder's path as rules, command lines and logs can carry it; spaces and quotes are welcome.

    Raises:
        ValueError: It is empty, begins with `-` or `~`, holds braces (wildcards to Snakemake), or a character that
            does not show: a line break, a blank other than the plain one, a control or formatting character.
    """
    if not path.strip("/ ") or path != path.strip():
        raise ValueError(f"a folder's path names a folder, without blanks at its ends, got {path!r}")
    if path[0] in "-~":
        raise ValueError(f"a folder's path may not begin with {path[0]!r}, got {path!r}; write it out, or with ./")
    if set(path) & set("{}"):
        raise ValueError(f"a folder's path may not hold braces, which are wildcards to Snakemake, got {path!r}")
    if not path.isprintable():
        raise ValueError(f"a folder's path may not hold characters that do not show, got {path!r}")
    return path


def check_plugin(path: str) -> str:
    """A plug-in folder's path: as any folder, and without the sign that separates several.

    Raises:
        ValueError: See `check_folder`, or it holds `os.pathsep`.
    """
    if os.pathsep in path:
        raise ValueError(f"a plug-in folder's path may not hold {os.pathsep!r}, got {path!r}")
    return check_folder(path)


def check_distinct(folders: Iterable[str]) -> None:
    """Make sure that what is written for different purposes lies in different folders.

    Raises:
        ValueError: Two are the same.
    """
    places = [PurePath(os.path.normpath(folder)) for folder in folders]
    if len(set(places)) != len(places):
        raise ValueError(f"data, teachers and results need a folder each, got {', '.join(map(str, places))}")


@dataclass(frozen=True)
class Layout:
    """Folders of a project, relative to the working directory unless absolute."""

    data: str = "data"
    teachers: str = "teachers"
    results: str = "results"

    def source(self, source: str) -> str:
        """Folder of the files of one source."""
        return f"{self.data}/sources/{source}"

    def dataset(self, task: str, scale: str) -> str:
        """Folder of a prepared data set: `dataset.zarr` and `receipt.json`."""
        return f"{self.data}/{task}/{scale}"

    def teacher(self, task: str, teacher: str, scale: str) -> str:
        """Folder of a trained teacher: `weights.safetensors`, `outputs.zarr`, `config.json`, `metrics.csv`."""
        return f"{self.teachers}/{task}/{teacher}/{scale}"

    def run(self, task: str, method: str, variant: str, scale: str, seed: int | str) -> str:
        """Folder of a run."""
        return f"{self.results}/{task}/{method}/{variant}/{scale}/seed{seed}"

    @staticmethod
    def mark(folder: str, name: str) -> str:
        """The file that marks an input folder (`data`, `teacher`, an earlier stage, `start`) as whole."""
        return f"{folder}/{'receipt.json' if name == 'data' else 'config.json'}"

    def comparison(self, task: str) -> str:
        """Folder of a task's comparison."""
        return f"{self.results}/{task}"

    def overview(self, group: str) -> str:
        """Folder of the page of a group of comparisons."""
        return f"{self.results}/{group}"
