"""The base of every method's Config, free of torch: hyperparameters with their meaning and their source.

A method's `Config` class is read out of its module without importing the module (which would load torch), so it may
use only pydantic, the standard library's `typing` and `enum`, and this module.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]


def hyperparameter(
    default: Any, description: str, *, source: str = "", omit_default: bool = False, **bounds: Any
) -> Any:
    """A field of a Config.

    Args:
        default: The default; the paper's value where there is one.
        description: What it means, with its unit.
        source: Where the default comes from (paper and section, official code, or `ours`).
        omit_default: Leave it out of a run's settings where it has its default, so that runs which were planned before
            the hyperparameter existed keep their plan.
        **bounds: Pydantic's bounds (`ge`, `gt`, `le`, `lt`).
    """
    extra: Any = {"source": source} if source else None
    omitted = (lambda value: value == default) if omit_default else None
    return Field(default, description=description, json_schema_extra=extra, exclude_if=omitted, **bounds)


class MethodConfig(BaseModel):
    """Optimisation settings that every trained method has; a task's recipe sets them for all its methods."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    max_steps: int = hyperparameter(1000, "Optimiser steps.", source="the task's recipe", ge=0, le=100_000_000)
    batch_size: int = hyperparameter(64, "Items a step, over all devices.", source="the task's recipe", ge=1, le=2**20)
    accumulate: int = hyperparameter(1, "Micro-batches a step.", source="the task's recipe", ge=1, le=4096)
    optimizer: Literal["adamw", "sgd", "lamb"] = hyperparameter(
        "adamw", "Optimiser; `lamb` is timm's: `pip install timm`.", source="the task's recipe"
    )
    learning_rate: float = hyperparameter(1e-3, "Peak learning rate.", source="the task's recipe", gt=0, le=10)
    weight_decay: float = hyperparameter(1e-2, "Weight decay.", source="the task's recipe", ge=0, le=10)
    decay_all: bool = hyperparameter(
        False,
        "Weight decay on biases and norms too; else on matrices and convolutions alone.",
        source="the task's recipe",
        omit_default=True,
    )
    momentum: float = hyperparameter(
        0.9, "Momentum of SGD, beta1 of AdamW and LAMB.", source="the task's recipe", ge=0, lt=1
    )
    nesterov: bool = hyperparameter(
        False,
        "Nesterov's form of momentum; needs `sgd` and a momentum above 0.",
        source="the task's recipe",
        omit_default=True,
    )
    beta2: float = hyperparameter(0.999, "beta2 of AdamW and LAMB.", source="the task's recipe", gt=0, lt=1)
    warmup_steps: int = hyperparameter(0, "Steps of linear warm-up.", source="the task's recipe", ge=0)
    schedule: Literal["cosine", "constant", "step"] = hyperparameter(
        "cosine", "Decay after warm-up.", source="the task's recipe"
    )
    milestones: list[Share] = hyperparameter(
        [],
        "With `step`: ascending shares of max_steps at which the learning rate falls, such as [0.3, 0.6, 0.9].",
        source="the task's recipe",
        omit_default=True,
    )
    step_factor: float = hyperparameter(
        0.1,
        "With `step`: what a milestone multiplies the learning rate by.",
        source="the task's recipe",
        omit_default=True,
        gt=0,
        lt=1,
    )
    gradient_clip: float = hyperparameter(
        0.0, "Largest gradient norm; 0: no clipping.", source="the task's recipe", ge=0
    )
    validate_every: int = hyperparameter(0, "Steps between validations; 0: at the end only.", source="ours", ge=0)
    checkpoint_every: int = hyperparameter(100, "Steps between checkpoints.", source="ours", ge=1)

    @field_validator("nesterov")
    @classmethod
    def _has_momentum(cls, nesterov: bool, others: ValidationInfo) -> bool:
        optimizer, momentum = others.data.get("optimizer"), others.data.get("momentum")
        if nesterov and (optimizer != "sgd" or not momentum):
            raise ValueError(f"needs optimizer sgd with momentum above 0, got {optimizer} with {momentum}")
        return nesterov

    @field_validator("milestones")
    @classmethod
    def _fit_the_schedule(cls, milestones: list[float], others: ValidationInfo) -> list[float]:
        schedule = others.data.get("schedule")
        if bool(milestones) != (schedule == "step"):
            wrong = "has no effect" if milestones else "must be given, such as [0.3, 0.6, 0.9],"
            raise ValueError(f"{wrong} with schedule {schedule}; `step` and milestones belong together")
        if any(a >= b for a, b in pairwise(milestones)):
            raise ValueError(f"must ascend, got {milestones}")
        return milestones

    @model_validator(mode="after")
    def _divides(self) -> MethodConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        return self
