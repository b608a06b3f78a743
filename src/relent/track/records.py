"""What one MLflow run will hold: read from the folder of a run, a comparison or a group, without MLflow."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relent.compare.results import read_run
from relent.errors import DataError
from relent.files import read_json
from relent.track.locks import tree_id

_NAME = re.compile(r"[^\w\-. /]")
RUN_FILES = ("scores.json", "config.json")
_LARGEST = sys.float_info.max
_COSTS = ("training_seconds", "peak_memory_mb", "parameters")
_FILTERS = (
    "Runs are named by method, variant and seed; the run *comparison* holds the page with tables and verdicts. "
    "Metrics: `train/` and `validation/` by step, `test/` scores, `cost/` time and memory. Filter with "
    "``tags.`relent.method` = 'pld'``, ``tags.`relent.seed` = '0'``, ``tags.`relent.scale` = 'laptop'``."
)
COMPARISON_FILES = ("comparison.html", "comparison.csv", "comparison.json", "claims.json")
OVERVIEW_FILES = ("overview.html", "overview.csv", "overview.json")


@dataclass(frozen=True)
class Point:
    """One number of a run's history."""

    key: str
    value: float
    step: int
    time: int
    """Milliseconds since 1970."""

    @property
    def place(self) -> tuple[str, int, str]:
        """What makes it the same point in file and store, where an infinite value is the largest finite one."""
        value = self.value if math.isnan(self.value) else max(-_LARGEST, min(_LARGEST, self.value))
        return self.key, self.step, repr(float(value))


@dataclass
class Record:
    """One MLflow run to be."""

    experiment: str
    tree: str
    """The results tree that it belongs to."""
    id: str
    """Its folder relative to the results; with the tree it makes the run known."""
    name: str
    start: int
    end: int = 0
    """Milliseconds since 1970."""
    digest: str = ""
    """Of all that the run is made from: 16 hexadecimal digits."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    artifacts: list[tuple[Path, str]] = field(default_factory=list)
    """File and the artifact folder that it goes to (empty: the top)."""
    dataset: tuple[str, str] | None = None
    """Name and checksum of the data that the run has learnt from."""
    description: str = ""
    """Of the experiment, in Markdown."""


def run_record(folder: Path) -> Record:
    """Read the record of one run.

    Raises:
        DataError: A file of the run is missing or not whole.
    """
    result = read_run(folder, "")
    config, facts = result.config, result.facts
    end = _milliseconds(folder / "config.json")
    start = end - round(1000 * float(facts.get("training_seconds", 0.0)))
    files = [(folder / name, "") for name in RUN_FILES] + _figures(folder)
    history = _history(folder / "metrics.csv", start, end)
    measured = {f"test/{k}": v for k, v in result.scores.items()}
    measured |= {f"cost/{k}": facts[k] for k in _COSTS if k in facts}
    # At step 0, so that MLflow's pages draw bars and not one dot on an axis of steps.
    final = [Point(metric_name(key), float(value), 0, end) for key, value in measured.items()]
    record = begun(config, tree_id(folder.absolute().parents[4]), start)
    # Scores first: MLflow's pages offer metrics in the order in which they came.
    record.end, record.points, record.artifacts = end, final + history, files
    record.tags |= {f"relent.{key}": str(value) for key, value in facts.items() if key not in _COSTS}
    if "data_checksum" in facts:
        record.dataset = (f"{config['task']} {config['scale']}", facts["data_checksum"])
    record.digest = _digest(record)
    return record


def begun(config: Mapping[str, Any], tree: str, start: int) -> Record:
    """What is known of a run when its training begins.

    Args:
        config: The run's config.json, or the specification that it will be made from.
        tree: The results tree that it belongs to.
        start: Milliseconds since 1970.
    """
    variant = "" if config["variant"] == "default" else f":{config['variant']}"
    return Record(
        experiment=config["task"],
        tree=tree,
        id="{task}/{method}/{variant}/{scale}/seed{seed}".format_map(config),
        name=f"{config['method']}{variant} s{config['seed']}",
        start=start,
        params=_params(config),
        tags=_tags(config),
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
    record = Record(
        experiment=comparison["task"],
        tree=tree_id(folder.absolute().parent),
        id=f"{comparison['task']}/comparison/{comparison['scale']}",
        name=f"comparison {comparison['scale']}",
        start=end,
        end=end,
        tags={
            "relent.kind": "comparison",
            "relent.task": comparison["task"],
            "relent.scale": comparison["scale"],
            "relent.seeds": " ".join(str(seed) for seed in comparison["seeds"]),
            **{f"relent.claims_{said}": str(number) for said, number in sorted(verdicts.items())},
            "mlflow.note.content": f"{comparison['answer']}. Tables, intervals and verdicts: `comparison.html` below.",
        },
        artifacts=files,
        description="\n\n".join(
            text
            for text in (f"**{comparison['title']}**", comparison["summary"], comparison["notice"], _FILTERS)
            if text
        ),
    )
    record.digest = _digest(record)
    return record


def overview_record(folder: Path) -> Record:
    """Read the record of a group of comparisons: its page and table, in an experiment of the group's name.

    Raises:
        DataError: A file of the group is missing or not whole.
    """
    overview = read_json(folder / "overview.json")
    tasks = [task["name"] for task in overview["tasks"]]
    end = _milliseconds(folder / "overview.json")
    record = Record(
        experiment=overview["group"],
        tree=tree_id(folder.absolute().parent),
        id=f"{overview['group']}/overview/{overview['scale']}",
        name=f"overview {overview['scale']}",
        start=end,
        end=end,
        tags={
            "relent.kind": "overview",
            "relent.group": overview["group"],
            "relent.tasks": " ".join(tasks),
            "relent.scale": overview["scale"],
            "mlflow.note.content": f"{overview['answer']}. What to use when, over all tasks: `overview.html` below.",
        },
        artifacts=[(folder / name, "") for name in OVERVIEW_FILES if (folder / name).is_file()],
        description=f"**{overview['title']}**\n\nThe comparisons of these experiments together: {', '.join(tasks)}.",
    )
    record.digest = _digest(record)
    return record


def metric_name(name: str) -> str:
    """A name that MLflow takes: other signs than letters, digits, `_-. /` become `_`."""
    return _NAME.sub("_", name)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as dotted names with text values."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def _params(config: Mapping[str, Any]) -> dict[str, str]:
    params = {f"run.{key}": str(config[key]) for key in ("method", "variant", "scale", "seed")}
    params |= flat(config["hyperparameters"])
    for part in ("data", "model", "evaluation"):
        params |= flat(config[f"{part}_options"], f"{part}.")
    return params


def _tags(config: Mapping[str, Any]) -> dict[str, str]:
    named = ("task", "method", "family", "variant", "scale", "seed", "plan", "code")
    tags = {f"relent.{key}": str(config[key]) for key in named}
    return tags | {"relent.kind": "run", "relent.task_kind": str(config["kind"])}


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
    return [Point(metric_name(key), value, step, start + (end - start) * step // last) for step, key, value in rows]


def _figures(folder: Path) -> list[tuple[Path, str]]:
    return [(path, "figures") for path in sorted(folder.glob("figures/*.png"))]


def _digest(record: Record) -> str:
    """Half a SHA-256 over all that is written, times apart: a copied tree has others."""
    content = [record.name, record.params, record.tags, record.dataset, [point.place for point in record.points]]
    total = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for path, place in record.artifacts:
        total.update(f"{place}/{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def _milliseconds(path: Path) -> int:
    return path.stat().st_mtime_ns // 1_000_000


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Pieces of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))
