"""What a task manifest may say about data, network and evaluation; each kind of task has its own, free of torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Options that refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskOptions(Strict):
    """The options of one scale of a task.

    A kind of task derives `Options` from it in `relent.tasks.<kind>.options`, with models for `data`, `model` and
    `evaluation`. They are checked when the catalogue is read, before any job starts.
    """

    @classmethod
    def of(cls, data_module: str) -> type[TaskOptions]:
        """The options of tasks whose data a module prepares; here they are the same for all."""
        return cls
