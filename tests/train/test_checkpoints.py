"""Checkpoints: whole or the one before, whatever happens while one is written."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from relent.errors import DivergedError, RelentError
from relent.manifest.catalogue import Catalogue, Run
from relent.methods.distillation.cross_entropy import CrossEntropy
from relent.runspec import RunSpec
from relent.train.checkpoints import WholeFiles, last_checkpoint, read_progress, remove_leftovers
from relent.train.stage import run_stage

KILLED_WHILE_WRITING = """
import io, os, signal, sys
import torch
from relent.train.checkpoints import WholeFiles

def half(checkpoint, handle):
    buffer = io.BytesIO()
    save(checkpoint, buffer)
    handle.write(buffer.getvalue()[: buffer.tell() // 2])
    handle.flush()
    os.kill(os.getpid(), signal.SIGKILL)

path = sys.argv[1]
WholeFiles().save_checkpoint({"relent": {"step": 1}, "weights": torch.ones(10_000)}, path)
save, torch.save = torch.save, half
WholeFiles().save_checkpoint({"relent": {"step": 2}, "weights": torch.ones(10_000)}, path)
"""


@pytest.fixture
def spec(catalogue: Catalogue, changed: Callable[..., RunSpec]) -> RunSpec:
    plain = catalogue.stage_spec(Run("patterns", "cross_entropy", "default", "smoke", 0))
    return changed(plain, checkpoint_every=4)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse to make a file larger, as a full disk does."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)


def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / "last.ckpt"
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], check=False, timeout=120)
    assert done.returncode == -9
    assert torch.load(path, weights_only=True)["relent"]["step"] == 1
    assert last_checkpoint(tmp_path) == path
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / "last.ckpt"
    files = WholeFiles()
    files.save_checkpoint({"weights": torch.ones(10)}, path)
    with files_of_at_most(2**16), pytest.raises(RelentError, match=r"last\.ckpt: cannot be written \(File too large"):
        files.save_checkpoint({"weights": torch.ones(10**6)}, path)
    assert torch.load(path, weights_only=True)["weights"].shape == (10,)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_the_run_goes_on_afterwards(spec, monkeypatch):
    save, saved = torch.save, []

    def full_at_the_second(checkpoint: object, handle: BinaryIO) -> None:
        saved.append(handle)
        if len(saved) == 2:
            handle.write(b"the first bytes")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(checkpoint, handle)

    monkeypatch.setattr(torch, "save", full_at_the_second)
    with pytest.raises(RelentError) as refused:
        run_stage(spec)
    monkeypatch.undo()
    for part in (spec.output, "No space left on device", "make space and give the same command"):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)
    folder = Path(spec.output) / "checkpoints" / spec.plan()
    assert read_progress(folder / "last.ckpt", spec)["step"] == 4
    run_stage(spec)
    assert (Path(spec.output) / "config.json").exists()


def test_a_checkpoint_follows_the_numbers_of_its_step(spec, changed, monkeypatch):
    """Whoever dies right after a checkpoint has lost no row of metrics.csv, that of its validation included."""
    spec = changed(spec, validate_every=4)
    seen = []

    def save(self: WholeFiles, checkpoint: dict, path: Path, storage_options: object = None) -> None:
        rows = (Path(path).parent / "metrics.csv").read_text().splitlines()
        seen.append((checkpoint["relent"]["step"], rows[-1].split(",")[:2]))

    monkeypatch.setattr(WholeFiles, "save_checkpoint", save)
    run_stage(spec)
    assert seen == [(step, [str(step - 1), "validation/accuracy"]) for step in (4, 8, 12)]


def test_a_run_that_diverges_stops_with_a_line_and_keeps_its_last_good_checkpoint(spec, monkeypatch):
    step = CrossEntropy.training_step

    def broken(self: CrossEntropy, batch: dict, batch_idx: int) -> torch.Tensor:
        return step(self, batch, batch_idx) * (float("nan") if self.global_step == 6 else 1.0)

    monkeypatch.setattr(CrossEntropy, "training_step", broken)
    with pytest.raises(
        DivergedError, match=r"not finite at step 8 \(they were at step 4\); lower learning_rate"
    ) as told:
        run_stage(spec)
    assert spec.output in str(told.value)
    path = Path(spec.output) / "checkpoints" / spec.plan() / "last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert not (Path(spec.output) / "weights.safetensors").exists()
