r"""SAF: sharpness-aware training for free, by the outputs of earlier epochs.

Du, Zhou, Feng, Tan, Zhou, "Sharpness-Aware Training for Free", arXiv 2205.14083 (NeurIPS 2022). With ẑ_i the logits
that the network itself gave for item i in epoch e − Ẽ,

    L_tra = τ²·mean_i KL( softmax(ẑ_i/τ) ‖ softmax(z_i/τ) )
    L = CE(y, z) + λ·L_tra   for e > e_start,   L = CE before

As in the official code (`AngusDujw/SAF`): the factor τ² (the paper has none; λ 0.3 belongs to the code's form), the
strict e > e_start, logits of the train mode under that epoch's augmentation. It keeps four fixed slots for 15 million
items; here one table an epoch is kept as long as it is needed, in memory or on disk. An item that the epoch left out
(of an incomplete last batch) has no past and no term. The start is stated as a share of the epochs (the code: epoch 5,
or 30 %).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of SAF."""

    weight: float = hyperparameter(0.3, "λ, weight of the trajectory loss.", source="official README", ge=0, le=1000)
    temperature: float = hyperparameter(5.0, "τ.", source="official code", gt=0, le=100)
    lag: int = hyperparameter(2, "Ẽ, epochs back.", source="official run.sh; README 2 or 3", ge=1, le=1000)
    start_share: float = hyperparameter(
        0.1, "Share of the epochs without the term.", source="ours; official code: 5 epochs of 90", ge=0, lt=1
    )
    memory: Literal["ram", "disk"] = hyperparameter(
        "ram", "Where past logits are kept: in memory and the checkpoint, or in files of the run.", source="ours"
    )


def trajectory_loss(past_logits: Tensor, logits: Tensor, temperature: float = 5.0) -> Tensor:
    """τ²·KL(past ‖ present) of each item, (B,); logits (B, C), the past ones get no gradient."""
    past = tempered_log_probs(past_logits.detach(), temperature)
    return temperature**2 * forward_kl(past, tempered_log_probs(logits, temperature))


class LogitMemory:
    """Logits of every item in each of the last epochs; NaN where an item was not seen.

    Args:
        items: N, rows of a table.
        classes: C.
        lag: Ẽ: the table of epoch e is needed until epoch e + Ẽ is over.
        folder: Where tables lie as files; None: in memory.
    """

    def __init__(self, items: int, classes: int, lag: int, folder: Path | None = None):
        self.shape, self.lag, self.folder = (items, classes), lag, folder
        self.tables: dict[int, Tensor] = {}

    def write(self, epoch: int, index: Tensor, logits: Tensor) -> None:
        """Keep logits (B, C) of items (B,) for an epoch."""
        self._table(epoch)[index.cpu()] = logits.detach().float().cpu()

    def read(self, epoch: int, index: Tensor) -> Tensor:
        """Logits (B, C) of items (B,) in an epoch; NaN rows for items without."""
        return self._table(epoch)[index.cpu()]

    def forget(self, epoch: int) -> None:
        """Drop the tables that no epoch from this one on reads."""
        for old in [known for known in self.tables if known < epoch - self.lag]:
            del self.tables[old]
        for path in self.folder.glob("*.npy") if self.folder else ():
            if int(path.stem) < epoch - self.lag:
                path.unlink()

    def _table(self, epoch: int) -> Tensor:
        if epoch not in self.tables:
            if self.folder is None:
                # A checkpoint has tables of its own; files are those of the last one, and are kept until the next.
                self.forget(epoch)
            self.tables[epoch] = self._new(epoch) if self.folder else torch.full(self.shape, torch.nan)
        return self.tables[epoch]

    def _new(self, epoch: int) -> Tensor:
        """A table in a file: the one that a killed run has left, for it holds the same numbers, or an empty one."""
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{epoch}.npy"
        if not path.exists():
            temporary = path.with_suffix(".part")
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=self.shape)
            array[:] = np.nan
            array.flush()
            temporary.rename(path)
        return torch.from_numpy(np.lib.format.open_memmap(path, mode="r+"))


class SAF(ClassifierMethod):
    """Trains with labels and the trajectory loss; with λ = 0 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"weight": 0.0})

    def setup_method(self) -> None:
        """Make room for past logits."""
        folder = Path(self.spec.output) / "checkpoints" / "logits" if self.config.memory == "disk" else None
        items = len(self.task.data.labels)  # type: ignore[attr-defined]
        self.memory = LogitMemory(items, self.classes, self.config.lag, folder)

    @property
    def first_epoch(self) -> int:
        """First epoch with the term: after the start, and not before there is a past."""
        return max(round(self.config.start_share * self.epochs) + 1, self.config.lag)

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, logits, epoch = self.config, output.logits, self.epoch
        terms = {"cross_entropy": label_cross_entropy(batch["label"], tempered_log_probs(logits), reduction="mean")}
        if config.weight == 0:
            return terms
        self.memory.write(epoch, batch["index"], logits)
        if epoch < self.first_epoch:
            return terms
        past = self.memory.read(epoch - config.lag, batch["index"]).to(logits)
        known = past.isfinite().all(-1)
        losses = trajectory_loss(torch.where(known[:, None], past, 0), logits, config.temperature)
        return terms | {"trajectory": config.weight * torch.where(known, losses, 0).mean()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The tables belong to the state of a run; those on disk stay where they are."""
        self.memory.forget(self.epoch)
        if self.config.memory == "ram":
            checkpoint["past_logits"] = dict(self.memory.tables)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the tables of a resumed run."""
        self.memory.tables = dict(checkpoint.get("past_logits", {}))
