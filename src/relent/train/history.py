"""The logger of a run: one CSV row a logged number, cut back to the checkpoint when a run resumes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

HEADER = ("step", "metric", "value")


class History(Logger):
    """Writes `step,metric,value` rows.

    Args:
        path: The CSV file; rows from `resume_step` on are dropped first, for the resumed run writes them again.
        resume_step: Optimiser steps done at the checkpoint that the run resumes from (steps 0 to `resume_step` − 1);
            None: start afresh.
    """

    def __init__(self, path: Path, resume_step: int | None = None):
        super().__init__()
        self.path = path
        rows = self._rows_until(resume_step) if resume_step is not None and path.is_file() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as handle:
            csv.writer(handle).writerows([HEADER, *rows])

    def _rows_until(self, step: int) -> list[list[str]]:
        with self.path.open(newline="") as handle:
            return [row for row in list(csv.reader(handle))[1:] if len(row) == 3 and int(row[0]) < step]

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> str:
        return "0"

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the run's config.json holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row for each number."""
        with self.path.open("a", newline="") as handle:
            csv.writer(handle).writerows((step or 0, k, repr(float(v))) for k, v in metrics.items() if k != "epoch")
