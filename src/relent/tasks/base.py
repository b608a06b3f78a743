"""What a kind of task gives to the training machinery."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from relent.runspec import RunSpec

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

    from relent.methods.base import Method
    from relent.methods.config import MethodConfig


class TrainingTask(ABC):
    """Binds the data and the networks of one kind of task to one stage of a run.

    A subclass lives in `relent.tasks.<kind>.training` under the name `Task`.

    Args:
        spec: The stage; its `inputs` name the folders that may be read, and no others are.
    """

    def __init__(self, spec: RunSpec):
        self.spec = spec

    @abstractmethod
    def datamodule(self, config: MethodConfig, start_batch: int) -> LightningDataModule:
        """The data module; its training loader starts at batch `start_batch` of the run."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A freshly initialised network of the stage's role; the caller has seeded the generator."""

    @abstractmethod
    def write_outputs(self, module: Method, folder: Path) -> None:
        """Write what later stages read: `predictions.zarr` of a run, `outputs.zarr` of a teacher."""

    def summary(self) -> dict[str, Any]:
        """Facts about the data for the run's config.json (checksum, counts)."""
        return {}
