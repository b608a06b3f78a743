"""Hyperparameters as a reader wants them: default, bounds, source, and what each scale changes."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic.fields import FieldInfo

from relent.inform.typewords import type_in_words
from relent.manifest.catalogue import Catalogue
from relent.manifest.hyperparameters import config_class, locate
from relent.manifest.models import Method, Task
from relent.methods.config import MethodConfig

BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def config_of(method: Method) -> type[MethodConfig]:
    """The Config class of a method."""
    path, _ = locate(method.implementation)
    return config_class(method.implementation, path.stat().st_mtime_ns)


def fitting_tasks(catalogue: Catalogue, method: Method) -> list[Task]:
    """Tasks whose kind a method fits."""
    return [task for task in catalogue.tasks.values() if method.fits(task)]


def own_hyperparameters(catalogue: Catalogue, method: Method) -> list[dict[str, Any]]:
    """Hyperparameters that a method adds to the shared recipe, or gives a default of its own.

    Returns:
        One dictionary each: `name`, `type`, `default`, `bounds`, `description`, `source`, and `changes`: pairs of
        `place` (scale, and the task where a task sets it) and `value`.
    """
    config = config_of(method)
    names = [n for n in config.model_fields if n not in MethodConfig.model_fields or n in config.__annotations__]
    return [describe(n, config.model_fields[n]) | {"changes": _changes(catalogue, method, n)} for n in names]


def describe(name: str, field: FieldInfo) -> dict[str, Any]:
    """A hyperparameter's name, type, default, bounds, meaning and source."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return {
        "name": name,
        "type": type_in_words(field.annotation),
        "default": plain(field.get_default(call_default_factory=True)),
        "bounds": bounds(field),
        "description": field.description or "",
        "source": str(extra.get("source", "")),
    }


def plain(value: Any) -> Any:
    """A value without its Enum."""
    return value.value if isinstance(value, Enum) else value


def bounds(field: FieldInfo) -> str:
    """Bounds of a number: `> 0, ≤ 100`; empty where there are none."""
    found = [(sign, getattr(m, key)) for m in field.metadata for key, sign in BOUNDS.items() if hasattr(m, key)]
    return ", ".join(f"{sign} {value}" for sign, value in found if value is not None)


def _changes(catalogue: Catalogue, method: Method, name: str) -> list[dict[str, Any]]:
    tasks = [
        {"place": f"{scale.value}, task {task.name}", "value": settings.training[name]}
        for task in fitting_tasks(catalogue, method)
        for scale, settings in task.scales.items()
        if name in settings.training
    ]
    own = method.hyperparameters.items()
    return tasks + [{"place": scale.value, "value": values[name]} for scale, values in own if name in values]


def recipe(task: Task, method: Method | None = None) -> list[dict[str, Any]]:
    """The shared optimisation recipe of a task, by scale, with what a method's manifest changes in it.

    Returns:
        One dictionary a setting that some scale sets: `name`, `description`, and the value at each scale of the task.
    """
    changed = method.hyperparameters if method else {}
    rows = []
    for name, field in MethodConfig.model_fields.items():
        default = plain(field.get_default())
        values = {s.value: (t.training | changed.get(s, {})).get(name, default) for s, t in task.scales.items()}
        if any(value != default for value in values.values()):
            rows.append({"name": name, "description": field.description or "", **values})
    return rows


def recipe_changes(method: Method) -> list[dict[str, Any]]:
    """Settings of the shared recipe that a method's manifest changes: `name`, `scale` and `value`."""
    return [
        {"name": name, "scale": scale.value, "value": value}
        for scale, values in method.hyperparameters.items()
        for name, value in values.items()
        if name in MethodConfig.model_fields
    ]
