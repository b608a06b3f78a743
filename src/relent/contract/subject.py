"""The method under test: its stages cut short, with every output in a work folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from relent.data.receipt import NAME as RECEIPT
from relent.data.receipt import sha256
from relent.errors import ConfigError, DataError, nearest
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.models import Method, Task
from relent.manifest.paths import Layout
from relent.runspec import RunSpec
from relent.train.stage import run_stage

STEPS, TEACHER_STEPS = 7, 20
CHECKPOINT_EVERY = 3
DIES_AFTER_BATCH = 5
VALIDATE_EVERY = 4
READ = "read"
"""Place of the runs of other methods that the variant reads."""
EXECUTION = {"accelerator": "cpu", "devices": 1, "nodes": 1, "strategy": "auto", "precision": "32-true"}


@dataclass(frozen=True)
class Subject:
    """A method on a task at a scale; trainings take place in sub-folders of `folder`, called places."""

    catalogue: Catalogue
    method: Method
    task: Task
    scale: str
    folder: Path
    variant: str

    @classmethod
    def of(
        cls, catalogue: Catalogue, name: str, task: str | None, scale: str, folder: Path, variant: str | None = None
    ) -> Subject:
        """Find method, task and data.

        Args:
            catalogue: All manifests.
            name: The method.
            task: The task; default: the first whose kind the method fits.
            scale: The scale whose settings are used, cut short.
            folder: Work folder.
            variant: The variant; default: the method's.

        Raises:
            ConfigError: No such method, variant or task, or they do not fit.
            DataError: The task's data set is not prepared; says how to do it.
        """
        if name not in catalogue.methods:
            raise ConfigError(f"no method {name!r}{nearest(name, catalogue.methods)}")
        method = catalogue.methods[name]
        variant = variant or method.default_variant
        if variant not in method.variants:
            raise ConfigError(f"method {name!r} has no variant {variant!r}{nearest(variant, method.variants)}")
        fitting = [t.name for t in catalogue.tasks.values() if method.fits(t)]
        if task is not None and task not in catalogue.tasks:
            raise ConfigError(f"no task {task!r}{nearest(task, catalogue.tasks)}")
        if task is not None and task not in fitting:
            raise ConfigError(method.misfit(catalogue.tasks[task]))
        if not fitting:
            raise ConfigError(f"method {name!r} is for {', '.join(method.tasks)} tasks; there is no such task")
        task = task or fitting[0]
        catalogue.scale_of(catalogue.tasks[task], scale)
        data = Path(catalogue.layout.dataset(task, scale))
        if not (data / RECEIPT).is_file():
            raise DataError(f"{data}: does not exist; run `snakemake data --config scale={scale} tasks={task}`")
        return cls(catalogue, method, catalogue.tasks[task], scale, folder, variant)

    def specs(
        self, place: str, seed: int = 0, hyperparameters: Mapping[str, Any] = {}, method: str | None = None
    ) -> dict[str, RunSpec]:
        """Shortened stages of the method (or of another one), in order: stage → specification.

        Args:
            place: Sub-folder for the outputs.
            seed: Seed of the run.
            hyperparameters: Values over those of the variant.
            method: Another method, such as a baseline, whose default variant is meant.
        """
        manifest = self.catalogue.methods[method] if method else self.method
        variant = manifest.default_variant if method else self.variant
        catalogue = self._moved(place)
        run = Run(self.task.name, manifest.name, variant, self.scale, seed)
        found = {}
        for stage in manifest.stages:
            spec = shortened(catalogue.stage_spec(run, stage), STEPS, hyperparameters)
            # One run of what is read stands for those of every seed and place.
            read = {name: self._run_read(name) for name in manifest.variants[variant].reads if name in spec.inputs}
            found[stage] = replace(spec, inputs={**spec.inputs, **read})
        return found

    def _run_read(self, name: str) -> str:
        """Folder of the run of another method that the variant reads."""
        return list(self.specs(READ, method=name).values())[-1].output

    def trained(self, place: str, **changes: Any) -> Path:
        """Train all stages, once a place; returns the folder of the run."""
        for spec in self.specs(place, **changes).values():
            self.train(spec)
        return Path(spec.output)

    def train(self, spec: RunSpec) -> None:
        """Train one stage, unless its folder is whole; what it reads of others is trained first."""
        self.prepare_inputs(spec)
        if not (Path(spec.output) / "config.json").is_file():
            run_stage(spec)

    def prepare_inputs(self, spec: RunSpec) -> None:
        """Train the teacher that a stage reads, and the runs of other methods, for a few steps, once."""
        if "teacher" in spec.inputs:
            self.teacher(Path(spec.inputs["teacher"]).parent.name)
        for name in self.catalogue.methods[spec.method].variants[spec.variant].reads:
            if name in spec.inputs:
                self.trained(READ, method=name)

    def teacher(self, name: str) -> str:
        """Train a teacher of the task for a few steps, once; returns its folder."""
        spec = shortened(self._moved("").teacher_spec(self.task.name, name, self.scale), TEACHER_STEPS, {})
        self.train(spec)
        return spec.output

    def _moved(self, place: str) -> Catalogue:
        """The catalogue with teachers and results in the work folder."""
        layout = Layout(self.catalogue.layout.data, f"{self.folder}/teachers", f"{self.folder}/{place}")
        return replace(self.catalogue, layout=layout)


def shortened(spec: RunSpec, steps: int, changes: Mapping[str, Any]) -> RunSpec:
    """The stage with few steps, checkpoints and a validation on the way, on one CPU; one without training stays so."""
    values = spec.hyperparameters
    short = {
        "max_steps": min(steps, values["max_steps"]),
        "warmup_steps": min(2, values["warmup_steps"]),
        "checkpoint_every": CHECKPOINT_EVERY,
        "validate_every": VALIDATE_EVERY,
    }
    return replace(spec, hyperparameters={**values, **short, **changes}, execution=EXECUTION)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a run and of its earlier stages: stage folder and name → tensor."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("weights.safetensors")):
        place = path.parent.relative_to(folder)
        found |= {f"{place}/{name}": tensor for name, tensor in load_file(path).items()}
    return found


def stored_outputs(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the zarr stores (predictions, outputs) in a folder."""
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*.zarr/**/*")) if p.is_file()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors of `one` that `other` lacks or holds with other bits."""
    return [name for name, tensor in one.items() if name not in other or not same_bits(tensor, other[name])]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors agree in shape, type and every byte."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8))
