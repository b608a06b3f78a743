"""Jobs that a killed Snakemake left: ended, waited for, and only those of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relent.slurm.orphans import RECORDS, OrphanError, end_orphans, forget_jobs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose SLURM has three jobs; `scancel` ends those that it is told."""
    folder, commands = tmp_path / "project", tmp_path / "bin"
    (folder / RECORDS).mkdir(parents=True)
    (folder / RECORDS / "workflow").write_text("4\n5\n")
    commands.mkdir()
    table = tmp_path / "jobs"
    table.write_text(f"5|{folder}|rule_student_a\n6|{folder}|my own job\n7|/elsewhere|rule_student_a\n")
    (commands / "squeue").write_text(f"#!/bin/sh\ncat {table}\n")
    (commands / "scancel").write_text(f'#!/bin/sh\nfor j in "$@"; do sed -i "/^$j|/d" {table}; done\n')
    for name in ("squeue", "scancel"):
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_jobs_of_this_folder_are_ended(place: Path) -> None:
    said: list[str] = []
    assert end_orphans(said.append, place) == ["5"]
    assert said == ["1 SLURM jobs of an earlier workflow in this folder are cancelled: 5"]
    assert [line[0] for line in (place.parent / "jobs").read_text().splitlines()] == ["6", "7"]
    assert end_orphans(said.append, place) == []
    assert len(said) == 1


def test_workflow_that_ended_well_asks_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_jobs(place)
    monkeypatch.setenv("PATH", "/nowhere")
    assert end_orphans(print, place) == []


def test_jobs_that_cannot_be_seen_stop_the_workflow(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OrphanError, match="start Snakemake where SLURM's commands are"):
        end_orphans(print, place)
    assert any((place / RECORDS).iterdir())


def test_job_that_does_not_end_stops_the_workflow(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.parent / "bin" / "scancel").write_text("#!/bin/sh\n")
    monkeypatch.setattr("relent.slurm.orphans.PATIENCE_S", 0.0)
    with pytest.raises(OrphanError, match="5 of an earlier workflow do not end"):
        end_orphans(print, place)
