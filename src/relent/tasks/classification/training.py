"""Binds classification data and networks to a stage: batches, stored teacher outputs, predictions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import zarr
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from relent.data.rows import StoredRows, create_rows
from relent.files import whole
from relent.methods.base import Method
from relent.methods.config import MethodConfig
from relent.models.classifiers import build_classifier
from relent.tasks.base import TrainingTask
from relent.tasks.classification.data import (
    ClassificationData,
    Outputs,
    StoredImages,
    read_data,
    read_teacher,
    read_teacher_views,
)
from relent.tasks.classification.measures import (
    MANY_CLASSES,
    attacked_logits,
    head_weight,
    label_summaries,
    sharpness,
)
from relent.tasks.classification.options import Augmentation, EvaluationOptions
from relent.tasks.classification.views import Views
from relent.train.sampling import StepBatchSampler

Batch = dict[str, Tensor]
CHUNK, BLOCK = 256, 4096
"""Items predicted at once (more leave the cache of a CPU core), and written at once."""


class Items(Dataset[Batch]):
    """Items of a split; a list of positions gives a batch at once, without collating."""

    def __init__(self, data: ClassificationData, items: Tensor, teacher: Outputs):
        self.data, self.items, self.teacher = data, items, teacher

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, positions: list[int]) -> Batch:
        index = self.items[torch.as_tensor(positions)]
        batch = {"input": self.data.inputs[index], "label": self.data.labels[index], "index": index}
        return batch | {f"teacher_{name}": values[index] for name, values in self.teacher.items()}


class EpochBatches(Sampler[tuple[int, list[int]]]):
    """The batches of a sampler, each with the epoch that it belongs to."""

    def __init__(self, batches: StepBatchSampler):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for number, positions in enumerate(self.batches, start=self.batches.start):
            yield number // self.batches.per_epoch, positions


class ViewedItems(Dataset[Batch]):
    """Items of a split as an epoch shows them, with what the teacher says of the very view.

    Args:
        items: The items as they are.
        views: Their views.
        teacher: The teacher's outputs on all views, (V, N, …) each.
        seed: Seed of the run, which decides what an epoch shows.
    """

    def __init__(self, items: Items, views: Views, teacher: Outputs, seed: int):
        self.items, self.views, self.teacher, self.seed = items, views, teacher, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, request: tuple[int, list[int]]) -> Batch:
        epoch, positions = request
        data, index = self.items.data, self.items.items[torch.as_tensor(positions)]
        shown = self.views.shown(self.seed, index, epoch)
        batch = {"input": self.views.of(data.whole(index), index, shown), "label": data.labels[index], "index": index}
        return batch | {f"teacher_{name}": values[shown, index] for name, values in self.teacher.items()}


class Chunks(Dataset[Tensor]):
    """Inputs of items, `CHUNK` at once, as they are or as one of their views."""

    def __init__(self, data: ClassificationData, items: Tensor, views: Views | None, view: int | None):
        self.data, self.parts, self.views, self.view = data, torch.split(items, CHUNK), views, view

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Tensor:
        part = self.parts[number]
        if self.views is None or self.view is None:
            return self.data.inputs[part]
        return self.views.of(self.data.whole(part), part, torch.full_like(part, self.view))


def _as_is(batch: Any) -> Any:
    return batch


def _on_disk(data: ClassificationData) -> bool:
    """Whether the images are too many for memory; a teacher's outputs are then stored and read by row too."""
    return isinstance(data.inputs, StoredImages)


class ClassificationDataModule(LightningDataModule):
    """Loaders of one stage.

    Args:
        data: The data set.
        teacher: Stored outputs of the teacher (empty: none).
        split: Split that is trained on.
        config: Hyperparameters (batch size, steps).
        seed: Seed of the run.
        start_batch: Batches seen before a resume.
        views: Augmented views of the images that are trained on, and the teacher's outputs on them (V, N, …).
        processes: Processes that read training batches ahead; 0: this one reads them.
    """

    def __init__(
        self,
        data: ClassificationData,
        teacher: Outputs,
        split: str,
        config: MethodConfig,
        seed: int,
        start_batch: int,
        views: tuple[Views, Outputs] | None = None,
        processes: int = 0,
    ):
        super().__init__()
        self.data, self.teacher, self.split = data, teacher, split
        self.config, self.seed, self.start_batch, self.views = config, seed, start_batch, views
        self.processes = processes

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which the training split is gone through once."""
        size = self.config.batch_size // self.config.accumulate
        return max(1, len(self.data.items(self.split)) // size)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the training split, a function of (seed, batch)."""
        items = Items(self.data, self.data.items(self.split), self.teacher)
        sampler = StepBatchSampler.of_run(len(items), self.config, self.seed, self.start_batch, self.trainer)
        if self.views is None:
            return DataLoader(items, batch_sampler=sampler, collate_fn=_as_is, num_workers=self.processes)
        viewed = ViewedItems(items, *self.views, self.seed)
        batches: Any = EpochBatches(sampler)
        return DataLoader(viewed, batch_sampler=batches, collate_fn=_as_is, num_workers=self.processes)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split, in order."""
        items = Items(self.data, self.data.items("validation"), self.teacher)
        return DataLoader(items, batch_size=CHUNK if _on_disk(self.data) else 1024, collate_fn=_as_is)


class Task(TrainingTask):
    """Classification. Teachers learn from the `teacher` split, students from the `student` split."""

    def __init__(self, spec: Any):
        super().__init__(spec)
        self.data = read_data(spec.inputs["data"])
        self.teacher = read_teacher(spec.inputs["teacher"], self.data) if "teacher" in spec.inputs else {}
        augmentation = spec.data_options.get("augmentation")
        size = self.data.shape.size
        self.views = Views(Augmentation(**augmentation), self.data.pixel_range, size) if augmentation else None
        self.teacher_views: Outputs = {}
        if self.views is not None and self.teacher:
            self.teacher_views = read_teacher_views(spec.inputs["teacher"], self.views.options.model_dump())

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)

    def datamodule(self, config: MethodConfig, start_batch: int) -> ClassificationDataModule:
        views = None if self.views is None else (self.views, self.teacher_views)
        processes = self.spec.data_options.get("loader_processes", 0)
        return ClassificationDataModule(
            self.data, self.teacher, self.spec.role, config, self.spec.seed, start_batch, views, processes
        )

    def network(self) -> nn.Module:
        return build_classifier(self.spec.model_options, self.data.shape, self.classes)

    def peer_network(self) -> nn.Module:
        """A freshly initialised network of the size of the task's first teacher, for online distillation."""
        return build_classifier(self.spec.peer_options, self.data.shape, self.classes)

    def write_outputs(self, module: Method, folder: Path) -> None:
        """A run: `predictions.zarr` with logits of validation and test. A teacher: `outputs.zarr` with logits and
        penultimate features of every item, and of all its augmented views."""
        if self.spec.role == "teacher":
            with whole(folder / "outputs.zarr") as temporary:
                group = zarr.create_group(store=temporary)
                group.attrs.update(classes=self.data.classes, data_checksum=self.data.checksum)
                self._write_all(module, group, temporary)
                if self.views is not None:
                    views = group.create_group("views")
                    views.attrs.update(augmentation=self.views.options.model_dump())
                    self._write_all(module, views, temporary / "views", self.views.options.views)
        module.write_extras(folder)
        if not self.spec.final:
            return
        with whole(folder / "predictions.zarr") as temporary:
            root = zarr.create_group(store=temporary)
            root.attrs.update(classes=self.data.classes, data_checksum=self.data.checksum, module_mode="eval")
            for split in ("validation", "test"):
                self._write_split(module, root.create_group(split), self.data.items(split))
            self._measure(module, root)

    def _write_all(self, module: Method, group: zarr.Group, place: Path, views: int = 0) -> None:
        """Logits (N, C) and features (N, D) of all items, or (V, N, …) of all their views, block after block."""
        items, lead = torch.arange(len(self.data.labels)), (views,) if views else ()
        for view in range(views) if views else (None,):
            chunks = self._chunks(module, items, view)
            for first in range(0, len(items), BLOCK):
                block = zip(*islice(chunks, BLOCK // CHUNK))
                for name, parts in zip(("logits", "features"), block):
                    values, rows = torch.cat(parts), slice(first, first + BLOCK)
                    if name not in group:
                        self._create(group, name, (*lead, len(items), values.shape[1]))
                    if _on_disk(self.data):
                        StoredRows(place / name).write(first, values.numpy(), view)
                    else:
                        group[name][rows if view is None else (view, rows)] = values.numpy()  # type: ignore[index]

    def _create(self, group: zarr.Group, name: str, shape: tuple[int, ...]) -> None:
        """An array of outputs: by row where the images are on disk, else in chunks that are read as a whole."""
        lead = len(shape) - 2
        if _on_disk(self.data):
            create_rows(group, name, shape, "float32", lead)
            return
        group.create_array(name, shape=shape, dtype="float32", chunks=(*(1,) * lead, BLOCK, shape[-1]))

    def _write_split(self, module: Method, group: zarr.Group, items: Tensor) -> None:
        """Index and logits of a split, of the peer too; with very many classes what is needed of them."""
        group.create_array("index", data=items.numpy())
        if self.classes > MANY_CLASSES:
            parts = [
                label_summaries(self._predict(module, part)[0], self.data.labels[part])
                for part in torch.split(items, CHUNK)
            ]
            for name in parts[0]:
                group.create_array(name, data=torch.cat([part[name] for part in parts]).numpy())
            return
        logits, features = self._predict(module, items)
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

    def _predict(self, module: nn.Module, items: Tensor, view: int | None = None) -> tuple[Tensor, Tensor]:
        """Logits and features of items as they are, or of one of their views."""
        logits, features = zip(*self._chunks(module, items, view))
        return torch.cat(logits), torch.cat(features)

    def _chunks(self, module: nn.Module, items: Tensor, view: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The same chunk after chunk; the loader processes read ahead."""
        reference = next(module.parameters())
        processes = self.spec.data_options.get("loader_processes", 0)
        chunks = Chunks(self.data, items, self.views, view)
        generator = torch.Generator()  # Nothing is drawn from it, but a loader would draw from the global one.
        for inputs in DataLoader(chunks, batch_size=None, num_workers=processes, generator=generator):
            dtype = reference.dtype if inputs.is_floating_point() else inputs.dtype
            output = module(inputs.to(reference.device, dtype))
            yield output.logits.float().cpu(), output.features.float().cpu()

    def summary(self) -> dict[str, Any]:
        return {"data_checksum": self.data.checksum, "training_items": len(self.data.items(self.spec.role))}
