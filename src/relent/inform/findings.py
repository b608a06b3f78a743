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
USUAL_REFERENCE = "cross_entropy"
"""In whose costs those of a classifier are told, where no group names another method."""
VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not checked")


@dataclass
class Findings:
    """Verdicts and scores of all tasks that have been compared."""

    claims: list[dict[str, Any]] = field(default_factory=list)
    """Entries of every task's `claims.json`."""
    comparisons: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Content of every task's `comparison.json`."""
    overviews: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Content of every group's `overview.json`."""
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
        for path in sorted(Path(catalogue.layout.results).glob("*/overview.json")):
            overview = found._read(path)
            if overview:
                found.overviews[path.parent.name] = overview
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
            | {"primary": metric["name"] == comparison["primary_metric"], "costs": self._costs(task, row["label"])}
            | {key: row.get(key) for key in ("label", "metric", "n", "mean", "low", "high", "rank", "verdict")}
            | {"seeds_needed": row.get("seeds_needed"), "difference": row.get("difference")}
            for task, comparison in self.comparisons.items()
            for metric in comparison["metrics"]
            for row in comparison["table"]
            if row["metric"] == metric["name"] and row["label"].partition(":")[0] == method.name
        ]

    def _costs(self, task: str, label: str) -> dict[str, Any]:
        """Training time and memory over those of the method that the task's group names, else of the baseline."""
        comparison = self.comparisons[task]
        methods = {entry["label"]: entry for entry in comparison.get("methods", [])}
        named = [o["reference"] for o in self.overviews.values() if task in {t["name"] for t in o["tasks"]}]
        reference = next((name for name in [*named, USUAL_REFERENCE] if name in methods), comparison["baseline"])
        own, base = methods.get(label, {}), methods.get(reference, {})
        known = {
            name: own[key] / base[key]
            for name, key in (("time", "training_seconds"), ("memory", "peak_memory_mb"))
            if own.get(key) is not None and base.get(key)
        }
        return {"reference": reference, **known}

    def advice(self, method: Method) -> list[dict[str, str]]:
        """What the pages of groups say about a method and its variants, one entry a group, goal and label."""
        return [
            {"group": group, "scale": overview["scale"], "goal": goal["goal"]}
            | {key: entry[key] for key in ("label", "standing", "sentence")}
            for group, overview in self.overviews.items()
            for goal in overview["goals"]
            for entry in goal["entries"]
            if entry["label"].partition(":")[0] == method.name
        ]
