"""Checkpoints: when they are written, how, and what a run reads from one to go on.

A checkpoint of step n is written when step n is over and done with: its numbers are in `metrics.csv` and the validation
that follows it has run. So a run that is killed at any moment loses nothing but the steps since its last checkpoint.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from relent.errors import CheckpointError, DivergedError
from relent.files import mark_digest, remove, whole
from relent.manifest.paths import Layout
from relent.methods.config import MethodConfig
from relent.runspec import RunSpec
from relent.train.sampling import derive_seed, reseed
from relent.train.stopping import Stop

NAME = "last.ckpt"


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name beside its own and renames it: the previous one stays until then.

    (Lightning writes into the machine's folder for temporary files, from where a rename may be a copy.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one file.

        Raises:
            RelentError: The disk is full, or the folder cannot be written.
        """
        with whole(path) as temporary:
            try:
                with temporary.open("wb") as handle:
                    torch.save(checkpoint, handle)
            except RuntimeError as error:
                # Torch tells what its writer expected; what the system said stands behind it.
                raise error.__context__ if isinstance(error.__context__, OSError) else error  # noqa: B904


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from, if it has one."""
    found = folder / NAME
    return found if found.is_file() else None


def inputs_read(spec: RunSpec) -> dict[str, str]:
    """What identifies the content of each input of a stage."""
    return {name: mark_digest(Layout.mark(folder, name)) for name, folder in spec.inputs.items()}


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for path in folder.glob(".*.part"):
        remove(path)


def read_progress(path: Path, spec: RunSpec) -> dict[str, Any]:
    """How far a checkpoint is, after checking that it belongs to this stage.

    Raises:
        CheckpointError: It is no whole checkpoint, or of another configuration.
    """
    try:
        progress: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["relent"]
    except Exception as error:
        raise CheckpointError(
            f"{path}: is no whole Relent checkpoint ({type(error).__name__}); delete it to start this run afresh"
        ) from None
    if progress["plan"] != spec.plan():
        other, own = progress["hyperparameters"], spec.hyperparameters
        differing = [
            f"{k}: {other.get(k)} there, {own.get(k)} here" for k in sorted(own | other) if other.get(k) != own.get(k)
        ]
        why = "; ".join(differing) or "its code, task or data settings differ"
        raise CheckpointError(f"{path}: comes from another configuration ({why}); resume with the one that wrote it")
    return progress


AT_START: dict[str, Any] = {"batches": 0, "step": 0, "seconds": 0.0, "validated": True}


class Progress(Callback):
    """Counts batches, reseeds before each, writes checkpoints, and ends the run when it is asked to stop.

    Reseeding makes every draw of a training step a function of (seed, batch, process), so a resumed run needs no
    generator state and methods of one seed see common random numbers.

    Args:
        spec: The run.
        config: Its hyperparameters.
        folder: Folder of its checkpoints.
        progress: Where it goes on, of `read_progress`, or `AT_START`.
        stop: The request to stop.
    """

    def __init__(self, spec: RunSpec, config: MethodConfig, folder: Path, progress: dict[str, Any], stop: Stop):
        self.spec, self.config, self.path, self.stop = spec, config, folder / NAME, stop
        self.batches, self.seconds = progress["batches"], progress["seconds"]
        self.validated, self.saved_step = progress["validated"], progress["step"]
        self.began = time.perf_counter()
        self.counters: dict[str, Any] | None = None
        """Lightning's counters at the end of the step, where a checkpoint of it may be written."""
        self.wanted = False
        self.stopping = False

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.batches // self.config.accumulate)

    def elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds + time.perf_counter() - self.began

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.perf_counter()
        self.stop.training = True
        if not self.validated:
            # Stopped in the middle of a validation, which Lightning would leave out now.
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False
            trainer.validating = True
            validation.run()
            trainer.training = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._between_steps(trainer, pl_module)
        reseed(derive_seed("batch", self.spec.seed, self.batches, trainer.global_rank))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.batches += 1
        self.stopping = self.stop.asked_between_batches() or self.stopping
        config, step = self.config, self.step
        due = step % config.checkpoint_every == 0 or step == config.max_steps
        validates = step % min(config.validate_every or config.max_steps, config.max_steps) == 0
        if self.batches % config.accumulate == 0 and (due or self.stopping or validates):
            # Lightning goes on rightly from its counters as they are here, and not as they are a little later.
            self.counters = copy.deepcopy(trainer.fit_loop.state_dict())
            self.wanted = due or self.stopping

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reseed(derive_seed("validation", self.spec.seed, self.batches))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.stopping = self.stop.asked() or self.stopping
        if self.stopping:
            # After the last step nothing would run this validation again: the checkpoint before it has to do.
            if self.counters is not None and self.step < self.config.max_steps:
                self._save(trainer, pl_module, validated=False)
            self._leave()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stopping = self.stop.asked() or self.stopping
        self._between_steps(trainer, pl_module)
        self.stop.training = False

    def _between_steps(self, trainer: Trainer, module: LightningModule) -> None:
        if self.counters is not None and self.wanted:
            self._save(trainer, module, validated=True)
        self.counters = None
        if self.stopping and self.saved_step == self.step and self.batches % self.config.accumulate == 0:
            self._leave()

    def _save(self, trainer: Trainer, module: LightningModule, validated: bool) -> None:
        finite = all(bool(p.isfinite().all()) for p in _local(module))
        if self.stop.largest(int(not finite)) != [0]:
            raise DivergedError(
                f"{self.spec.output}: the weights are not finite at step {self.step} (they were at step"
                f" {self.saved_step}); lower learning_rate or set gradient_clip"
            )
        self.validated, self.saved_step = validated, self.step
        trainer.save_checkpoint(self.path, weights_only=False)

    def _leave(self) -> None:
        where = f"{self.path} is of step {self.saved_step}" if self.path.exists() else "there is no checkpoint yet"
        raise self.stop.error(f" at step {self.step}; {where}, the same command goes on from there")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"]["fit_loop"] = self.counters
        checkpoint["relent"] = {
            "plan": self.spec.plan(),
            "batches": self.batches,
            "step": self.step,
            "seconds": self.elapsed(),
            "validated": self.validated,
            "hyperparameters": self.spec.hyperparameters,
            "read": inputs_read(self.spec),
        }


def _local(module: LightningModule) -> list[torch.Tensor]:
    """What this process holds of each parameter."""
    return [p.to_local() if hasattr(p, "to_local") else p for p in module.parameters()]
