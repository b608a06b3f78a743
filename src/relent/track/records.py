"""What one MLflow run will hold: read from a run's folder or a comparison's folder, without MLflow."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relent.compare.results import read_run
from relent.errors import DataError
from relent.files import read_json

_NAME = re.compile(r"[^\w\-. /]")
RUN_FILES = ("scores.json", "config.json")
COMPARISON_FILES = ("comparison.html", "comparison.csv", "comparison.json", "claims.json")


@dataclass(frozen=True)
class Point:
    """One number of a run's history."""

    key: str
    value: float
    step: int
    time: int
    """Milliseconds since 1970."""


@dataclass
class Record:
    """One MLflow run to be."""

    experiment: str
    id: str
    """What makes the run known: its folder relative to the results."""
    name: str
    digest: str
    start: int
    end: int
    """Milliseconds since 1970."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    artifacts: list[tuple[Path, str]] = field(default_factory=list)
    """File and the artifact folder that it goes to (empty: the top)."""


def run_record(folder: Path) -> Record:
    """Read the record of one run.

    Raises:
        DataError: A file of the run is missing or not whole.
    """
    result = read_run(folder, "")
    config, facts = result.config, result.facts
    run_id = "{task}/{method}/{variant}/{scale}/seed{seed}".format_map(config)
    end = _milliseconds(folder / "config.json")
    start = end - round(1000 * float(facts.get("training_seconds", 0.0)))
    files = [(folder / name, "") for name in RUN_FILES] + _figures(folder)
    history = _history(folder / "metrics.csv", start, end)
    last = max((point.step for point in history), default=0)
    numbers = result.scores | {k: v for k, v in facts.items() if _is_number(v)}
    final = [Point(_NAME.sub("_", key), float(value), last, end) for key, value in numbers.items()]
    return Record(
        experiment=config["task"],
        id=run_id,
        name="{method}·{variant}·seed{seed}".format_map(config),
        digest=_digest([path for path, _ in files] + [folder / "metrics.csv"]),
        start=start,
        end=end,
        params=_params(config),
        tags=_tags(config, facts),
        points=history + final,
        artifacts=files,
    )


def comparison_record(folder: Path) -> Record:
    """Read the record of a comparison: its page, tables, verdicts and figures.

    Raises:
        DataError: A file of the comparison is missing or not whole.
    """
    comparison = read_json(folder / "comparison.json")
    claims = read_json(folder / "claims.json")
    files = [(folder / name, "") for name in COMPARISON_FILES if (folder / name).is_file()] + _figures(folder)
    end = _milliseconds(folder / "comparison.json")
    verdicts = Counter(claim["verdict"].replace(" ", "_") for claim in claims)
    means = [
        Point(_NAME.sub("_", f"{row['metric']}/{row['label']}"), row["mean"], 0, end) for row in comparison["table"]
    ]
    return Record(
        experiment=comparison["task"],
        id=f"{comparison['task']}/comparison/{comparison['scale']}",
        name=f"comparison·{comparison['scale']}",
        digest=_digest([path for path, _ in files]),
        start=end,
        end=end,
        tags={
            "relent.kind": "comparison",
            "relent.task": comparison["task"],
            "relent.scale": comparison["scale"],
            "relent.seeds": " ".join(str(seed) for seed in comparison["seeds"]),
            "mlflow.note.content": comparison["answer"],
        },
        points=[*means, *(Point(f"claims/{said}", float(n), 0, end) for said, n in verdicts.items())],
        artifacts=files,
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as dotted names with text values; lists become JSON."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value) if isinstance(value, list) else str(value)
    return found


def _params(config: Mapping[str, Any]) -> dict[str, str]:
    params = flat(config["hyperparameters"])
    for part in ("data", "model", "evaluation"):
        params |= flat(config[f"{part}_options"], f"{part}.")
    return params


def _tags(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    named = ("task", "kind", "method", "family", "variant", "scale", "seed", "plan", "code")
    tags = {f"relent.{key}": str(config[key]) for key in named if key != "kind"}
    tags |= {"relent.kind": "run", "relent.task_kind": str(config["kind"])}
    tags |= {f"relent.{key}": str(value) for key, value in facts.items() if isinstance(value, str)}
    return tags


def _history(path: Path, start: int, end: int) -> list[Point]:
    """Rows of a run's metrics.csv; their times are spread evenly over the training, for the file holds none."""
    try:
        with path.open(newline="") as handle:
            rows = [(int(r["step"]), r["metric"], float(r["value"])) for r in csv.DictReader(handle)]
    except FileNotFoundError:
        raise DataError(f"{path}: does not exist; train the run again") from None
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path}: is not whole ({error}); train the run again") from None
    last = max((step for step, _, _ in rows), default=0) or 1
    return [Point(_NAME.sub("_", key), value, step, start + (end - start) * step // last) for step, key, value in rows]


def _figures(folder: Path) -> list[tuple[Path, str]]:
    return [(path, "figures") for path in sorted(folder.glob("figures/*.png"))]


def _digest(paths: list[Path]) -> str:
    """SHA-256 over names and bytes."""
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _milliseconds(path: Path) -> int:
    return path.stat().st_mtime_ns // 1_000_000


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Pieces of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))
