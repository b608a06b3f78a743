"""The base of every method's Config, free of torch: hyperparameters with their meaning and their source.

A method's `Config` class is read out of its module without importing the module (which would load torch), so it may
use only pydantic, the standard library's `typing` and `enum`, and this module.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


def hyperparameter(default: Any, description: str, *, source: str = "", **bounds: Any) -> Any:
    """A field of a Config.

    Args:
        default: The default; the paper's value where there is one.
        description: What it means, with its unit.
        source: Where the default comes from (paper and section, official code, or `ours`).
        **bounds: Pydantic's bounds (`ge`, `gt`, `le`, `lt`).
    """
    return Field(default, description=description, json_schema_extra={"source": source} if source else None, **bounds)


class MethodConfig(BaseModel):
    """Optimisation settings that every trained method has; a task's recipe sets them for all its methods."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    max_steps: int = hyperparameter(1000, "Optimiser steps.", source="the task's recipe", ge=0, le=100_000_000)
    batch_size: int = hyperparameter(64, "Items a step, over all devices.", source="the task's recipe", ge=1, le=2**20)
    accumulate: int = hyperparameter(1, "Micro-batches a step.", source="the task's recipe", ge=1, le=4096)
    optimizer: Literal["adamw", "sgd"] = hyperparameter("adamw", "Optimiser.", source="the task's recipe")
    learning_rate: float = hyperparameter(1e-3, "Peak learning rate.", source="the task's recipe", gt=0, le=10)
    weight_decay: float = hyperparameter(1e-2, "Weight decay.", source="the task's recipe", ge=0, le=10)
    momentum: float = hyperparameter(0.9, "Momentum of SGD, beta1 of AdamW.", source="the task's recipe", ge=0, lt=1)
    beta2: float = hyperparameter(0.999, "beta2 of AdamW.", source="the task's recipe", gt=0, lt=1)
    warmup_steps: int = hyperparameter(0, "Steps of linear warm-up.", source="the task's recipe", ge=0)
    schedule: Literal["cosine", "constant"] = hyperparameter(
        "cosine", "Decay after warm-up.", source="the task's recipe"
    )
    gradient_clip: float = hyperparameter(
        0.0, "Largest gradient norm; 0: no clipping.", source="the task's recipe", ge=0
    )
    validate_every: int = hyperparameter(0, "Steps between validations; 0: at the end only.", source="ours", ge=0)
    checkpoint_every: int = hyperparameter(100, "Steps between checkpoints.", source="ours", ge=1)

    @model_validator(mode="after")
    def _divides(self) -> MethodConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        return self
