"""SLURM jobs that a killed Snakemake left behind: ended before the same runs are submitted again.

Two jobs must not write one run folder. Snakemake's executor does not take up jobs that it has lost, so they are
cancelled; a training job writes a checkpoint when it is told to end, and the new job goes on from there.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from relent.errors import RelentError

# Written by profiles/slurm/bin/patient: the ids of all jobs of a workflow, in a file named by the workflow.
RECORDS = Path(".snakemake/relent-slurm")
PATIENCE_S = 900.0


class OrphanError(RelentError):
    """Jobs of an earlier workflow cannot be seen or do not end."""


def end_orphans(say: Callable[[str], None], folder: Path = Path()) -> list[str]:
    """Cancel the jobs of earlier workflows in this folder and wait until they are gone; returns their ids.

    To be called when Snakemake holds its lock, so that no other workflow is at work here.

    Raises:
        OrphanError: SLURM does not answer, or a job stays.
    """
    records = folder / RECORDS
    if not any(records.glob("*")):
        return []
    orphans = _jobs(folder)
    if orphans:
        say(f"{len(orphans)} SLURM jobs of an earlier workflow in this folder are cancelled: {', '.join(orphans)}")
        _ask("scancel", *orphans)
    deadline, left = time.monotonic() + PATIENCE_S, orphans
    while left:
        if time.monotonic() > deadline:
            raise OrphanError(f"SLURM jobs {', '.join(left)} of an earlier workflow do not end; ask `squeue --me`")
        time.sleep(1)
        left = _jobs(folder)
    forget_jobs(folder)
    return orphans


def forget_jobs(folder: Path = Path()) -> None:
    """Forget the submitted jobs: a workflow that ends by itself leaves none."""
    for record in (folder / RECORDS).glob("*"):
        record.unlink()


def _jobs(folder: Path) -> list[str]:
    """Ids of this user's jobs that have not ended and were submitted by Snakemake from this folder."""
    here, found = folder.resolve(), []
    for line in _ask("squeue", "--me", "--noheader", "--format=%i|%Z|%k").splitlines():
        job, place, comment = line.split("|", 2)
        if os.path.realpath(place) == str(here) and comment.startswith("rule_"):
            found.append(job)
    return found


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise OrphanError(
            f"an earlier workflow submitted SLURM jobs from this folder, and there is no {command[0]} here to see"
            " whether they still run; start Snakemake where SLURM's commands are"
        ) from None
    if done.returncode:
        words = done.stderr.strip()[-200:]
        raise OrphanError(f"{command[0]} does not answer ({words}); start the workflow again later")
    return done.stdout
