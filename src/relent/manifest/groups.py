"""Checks the groups of comparisons of a configuration against the catalogue, before any job starts."""

from __future__ import annotations

from collections.abc import Iterable

from relent.errors import nearest
from relent.manifest.catalogue import Catalogue
from relent.manifest.models import Config, Group
from relent.manifest.paths import RESERVED
from relent.manifest.yamlfile import Document


def check_groups(config: Config, catalogue: Catalogue, document: Document) -> None:
    """Make sure that every group can be asked for by its name and names what there is.

    Raises:
        ConfigError: A group's name is taken; a task is unknown, has no comparison or stands twice; the reference is no
            method; a metric is reported by none of the tasks, or has no direction. Names file, line and key.
    """
    compared = [request.task for request in config.comparisons]
    for name, group in config.groups.items():
        if name in RESERVED["group"] or name in catalogue.tasks or name in catalogue.families():
            what = "a task" if name in catalogue.tasks else "a family" if name in catalogue.families() else "a rule"
            raise document.error(f"{name!r} is taken: it is {what} of the workflow; choose another", "groups", name)
        for position, task in enumerate(group.tasks):
            key = ("groups", name, "tasks", position)
            if task not in catalogue.tasks:
                raise document.error(f"no task {task!r}{nearest(task, catalogue.tasks)}", *key)
            if task not in compared:
                raise document.error(f"task {task!r} has no comparison; add one under comparisons", *key)
        _check_once(document, "task", group.tasks, "groups", name, "tasks")
        if group.reference not in catalogue.methods:
            message = f"no method {group.reference!r}{nearest(group.reference, catalogue.methods)}"
            raise document.error(message, "groups", name, "reference")
        _check_goals(document, catalogue, name, group)


def _check_goals(document: Document, catalogue: Catalogue, name: str, group: Group) -> None:
    """Every goal has a metric, and every metric of it is known and says which way is better."""
    reported = {metric for task in group.tasks for metric in catalogue.tasks[task].metrics}
    for goal, metrics in group.goals.items():
        key = ("groups", name, "goals", goal)
        if not metrics:
            raise document.error("has no metric; name one", *key)
        _check_once(document, "metric", metrics, *key)
        for position, metric in enumerate(metrics):
            if metric not in reported:
                message = f"no task of the group reports {metric!r}{nearest(metric, reported)}"
                raise document.error(message, *key, position)
            for task in group.tasks:
                found = catalogue.tasks[task].metrics.get(metric)
                if found is not None and found.direction is None:
                    message = f"{metric!r} of task {task!r} has no direction, so that nothing can be better at it"
                    raise document.error(message, *key, position)


def _check_once(document: Document, what: str, names: Iterable[str], *key: str | int) -> None:
    seen: set[str] = set()
    for position, name in enumerate(names):
        if name in seen:
            raise document.error(f"{what} {name!r} stands twice; keep one", *key, position)
        seen.add(name)
