"""Binds classification data and networks to a stage: batches, stored teacher outputs, predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import zarr
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from relent.files import whole
from relent.methods.base import Method
from relent.methods.config import MethodConfig
from relent.models.classifiers import build_classifier
from relent.tasks.base import TrainingTask
from relent.tasks.classification.data import ClassificationData, read_data, read_teacher
from relent.train.sampling import StepBatchSampler

Batch = dict[str, Tensor]
CHUNK = 256
"""Items predicted at once: more leave the cache of a CPU core."""


class Items(Dataset[Batch]):
    """Items of a split; a list of positions gives a batch at once, without collating."""

    def __init__(self, data: ClassificationData, items: Tensor, teacher: dict[str, Tensor]):
        self.data, self.items, self.teacher = data, items, teacher

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, positions: list[int]) -> Batch:
        index = self.items[torch.as_tensor(positions)]
        batch = {"input": self.data.inputs[index], "label": self.data.labels[index], "index": index}
        return batch | {f"teacher_{name}": values[index] for name, values in self.teacher.items()}


def _as_is(batch: Any) -> Any:
    return batch


class ClassificationDataModule(LightningDataModule):
    """Loaders of one stage.

    Args:
        data: The data set.
        teacher: Stored outputs of the teacher (empty: none).
        split: Split that is trained on.
        config: Hyperparameters (batch size, steps).
        seed: Seed of the run.
        start_batch: Batches seen before a resume.
    """

    def __init__(
        self,
        data: ClassificationData,
        teacher: dict[str, Tensor],
        split: str,
        config: MethodConfig,
        seed: int,
        start_batch: int,
    ):
        super().__init__()
        self.data, self.teacher, self.split = data, teacher, split
        self.config, self.seed, self.start_batch = config, seed, start_batch

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the training split, a function of (seed, batch)."""
        items = Items(self.data, self.data.items(self.split), self.teacher)
        sampler = StepBatchSampler.of_run(len(items), self.config, self.seed, self.start_batch, self.trainer)
        return DataLoader(items, batch_sampler=sampler, collate_fn=_as_is)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split, in order."""
        items = Items(self.data, self.data.items("validation"), self.teacher)
        return DataLoader(items, batch_size=1024, collate_fn=_as_is)


class Task(TrainingTask):
    """Classification. Teachers learn from the `teacher` split, students from the `student` split."""

    def __init__(self, spec: Any):
        super().__init__(spec)
        self.data = read_data(spec.inputs["data"])
        self.teacher = read_teacher(spec.inputs["teacher"], self.data) if "teacher" in spec.inputs else {}

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)

    def datamodule(self, config: MethodConfig, start_batch: int) -> ClassificationDataModule:
        return ClassificationDataModule(self.data, self.teacher, self.spec.role, config, self.spec.seed, start_batch)

    def network(self) -> nn.Module:
        return build_classifier(self.spec.model_options, self.data.shape, self.classes)

    def write_outputs(self, module: Method, folder: Path) -> None:
        """A run: `predictions.zarr` with logits of validation and test. A teacher: `outputs.zarr` with logits and
        penultimate features of every item."""
        if self.spec.role == "teacher":
            logits, features = self._predict(module, torch.arange(len(self.data.labels)))
            with whole(folder / "outputs.zarr") as temporary:
                group = zarr.create_group(store=temporary)
                group.create_array("logits", data=logits.numpy(), chunks=(4096, self.classes))
                group.create_array("features", data=features.numpy(), chunks=(4096, features.shape[1]))
                group.attrs.update(classes=self.data.classes, data_checksum=self.data.checksum)
        if not self.spec.final:
            return
        with whole(folder / "predictions.zarr") as temporary:
            root = zarr.create_group(store=temporary)
            root.attrs.update(classes=self.data.classes, data_checksum=self.data.checksum, module_mode="eval")
            for split in ("validation", "test"):
                items = self.data.items(split)
                group = root.create_group(split)
                group.create_array("logits", data=self._predict(module, items)[0].numpy())
                group.create_array("index", data=items.numpy())

    def _predict(self, module: Method, items: Tensor) -> tuple[Tensor, Tensor]:
        reference = next(module.parameters())
        outputs = [module(self.data.inputs[part].to(reference.device)) for part in torch.split(items, CHUNK)]
        logits = torch.cat([output.logits.float().cpu() for output in outputs])
        return logits, torch.cat([output.features.float().cpu() for output in outputs])

    def summary(self) -> dict[str, Any]:
        return {"data_checksum": self.data.checksum, "training_items": len(self.data.items(self.spec.role))}
