"""What a job asks of the machine: the manifest's resources, within what the profile says of the cluster.

A profile's `default-resources` hold the user's few settings; the Snakefile reads them here. Without a profile (a
laptop) there are none, and a run of several processes is started by Lightning itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from relent.errors import ConfigError
from relent.manifest.models import Execution, Resources

# A SLURM job is Snakemake twice (its step, and the job inside) around the command: measured 2 × 120 MB, with margin.
OVERHEAD_MB = 500
Resource = Callable[..., int | str | None]


class Cluster(BaseModel):
    """The settings of a profile that are not the executor's own; zero and the empty text mean: not said."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    launcher: str = Field("", description="What starts the processes of a run of several; none: Lightning does.")
    slurm_partition: str = Field("", description="Partition of jobs without GPUs.")
    gpu_partition: str = Field("", description="Partition of jobs with GPUs.")
    gpu_type: str = Field("", description="Type of GPU, as in `sinfo -o %G`.")
    slurm_extra: str = Field("", description="Further options of every job.")
    gpus_per_node: int = Field(0, ge=0, description="GPUs of one node.")
    max_mem_mb: int = Field(0, ge=0, description="Memory of the largest node, MB.")
    max_runtime: int = Field(0, ge=0, description="Longest time limit, minutes.")

    @classmethod
    def read(cls, resources: Any) -> Cluster:
        """Take the settings out of Snakemake's default resources.

        Args:
            resources: `workflow.resource_settings.default_resources`; None where there are none.

        Raises:
            ConfigError: A value is none that the setting can have.
        """
        pairs = dict(setting.split("=", 1) for setting in (resources.args if resources is not None else ()))
        values = {name: text.strip().strip("'\"") for name, text in pairs.items() if name in cls.model_fields}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"{first['msg']}, got {first['input']!r}", file="profile", key=f"default-resources.{first['loc'][0]}"
            ) from None

    def memory(self, mem_mb: int) -> Resource:
        """Memory of a job: doubled at each further attempt, up to the largest node."""

        def asked(wildcards: Any, attempt: int) -> int:
            return _within(self._memory(mem_mb, attempt), self.max_mem_mb)

        return asked

    def minutes(self, runtime: int) -> Resource:
        """Time limit of a job: doubled at each further attempt, up to the longest."""

        def asked(wildcards: Any, attempt: int) -> int:
            return _within(_doubled(runtime, attempt), self.max_runtime)

        return asked

    def training(self, asked: Callable[[Any], tuple[Resources, Execution]]) -> dict[str, Resource]:
        """Resources of a training rule, as Snakemake wants them: one function a name; None is no such resource.

        A run of one process is submitted as the executor submits any job. One of several (`devices` × `nodes`) is a job
        of as many tasks, and `launch` stands before its command.
        """

        def resource(value: Callable[[Resources, Execution], int | str | None]) -> Resource:
            return lambda wildcards: value(*asked(wildcards))

        resources: dict[str, Resource] = {
            "mem_mb": lambda wildcards, attempt: self.memory(asked(wildcards)[0].mem_mb)(wildcards, attempt),
            "runtime": lambda wildcards, attempt: self.minutes(asked(wildcards)[0].runtime)(wildcards, attempt),
            "gpu": resource(lambda r, e: r.gpus * e.nodes or None),
            "launch": resource(self.launch),
        }
        if self.launcher:
            resources |= {
                "slurm_partition": resource(lambda r, e: self._partition(r)),
                "gpu_model": resource(lambda r, e: self.gpu_type or None if r.gpus else None),
                "slurm_extra": resource(self._extra),
                "nodes": resource(lambda r, e: e.nodes if _processes(e) > 1 else None),
                "tasks": resource(lambda r, e: _processes(e) if _processes(e) > 1 else None),
                # The executor takes `tasks` for tasks a GPU where there are GPUs; none of that is wanted.
                "tasks_per_gpu": resource(lambda r, e: 0 if _processes(e) > 1 else None),
                "mpi": resource(lambda r, e: self.launcher if _processes(e) > 1 else None),
            }
        return resources

    def launch(self, resources: Resources, execution: Execution) -> str:
        """What stands before the command of a run: nothing, or the launcher with the run's shape."""
        if not self.launcher or _processes(execution) == 1:
            return ""
        shape = f"--nodes={execution.nodes} --ntasks={_processes(execution)} --ntasks-per-node={execution.devices}"
        gpus = f" --gpus-per-node={resources.gpus}" if resources.gpus else ""
        # One dead process must end the others, which would wait for it until the time limit.
        return f"{self.launcher} {shape} --cpus-per-task={resources.threads}{gpus} --kill-on-bad-exit=1"

    def check(self, name: str, resources: Resources, execution: Execution) -> None:
        """Refuse a run that the cluster cannot take, before any job.

        Raises:
            ConfigError: It asks for more GPUs than a node has, or for fewer than it has processes that want one.
        """
        if self.gpus_per_node and resources.gpus > self.gpus_per_node:
            raise ConfigError(
                f"{name} asks for {resources.gpus} GPUs a node, the profile says that a node has {self.gpus_per_node};"
                " lower `devices` and `gpus` in its manifest and raise `nodes`, or mend the profile",
                file="profile",
                key="default-resources.gpus_per_node",
            )
        if self.launcher and execution.accelerator == "gpu" and resources.gpus < execution.devices:
            raise ConfigError(
                f"{name} runs on {execution.devices} GPUs a node and asks SLURM for {resources.gpus}; set `gpus` of its"
                " resources to `devices` of its execution",
                key="resources.gpus",
            )

    def _memory(self, mem_mb: int, attempt: int) -> int:
        return _doubled(mem_mb, attempt) + (OVERHEAD_MB if self.launcher else 0)

    def _partition(self, resources: Resources) -> str | None:
        return (self.gpu_partition if resources.gpus else "") or self.slurm_partition or None

    def _extra(self, resources: Resources, execution: Execution) -> str | None:
        options = [self.slurm_extra]
        if _processes(execution) > 1:
            options.append(f"--ntasks-per-node={execution.devices}")
            options += [f"--gpus-per-node={resources.gpus}"] if resources.gpus else []
        return " ".join(option for option in options if option) or None


def prefer_commands(folder: Path) -> None:
    """Let the commands in a folder be found before all others, by this process and those that it starts."""
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def _processes(execution: Execution) -> int:
    return execution.devices * execution.nodes


def _doubled(value: int, attempt: int) -> int:
    return int(value * 2 ** (attempt - 1))


def _within(value: int, ceiling: int) -> int:
    return min(value, ceiling) if ceiling else value
