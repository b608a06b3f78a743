"""Snakemake in a fork of a process that has loaded it: half of what a dry run costs is its start."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# What the project imports is loaded by each fork, from the folder that is asked about.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["snakemake.cli", "pydantic", "yaml"])


def snakemake(arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the command `snakemake` in a folder."""
    command = ["snakemake", *arguments]
    with tempfile.TemporaryDirectory() as place:
        output, errors = Path(place, "output"), Path(place, "errors")
        process = FORKS.Process(target=_run, args=(command, folder, environment, output, errors))
        process.start()
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode, output.read_text(), errors.read_text())


def _run(command: list[str], folder: Path, environment: dict[str, str], output: Path, errors: Path) -> None:
    for stream, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, environment["PYTHONPATH"])
    sys.argv = command
    from snakemake.cli import main

    main()
