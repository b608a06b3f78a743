"""What may stand in `config/`: the configuration, sources, tasks and methods, as validated models.

The JSON schemas in `workflow/schemas/` and the configuration reference in `docs/configuration.md` are made from
these classes, so a description here is what a user reads.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from relent.manifest.paths import check_distinct, check_folder, check_plugin

NAME = r"^[a-z][a-z0-9_]*$"
WORD = "[A-Za-z_][A-Za-z0-9_]*"
MEMBER = r"([A-Za-z0-9_][A-Za-z0-9 ._+-]*/)*[A-Za-z0-9_][A-Za-z0-9 ._+-]*"
"""A path inside a package: no part of it can lead upwards or hide."""
MEMBERS = "members.zip"
"""Name under which a source's many files are stored."""
Name = Annotated[str, Field(pattern=NAME, max_length=60)]
Direction = Literal["higher", "lower"]
Goal = Annotated[str, Field(pattern=r"^\S([^\n]*\S)?$", max_length=60)]
Folder = Annotated[str, AfterValidator(check_folder)]
Plugin = Annotated[str, AfterValidator(check_plugin)]


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
    main: bool = Field(
        True, description="Whether a plain `snakemake` runs it; otherwise only where it is asked for by name."
    )


class Group(Strict):
    """Comparisons that answer one question together, on a page of their own."""

    title: str = Field(min_length=1, description="The question, as the heading of the page.")
    tasks: list[Name] = Field(min_length=1, description="Tasks; each has a comparison under `comparisons`.")
    goals: dict[Goal, list[Name]] = Field(
        min_length=1,
        description="What a user may want, in words → metrics that measure it; on each task the first that the task "
        "reports counts.",
    )
    reference: Name = Field(
        "cross_entropy", description="The method in whose training time and memory those of all others are told."
    )


class Tracking(Strict):
    """Where MLflow keeps the runs."""

    uri: str = Field(
        "sqlite:///mlflow/mlflow.db",
        description="MLflow tracking address: a SQLite file (default), `http(s)://` of a tracking server, a database; "
        "give passwords by variables (docs/tracking.md).",
    )
    artifacts: Folder | None = Field(
        "mlflow/artifacts", description="Folder of artifacts beside a SQLite store or database; a server uses its own."
    )


class Dask(Strict):
    """Where the data steps (`prepare` of a large store, verification) do their work."""

    scheduler: Literal["threads", "processes", "distributed", "slurm"] = Field(
        "threads",
        description="`threads` or `processes` of the job itself; `distributed`: a cluster of processes here, "
        "which survives the death of one; `slurm`: one SLURM job a worker.",
    )
    workers: int = Field(1, ge=1, le=10000, description="Workers.")
    threads: int = Field(1, ge=1, le=1000, description="Threads a worker.")
    memory: str | None = Field(
        None,
        pattern=r"^[0-9]+(\.[0-9]+)? ?[kMGT]i?B$",
        description="Memory a worker, such as `4GB`; with `distributed` and `slurm` a worker that takes more is ended "
        "and started again. Needed for `slurm`.",
    )
    partition: str | None = Field(None, pattern=r"^[\w.,-]+$", description="SLURM partition of the workers.")
    account: str | None = Field(None, pattern=r"^[\w.-]+$", description="SLURM account of the workers.")
    walltime: str = Field(
        "01:00:00", pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$", description="Time limit of a worker's SLURM job."
    )
    interface: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="Network interface between SLURM nodes, such as `ib0`."
    )
    directives: list[Annotated[str, Field(pattern=r"^--?[\w-]+([= ][\w.,:/@%-]+)?$")]] = Field(
        [], description="More `sbatch` options of a worker, such as `--qos=normal`."
    )

    @model_validator(mode="after")
    def _memory_of_slurm(self) -> Dask:
        if self.scheduler == "slurm" and self.memory is None:
            raise ValueError("slurm needs the memory of a worker: add memory, such as 8GB")
        return self

    @property
    def job_threads(self) -> int:
        """Threads that a job with these workers takes itself; SLURM workers are jobs of their own."""
        return 1 if self.scheduler == "slurm" else self.workers * self.threads

    @property
    def job_mb(self) -> int:
        """Memory of such a job in MB, if `memory` says what a worker gets; else 0."""
        if self.memory is None or self.scheduler == "slurm":
            return 0
        number, unit = re.fullmatch(r"([0-9.]+) ?([kMGT]i?)B", self.memory).groups()  # type: ignore[union-attr]
        size = {"k": 1e-3, "M": 1.0, "G": 1e3, "T": 1e6}[unit[0]] * float(number)
        return int(self.workers * size)


class Config(Strict):
    """`config/config.yaml`: what to run."""

    scale: Scale = Field(Scale.laptop, description="`smoke` (seconds), `laptop` (about a minute a run), `cluster`.")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="Seeds; each gives one run of every method.")
    comparisons: list[ComparisonRequest] = Field(min_length=1, description="The comparisons of the main job.")
    groups: dict[Name, Group] = Field(
        {},
        description="Groups of these comparisons by name; `snakemake NAME` runs all of one and writes its page, "
        "`results/NAME/overview.html`.",
    )
    plugins: list[Plugin] = Field(
        [], description="Folders with methods of your own: one `.py` and one `.yaml` file a method."
    )
    data: Folder = Field("data", description="Folder of prepared data.")
    teachers: Folder = Field("teachers", description="Folder of trained teachers and their stored outputs.")
    results: Folder = Field("results", description="Folder of runs, comparisons and reports.")
    tracking: Tracking = Field(Tracking(), description="MLflow store.")
    dask: Dask = Field(Dask(), description="Workers of the data steps.")
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
        check_distinct((self.data, self.teachers, self.results))
        return self


def _distinct_seeds(seeds: list[int]) -> list[int]:
    if any(seed < 0 or seed >= 2**31 for seed in seeds):
        raise ValueError(f"a seed is a whole number from 0 to 2147483647, got {seeds}")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"a seed stands twice in {seeds}; each seed is one run")
    return seeds


# ---------------------------------------------------------------------------------------------- sources and tasks


class Archive(Strict):
    """Where a Debian package lies, for machines whose own release has another version of it, or no apt."""

    path: str = Field(
        pattern=r"^pool/[a-z-]+/[a-z0-9]+/[a-z0-9][a-z0-9.+-]+/[A-Za-z0-9][A-Za-z0-9.+_~-]*\.deb$",
        description="Path of the `.deb` below a Debian mirror, `pool/…`.",
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the `.deb`.")
    snapshot: str = Field(
        pattern=r"^\d{8}T\d{6}Z$",
        description="A time at which the archive held it: where snapshot.debian.org is asked, which forgets nothing.",
    )


class Members(Strict):
    """Many files of a package at once, pinned together; they are stored as one archive, `members.zip`."""

    below: str = Field(
        pattern=rf"^{MEMBER}$", description="Folder inside the package; the files are named by their paths below it."
    )
    pattern: str = Field(
        min_length=1,
        description="Regular expression that the whole path below it matches, such as `[^/]+/[^/]+\\.png`.",
    )
    count: int = Field(ge=1, description="How many there are.")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the list that `sha256sum` prints of them (digest, two blanks, path below the folder), "
        "in the order of the paths' bytes.",
    )

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
        return pattern


class Source(Strict):
    """`config/sources/*.yaml`: files inside a pinned package of PyPI or Debian."""

    name: Name = Field(description="Name that tasks use; equals the file's stem.")
    title: str = Field(description="What the data are.")
    registry: Literal["pypi-wheel", "pypi-sdist", "debian"] = Field(description="Kind of package that holds the files.")
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Package name.")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!:~_-]*$", description="Exact version.")
    archive: Archive | None = Field(None, description="Debian only: the package's place in Debian's archive.")
    files: dict[str, str] = Field({}, description="Path inside the package → SHA-256 of its bytes.")
    members: Members | None = Field(None, description="Many files at once, where `files` would be a long list.")
    licence: str = Field(description="Licence, and what is known about the data's own terms.")
    citation: str = Field("", description="Whom to cite.")

    @field_validator("files")
    @classmethod
    def _files(cls, files: dict[str, str]) -> dict[str, str]:
        for path, digest in files.items():
            if not re.fullmatch(MEMBER, path):
                raise ValueError(f"{path!r} must be a relative path inside the package, of letters, digits and ._+-")
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"{digest!r} is no SHA-256 (64 hexadecimal digits)")
        names = [path.rsplit("/", 1)[-1] for path in files]
        if len(set(names)) != len(names) or {"receipt.json", MEMBERS} & set(names):
            raise ValueError(f"files are stored under their base names, which must differ, got {names}")
        return files

    @model_validator(mode="after")
    def _archive(self) -> Source:
        if (self.archive is not None) != (self.registry == "debian"):
            raise ValueError("a source of the registry 'debian' needs `archive` (path, sha256, snapshot), others none")
        return self

    @model_validator(mode="after")
    def _takes_something(self) -> Source:
        if not self.files and self.members is None:
            raise ValueError("a source takes `files`, `members` or both out of its package")
        return self

    def content(self) -> dict[str, Any]:
        """What decides the bytes of its files."""
        return {**self.files, **({"members": self.members.model_dump()} if self.members else {})}

    def pinned(self) -> dict[str, str]:
        """SHA-256 of each stored file by name; of the archive of members the digest of its list."""
        stored = {path.rsplit("/", 1)[-1]: digest for path, digest in self.files.items()}
        return stored | ({MEMBERS: self.members.sha256} if self.members else {})


class Metric(Strict):
    """A score that a task reports."""

    title: str = Field(description="Column heading.")
    direction: Direction | None = Field(None, description="Which way is better; none for a descriptive score.")
    unit: str = Field("", description="Unit, or empty for a pure number.")
    description: str = Field("", description="What it is, with the estimator and the reduction.")
    digits: int = Field(3, ge=0, le=10, description="Decimals in tables.")


class Resources(Strict):
    """What a stage asks of the machine, per job."""

    threads: int = Field(1, ge=1, description="CPU threads of each process.")
    mem_mb: int = Field(2000, ge=100, description="Memory of a node, in MB.")
    runtime: int = Field(20, ge=1, description="Time limit in minutes.")
    gpus: int = Field(0, ge=0, description="GPUs of a node.")


class Execution(Strict):
    """How Lightning runs a stage; a scale changes these numbers, never the code path."""

    accelerator: Literal["auto", "cpu", "gpu"] = Field("cpu", description="Lightning's accelerator.")
    devices: int = Field(1, ge=1, description="Devices a node.")
    nodes: int = Field(1, ge=1, description="Nodes.")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="How several processes (devices × nodes) share a run: `ddp` (what `auto` means): each holds all "
        "weights; `fsdp`: each holds a share of weights, gradients and optimiser state.",
    )
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="Precision.")

    @property
    def processes(self) -> int:
        """Number of processes that share a run."""
        return self.devices * self.nodes

    @model_validator(mode="after")
    def _sharded_precision(self) -> Execution:
        if self.strategy == "fsdp" and self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"strategy 'fsdp' works with precision '32-true' or 'bf16-mixed', not {self.precision!r}")
        return self


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
        pattern=r"^relent(\.[a-z_][a-z0-9_]*)+$", description="Module whose `prepare` writes the data set."
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
    trains: bool = Field(True, description="Whether it trains; otherwise it only computes, and `max_steps` is 0.")
    peer: bool = Field(
        False, description="Whether it trains a network of the first teacher's size alongside (online distillation)."
    )


class Start(Strict):
    """The trained weights that a variant goes on from, and how long."""

    variant: Name = Field(
        description="Variant of the same method, above this one. Its run of the same task, scale and seed is read: it "
        "is trained once, however many variants start from it."
    )
    steps: float = Field(
        gt=0, le=100, description="Steps of this training, and of its warm-up, as a share of `max_steps`."
    )
    learning_rate: float = Field(
        1.0, gt=0, le=100, description="Peak learning rate of this training, as a share of `learning_rate`."
    )


class Variant(Strict):
    """A named set of hyperparameters."""

    title: str = Field("", description="What is different.")
    hyperparameters: dict[str, Any] = Field({}, description="Values that differ from the defaults.")
    start: Start | None = Field(None, description="Weights to fine-tune; none: its training begins at the beginning.")
    reads: list[Name] = Field(
        [],
        description="Other methods whose run of the same task, scale and seed the last stage reads, as an input of "
        "that name (`reward_model`): trained once, however many variants read it.",
    )


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
    tasks: list[Name] = Field(
        [], description="Tasks on which it is checked; none: all that run the method and have the metric."
    )

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
        pattern=rf"^(relent(\.{WORD})+|{WORD}\.py):{WORD}$",
        description="`module:Class`, or `file.py:Class` beside the manifest of a plug-in.",
    )
    baseline: bool = Field(False, description="Whether it is a baseline and not a paper's contribution.")
    deterministic: bool = Field(False, description="Whether seeds change nothing: it is then run once.")
    tasks: list[Name] = Field(min_length=1, description="Kinds of task that it fits.")
    data_modules: list[str] = Field(
        [], description="Data modules whose data sets it can use; none: any of a fitting kind of task."
    )
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

    def fits(self, task: Task) -> bool:
        """Whether it can be run on a task."""
        fitting_data = not self.data_modules or task.data_module in self.data_modules
        return task.kind in self.tasks and fitting_data and (bool(task.teachers) or not self.taught)

    @property
    def taught(self) -> bool:
        """Whether a stage reads a teacher's outputs, or trains a peer of a teacher's size."""
        stages = self.stages.values()
        return any(stage.peer or any(name.partition(":")[0] == "teacher" for name in stage.inputs) for stage in stages)

    def misfit(self, task: Task) -> str:
        """Why it cannot be run on a task, in words."""
        if task.kind not in self.tasks:
            return f"method {self.name!r} is for {', '.join(self.tasks)} tasks, {task.name!r} is {task.kind}"
        if self.taught and not task.teachers:
            return f"method {self.name!r} needs a teacher, but task {task.name!r} has none"
        return (
            f"method {self.name!r} needs data of {' or '.join(self.data_modules)}; those of {task.name!r} come from "
            f"{task.data_module}"
        )

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
            if stage == "start":
                raise ValueError("'start' is what a variant's first weights are called; give the stage another name")
            earlier.append(stage)
        above: list[str] = []
        for name, variant in self.variants.items():
            if variant.start is not None and variant.start.variant not in above:
                raise ValueError(
                    f"variant {name!r} starts from {variant.start.variant!r}, which is no variant above it "
                    f"({', '.join(above) or 'there is none'})"
                )
            above.append(name)
        ids = [claim.id for claim in self.claims]
        if len(set(ids)) != len(ids):
            raise ValueError("two claims have one id; give each its own")
        for claim in self.claims:
            if claim.variant is not None and claim.variant not in self.variants:
                raise ValueError(f"claim {claim.id!r} names variant {claim.variant!r}; there are {list(self.variants)}")
        return self
