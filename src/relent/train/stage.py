"""Runs one stage: builds method and data, resumes from the last checkpoint, trains, writes the folder by rename."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import platform
import resource
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file

from relent.errors import CheckpointError, ConfigError
from relent.files import remove, whole, write_json
from relent.methods.base import Method
from relent.methods.config import MethodConfig
from relent.runspec import RunSpec
from relent.tasks.base import TrainingTask
from relent.train.history import History
from relent.train.sampling import derive_seed, reseed

LOG = logging.getLogger("relent.train")


def run_stage(spec: RunSpec, *, threads: int = 1, resume: Path | None = None) -> None:
    """Train one stage and write its folder.

    Args:
        spec: What to do.
        threads: CPU threads.
        resume: Checkpoint to resume from; default: the stage's own last one, if there is any.

    Raises:
        CheckpointError: The checkpoint is unreadable or of another configuration.
        ConfigError: The implementation cannot be loaded.
        DataError: An input is missing or broken.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*")
    warnings.filterwarnings("ignore", r".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", r".*does not have many workers.*")
    # The batches are resumed by the sampler, which starts at the batch that the checkpoint counts.
    warnings.filterwarnings("ignore", r".*your dataloader is not resumable.*")
    output = Path(spec.output)
    checkpoints = output / "checkpoints" / spec.plan()
    resume = resume or _last(checkpoints)
    progress: dict[str, Any] = _progress(resume, spec) if resume else {"batches": 0, "step": 0, "seconds": 0.0}
    if resume:
        LOG.info("resuming %s from %s at step %d", spec.output, resume, progress["step"])

    module, datamodule, task = build(spec, progress["batches"])
    clock = _Progress(spec, progress)
    if module.config.max_steps:
        trainer = _trainer(spec, module, checkpoints, clock, progress["step"] if resume else None)
        trainer.fit(module, datamodule=datamodule, ckpt_path=str(resume) if resume else None, weights_only=True)
    else:
        History(checkpoints / "metrics.csv")
    if getattr(module, "global_rank", 0) == 0:
        _write(spec, module, task, output, checkpoints, clock, threads)


def build(spec: RunSpec, start_batch: int = 0) -> tuple[Method, Any, TrainingTask]:
    """Method, data module and task of a stage, initialised from the run's seed."""
    module_name, _, class_name = spec.implementation.partition(":")
    implementation = load_module(module_name)
    task_class = importlib.import_module(f"relent.tasks.{spec.kind}.training").Task
    task: TrainingTask = task_class(spec)
    method_class = getattr(implementation, class_name)
    if not issubclass(method_class, LightningModule):
        raise ConfigError(
            f"{class_name} is no LightningModule; derive it from relent.methods.base.Method", file=module_name
        )
    config: MethodConfig = implementation.Config(**spec.hyperparameters)
    torch.manual_seed(derive_seed("weights", spec.seed, spec.role))
    module: Method = method_class(spec, config, task)
    datamodule = task.datamodule(config, start_batch)
    module.prepare(datamodule)
    return module, datamodule, task


def load_module(name: str) -> ModuleType:
    """Import a project module by name, or a plug-in's file by path."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    specification = importlib.util.spec_from_file_location(f"relent_plugin_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise ConfigError("cannot be loaded as a Python module", file=path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


class _Progress(Callback):
    """Counts batches, reseeds before each, and puts both and the plan into every checkpoint.

    Reseeding makes every draw of a training step a function of (seed, batch), so a resumed run needs no generator
    state and methods of one seed see common random numbers.
    """

    def __init__(self, spec: RunSpec, progress: dict[str, Any]):
        self.spec, self.batches, self.seconds = spec, progress["batches"], progress["seconds"]
        self.began = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds + time.perf_counter() - self.began

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        reseed(derive_seed("batch", self.spec.seed, self.batches, trainer.global_rank))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.batches += 1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["relent"] = {
            "plan": self.spec.plan(),
            "batches": self.batches,
            "step": trainer.global_step,
            "seconds": self.elapsed(),
            "hyperparameters": self.spec.hyperparameters,
        }


def _last(checkpoints: Path) -> Path | None:
    found = checkpoints / "last.ckpt"
    return found if found.is_file() else None


def _progress(path: Path, spec: RunSpec) -> dict[str, Any]:
    """How far a checkpoint is, after checking that it belongs to this stage."""
    try:
        progress = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["relent"]
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


def _trainer(spec: RunSpec, module: Method, checkpoints: Path, clock: _Progress, resume_step: int | None) -> Trainer:
    config = module.config
    saver = ModelCheckpoint(
        dirpath=checkpoints,
        filename="last",
        every_n_train_steps=min(config.checkpoint_every, config.max_steps),
        save_top_k=1,
        enable_version_counter=False,
    )
    execution = spec.execution
    return Trainer(
        accelerator=execution["accelerator"],
        devices=execution["devices"],
        num_nodes=execution["nodes"],
        strategy=execution["strategy"],
        precision=execution["precision"],
        max_steps=config.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulate if module.automatic_optimization else 1,
        gradient_clip_val=(config.gradient_clip or None) if module.automatic_optimization else None,
        val_check_interval=min(config.validate_every or config.max_steps, config.max_steps) * config.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, config.max_steps // 100),
        logger=History(checkpoints / "metrics.csv", resume_step),
        callbacks=[clock, saver],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _write(
    spec: RunSpec, module: Method, task: TrainingTask, output: Path, checkpoints: Path, clock: _Progress, threads: int
) -> None:
    """Write the stage's files by rename, `config.json` last: it marks the folder as whole."""
    seconds = clock.elapsed() if module.config.max_steps else 0.0
    module.eval()
    torch.manual_seed(derive_seed("outputs", spec.seed))
    with torch.no_grad():
        task.write_outputs(module, output)
    with whole(output / "weights.safetensors") as temporary:
        state = {k: v.contiguous().clone() for k, v in module.state_dict().items()}
        save_file(state, temporary, metadata={"format": "pt"})
    with whole(output / "metrics.csv") as temporary:
        temporary.write_bytes((checkpoints / "metrics.csv").read_bytes())
    facts = {
        "training_seconds": round(seconds, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "parameters": sum(p.numel() for p in module.parameters()),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **task.summary(),
    }
    write_json(output / "config.json", spec.to_json() | {"facts": facts})
    remove(output / "checkpoints")
