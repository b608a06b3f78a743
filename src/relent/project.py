"""A project as the Snakefile sees it: configuration, catalogue and layout, and one answer for each question of a rule.

Loaded once when the workflow starts, and by every command-line call; imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relent.data.options import PairFileOptions
from relent.data.receipt import NAME as RECEIPT
from relent.data.receipt import refresh_receipt
from relent.errors import ConfigError
from relent.manifest.catalogue import Catalogue, Comparison, Run
from relent.manifest.fingerprint import canonical
from relent.manifest.groups import check_groups
from relent.manifest.models import Config, Execution, Resources
from relent.manifest.paths import RUN_FILES, Layout
from relent.manifest.steps import step_roots, template_code
from relent.manifest.yamlfile import Document, parse, read_yaml
from relent.runspec import RunSpec
from relent.slurm.cluster import Cluster
from relent.stamps import settle

CONFIG = Path("config/config.yaml")


@dataclass
class Project:
    """Configuration, catalogue, and the comparisons that were asked for."""

    config: Config
    catalogue: Catalogue = field(repr=False)
    comparisons: list[Comparison] = field(repr=False)

    @classmethod
    def load(
        cls, values: Mapping[str, Any] | None = None, file: Path | str = CONFIG, manifests: Path | None = None
    ) -> Project:
        """Read and check everything.

        Args:
            values: Changes of one call over the file (Snakemake's `config`: what `--config` says).
            file: The configuration file. It is read here and not by Snakemake's `configfile:`, whose reader runs
                expressions that a file may hold (`__use_yte__`) and names no line.
            manifests: Folder of the manifests; default: the folder of `file`.

        Raises:
            ConfigError: Whatever is wrong, with file, line and key.
        """
        file = Path(file)
        document = read_yaml(file)
        own = dict(document.data)
        if "comparisons" in (values or {}):
            own.pop("groups", None)  # groups of the comparisons that this call replaces
        document = Document(file, _changed(own, values or {}), document.lines)
        config = parse(Config, document)
        layout = Layout(config.data.rstrip("/"), config.teachers.rstrip("/"), config.results.rstrip("/"))
        catalogue = Catalogue.load(manifests or file.parent, config.plugins, layout)
        check_groups(config, catalogue, document)
        project = cls(config, catalogue, catalogue.comparisons(config, document))
        return project

    # ------------------------------------------------------------------------------------------ checks before jobs

    def check_files(self) -> None:
        """Check what is there before any job starts: writable folders, data sets as their receipts say.

        A data set whose files were changed on purpose (they decode, none is missing) gets a new receipt, so that what
        depends on it runs again.

        Raises:
            ConfigError: A folder cannot be written.
            DataError: A data set is broken.
        """
        for folder in (self.config.results, self.config.data, self.config.teachers):
            _check_writable(Path(folder))
        for comparison in self.comparisons:
            task = self.catalogue.tasks[comparison.task]
            for source in task.sources:
                refresh_receipt(Path(self.layout.source(source)), self.catalogue.sources[source].pinned())
            refresh_receipt(Path(self.layout.dataset(comparison.task, comparison.scale)))
        settle(self)
        self._forget_tracking_of_a_lost_store()

    def check_cluster(self, cluster: Cluster) -> None:
        """Refuse a run that no node of the cluster can take.

        Raises:
            ConfigError: One asks for more than a node has.
        """
        for run in self.runs():
            execution = self.catalogue.scale_of(self.catalogue.tasks[run.task], run.scale).execution
            resources = self.catalogue.resources(run.task, run.method, run.scale)
            cluster.check(self.run_folder(run), resources, execution)

    def _forget_tracking_of_a_lost_store(self) -> None:
        """A deleted SQLite store is rebuilt: the receipt of what was written to it is void."""
        uri = self.config.tracking.uri
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            Path(self.tracking_receipt).unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------ paths and targets

    @property
    def layout(self) -> Layout:
        """Where files lie."""
        return self.catalogue.layout

    @property
    def tracking_receipt(self) -> str:
        """What the tracking rule wrote last."""
        return f"{self.layout.results}/tracking.json"

    def runs(self) -> list[Run]:
        """All runs that were asked for."""
        return [run for comparison in self.comparisons for run in comparison.runs]

    def run_folder(self, run: Run) -> str:
        """Folder of a run."""
        return self.layout.run(run.task, run.method, run.variant, run.scale, run.seed)

    def page(self, task: str) -> str:
        """The page of a task's comparison."""
        return f"{self.layout.comparison(task)}/comparison.html"

    def groups(self) -> dict[str, list[str]]:
        """Groups and those of their tasks that a (perhaps restricted) job compares; none without any."""
        compared = [comparison.task for comparison in self.comparisons]
        found = {name: [t for t in group.tasks if t in compared] for name, group in self.config.groups.items()}
        return {name: tasks for name, tasks in found.items() if tasks}

    def overview(self, group: str) -> str:
        """The page of a group."""
        return f"{self.layout.overview(group)}/overview.html"

    def group_targets(self, group: str) -> list[str]:
        """What asking for a group makes: its page, and those of its comparisons."""
        return [self.overview(group), *(self.page(task) for task in self.groups()[group])]

    def whole_groups(self, comparisons: list[Comparison]) -> list[str]:
        """Groups all of whose tasks are among comparisons."""
        chosen = {comparison.task for comparison in comparisons}
        return [name for name, group in self.config.groups.items() if set(group.tasks) <= chosen]

    def main_comparisons(self) -> list[Comparison]:
        """Comparisons that a plain `snakemake` runs."""
        return [comparison for comparison in self.comparisons if comparison.main]

    def targets(self) -> list[str]:
        """What the main job makes: pages and tracking, and every file of every run and teacher.

        The latter are named so that a file which was deleted is made again even where nothing newer is missing.
        """
        files = [self.tracking_receipt]
        chosen = self.main_comparisons()
        files += [self.overview(group) for group in self.whole_groups(chosen)]
        for comparison in chosen:
            folder = self.layout.comparison(comparison.task)
            files += [f"{folder}/{name}" for name in ("comparison.html", "comparison.csv", "claims.json", "figures")]
            for teacher in self.used_teachers(comparison):
                place = self.layout.teacher(comparison.task, teacher, comparison.scale)
                files += [f"{place}/{name}" for name in (*RUN_FILES, "outputs.zarr")]
            for run in comparison.runs:
                files += [f"{self.run_folder(run)}/{name}" for name in (*RUN_FILES, "predictions.zarr", "scores.json")]
        return [*self._receipts(chosen), *files]

    def tracked(self) -> list[Comparison]:
        """Comparisons that are written to the tracking store: those of the main job, and others that are there."""
        return [c for c in self.comparisons if c.main or Path(self.page(c.task)).exists()]

    def tracked_groups(self) -> list[str]:
        """Whole groups that are written to it: those of the main job, and others whose page is there."""
        main = self.whole_groups(self.main_comparisons())
        return [g for g in self.whole_groups(self.comparisons) if g in main or Path(self.overview(g)).exists()]

    def tracked_runs(self) -> list[str]:
        """Folders of the runs of these comparisons."""
        return [self.run_folder(run) for comparison in self.tracked() for run in comparison.runs]

    def used_teachers(self, comparison: Comparison) -> list[str]:
        """Teachers that a comparison reads: those of its methods' stages, and the first for the evaluation."""
        task = self.catalogue.tasks[comparison.task]
        named = [
            self.catalogue.teacher_name(task, method, name)
            for method in {run.method: self.catalogue.methods[run.method] for run in comparison.runs}.values()
            for stage in method.stages.values()
            for name in stage.inputs
            if name.startswith("teacher")
        ]
        return list(dict.fromkeys([*list(task.teachers)[:1], *named]))

    def family_targets(self, family: str) -> list[str]:
        """Scores of all runs of a family's methods."""
        methods = self.catalogue.methods
        return [f"{self.run_folder(run)}/scores.json" for run in self.runs() if methods[run.method].family == family]

    def datasets(self) -> list[str]:
        """Receipts of the data sets that the comparisons read."""
        return self._receipts(self.comparisons)

    def _receipts(self, comparisons: list[Comparison]) -> list[str]:
        return [f"{self.layout.dataset(c.task, c.scale)}/{RECEIPT}" for c in comparisons]

    def comparison(self, task: str) -> Comparison:
        """The comparison of a task.

        Raises:
            ConfigError: The configuration asks for none.
        """
        for comparison in self.comparisons:
            if comparison.task == task:
                return comparison
        raise ConfigError(
            f"no comparison of task {task!r}; add one to the configuration", file=CONFIG, key="comparisons"
        )

    def comparison_inputs(self, task: str) -> list[str]:
        """Files of the runs that a comparison reads."""
        return [f"{folder}/{name}" for folder in self.labels(task) for name in ("scores.json", "config.json")]

    def tell_tracking_address(self) -> None:
        """Put the tracking address, which may hold a password, where `relent track` finds it, not on a command line."""
        os.environ["RELENT_TRACKING_URI"] = self.config.tracking.uri

    def labels(self, task: str) -> dict[str, str]:
        """Folder of each run of a comparison → label."""
        return {self.run_folder(run): self.catalogue.label(run) for run in self.comparison(task).runs}

    # ------------------------------------------------------------------------------------------ what a rule asks

    def spec(self, wildcards: Any) -> RunSpec:
        """Specification of the stage that a rule's wildcards name."""
        values = dict(wildcards.items())
        if "teacher" in values:
            return self.catalogue.teacher_spec(values["task"], values["teacher"], values["scale"])
        run = Run(values["task"], values["method"], values["variant"], values["scale"], int(values["seed"]))
        return self.catalogue.stage_spec(run, values.get("stage"))

    def stage_inputs(self, wildcards: Any) -> dict[str, str]:
        """Files that a stage reads: input name → the file that marks the input as whole."""
        return {name: Layout.mark(folder, name) for name, folder in self.spec(wildcards).inputs.items()}

    def evaluation_inputs(self, task: str, scale: str) -> dict[str, str]:
        """Files that the evaluation of a run reads beside the run's own."""
        folders = {"data": self.layout.dataset(task, scale)}
        teachers = self.catalogue.tasks[task].teachers
        if teachers:
            folders["teacher"] = self.layout.teacher(task, next(iter(teachers)), scale)
        return {name: Layout.mark(folder, name) for name, folder in folders.items()}

    def resources(self, wildcards: Any) -> Resources:
        """What a training job asks for."""
        spec = self.spec(wildcards)
        return self.catalogue.resources(spec.task, spec.method, spec.scale)

    def asked(self, wildcards: Any) -> tuple[Resources, Execution]:
        """What a training job asks for, and how many processes it is."""
        return self.resources(wildcards), Execution(**self.spec(wildcards).execution)

    def environment(self, wildcards: Any) -> str:
        """Conda environment of a training job, relative to the rules: with CUDA where it asks for GPUs."""
        return f"../../envs/{'gpu' if self.resources(wildcards).gpus else 'cpu'}.yaml"

    def source_json(self, source: str) -> str:
        """What decides a source's files."""
        manifest = self.catalogue.sources[source]
        return canonical({"package": manifest.package, "version": manifest.version, "files": manifest.content()})

    def data_json(self, task: str, scale: str) -> str:
        """What decides a data set, apart from its sources."""
        return canonical(self.catalogue.scale_of(self.catalogue.tasks[task], scale).data)

    def data_inputs(self, task: str, scale: str) -> list[str]:
        """Files that a data set is prepared from: receipts of its sources, and the user's own files of pairs."""
        manifest = self.catalogue.tasks[task]
        receipts = [f"{self.layout.source(source)}/{RECEIPT}" for source in manifest.sources]
        if manifest.data_module != "relent.data.preference_files":
            return receipts
        options = PairFileOptions(**self.catalogue.scale_of(manifest, scale).data)
        return receipts + [str(file) for file in options.files()]

    def data_code(self, task: str) -> str:
        """Fingerprint of the code that prepares a data set."""
        return self.catalogue.code(self.catalogue.tasks[task].data_module)

    def step_code(self, task: str, step: str) -> str:
        """Fingerprint of the code of a step after training: `evaluate`, `compare`, `claims`, `figures` or `page`."""
        return self.catalogue.code(*step_roots(step, self.catalogue.tasks[task].kind)) + template_code(step)

    def evaluation_json(self, task: str, scale: str) -> str:
        """Options of a run's evaluation."""
        return canonical(self.catalogue.scale_of(self.catalogue.tasks[task], scale).evaluation)

    def comparison_json(self, task: str) -> str:
        """What decides a comparison's tables and words, apart from its runs."""
        manifest = self.catalogue.tasks[task]
        keys = {
            "title",
            "summary",
            "notice",
            "metrics",
            "primary_metric",
            "baseline",
            "tuning_budget",
            "checkpoint_rule",
        }
        return canonical(
            {
                "task": manifest.model_dump(mode="json", include=keys),
                "labels": self.labels(task),
                "confidence": self.config.confidence,
            }
        )

    def overview_inputs(self, group: str) -> list[str]:
        """Files that the page of a group is made from."""
        folders = [self.layout.comparison(task) for task in self.groups()[group]]
        return [f"{folder}/{name}" for folder in folders for name in ("comparison.json", "claims.json")]

    def overview_json(self, group: str) -> str:
        """A group's settings, with the tasks that are compared."""
        return canonical(self.config.groups[group].model_dump(mode="json") | {"tasks": self.groups()[group]})

    def overview_code(self) -> str:
        """Fingerprint of the code that makes a group's page."""
        return self.catalogue.code(*step_roots("overview")) + template_code("overview")

    def claims_json(self, task: str) -> str:
        """What decides the verdicts, apart from the runs."""
        methods = dict.fromkeys(run.method for run in self.comparison(task).runs)
        return canonical({m: [c.model_dump(mode="json") for c in self.catalogue.methods[m].claims] for m in methods})


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes laid over them; mappings are joined key by key."""
    changed = dict(values)
    for key, value in changes.items():
        old = changed.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        changed[key] = _changed(old, value) if both else value  # type: ignore[arg-type]
    return changed


def _check_writable(folder: Path) -> None:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    probe = existing / ".relent-write-test"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"folder {str(existing)!r} is not writable ({error.strerror}); choose another one") from None
