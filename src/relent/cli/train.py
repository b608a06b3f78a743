"""`relent train` and `relent evaluate`: the stages of one run."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relent.cli.options import CODE, catalogue_options, find
from relent.errors import PlanError, StoppedError
from relent.files import read_json
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.steps import check_code, step_code
from relent.runspec import RunSpec

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@click.command("train")
@click.argument("task")
@click.argument("method", required=False)
@click.option("--teacher", help="Train this teacher of the task instead of a method.")
@click.option("--variant", help="Variant of the method [its default].")
@click.option("--scale", default="laptop", show_default=True, help="smoke, laptop or cluster.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1), help="Seed of the run.")
@click.option("--stage", help="Stage of the method [its last].")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="CPU threads.")
@click.option(
    "--resume", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Checkpoint to resume from."
)
@click.option("--plan", help="Plan that this job was made for; another code or configuration is refused.")
@catalogue_options
def train_command(
    task: str,
    method: str | None,
    teacher: str | None,
    variant: str | None,
    scale: str,
    seed: int,
    stage: str | None,
    threads: int,
    resume: Path | None,
    plan: str | None,
    catalogue: Catalogue,
) -> None:
    """Train METHOD (or a --teacher) on TASK and write its folder.

    A run that was killed resumes from its last checkpoint and ends with the same weights; SIGTERM and Ctrl-C let it
    finish its step and write one (exit status 143 and 130). The folder holds
    config.json, metrics.csv, weights.safetensors and predictions.zarr (a teacher: outputs.zarr).
    """
    manifest = find(catalogue, "task", task)
    if (method is None) == (teacher is None):
        raise click.UsageError("give a METHOD or --teacher, one of them")
    if teacher is not None:
        if teacher not in manifest.teachers:
            raise click.BadParameter(f"task {task!r} has no teacher {teacher!r}; it has {', '.join(manifest.teachers)}")
        spec = catalogue.teacher_spec(task, teacher, scale)
    else:
        assert method is not None
        chosen = find(catalogue, "method", method)
        if variant is not None and variant not in chosen.variants:
            raise click.BadParameter(f"{method!r} has no variant {variant!r}; it has {', '.join(chosen.variants)}")
        if stage is not None and stage not in chosen.stages:
            raise click.BadParameter(f"{method!r} has no stage {stage!r}; it has {', '.join(chosen.stages)}")
        spec = catalogue.stage_spec(Run(task, method, variant or chosen.default_variant, scale, seed), stage)
    check_plan(spec, plan)
    limit_threads(threads)
    if spec.processes > 1:
        # Torch warns each process of what DDP was told to do on purpose.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # A second of every job: the collector would search the modules that are imported now, again and again.
    gc.disable()
    from relent.train.stage import run_stage

    gc.freeze()
    gc.enable()
    first = os.environ.get("SLURM_PROCID", "0") == "0"
    try:
        run_stage(spec, threads=threads, resume=resume, loggers=live_loggers(spec) if first else ())
    except StoppedError as stopped:
        if first:
            click.echo(f"relent: {stopped}", err=True)
        sys.exit(stopped.status)


def live_loggers(spec: RunSpec) -> Sequence[Logger]:
    """What streams the run to a tracking server while it trains: nothing, unless there is one."""
    if not os.environ.get("RELENT_TRACKING_URI", "").startswith("http"):
        return ()
    from relent.track.live import live_logger

    logger = live_logger(spec)
    return (logger,) if logger is not None else ()


def limit_threads(threads: int) -> None:
    """Tell the numerical libraries how many threads they may start; they read it when they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def check_plan(spec: RunSpec, plan: str | None) -> None:
    """Refuse to run another code or configuration than the one that the job was planned with.

    Raises:
        PlanError: They differ.
    """
    if plan is not None and plan != spec.plan():
        raise PlanError(
            f"{spec.output}: code or configuration changed after this job was planned (plan {plan}, now {spec.plan()});"
            " nothing was written; start the workflow again to run everything with the new version"
        )


@click.command("evaluate")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--dataset", type=click.Path(path_type=Path), help="Prepared data set [the one it was trained with].")
@click.option("--teacher-outputs", type=click.Path(path_type=Path), help="Folder of the teacher to compare with.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="CPU threads.")
@CODE
def evaluate_command(
    folder: Path, dataset: Path | None, teacher_outputs: Path | None, threads: int, code: str | None
) -> None:
    """Score the run in FOLDER on the test split: writes scores.json and figures/."""
    if code is not None:
        check_code(folder / "scores.json", code, step_code("evaluate", read_json(folder / "config.json")["kind"]))
    limit_threads(threads)
    import torch

    from relent.evaluate.run import evaluate_run

    torch.set_num_threads(threads)
    given = {"data": dataset, "teacher": teacher_outputs}
    evaluation = evaluate_run(folder, {name: str(path) for name, path in given.items() if path is not None})
    for name, value in evaluation.scores.items():
        click.echo(f"{name:28s} {value:.6g}")
