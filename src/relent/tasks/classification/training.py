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
from relent.tasks.classification.measures import (
    MANY_CLASSES,
    attacked_logits,
    head_weight,
    sharpness,
    store_summaries,
)
from relent.tasks.classification.options import EvaluationOptions
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

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which the training split is gone through once."""
        size = self.config.batch_size // self.config.accumulate
        return max(1, len(self.data.items(self.split)) // size)

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

    def peer_network(self) -> nn.Module:
        """A freshly initialised network of the size of the task's first teacher, for online distillation."""
        return build_classifier(self.spec.peer_options, self.data.shape, self.classes)

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
        module.write_extras(folder)
        if not self.spec.final:
            return
        with whole(folder / "predictions.zarr") as temporary:
            root = zarr.create_group(store=temporary)
            root.attrs.update(classes=self.data.classes, data_checksum=self.data.checksum, module_mode="eval")
            for split in ("validation", "test"):
                self._write_split(module, root.create_group(split), self.data.items(split))
            self._measure(module, root)

    def _write_split(self, module: Method, group: zarr.Group, items: Tensor) -> None:
        """Index and logits of a split, of the peer too; with very many classes what is needed of them."""
        logits, features = self._predict(module, items)
        group.create_array("index", data=items.numpy())
        if self.classes > MANY_CLASSES:
            store_summaries(group, logits, self.data.labels[items])
            return
        group.create_array("logits", data=logits.numpy())
        group.create_array("features", data=features.numpy())
        peer = getattr(module, "peer", None)
        if isinstance(peer, nn.Module):
            group.create_array("peer_logits", data=self._predict(peer, items)[0].numpy())

    def _measure(self, module: Method, root: zarr.Group) -> None:
        """What the task's evaluation options ask for beside the predictions."""
        options = EvaluationOptions(**self.spec.evaluation_options)
        for name, attack in options.attacks.items():
            items = self.data.items("test")[: options.attacked_items]
            logits = attacked_logits(module, self.data, items, attack, self.spec.seed)
            root.create_array(f"attacks/{name}/logits", data=logits.numpy())
            root.create_array(f"attacks/{name}/index", data=items.numpy())
        if options.sharpness:
            root.attrs.update(sharpness=sharpness(module, self.data, self.data.items("student")))
        weight = head_weight(module)
        if weight is not None and self.classes <= MANY_CLASSES:
            root.create_array("head", data=weight.numpy())

    def _predict(self, module: nn.Module, items: Tensor) -> tuple[Tensor, Tensor]:
        reference = next(module.parameters())
        inputs = self.data.inputs
        dtype = reference.dtype if inputs.is_floating_point() else inputs.dtype
        outputs = [module(inputs[part].to(reference.device, dtype)) for part in torch.split(items, CHUNK)]
        logits = torch.cat([output.logits.float().cpu() for output in outputs])
        return logits, torch.cat([output.features.float().cpu() for output in outputs])

    def summary(self) -> dict[str, Any]:
        return {"data_checksum": self.data.checksum, "training_items": len(self.data.items(self.spec.role))}
