"""Looks at machine, project, tracking store and data, and says what is missing and how to get it."""

from __future__ import annotations

import os
import socket
import sqlite3
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from relent.data.receipt import NAME as RECEIPT
from relent.data.receipt import check_receipt
from relent.errors import DataError, RelentError, masked
from relent.inform import machine
from relent.project import CONFIG, Project
from relent.track.address import sqlite_path

Severity = Literal["broken", "missing", "note"]
SMALL_DISK_GIB = 2.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass
class Finding:
    """Something that is not as it could be."""

    severity: Severity
    """`broken`: nothing works before it is mended; `missing`: made or fetched when needed; `note`: good to know."""
    what: str
    remedy: str


@dataclass
class Examination:
    """All facts, and what is to be done."""

    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, what: str, remedy: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(severity, what, remedy))

    @property
    def sound(self) -> bool:
        """Whether nothing essential is broken."""
        return all(finding.severity != "broken" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Facts, findings and the verdict."""
        return {**self.facts, "findings": [asdict(f) for f in self.findings], "sound": self.sound}


def examine(config: Path = CONFIG) -> Examination:
    """Examine this machine and the project whose configuration is `config`."""
    found = Examination()
    _software(found)
    _slurm(found)
    try:
        project = Project.load(file=config)
    except RelentError as error:
        if config.is_file():
            found.add("broken", str(error), f"mend {config} or the manifest that is named")
        else:
            found.add("broken", f"there is no {config} here", "go to the project's folder")
        _hardware(found, None)
        return found
    _hardware(found, project)
    _folders(found, project)
    _tracking(found, project)
    _data(found, project)
    return found


def _hardware(found: Examination, project: Project | None) -> None:
    facts = found.facts["hardware"] = machine.hardware(Path())
    if facts["disk_free_gib"] < SMALL_DISK_GIB:
        found.add("note", f"only {facts['disk_free_gib']} GiB of disk are free", "the laptop scale wants about 1 GiB")
    if project is None:
        return
    runs = [run for comparison in project.main_comparisons() for run in comparison.runs]
    asked = [project.catalogue.resources(run.task, run.method, run.scale) for run in runs]
    wanted, free = max(resources.mem_mb for resources in asked) / 1024, facts["memory_available_gib"]
    if free is not None and free < wanted:
        found.add("note", f"{free} GiB of memory are free, a run asks for {wanted:.1f}", "close other programs")
    elsewhere = found.facts["gpus"] or found.facts["slurm"]["commands"]["sbatch"]
    if any(resources.gpus for resources in asked) and not elsewhere:
        remedy = "go to a machine with one, or set `scale: laptop` in the configuration"
        found.add("missing", "the configuration asks for GPUs, and there is neither one here nor SLURM", remedy)


def _software(found: Examination) -> None:
    facts = found.facts["software"] = machine.software()
    gpus = found.facts["gpus"] = machine.gpus()
    if facts["python"].split(".")[:2] != ["3", "11"]:
        found.add("broken", f"Python is {facts['python']}", "Relent needs 3.11; `make setup` makes a .venv with it")
    for requirement in facts["unmet"]:
        found.add("broken", f"package {requirement}", "make setup")
    if gpus and facts["torch"] and not facts["torch_cuda"]:
        remedy = "install a CUDA build of the same version, see https://pytorch.org/get-started/locally"
        found.add("missing", "there is a GPU, but torch is built for the CPU alone", remedy)


def _slurm(found: Examination) -> None:
    facts = found.facts["slurm"] = machine.slurm()
    profile = machine.profile()
    facts["profile"] = str(profile.resolve()) if profile else None
    if profile is None:
        found.add("missing", "`snakemake --profile slurm` finds no profile", "scripts/register_profile.sh")
    if not facts["commands"]["sbatch"]:
        return
    if not facts["answers"]:
        found.add("note", "SLURM is installed, but its controller does not answer", "ask with `sinfo`")


def _folders(found: Examination, project: Project) -> None:
    config = project.config
    store = sqlite_path(config.tracking.uri)
    folders = [config.data, config.teachers, config.results, *([str(store.parent)] if store else [])]
    found.facts["folders"] = {}
    for name in dict.fromkeys(folders):
        existing = Path(name).absolute()
        while not existing.exists():
            existing = existing.parent
        writable = found.facts["folders"][name] = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        if not writable:
            found.add(
                "broken", f"folder {name} cannot be written", f"make {existing} writable or name another in {CONFIG}"
            )


def _tracking(found: Examination, project: Project) -> None:
    uri = project.config.tracking.uri
    path = sqlite_path(uri)
    facts: dict[str, Any] = {"address": masked(uri)}
    found.facts["tracking"] = facts
    if path is None:
        facts["reachable"] = _answers(uri)
        if not facts["reachable"]:
            remedy = "start it, or correct tracking.uri; runs go on without it and `snakemake` tracks them later"
            found.add("missing", f"the tracking server {masked(uri)} does not answer", remedy)
        return
    facts["exists"] = path.is_file()
    if not path.is_file():
        return
    try:
        facts["runs"] = _tracked_runs(path)
    except sqlite3.Error as error:
        remedy = f"move {path} away and run `snakemake`, which rebuilds it from the results"
        found.add("broken", f"the tracking store {path} cannot be read ({error})", remedy)


def _tracked_runs(path: Path) -> int:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)
    try:
        return int(connection.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()[0])
    finally:
        connection.close()


def _answers(uri: str) -> bool:
    """Whether anything listens at an address; one second is waited."""
    try:
        parts = urlsplit(uri)
        port = parts.port or PORTS[parts.scheme.partition("+")[0]]
        socket.create_connection((parts.hostname or "", port), timeout=1).close()
    except (OSError, ValueError, KeyError):
        return False
    return True


def _data(found: Examination, project: Project) -> None:
    """Sources and data sets of the main job."""
    catalogue = project.catalogue
    facts: dict[str, Any] = {"sources": {}, "datasets": {}}
    found.facts["data"] = facts
    for comparison in project.main_comparisons():
        for source in catalogue.tasks[comparison.task].sources:
            if source not in facts["sources"]:
                title = f"source {source}"
                command = f"relent fetch {source}"
                facts["sources"][source] = _state(found, title, Path(catalogue.layout.source(source)), command)
        name = f"{comparison.task}/{comparison.scale}"
        command = f"relent prepare {comparison.task} --scale {comparison.scale}"
        folder = Path(catalogue.layout.dataset(comparison.task, comparison.scale))
        facts["datasets"][name] = _state(found, f"data set {name}", folder, command)


def _state(found: Examination, title: str, folder: Path, command: str) -> str:
    if not (folder / RECEIPT).is_file():
        found.add("missing", f"{title} is not there", f"{command}  (or all at once: snakemake data)")
        return "missing"
    try:
        check_receipt(folder)
    except DataError as error:
        found.add("broken", str(error), f"rm -r {folder}, then {command}")
        return "broken"
    return "there"
