"""A full disk and a read-only one: one clear line, nothing half-written, and the same command goes on afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from relent.compare import command
from relent.errors import RelentError
from relent.evaluate.run import evaluate_run
from relent.files import whole, write_json
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.train.stage import run_stage

pytestmark = pytest.mark.workflow

PAGE = 4096


class Disk:
    """A small file system of its own, and a file that fills what a test does not leave free."""

    def __init__(self, folder: Path):
        self.folder, self.filler = folder, folder / "filler"

    def leave(self, free: int) -> None:
        """Fill the disk up to `free` bytes."""
        self.filler.unlink(missing_ok=True)
        status = os.statvfs(self.folder)
        size = status.f_bavail * status.f_frsize - free
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))

    def through(self, step: Callable[[], object], check: Callable[[], None], stride: int = 2 * PAGE) -> str:
        """Repeat a step on a full disk with a little more room each time, until it ends; returns all it said."""
        said = []
        for free in range(0, 2**20, stride):
            self.leave(free)
            try:
                step()
            except RelentError as error:
                said.append(str(error))
                assert "\n" not in said[-1]
                assert re.search(r"cannot be (written|made)", said[-1]), said[-1]
                assert not [path for path in self.folder.rglob("*") if path.name.endswith((".part", ".old"))]
                check()
            else:
                assert len(said) > 1, "the disk was never full"
                self.filler.unlink()
                return "\n".join(said)
        raise AssertionError("the step never ended")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of 1 MB; skipped where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=False)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_training_and_evaluation_on_a_full_disk(shared_catalogue: Catalogue, disk: Disk, tmp_path: Path):
    layout = Layout(shared_catalogue.layout.data, f"{tmp_path}/teachers", str(disk.folder / "results"))
    catalogue = replace(shared_catalogue, layout=layout)
    run_stage(catalogue.teacher_spec("patterns", "wide", "smoke"))
    spec = catalogue.stage_spec(Run("patterns", "cross_entropy", "default", "smoke", 0))
    folder = Path(spec.output)

    def check_training() -> None:
        assert not (folder / "config.json").exists()
        if (folder / "weights.safetensors").exists():
            load_file(folder / "weights.safetensors")

    said = disk.through(lambda: run_stage(spec), check_training)
    for name in ("last.ckpt", "predictions.zarr"):
        assert name in said
    reference = replace(spec, output=str(tmp_path / "reference"))
    run_stage(reference)
    other = load_file(tmp_path / "reference" / "weights.safetensors")
    assert all((value == other[name]).all() for name, value in load_file(folder / "weights.safetensors").items())

    def check_evaluation() -> None:
        assert not (folder / "scores.json").exists()

    inputs = {"teacher": layout.teacher("patterns", "wide", "smoke")}
    said = disk.through(lambda: evaluate_run(folder, inputs), check_evaluation, 8 * PAGE)
    assert "figures" in said
    run_stage(catalogue.stage_spec(Run("patterns", "cross_entropy", "default", "smoke", 1)))
    evaluate_run(folder.with_name("seed1"), inputs)

    runs = [(folder.with_name(f"seed{seed}"), "cross_entropy") for seed in (0, 1)]
    task, out = catalogue.tasks["patterns"], disk.folder / "patterns"

    def compare() -> None:
        command.run_compare(task, runs, 0.95, out, catalogue.methods)
        command.run_claims(task, catalogue.methods, runs, 0.95, out)
        command.run_figures(task, runs, out)
        command.run_page(out)

    def check_comparison() -> None:
        for name in ("comparison.json", "claims.json"):
            if (out / name).exists():
                json.loads((out / name).read_text())
        assert not (out / "comparison.html").exists()

    said = disk.through(compare, check_comparison, 8 * PAGE)
    assert "comparison" in said
    assert "figures" in said


@pytest.mark.parametrize("before", ["nothing", "a file", "a folder"])
def test_what_stood_there_stays_when_the_disk_is_full(disk: Disk, before: str):
    place = disk.folder / "place"
    if before == "a file":
        place.write_text("old")
    elif before == "a folder":
        place.mkdir()
        (place / "old").write_text("old")
    disk.leave(PAGE)
    with pytest.raises(RelentError, match=r"/place: cannot be written \(No space left on device; 0\.\d MB are free\)"):
        write_json(place, ["x" * 100] * 1000)
    assert place.exists() == (before != "nothing")
    if before == "a file":
        assert place.read_text() == "old"
    elif before == "a folder":
        assert (place / "old").read_text() == "old"


def test_read_only_folder_is_one_clear_line(disk: Disk, project):
    """Known before any job; a disk that becomes read-only later stops its job in the same way."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk.folder)], check=True)
    done = project.snakemake("--config", f"results={disk.folder}/results", check=False)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("relent: ")]
    assert "is not writable (Read-only file system); choose another one" in line
    assert "Traceback" not in done.stderr
    with pytest.raises(RelentError, match=r"cannot be written \(Read-only file system"):
        write_json(disk.folder / "results" / "x.json", {})


def test_an_error_of_another_kind_is_told_as_it_is(tmp_path: Path):
    with pytest.raises(FileNotFoundError), whole(tmp_path / "made") as temporary:
        temporary.write_text((tmp_path / "absent").read_text())
