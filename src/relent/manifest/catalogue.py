"""The catalogue: all manifests, joined and cross-checked, and the runs that a configuration asks for.

The Snakefile asks this module for its whole target list in one call; it imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from relent.errors import ConfigError, nearest
from relent.manifest import hyperparameters
from relent.manifest.fingerprint import canonical, fingerprint, module_file
from relent.manifest.models import Config, Method, Resources, Source, Start, Strict, Task, TaskScale
from relent.manifest.paths import RESERVED, Layout
from relent.manifest.yamlfile import Document, parse, read_yaml
from relent.runspec import RunSpec

Manifest = TypeVar("Manifest", Source, Task, Method)


@dataclass(frozen=True)
class Run:
    """One run of a comparison: task × method × variant × seed at a scale."""

    task: str
    method: str
    variant: str
    scale: str
    seed: int


@dataclass(frozen=True)
class Comparison:
    """One task, several methods, several seeds at one scale."""

    task: str
    scale: str
    runs: tuple[Run, ...]
    main: bool = True
    """Whether the main job runs it."""


@dataclass
class Catalogue:
    """All sources, tasks and methods that `config/` and the plug-in folders describe."""

    folder: Path
    sources: dict[str, Source]
    tasks: dict[str, Task]
    methods: dict[str, Method]
    documents: dict[str, Document]
    layout: Layout = field(default_factory=Layout)

    @classmethod
    def load(cls, folder: Path | str, plugins: Iterable[str] = (), layout: Layout | None = None) -> Catalogue:
        """Read and cross-check every manifest.

        Args:
            folder: The `config` folder with `sources/`, `tasks/` and `methods/`.
            plugins: Folders that hold more methods (`name.yaml` beside `name.py`).
            layout: Where files lie.

        Raises:
            ConfigError: The first manifest that is wrong.
        """
        folder = Path(folder)
        catalogue = cls(folder, {}, {}, {}, {}, layout or Layout())
        catalogue._read(Source, sorted(folder.glob("sources/*.yaml")), catalogue.sources)
        catalogue._read(Task, sorted(folder.glob("tasks/*.yaml")), catalogue.tasks)
        catalogue._read(Method, sorted(folder.glob("methods/*/*.yaml")), catalogue.methods)
        for plugin in plugins:
            if not Path(plugin).is_dir():
                raise ConfigError(f"plug-in folder {plugin!r} does not exist", key="plugins")
            catalogue._read(Method, sorted(Path(plugin).glob("*.yaml")), catalogue.methods)
        catalogue._check()
        return catalogue

    def _read(self, model: type[Manifest], paths: Iterable[Path], into: dict[str, Manifest]) -> None:
        for path in paths:
            document = read_yaml(path)
            manifest = parse(model, document)
            if manifest.name != path.stem:
                raise document.error(f"is {manifest.name!r} but the file is {path.name}; make them equal", "name")
            if manifest.name in into:
                other = self.documents[f"{model.__name__}:{manifest.name}"].path
                raise document.error(f"{manifest.name!r} stands in {other} too; give one another name", "name")
            if isinstance(manifest, Method) and manifest.implementation.partition(":")[0].endswith(".py"):
                implementation = str(path.parent.resolve() / manifest.implementation)
                manifest = manifest.model_copy(update={"implementation": implementation})
            into[manifest.name] = manifest
            self.documents[f"{model.__name__}:{manifest.name}"] = document

    def document(self, manifest: Strict) -> Document:
        """The file that a manifest was read from."""
        return self.documents[f"{type(manifest).__name__}:{manifest.name}"]  # type: ignore[attr-defined]

    # ------------------------------------------------------------------------------------------ checks

    def _check(self) -> None:
        self._check_names()
        for task in self.tasks.values():
            self._check_task(task)
        for method in self.methods.values():
            self._check_method(method)

    def _check_names(self) -> None:
        """Tasks, families and rules are asked for by name alike; a task's folder holds its methods and its figures."""
        named: list[tuple[str, str, Strict]] = [("task", task.name, task) for task in self.tasks.values()]
        for method in self.methods.values():
            named += [("method", method.name, method), ("family", method.family, method)]
        for what, name, manifest in named:
            if name in RESERVED[what] or (what == "family" and name in self.tasks):
                raise self.document(manifest).error(
                    f"{name!r} is taken: the workflow has something else of that name; choose another",
                    "family" if what == "family" else "name",
                )

    def _check_task(self, task: Task) -> None:
        document = self.document(task)
        if module_file(f"relent.tasks.{task.kind}") is None:
            raise document.error(f"there is no package relent.tasks.{task.kind}", "kind")
        if module_file(task.data_module) is None:
            raise document.error(f"module {task.data_module!r} does not exist", "data_module")
        options = import_module(f"relent.tasks.{task.kind}.options").Options.of(task.data_module)
        for scale, settings in task.scales.items():
            parts = {"data": settings.data, "model": settings.model, "evaluation": settings.evaluation}
            parse(options, document, parts, at=("scales", scale.value))
            for name, teacher in task.teachers.items():
                if scale in teacher.model:
                    teacher_parts = {"data": settings.data, "model": teacher.model[scale]}
                    parse(options, document, teacher_parts, at=("teachers", name, scale.value))
        for position, source in enumerate(task.sources):
            if source not in self.sources:
                raise document.error(f"no source {source!r}{nearest(source, self.sources)}", "sources", position)
        if task.baseline not in self.methods:
            raise document.error(f"no method {task.baseline!r}{nearest(task.baseline, self.methods)}", "baseline")
        for name, teacher in task.teachers.items():
            if teacher.method not in self.methods:
                raise document.error(
                    f"no method {teacher.method!r}{nearest(teacher.method, self.methods)}", "teachers", name, "method"
                )
            for scale in task.scales:
                if scale not in teacher.model or scale not in teacher.training:
                    raise document.error(f"has no model or training for scale {scale.value!r}", "teachers", name)
                self.teacher_spec(task.name, name, scale)

    def _check_method(self, method: Method) -> None:
        document = self.document(method)
        try:
            path, _ = hyperparameters.locate(method.implementation)
            hyperparameters.config_class(method.implementation, path.stat().st_mtime_ns)
        except ConfigError as error:
            raise document.error(str(error), "implementation") from None
        kinds = {task.kind for task in self.tasks.values()}
        for position, kind in enumerate(method.tasks):
            if module_file(f"relent.tasks.{kind}") is None:
                raise document.error(f"no kind of task {kind!r}{nearest(kind, kinds)}", "tasks", position)
        for position, claim in enumerate(method.claims):
            baseline, _, variant = claim.baseline.partition(":")
            if baseline not in self.methods:
                raise document.error(
                    f"no method {baseline!r}{nearest(baseline, self.methods)}", "claims", position, "baseline"
                )
            if variant and variant not in self.methods[baseline].variants:
                known = self.methods[baseline].variants
                raise document.error(f"no variant {variant!r}{nearest(variant, known)}", "claims", position, "baseline")
            for task_name in claim.tasks:
                if task_name not in self.tasks:
                    raise document.error(
                        f"no task {task_name!r}{nearest(task_name, self.tasks)}", "claims", position, "tasks"
                    )
            without = [task for task in self.claim_tasks(method, claim.tasks) if claim.metric not in task.metrics]
            if without and (claim.tasks or len(without) == len(self.claim_tasks(method, ()))):
                metrics = {metric for task in without for metric in task.metrics}
                raise document.error(
                    f"task {without[0].name!r} has no metric {claim.metric!r}{nearest(claim.metric, metrics)}",
                    *("claims", position, "metric"),
                )
        self._check_reads(method)
        for variant_name in method.variants:
            for task in self.tasks.values():
                if method.fits(task):
                    for scale in task.scales:
                        self._hyperparameters(task, task.scales[scale], method, variant_name, scale)

    def _check_reads(self, method: Method) -> None:
        """A method that a variant reads is there, reads no other, and has no name that an input has already."""
        for variant_name, variant in method.variants.items():
            for position, name in enumerate(variant.reads):
                key = ("variants", variant_name, "reads", position)
                if name not in self.methods:
                    raise self.document(method).error(f"no method {name!r}{nearest(name, self.methods)}", *key)
                other = self.methods[name]
                if name in (method.name, *method.stages) or other.variants[other.default_variant].reads:
                    raise self.document(method).error(
                        f"{name!r} may be neither the method itself nor one of its stages, nor read a run in its turn",
                        *key,
                    )

    def claim_tasks(self, method: Method, names: Iterable[str]) -> list[Task]:
        """Tasks on which a claim may be checked: those named, else all that the method fits."""
        chosen = list(names)
        return [t for t in self.tasks.values() if (t.name in chosen if chosen else method.fits(t))]

    # ------------------------------------------------------------------------------------------ specifications

    def _hyperparameters(
        self,
        task: Task,
        settings: TaskScale,
        method: Method,
        variant: str,
        scale: str,
        training: Mapping[str, Any] = {},
    ) -> dict[str, Any]:
        task_file, method_file = str(self.document(task).path), str(self.document(method).path)
        values = hyperparameters.resolve(
            method.implementation,
            (f"{task_file}: scales.{scale}.training", settings.training),
            (f"{method_file}: hyperparameters.{scale}", method.hyperparameters.get(scale, {})),  # type: ignore[call-overload]
            (f"{method_file}: variants.{variant}", method.variants[variant].hyperparameters),
            (f"{task_file}: teachers", training),
        )
        start = method.variants[variant].start
        if start is not None:
            values = fine_tuning(values, start)
        processes, batch, parts = settings.execution.processes, values.get("batch_size", 0), values.get("accumulate", 1)
        if batch % (parts * processes):
            raise self.document(task).error(
                f"{method.name}:{variant} has batch_size {batch} in {parts} micro-batches, which do not divide among"
                f" {processes} processes (devices × nodes); choose a multiple of {parts * processes}",
                *("scales", str(scale), "execution"),
            )
        return values

    def scale_of(self, task: Task, scale: str) -> TaskScale:
        """Settings of a task at a scale.

        Raises:
            ConfigError: The task has no such scale.
        """
        for known, settings in task.scales.items():
            if known == scale:
                return settings
        known_names = [s.value for s in task.scales]
        raise self.document(task).error(f"has no scale {str(scale)!r}; it has {', '.join(known_names)}", "scales")

    @cached_property
    def _code(self) -> dict[tuple[str, ...], str]:
        return {}

    def code(self, *roots: str) -> str:
        """Fingerprint of modules, computed once a session."""
        if roots not in self._code:
            self._code[roots] = fingerprint(roots)
        return self._code[roots]

    def data_plan(self, task: Task, scale: str) -> str:
        """Digest of all that decides a data set: options, code and the pinned files of its sources."""
        decides = {
            "options": self.scale_of(task, scale).data,
            "code": self.code(task.data_module),
            "sources": {name: self.sources[name].content() for name in task.sources},
        }
        return hashlib.sha256(canonical(decides).encode()).hexdigest()[:16]

    def stage_spec(self, run: Run, stage: str | None = None) -> RunSpec:
        """Specification of one stage of a run (default: the last, whose folder is the run).

        Raises:
            ConfigError: The method does not fit the task, or the task has no such scale.
        """
        task, method = self.tasks[run.task], self.methods[run.method]
        if not method.fits(task):
            raise ConfigError(method.misfit(task))
        settings = self.scale_of(task, run.scale)
        stages = list(method.stages)
        stage = stage or stages[-1]
        folder = self.layout.run(run.task, run.method, run.variant, run.scale, run.seed)
        inputs: dict[str, str] = {}
        upstream: dict[str, str] = {}
        for name in method.stages[stage].inputs:
            if name == "data":
                inputs["data"] = self.layout.dataset(run.task, run.scale)
            elif name.startswith("teacher"):
                teacher = self.teacher_name(task, method, name)
                teacher_spec = self.teacher_spec(run.task, teacher, run.scale)
                inputs["teacher"], upstream["teacher"] = teacher_spec.output, teacher_spec.plan()
            else:
                inputs[name] = f"{folder}/stages/{name}"
                upstream[name] = self.stage_spec(run, name).plan()
        values = self._hyperparameters(task, settings, method, run.variant, run.scale)
        if (method.deterministic or not method.stages[stage].trains) and "max_steps" in values:
            values["max_steps"] = 0
        final = stage == stages[-1]
        start = method.variants[run.variant].start
        if final and start is not None:
            before = self.stage_spec(replace(run, variant=start.variant))
            inputs["start"], upstream["start"] = before.output, before.plan()
        for name in method.variants[run.variant].reads if final else ():
            other = self.stage_spec(replace(run, method=name, variant=self.methods[name].default_variant))
            inputs[name], upstream[name] = other.output, other.plan()
        spec = self._spec(task, settings, method, values, run.variant, run.scale, run.seed, stage, settings.model)
        output = folder if final else f"{folder}/stages/{stage}"
        peer = self._peer_options(task, method, run.scale) if method.stages[stage].peer else {}
        return replace(spec, final=final, inputs=inputs, upstream=upstream, output=output, peer_options=peer)

    def _peer_options(self, task: Task, method: Method, scale: str) -> dict[str, Any]:
        """Network options of the task's first teacher."""
        teacher = task.teachers[self.teacher_name(task, method, "teacher")]
        options: dict[str, Any] = teacher.model[scale]  # type: ignore[index]
        return options

    def teacher_name(self, task: Task, method: Method, name: str) -> str:
        """Which teacher of the task an input (`teacher` or `teacher:NAME`) means."""
        if not task.teachers:
            raise self.document(method).error(f"reads a teacher, but task {task.name!r} has none", "stages")
        teacher = name.partition(":")[2] or next(iter(task.teachers))
        if teacher not in task.teachers:
            raise self.document(method).error(
                f"task {task.name!r} has no teacher {teacher!r}{nearest(teacher, task.teachers)}", "stages"
            )
        return teacher

    def teacher_spec(self, task_name: str, teacher: str, scale: str) -> RunSpec:
        """Specification of a teacher's training."""
        task = self.tasks[task_name]
        settings, chosen = self.scale_of(task, scale), task.teachers[teacher]
        method = self.methods[chosen.method]
        training = chosen.training[scale]  # type: ignore[index]
        values = self._hyperparameters(task, settings, method, method.default_variant, scale, training)
        model = chosen.model[scale]  # type: ignore[index]
        spec = self._spec(task, settings, method, values, method.default_variant, scale, chosen.seed, "teacher", model)
        return replace(
            spec,
            inputs={"data": self.layout.dataset(task_name, scale)},
            output=self.layout.teacher(task_name, teacher, scale),
        )

    def _spec(
        self,
        task: Task,
        settings: TaskScale,
        method: Method,
        values: dict[str, Any],
        variant: str,
        scale: str,
        seed: int,
        stage: str,
        model: dict[str, Any],
    ) -> RunSpec:
        module = method.implementation.partition(":")[0]
        return RunSpec(
            task=task.name,
            kind=task.kind,
            method=method.name,
            family=method.family,
            variant=variant,
            scale=str(scale),
            seed=seed,
            stage=stage,
            final=False,
            implementation=method.implementation,
            hyperparameters=values,
            data_options=settings.data,
            model_options=model,
            evaluation_options=settings.evaluation,
            code=self.code(module, f"relent.tasks.{task.kind}.training", "relent.train.stage"),
            execution=settings.execution.model_dump(),
        )

    def resources(self, task: str, method: str, scale: str) -> Resources:
        """What a training job of a method asks for."""
        own = self.methods[method].resources
        return own.get(scale) or self.scale_of(self.tasks[task], scale).resources  # type: ignore[call-overload]

    def label(self, run: Run) -> str:
        """`method`, or `method:variant` where it is not the default variant."""
        return run.method if run.variant == self.methods[run.method].default_variant else f"{run.method}:{run.variant}"

    # ------------------------------------------------------------------------------------------ what to run

    def comparisons(self, config: Config, document: Document | None = None) -> list[Comparison]:
        """The comparisons that a configuration asks for, restricted as its `tasks`, `methods`, `family` say.

        Raises:
            ConfigError: An unknown task, method, variant, family or scale; names the nearest known one.
        """
        document = document or Document(Path("config"), {})
        only_tasks = _names(config.tasks)
        only_methods = _names(config.methods)
        self._known(document, only_tasks, self.tasks, "task", "tasks")
        self._known(
            document,
            [m.partition(":")[0] for m in only_methods if not m.startswith("family:")],
            self.methods,
            "method",
            "methods",
        )
        self._known(document, [config.family] if config.family else [], self.families(), "family", "family")
        found = []
        for position, request in enumerate(config.comparisons):
            self._known(document, [request.task], self.tasks, "task", "comparisons", position, "task")
            if only_tasks and request.task not in only_tasks:
                continue
            task = self.tasks[request.task]
            if config.scale not in task.scales and not request.main and request.task not in only_tasks:
                continue
            self.scale_of(task, config.scale)
            chosen = self._choose(document, task, request.methods, ("comparisons", position, "methods"))
            if only_methods:
                chosen = [
                    c for m in only_methods for c in self._choose(document, task, [m], ("methods",), strict=False)
                ]
            if config.family:
                chosen = [c for c in chosen if self.methods[c[0]].family == config.family]
            seeds = request.seeds or config.seeds
            runs = tuple(
                Run(request.task, method, variant, str(config.scale), seed)
                for method, variant in dict.fromkeys(chosen)
                for seed in (seeds[:1] if self.methods[method].deterministic else seeds)
            )
            for run in {(run.method, run.variant): run for run in runs}.values():
                for stage in self.methods[run.method].stages:
                    self.stage_spec(run, stage)
            if runs:
                found.append(Comparison(request.task, str(config.scale), runs, request.main or bool(only_tasks)))
        if not found:
            raise document.error(
                "nothing is left to run: no comparison has such a task, method or family", "comparisons"
            )
        return found

    def families(self) -> dict[str, list[str]]:
        """Methods by family."""
        families: dict[str, list[str]] = {}
        for method in self.methods.values():
            families.setdefault(method.family, []).append(method.name)
        return families

    def _choose(
        self, document: Document, task: Task, wanted: Iterable[str], key: tuple[str | int, ...], strict: bool = True
    ) -> list[tuple[str, str]]:
        """Pairs of method and variant that the names mean on a task."""
        chosen: list[tuple[str, str]] = []
        for position, name in enumerate(wanted):
            head, _, tail = name.partition(":")
            if head == "family":
                self._known(document, [tail], self.families(), "family", *key, position)
                members = [self.methods[m] for m in self.families()[tail] if self.methods[m].fits(task)]
                chosen += [(m.name, m.default_variant) for m in members]
                continue
            self._known(document, [head], self.methods, "method", *key, position)
            method = self.methods[head]
            if not method.fits(task):
                if not strict:
                    continue
                raise document.error(method.misfit(task), *key, position)
            self._known(document, [tail] if tail else [], method.variants, f"variant of {head!r}", *key, position)
            chosen.append((head, tail or method.default_variant))
        return chosen

    @staticmethod
    def _known(document: Document, names: Iterable[str], known: Mapping[str, Any], what: str, *key: str | int) -> None:
        for name in names:
            if name not in known:
                raise document.error(f"no {what} {name!r}{nearest(name, known)}", *key)


def fine_tuning(values: Mapping[str, Any], start: Start) -> dict[str, Any]:
    """Hyperparameters of a training that goes on from trained weights: its shares of the recipe, in steps and rates."""
    steps = values["max_steps"] and max(1, round(start.steps * values["max_steps"]))
    rate, warmup = start.learning_rate * values["learning_rate"], round(start.steps * values["warmup_steps"])
    return {**values, "max_steps": steps, "warmup_steps": warmup, "learning_rate": rate}


def _names(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
