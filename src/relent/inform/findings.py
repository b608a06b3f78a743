"""What finished comparisons found, read from `results/` where there are some."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relent.errors import DataError
from relent.files import read_json
from relent.manifest.catalogue import Catalogue
from relent.manifest.models import Method

NOT_RUN = "not run"
VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not checked")


@dataclass
class Findings:
    """Verdicts and scores of all tasks that have been compared."""

    claims: list[dict[str, Any]] = field(default_factory=list)
    """Entries of every task's `claims.json`."""
    comparisons: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Content of every task's `comparison.json`."""
    problems: list[str] = field(default_factory=list)
    """Files that are there and cannot be read."""

    @classmethod
    def read(cls, catalogue: Catalogue) -> Findings:
        """Read what there is; a broken file is a problem to tell, not an end."""
        found = cls()
        for task in catalogue.tasks:
            folder = Path(catalogue.layout.comparison(task))
            found.claims += found._read(folder / "claims.json") or []
            comparison = found._read(folder / "comparison.json")
            if comparison:
                found.comparisons[task] = comparison
        return found

    def _read(self, path: Path) -> Any:
        if not path.is_file():
            return None
        try:
            return read_json(path)
        except DataError as error:
            self.problems.append(str(error))
            return None

    def verdict_of(self, method: Method, claim: str) -> list[dict[str, Any]]:
        """Entries on one claim, one a task on which it was checked."""
        return [entry for entry in self.claims if entry["method"] == method.name and entry["id"] == claim]

    def state(self, method: Method) -> str:
        """State of a method's claims in words: `2 reproduced · 1 inconclusive`, `not run`, `no claims`."""
        if not method.claims:
            return "no claims"
        known = {claim.id for claim in method.claims}
        counts = Counter(e["verdict"] for e in self.claims if e["method"] == method.name and e["id"] in known)
        return " · ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name]) or NOT_RUN

    def results(self, method: Method) -> list[dict[str, Any]]:
        """Measured scores of a method and its variants: one entry a task, label and metric."""
        return [
            {"task": task, "scale": comparison["scale"], "title": metric["title"], "unit": metric["unit"]}
            | {"digits": metric["digits"], "baseline": comparison["baseline"]}
            | {key: row[key] for key in ("label", "metric", "n", "mean", "low", "high", "rank", "verdict")}
            for task, comparison in self.comparisons.items()
            for metric in comparison["metrics"]
            for row in comparison["table"]
            if row["metric"] == metric["name"] and row["label"].partition(":")[0] == method.name
        ]
