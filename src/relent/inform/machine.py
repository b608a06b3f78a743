"""What this machine has: cores, memory, disk, Python and packages, GPUs, SLURM. Loads no torch."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

GIB = 2**30
SLURM_COMMANDS = ("sbatch", "squeue", "sinfo", "sacct", "scancel")


def hardware(folder: Path) -> dict[str, Any]:
    """Usable cores, memory and free disk of `folder`, in GiB."""
    total, available = _memory()
    disk = shutil.disk_usage(folder)
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": total,
        "memory_available_gib": available,
        "disk_free_gib": round(disk.free / GIB, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _memory() -> tuple[float | None, float | None]:
    """Total and available memory in GiB; a control group's limit counts where it is smaller."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None, None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return round(total / GIB, 1), round(min(total, available) / GIB, 1)


def software() -> dict[str, Any]:
    """Python, torch and the CUDA version it was built for, and packages that are missing or of a wrong version."""
    return {
        "python": platform.python_version(),
        "relent": version("relent"),
        "torch": version("torch"),
        "torch_cuda": torch_cuda(),
        "snakemake": version("snakemake"),
        "lightning": version("lightning"),
        "mlflow": version("mlflow"),
        "unmet": unmet_requirements(),
    }


def version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def torch_cuda() -> str | None:
    """CUDA version that the installed torch was built for, read from its files; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, flags=re.MULTILINE)
    return found.group(1) if found else None


def unmet_requirements() -> list[str]:
    """Requirements of Relent that are not installed, or in another version, each with what there is."""
    try:
        wanted = [Requirement(line) for line in metadata.requires("relent") or []]
    except metadata.PackageNotFoundError:
        return ["relent itself (run `make setup`)"]
    unmet = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        have = version(requirement.name)
        if have is None or not requirement.specifier.contains(have, prereleases=True):
            unmet.append(f"{requirement.name}{requirement.specifier} (here: {have or 'not installed'})")
    return unmet


def gpus() -> list[dict[str, str]]:
    """GPUs that `nvidia-smi` names, with memory and driver; empty where there is none."""
    answer = _ask("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader", seconds=5)
    rows = [line.split(", ") for line in (answer or "").splitlines()]
    return [dict(zip(("name", "memory", "driver"), row)) for row in rows if len(row) == 3]


def slurm() -> dict[str, Any]:
    """SLURM's commands on the PATH, its version, and its partitions where the controller answers."""
    found = {name: shutil.which(name) is not None for name in SLURM_COMMANDS}
    answer = _ask("sinfo", "--noheader", "--format=%P|%a|%l|%D|%G", seconds=3) if found["sinfo"] else None
    names = ("partition", "state", "limit", "nodes", "gres")
    rows = [line.split("|") for line in (answer or "").splitlines()]
    return {
        "commands": found,
        "version": (_ask("sbatch", "--version", seconds=3) or "").strip() if found["sbatch"] else "",
        "answers": answer is not None,
        "partitions": [dict(zip(names, row)) for row in rows if len(row) == len(names)],
        "plugin": version("snakemake-executor-plugin-slurm"),
    }


def _ask(*command: str, seconds: float) -> str | None:
    """Output of a command; None where it is missing, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def profile(name: str = "slurm") -> Path | None:
    """The folder that `snakemake --profile NAME` takes its configuration from, or None.

    Looked for as Snakemake does: as a path, then in the user's configuration folder, then in the site's.
    """
    from platformdirs import PlatformDirs

    folders = PlatformDirs("snakemake", "snakemake")
    for folder in (Path(), Path(folders.user_config_dir), Path(folders.site_config_dir)):
        candidate = folder / name
        if candidate.is_dir() and any(candidate.glob("config*.yaml")):
            return candidate
    return None
