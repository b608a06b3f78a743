"""What may stand in `config/`: the configuration, sources, tasks and methods, as validated models.

The JSON schemas in `workflow/schemas/` and the configuration reference in `docs/configuration.md` are made from
these classes, so a description here is what a user reads.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NAME = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=60)]
Direction = Literal["higher", "lower"]


class Strict(BaseModel):
    """A model that refuses unknown keys: a misspelt key must not pass in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Scale(StrEnum):
    """How large a run is."""

    smoke = "smoke"
    laptop = "laptop"
    cluster = "cluster"


# ---------------------------------------------------------------------------------------------- configuration


class ComparisonRequest(Strict):
    """One task and the methods that are compared on it."""

    task: Name = Field(description="Name of a task manifest in `config/tasks/`.")
    methods: list[str] = Field(
        min_length=1,
        description="Methods: `name`, `name:variant`, or `family:name` for all of a family that fit the task.",
    )
    seeds: list[int] | None = Field(None, description="Seeds of this comparison; default: the top-level `seeds`.")


class Tracking(Strict):
    """Where MLflow keeps the runs."""

    uri: str = Field(
        "sqlite:///mlflow/mlflow.db",
        description="MLflow tracking address: a SQLite file (default), or `http(s)://` of a tracking server.",
    )
    artifacts: str | None = Field(
        "mlflow/artifacts", description="Folder of artifacts beside a SQLite store; a server uses its own."
    )


class Config(Strict):
    """`config/config.yaml`: what to run."""

    scale: Scale = Field(Scale.laptop, description="`smoke` (seconds), `laptop` (about a minute a run), `cluster`.")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="Seeds; each gives one run of every method.")
    comparisons: list[ComparisonRequest] = Field(min_length=1, description="The comparisons of the main job.")
    plugins: list[str] = Field(
        [], description="Folders with methods of your own: one `.py` and one `.yaml` file a method."
    )
    data: str = Field("data", description="Folder of prepared data.")
    teachers: str = Field("teachers", description="Folder of trained teachers and their stored outputs.")
    results: str = Field("results", description="Folder of runs, comparisons and reports.")
    tracking: Tracking = Field(Tracking(), description="MLflow store.")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Confidence of every interval and verdict.")
    tasks: str | list[str] | None = Field(
        None, description="Restrict the job to these tasks (for `--config tasks=images`)."
    )
    methods: str | list[str] | None = Field(
        None, description="Restrict the job to these methods (for `--config methods=pld,nkd`)."
    )
    family: str | None = Field(None, description="Restrict the job to one family (for `--config family=weather`).")

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: list[int]) -> list[int]:
        return _distinct_seeds(seeds)

    @model_validator(mode="after")
    def _one_comparison_a_task(self) -> Config:
        tasks = [comparison.task for comparison in self.comparisons]
        twice = sorted({task for task in tasks if tasks.count(task) > 1})
        if twice:
            raise ValueError(f"task {twice[0]!r} stands in two comparisons; put all its methods into one")
        return self


def _distinct_seeds(seeds: list[int]) -> list[int]:
    if any(seed < 0 or seed >= 2**31 for seed in seeds):
        raise ValueError(f"a seed is a whole number from 0 to 2147483647, got {seeds}")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"a seed stands twice in {seeds}; each seed is one run")
    return seeds


# ---------------------------------------------------------------------------------------------- sources and tasks


class Source(Strict):
    """`config/sources/*.yaml`: one file inside a pinned registry package."""

    name: Name = Field(description="Name that tasks use; equals the file's stem.")
    title: str = Field(description="What the data are.")
    registry: Literal["pypi-wheel", "pypi-sdist"] = Field(description="Which kind of package holds the file.")
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Package name.")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!_-]*$", description="Exact version.")
    files: dict[str, str] = Field(min_length=1, description="Path inside the package → SHA-256 of its bytes.")
    licence: str = Field(description="Licence, and what is known about the data's own terms.")
    citation: str = Field("", description="Whom to cite.")

    @field_validator("files")
    @classmethod
    def _files(cls, files: dict[str, str]) -> dict[str, str]:
        for path, digest in files.items():
            if path.startswith("/") or ".." in path.split("/"):
                raise ValueError(f"{path!r} must be a relative path inside the package")
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"{digest!r} is no SHA-256 (64 hexadecimal digits)")
        return files


class Metric(Strict):
    """A score that a task reports."""

    title: str = Field(description="Column heading.")
    direction: Direction | None = Field(None, description="Which way is better; none for a descriptive score.")
    unit: str = Field("", description="Unit, or empty for a pure number.")
    description: str = Field("", description="What it is, with the estimator and the reduction.")
    digits: int = Field(3, ge=0, le=10, description="Decimals in tables.")


class Resources(Strict):
    """What a stage asks of the machine, per job."""

    threads: int = Field(1, ge=1, description="CPU threads.")
    mem_mb: int = Field(2000, ge=100, description="Memory in MB.")
    runtime: int = Field(20, ge=1, description="Time limit in minutes.")
    gpus: int = Field(0, ge=0, description="GPUs.")


class Execution(Strict):
    """How Lightning runs a stage; a scale changes these numbers, never the code path."""

    accelerator: Literal["auto", "cpu", "gpu"] = Field("cpu", description="Lightning's accelerator.")
    devices: int = Field(1, ge=1, description="Devices a node.")
    nodes: int = Field(1, ge=1, description="Nodes.")
    strategy: str = Field("auto", pattern=r"^[a-z0-9_]+$", description="Lightning's strategy.")
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="Precision.")


class TaskScale(Strict):
    """What one scale of a task changes."""

    data: dict[str, Any] = Field({}, description="Options of the data module's `prepare` and of reading.")
    model: dict[str, Any] = Field({}, description="Options of the student network (or forecast model).")
    training: dict[str, Any] = Field({}, description="Optimisation recipe shared by all methods of the task.")
    evaluation: dict[str, Any] = Field({}, description="Options of prediction and evaluation.")
    execution: Execution = Field(Execution(), description="Accelerator, devices, nodes, strategy, precision.")
    resources: Resources = Field(Resources(), description="Resources of a training job.")


class Teacher(Strict):
    """A network that is trained once and whose outputs every student reads."""

    title: str = Field("", description="What it is.")
    method: Name = Field("cross_entropy", description="Method that trains it.")
    model: dict[Scale, dict[str, Any]] = Field(description="Network options, by scale.")
    training: dict[Scale, dict[str, Any]] = Field(description="Changes to the task's recipe, by scale.")
    seed: int = Field(0, ge=0, description="Its seed.")


class Task(Strict):
    """`config/tasks/*.yaml`: a problem on which methods are compared."""

    name: Name = Field(description="Name; equals the file's stem.")
    title: str = Field(description="One line for headings.")
    kind: Name = Field(description="Package under `relent.tasks` that binds data, networks and metrics.")
    summary: str = Field("", description="What is done, for the report.")
    notice: str = Field("", description="What a reader of the results must know first (for example: no evidence).")
    data_module: str = Field(
        pattern=r"^[a-z_]+(\.[a-z_0-9]+)*$", description="Module whose `prepare` writes the data set."
    )
    sources: list[Name] = Field([], description="Source manifests that `prepare` reads.")
    metrics: dict[Name, Metric] = Field(min_length=1, description="Scores, in the order of the tables.")
    primary_metric: Name = Field(description="The score that ranks methods.")
    baseline: Name = Field(description="The method that others are compared with in the tables.")
    checkpoint_rule: Literal["last"] = Field("last", description="Which weights are evaluated.")
    tuning_budget: str = Field(description="How much tuning every method got, for the report.")
    teachers: dict[Name, Teacher] = Field({}, description="Teachers of the task; the first is the default.")
    scales: dict[Scale, TaskScale] = Field(min_length=1, description="Settings by scale.")

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.primary_metric not in self.metrics:
            raise ValueError(f"primary_metric {self.primary_metric!r} is not among the metrics {list(self.metrics)}")
        if self.metrics[self.primary_metric].direction is None:
            raise ValueError(f"primary_metric {self.primary_metric!r} needs a direction: higher or lower")
        return self


# ---------------------------------------------------------------------------------------------- methods


class Paper(Strict):
    """Where a method comes from."""

    title: str = Field(description="Title of the paper.")
    authors: str = Field("", description="Authors.")
    year: int = Field(ge=1900, le=2100, description="Year.")
    arxiv: str = Field("", pattern=r"^(\d{4}\.\d{4,5})?$", description="arXiv id.")
    code: str = Field("", description="Official code (`owner/name`), and its licence.")


class Stage(Strict):
    """One step of a method's training."""

    inputs: list[str] = Field(
        ["data"],
        description="`data`, `teacher` (the task's first), `teacher:NAME`, or an earlier stage of the same method.",
    )
    title: str = Field("", description="What the stage does.")


class Variant(Strict):
    """A named set of hyperparameters."""

    title: str = Field("", description="What is different.")
    hyperparameters: dict[str, Any] = Field({}, description="Values that differ from the defaults.")


class Difference(Strict):
    """A place where the paper and its official code differ."""

    what: str = Field(description="What differs.")
    paper: str = Field(description="What the paper says.")
    code: str = Field(description="What the code does.")
    default: Literal["paper", "code"] = Field(description="Which one is the default here.")
    reason: str = Field(description="Why.")


class Claim(Strict):
    """A falsifiable sentence of a paper, checked from runs."""

    id: Name = Field(description="Name, unique within the method.")
    text: str = Field(description="The sentence.")
    source: str = Field("", description="Where it stands (table, section), or why we check it.")
    kind: Literal["superiority", "non_inferiority", "mechanism", "scaling"] = Field(description="Kind of claim.")
    metric: Name = Field(description="Score that decides.")
    baseline: str = Field(description="Method (`name` or `name:variant`) that it is compared with.")
    variant: Name | None = Field(None, description="Variant of this method; default: the default variant.")
    direction: Direction = Field(description="Which way the claim points.")
    margin: float = Field(0.0, ge=0.0, description="Non-inferiority margin, in the metric's unit.")
    tasks: list[Name] = Field([], description="Tasks on which it is checked; none: all tasks that run the method.")

    @model_validator(mode="after")
    def _margin(self) -> Claim:
        if self.kind == "non_inferiority" and self.margin <= 0:
            raise ValueError("a non_inferiority claim needs a positive margin, in the metric's unit")
        return self


class Method(Strict):
    """`config/methods/<family>/*.yaml`: one paper's algorithm, or a baseline."""

    name: Name = Field(description="Name; equals the file's stem.")
    title: str = Field(description="One line.")
    family: Name = Field(description="Family; equals the folder's name.")
    implementation: str = Field(
        pattern=r"^[\w./]+:[A-Za-z_]\w*$",
        description="`module:Class`, or `file.py:Class` beside the manifest of a plug-in.",
    )
    baseline: bool = Field(False, description="Whether it is a baseline and not a paper's contribution.")
    deterministic: bool = Field(False, description="Whether seeds change nothing: it is then run once.")
    tasks: list[Name] = Field(min_length=1, description="Kinds of task that it fits.")
    summary: str = Field("", description="What it does, in a few sentences.")
    equation: str = Field("", description="Its objective, in plain notation, with the paper's number.")
    paper: Paper | None = Field(None, description="The paper.")
    provenance: str = Field("", description="What is the paper's and what is ours.")
    stages: dict[Name, Stage] = Field(
        {"student": Stage()}, min_length=1, description="Stages in order; the last gives the run."
    )
    default_variant: Name = Field("default", description="The variant that a bare name means.")
    variants: dict[Name, Variant] = Field({"default": Variant()}, min_length=1, description="Variants by name.")
    hyperparameters: dict[Scale, dict[str, Any]] = Field({}, description="What a scale changes, nothing else.")
    resources: dict[Scale, Resources] = Field({}, description="Resources, where they differ from the task's.")
    differences: list[Difference] = Field([], description="Where paper and official code differ.")
    claims: list[Claim] = Field([], description="Claims to check.")

    @model_validator(mode="after")
    def _consistent(self) -> Method:
        if self.default_variant not in self.variants:
            raise ValueError(
                f"default_variant {self.default_variant!r} is not among the variants {list(self.variants)}"
            )
        earlier: list[str] = []
        for stage, settings in self.stages.items():
            for name in settings.inputs:
                if name not in ("data", "teacher", *earlier) and not name.startswith("teacher:"):
                    raise ValueError(
                        f"stage {stage!r} reads {name!r}, which nobody makes; inputs are 'data', 'teacher', "
                        f"'teacher:NAME' or an earlier stage ({', '.join(earlier) or 'there is none'})"
                    )
            earlier.append(stage)
        ids = [claim.id for claim in self.claims]
        if len(set(ids)) != len(ids):
            raise ValueError("two claims have one id; give each its own")
        for claim in self.claims:
            if claim.variant is not None and claim.variant not in self.variants:
                raise ValueError(f"claim {claim.id!r} names variant {claim.variant!r}; there are {list(self.variants)}")
        return self
