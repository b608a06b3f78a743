"""Evaluates one run folder."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from relent.errors import DataError
from relent.files import mark_digest, read_json, whole, write_json
from relent.manifest.paths import Layout
from relent.manifest.steps import step_code
from relent.runspec import RunSpec


@dataclass
class Evaluation:
    """What the evaluation of one run yields.

    `scores` has one number for each metric of the task manifest (a metric that does not apply is left out). `tables`
    has rows of plain values (`{"variable": "PV", "lead_hours": 6, "crps": 0.2}`), by table name. `settings` says how
    the numbers were made (split, estimator, members, module mode).
    """

    scores: dict[str, float]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


Evaluate = Callable[[RunSpec, Path], Evaluation]
"""`relent.tasks.<kind>.evaluation.evaluate(spec, folder)`; beside it `draw(spec, folder, evaluation, into)` makes PNG
figures of what was scored."""


def read_spec(folder: Path) -> tuple[RunSpec, dict[str, Any]]:
    """Specification and facts of a finished run, out of its `config.json`."""
    config = read_json(folder / "config.json")
    names = {f.name for f in fields(RunSpec)}
    try:
        return RunSpec(**{k: v for k, v in config.items() if k in names}), config
    except TypeError as error:
        raise DataError(f"{folder / 'config.json'}: is no run of this version ({error}); train it again") from None


def evaluate_run(folder: Path, inputs: dict[str, str] | None = None) -> Evaluation:
    """Score one run and draw its figures: writes `scores.json` and `figures/`.

    Args:
        folder: The run's folder (`config.json`, `predictions.zarr`).
        inputs: Folders of the data set and the teacher, where they lie elsewhere than when the run was trained.

    Raises:
        DataError: Something that is read is missing or broken, or a score is not finite.
    """
    spec, config = read_spec(folder)
    spec.inputs.update(inputs or {})
    module = importlib.import_module(f"relent.tasks.{spec.kind}.evaluation")
    evaluation: Evaluation = module.evaluate(spec, folder)
    wrong = [name for name, value in evaluation.scores.items() if not math.isfinite(value)]
    if wrong:
        raise DataError(
            f"{folder}: the score {wrong[0]!r} is not finite; the run diverged or its predictions are broken"
        )
    with whole(folder / "figures") as figures:
        figures.mkdir()
        module.draw(spec, folder, evaluation, figures)
    read: dict[str, str] = {
        name: Layout.mark(spec.inputs[name], name) for name in spec.inputs if name in ("data", "teacher")
    }
    read["run"] = Layout.mark(str(folder), "run")
    write_json(
        folder / "scores.json",
        {
            "task": spec.task,
            "method": spec.method,
            "variant": spec.variant,
            "scale": spec.scale,
            "seed": spec.seed,
            "plan": config["plan"],
            "scores": evaluation.scores,
            "tables": evaluation.tables,
            "settings": evaluation.settings,
            "code": step_code("evaluate", spec.kind),
            "read": {name: mark_digest(path) for name, path in read.items()},
        },
    )
    return evaluation
