"""Finished runs, read from their folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relent.errors import DataError
from relent.files import read_json


@dataclass(frozen=True)
class RunResult:
    """One evaluated run."""

    folder: Path
    label: str
    """`method`, or `method:variant` for a variant that is not the method's default."""
    config: dict[str, Any]
    """The run's config.json (see `relent.runspec.RunSpec`, `facts` beside it)."""
    scores: dict[str, float]
    tables: dict[str, list[dict[str, Any]]]
    settings: dict[str, Any]

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def method(self) -> str:
        return str(self.config["method"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the training measured: seconds, parameters, versions, the data's checksum."""
        return dict(self.config.get("facts", {}))

    @property
    def trained(self) -> bool:
        """Whether the run took any optimiser step; what took none and ran at one seed does not depend on it."""
        return bool(self.config["hyperparameters"].get("max_steps") != 0)


def read_run(folder: Path | str, label: str) -> RunResult:
    """Read an evaluated run.

    Raises:
        DataError: A file is missing or truncated, or the scores belong to another training than the weights.
    """
    folder = Path(folder)
    config, scores = read_json(folder / "config.json"), read_json(folder / "scores.json")
    if config["plan"] != scores["plan"]:
        raise DataError(f"{folder}/scores.json: belongs to an earlier training of this run; evaluate it again")
    return RunResult(folder, label, config, scores["scores"], scores["tables"], scores["settings"])


def by_label(runs: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Runs grouped by label, in the order of the comparison."""
    grouped: dict[str, list[RunResult]] = {}
    for run in runs:
        grouped.setdefault(run.label, []).append(run)
    return grouped
