"""Runs one stage: builds method and data, resumes from the last checkpoint, trains, writes the folder by rename."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import platform
import resource
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from relent.errors import ConfigError, DataError
from relent.files import full_disk_told, remove, whole, write_json
from relent.locks import sole_trainer
from relent.methods.base import Method
from relent.methods.config import MethodConfig
from relent.runspec import RunSpec
from relent.tasks.base import TrainingTask
from relent.train.checkpoints import (
    AT_START,
    Progress,
    WholeFiles,
    inputs_read,
    last_checkpoint,
    read_progress,
    remove_leftovers,
)
from relent.train.history import History
from relent.train.processes import Processes, find_processes, left_behind, others_started, strategy_of
from relent.train.sampling import derive_seed
from relent.train.sharding import Sharded
from relent.train.stopping import Stop

LOG = logging.getLogger("relent.train")


def run_stage(
    spec: RunSpec,
    *,
    threads: int = 1,
    resume: Path | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> None:
    """Train one stage and write its folder.

    A run of several processes is started once for each by `srun`, or once; then this process starts the others.

    Args:
        spec: What to do.
        threads: CPU threads of each process.
        resume: Checkpoint to resume from; default: the stage's own last one, if there is any.
        callbacks: Lightning callbacks beside the run's own; on processes that `run_stage` starts they are missing.
        loggers: Lightning loggers beside the run's own; they log on process 0 alone.

    Raises:
        CheckpointError: The checkpoint is unreadable or of another configuration.
        ConfigError: The implementation cannot be loaded, the machine does not fit the run's execution, or the weights
            that the variant starts from are of another network.
        DataError: An input is missing or broken.
        DivergedError: The weights are no longer finite.
        RelentError: A file cannot be written; the checkpoint before is kept.
        StoppedError: A signal asked the run to stop; it resumes from its checkpoint.
    """
    processes = find_processes(spec)
    sole = nullcontext() if processes.rank else sole_trainer(spec.output)
    with full_disk_told(Path(spec.output)), Stop(spec) as stop, sole:
        run_process(spec, processes, stop, threads, resume, callbacks, loggers)


def run_process(
    spec: RunSpec,
    processes: Processes,
    stop: Stop,
    threads: int,
    resume: Path | None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> None:
    """The part of one process in a stage: all train, process 0 writes."""
    _quieten(processes, threads)
    output = Path(spec.output)
    checkpoints = output / "checkpoints" / spec.plan()
    given, resume = resume, resume or last_checkpoint(checkpoints)
    progress = read_progress(resume, spec) if resume else AT_START
    if resume and not given and progress["read"] != inputs_read(spec):
        LOG.info("%s: its data or teacher changed since its checkpoint was written; it starts afresh", spec.output)
        resume, progress = None, AT_START
    if resume:
        LOG.info("resuming %s from %s at step %d", spec.output, resume, progress["step"])
    module, datamodule, task = build(spec, progress["batches"])
    if not resume:
        load_start(spec, module)
    clock = Progress(spec, module.config, checkpoints, progress, stop)
    if module.config.max_steps:
        own: list[Logger] = []
        if not processes.rank:
            remove_leftovers(checkpoints)
            own = [History(checkpoints / "metrics.csv", progress["step"] if resume else None), *loggers]
        trainer = _trainer(spec, module, processes, checkpoints, [clock, *callbacks], own)
        with left_behind(), others_started(spec, processes, threads, resume), stop.explained():
            trainer.fit(module, datamodule=datamodule, ckpt_path=str(resume) if resume else None, weights_only=True)
            module = _whole_module(spec, module, datamodule, task, trainer)
        module.to(trainer.strategy.root_device)
    elif not processes.rank:
        History(checkpoints / "metrics.csv")
        if spec.role == "teacher" and spec.execution["accelerator"] == "gpu":
            module.to("cuda")  # A teacher that is loaded, not trained, predicts there too.
    if not processes.rank:
        _write(spec, module, task, output, checkpoints, clock, threads)


def _quieten(processes: Processes, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    for package in ("lightning.pytorch", "lightning.fabric", "gcsfs"):
        logging.getLogger(package).setLevel(logging.WARNING)
    if processes.rank:
        LOG.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*")
    warnings.filterwarnings("ignore", r".*does not have many workers.*")
    # The batches are resumed by the sampler, which starts at the batch that the checkpoint counts.
    warnings.filterwarnings("ignore", r".*your dataloader is not resumable.*")
    # Where SLURM is installed, Lightning takes every run for one that ought to be started by srun.
    warnings.filterwarnings("ignore", r".*`srun` command is available.*")
    # Every process runs the whole validation, so that its numbers are those of one process.
    warnings.filterwarnings("ignore", r".*sync_dist=True.*")


def build(spec: RunSpec, start_batch: int = 0) -> tuple[Method, Any, TrainingTask]:
    """Method, data module and task of a stage, initialised from the run's seed."""
    task: TrainingTask = importlib.import_module(f"relent.tasks.{spec.kind}.training").Task(spec)
    module = new_method(spec, task)
    datamodule = task.datamodule(module.config, start_batch)
    module.prepare(datamodule)
    return module, datamodule, task


def new_method(spec: RunSpec, task: TrainingTask) -> Method:
    """The method of a stage, its weights drawn from the run's seed."""
    module_name, _, class_name = spec.implementation.partition(":")
    implementation = load_module(module_name)
    method_class = getattr(implementation, class_name)
    if not issubclass(method_class, LightningModule):
        raise ConfigError(
            f"{class_name} is no LightningModule; derive it from relent.methods.base.Method", file=module_name
        )
    config: MethodConfig = implementation.Config(**spec.hyperparameters)
    torch.manual_seed(derive_seed("weights", spec.seed, spec.role))
    module: Method = method_class(spec, config, task)
    return module


def load_start(spec: RunSpec, module: Method) -> None:
    """Give a method the trained weights that its variant starts from, if it starts from any.

    Raises:
        ConfigError: They are of another network.
        DataError: They are missing or broken.
    """
    if "start" not in spec.inputs:
        return
    path = Path(spec.inputs["start"]) / "weights.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); train the run that {spec.variant!r} starts from") from None
    own = module.state_dict()
    other = [name for name in own.keys() | weights.keys() if _shape(own, name) != _shape(weights, name)]
    if other:
        raise ConfigError(
            f"starts from {path}, whose network is another one ({min(other)} differs); a variant may change what is "
            "trained for, not the network",
            key=f"{spec.method}: variants.{spec.variant}.start",
        )
    module.load_state_dict(weights)


def _shape(state: Mapping[str, torch.Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


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


def _trainer(
    spec: RunSpec,
    module: Method,
    processes: Processes,
    checkpoints: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> Trainer:
    config, execution = module.config, spec.execution
    trainer = Trainer(
        accelerator=execution["accelerator"],
        devices=execution["devices"],
        num_nodes=execution["nodes"],
        strategy=strategy_of(spec),
        precision=execution["precision"],
        plugins=[processes, WholeFiles()],
        default_root_dir=checkpoints,
        max_steps=config.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulate if module.automatic_optimization else 1,
        gradient_clip_val=(config.gradient_clip or None) if module.automatic_optimization else None,
        val_check_interval=min(config.validate_every or config.max_steps, config.max_steps) * config.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, config.max_steps // 100),
        logger=list(loggers) or False,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning's own handlers would ask the other processes from within a signal handler, and requeue SLURM's jobs.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _whole_module(spec: RunSpec, module: Method, datamodule: Any, task: TrainingTask, trainer: Trainer) -> Method:
    """The trained method with all its weights, on process 0 where they were sharded; elsewhere the method itself."""
    if not isinstance(trainer.strategy, Sharded):
        return module
    state = trainer.strategy.lightning_module_state_dict()
    if not trainer.is_global_zero:
        return module
    gathered = new_method(spec, task)
    gathered.prepare(datamodule)
    gathered.load_state_dict(state)
    return gathered


def _write(
    spec: RunSpec, module: Method, task: TrainingTask, output: Path, checkpoints: Path, clock: Progress, threads: int
) -> None:
    """Write the stage's files by rename, `config.json` last: it marks the folder as whole."""
    seconds = clock.elapsed() if module.config.max_steps else 0.0
    remove(output / "config.json")
    module.eval()
    torch.manual_seed(derive_seed("outputs", spec.seed))
    with torch.no_grad():
        task.write_outputs(module, output)
    with whole(output / "weights.safetensors") as temporary:
        state = {k: v.cpu().contiguous().clone() for k, v in module.state_dict().items()}
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
    write_json(output / "config.json", spec.to_json() | {"facts": facts, "read": inputs_read(spec)})
    remove(output / "checkpoints")
