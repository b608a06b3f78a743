"""Everything that there is to say about the catalogue, a method or a task, as plain data."""

from __future__ import annotations

from typing import Any

from relent.inform.findings import Findings
from relent.inform.hyperparameters import fitting_tasks, own_hyperparameters, recipe, recipe_changes
from relent.manifest.catalogue import Catalogue
from relent.manifest.models import Method, Scale, Task
from relent.manifest.paths import Layout


def catalogue_facts(catalogue: Catalogue, findings: Findings, family: str = "", task: str = "") -> dict[str, Any]:
    """Methods and tasks, in the order of families.

    Args:
        catalogue: All manifests.
        findings: What was measured.
        family: Only methods of this family and the tasks that they fit.
        task: Only this task and the methods that fit it.
    """
    methods = [
        m
        for members in catalogue.families().values()
        for m in map(catalogue.methods.__getitem__, members)
        if (not family or m.family == family) and (not task or m.fits(catalogue.tasks[task]))
    ]
    kinds = {kind for method in methods for kind in method.tasks}
    tasks = [t for t in catalogue.tasks.values() if (t.name == task if task else t.kind in kinds or not family)]
    return {
        "methods": [_in_short(method, findings) for method in methods],
        "tasks": [_task_in_short(catalogue, t) for t in tasks],
    }


def _in_short(method: Method, findings: Findings) -> dict[str, Any]:
    return {
        **method.model_dump(mode="json", include={"name", "family", "title", "baseline", "tasks"}),
        "year": method.paper.year if method.paper else None,
        "arxiv": method.paper.arxiv if method.paper else "",
        "variants": _variants(method),
        "claims": findings.state(method),
    }


def _task_in_short(catalogue: Catalogue, task: Task) -> dict[str, Any]:
    return {
        **task.model_dump(mode="json", include={"name", "title", "kind", "primary_metric", "baseline"}),
        "scales": [scale.value for scale in task.scales],
        "methods": sum(method.fits(task) for method in catalogue.methods.values()),
    }


def _variants(method: Method) -> list[str]:
    """Names of the variants, the default first."""
    return sorted(method.variants, key=lambda name: name != method.default_variant)


def method_facts(catalogue: Catalogue, method: Method, findings: Findings) -> dict[str, Any]:
    """A method: paper, equation, stages, variants, hyperparameters, differences, claims, results and commands."""
    tasks = fitting_tasks(catalogue, method)
    fields = {"name", "title", "family", "baseline", "deterministic", "summary", "equation", "provenance"}
    return {
        "what": "method",
        **method.model_dump(mode="json", include=fields),
        "implementation": method.implementation,
        "manifest": str(catalogue.document(method).path),
        "paper": method.paper.model_dump(mode="json") if method.paper else None,
        "kinds": method.tasks,
        "tasks": [task.name for task in tasks],
        "trains_teachers": _teachers_of(catalogue, method),
        "stages": [{"name": n, "inputs": s.inputs, "title": s.title} for n, s in method.stages.items()],
        "default_variant": method.default_variant,
        "variants": [
            {"name": n, "title": method.variants[n].title, "hyperparameters": method.variants[n].hyperparameters}
            for n in _variants(method)
        ],
        "hyperparameters": own_hyperparameters(catalogue, method),
        "recipes": {} if method.deterministic else {task.name: recipe(task, method) for task in tasks},
        "recipe_changes": recipe_changes(method),
        "differences": [difference.model_dump(mode="json") for difference in method.differences],
        "claims": [c.model_dump(mode="json") | {"verdicts": findings.verdict_of(method, c.id)} for c in method.claims],
        "results": findings.results(method),
        "advice": findings.advice(method),
        "commands": method_commands(catalogue, method),
    }


def _teachers_of(catalogue: Catalogue, method: Method) -> list[str]:
    """Teachers that a method trains, as `task/teacher`."""
    pairs = [(task, name) for task in catalogue.tasks.values() for name in task.teachers]
    return [f"{task.name}/{name}" for task, name in pairs if task.teachers[name].method == method.name]


def method_commands(catalogue: Catalogue, method: Method) -> list[dict[str, str]]:
    """The commands that run a method: with its baselines, one run by target, one run by hand."""
    tasks = fitting_tasks(catalogue, method)
    if not tasks:
        return []
    task = min(tasks, key=lambda task: Scale.laptop not in task.scales)
    scale, variant = _usual_scale(task), method.default_variant
    baselines = dict.fromkeys(claim.baseline for claim in method.claims)
    target = f"{catalogue.layout.run(task.name, method.name, variant, scale, 0)}/scores.json"
    other = _variants(method)[1:2]
    alone = "alone, all seeds; the comparison then shows only it"
    commands = [(f"snakemake {task.name} --config methods={method.name}", alone)]
    if baselines:
        named = ",".join([*baselines, method.name])
        commands.append((f"snakemake {task.name} --config methods={named}", "with the baselines of its claims"))
    if other:
        commands.append((f"snakemake {task.name} --config methods={method.name}:{other[0]}", "another variant"))
    commands += [
        (f"snakemake {target}", "one run, with all that it needs"),
        (f"relent train {task.name} {method.name} --seed 0", "the training of one run by hand; data must be there"),
        (f"relent check-method {method.name}", "the contract test"),
    ]
    return [{"command": command, "does": does} for command, does in commands]


def _usual_scale(task: Task) -> str:
    scales = list(task.scales)
    return (Scale.laptop if Scale.laptop in scales else scales[0]).value


def task_facts(catalogue: Catalogue, task: Task, findings: Findings) -> dict[str, Any]:
    """A task: data, sources, metrics, teachers, scales, fitting methods, results and commands."""
    names = {"name", "title", "kind", "summary", "notice", "data_module"}
    rules = {"primary_metric", "baseline", "checkpoint_rule", "tuning_budget"}
    comparison = findings.comparisons.get(task.name)
    return {
        "what": "task",
        **task.model_dump(mode="json", include=names | rules),
        "manifest": str(catalogue.document(task).path),
        "sources": [catalogue.sources[s].model_dump(mode="json", exclude={"files"}) for s in task.sources],
        "metrics": [{"name": name, **metric.model_dump(mode="json")} for name, metric in task.metrics.items()],
        "teachers": [
            {"name": n, "title": t.title, "method": t.method, "seed": t.seed}
            | {"model": {scale.value: options for scale, options in t.model.items()}}
            for n, t in task.teachers.items()
        ],
        "scales": {scale.value: settings.model_dump(mode="json") for scale, settings in task.scales.items()},
        "recipe": recipe(task),
        "methods": [
            {"name": m.name, "title": m.title, "claims": findings.state(m)}
            for m in catalogue.methods.values()
            if m.fits(task)
        ],
        "answer": comparison["answer"] if comparison else "",
        "commands": task_commands(catalogue.layout, task),
    }


def task_commands(layout: Layout, task: Task) -> list[dict[str, str]]:
    """The commands that prepare a task's data and run its comparison."""
    scale = _usual_scale(task)
    commands = [
        (f"snakemake {task.name}", "the comparison that config/config.yaml asks for"),
        (f"snakemake {layout.dataset(task.name, scale)}/receipt.json", "its data set alone"),
        (f"relent list --task {task.name}", "the methods that fit it"),
    ]
    return [{"command": command, "does": does} for command, does in commands]
